"""What becomes of the mean change: averaged, or a step of an outer optimizer on the common weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_local import MODEL, sgd, worker
from threads import ThreadCommunicator, run_ranks
from torch import Tensor

from dtrain.sync.outer import OUTERS, Outer, outer_named


def common_after(outer: Outer, num_rounds: int) -> Tensor:
    def body(communicator: ThreadCommunicator) -> Tensor:
        own = worker(communicator, every=2, optimizer=sgd, outer=outer)
        for step in range(2 * num_rounds):
            own.step(step)
        return own.weights

    first, second = run_ranks(2, body)
    assert torch.equal(first, second)
    return first


START = torch.cat([p.detach().reshape(-1) for p in MODEL.parameters()])


def test_the_rate_multiplies_the_mean_change() -> None:
    whole, half = (common_after(Outer(rate), 1) - START for rate in (1.0, 0.5))
    torch.testing.assert_close(half, whole / 2, rtol=1e-4, atol=1e-7)


def test_momentum_adds_the_changes_before() -> None:
    first = common_after(Outer(1.0, 0.5), 1)
    second = common_after(Outer(1.0, 0.5), 2)
    without = common_after(Outer(), 2)
    torch.testing.assert_close(first, common_after(Outer(), 1))
    torch.testing.assert_close(second, without + 0.5 * (first - START), rtol=1e-4, atol=1e-6)


def test_nesterov_looks_ahead_from_the_first_round() -> None:
    change = common_after(Outer(), 1) - START
    torch.testing.assert_close(common_after(OUTERS["nesterov"], 1) - START, 0.7 * 1.9 * change, rtol=1e-4, atol=1e-6)


def test_names_have_values_of_their_own_that_can_be_replaced() -> None:
    assert outer_named("average") == outer_named("sgd") == Outer(1.0, 0.0)
    assert outer_named("nesterov") == Outer(0.7, 0.9, nesterov=True)
    assert outer_named("nesterov", 0.5, 0.4) == Outer(0.5, 0.4, nesterov=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("adam",), "outer=adam does not exist: choose one of average, sgd, nesterov"),
        (("average", 0.5), "outer=average has neither rate nor momentum"),
        (("sgd", 0.0, 0.5), "outer_rate=0.0 must be above 0"),
        (("sgd", 1.0, 1.0), "outer_momentum=1.0"),
        (("nesterov", 1.0, 0.0), "needs outer_momentum above 0"),
    ],
)
def test_what_does_not_exist_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        outer_named(*arguments)
