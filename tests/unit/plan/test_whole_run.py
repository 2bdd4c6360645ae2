"""What a step comes to over a whole run."""

from __future__ import annotations

import pytest

from dtrain.cli import MISTAKE, main
from dtrain.plan.whole_run import Total, WholeRun, whole_run

PLAN = ["plan", "--params", "1M", "--compute", "1ms", "--nodes", "2", "--link", "1gbit"]


def test_hours_bytes_of_all_nodes_and_cost_of_a_run_are_products() -> None:
    run = WholeRun(7200, price=2.5)
    assert run.total(seconds=0.5, sent_bytes=1e6, num_nodes=4) == Total(hours=1.0, gigabytes=28.8, cost=10.0)


def test_a_run_without_a_price_has_no_cost() -> None:
    assert WholeRun(10).total(seconds=1.0, sent_bytes=0.0, num_nodes=1).cost is None


def test_no_steps_named_is_no_run() -> None:
    assert whole_run(None, None) is None
    assert whole_run(5, 0.0) == WholeRun(5, 0.0)


@pytest.mark.parametrize(("num_steps", "price", "said"), [(0, None, "at least 1"), (5, -1.0, "below 0")])
def test_a_run_that_cannot_be_is_a_mistake(num_steps: int, price: float | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        whole_run(num_steps, price)


def test_a_price_without_steps_is_a_mistake_that_names_the_cure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, "--price", "3"]) == MISTAKE
    assert "add --num-steps N" in capsys.readouterr().err
