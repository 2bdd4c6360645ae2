"""What the meter says of a traced job at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dtrain.exchange import Op
from dtrain.meter.ledger import Purpose
from dtrain.meter.trace import Trace, TracedCollective, TracedStep
from dtrain.plan.advice import advise

NUMEL = 300_000


def traced(path: Path, *, seconds: float, others: int = 0, world_size: int = 4, ranks_on_host: int = 2) -> Path:
    """A job of one parameter, ready at the middle of its step, that also gathers so many bytes."""
    gradient = TracedCollective(
        Op.ALL_REDUCE, 4 * NUMEL, "float32", world_size, seconds / 2, 0.6 * seconds, Purpose.GRADIENT
    )
    gathered = TracedCollective(Op.ALL_GATHER, others, "uint8", world_size, 0.0, None, Purpose.UNKNOWN)
    step = TracedStep(seconds, (gathered, gradient) if others else (gradient,))
    trace = Trace(
        world_size, "gloo", "cpu", 1, 2, ranks_on_host, ((NUMEL, "float32"),), "AdamW", None, (0.9, 0.999), (step,)
    )
    path.write_text(json.dumps(trace.as_json()))
    return path


def test_a_slow_link_is_worth_a_compressor_and_a_fast_one_nothing(tmp_path: Path) -> None:
    said = advise(traced(tmp_path / "run.json", seconds=0.2))
    assert said.startswith("Gradients are 100% of the 1.8 MB that a rank sends a step. On 2 hosts, at 100 Mbit/s ")
    assert "; at 10 Gbit/s change nothing." in said
    assert "at 100 Mbit/s change nothing" not in said


def test_no_time_is_promised_without_fp16s_and_what_training_cost(tmp_path: Path) -> None:
    said = advise(traced(tmp_path / "run.json", seconds=0.02))
    method = said.split("at 100 Mbit/s ")[1].split(" would take ")[0]
    assert method not in ("fp16", "none")
    assert " of fp16's)" in said
    assert f" As tried, {method} cost " in said


@pytest.mark.parametrize(
    ("changed", "says"), [({"world_size": 1, "ranks_on_host": 1}, "alone"), ({"device": "cuda"}, "trains on cuda")]
)
def test_where_nothing_can_be_said_it_says_why(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    path = traced(tmp_path / "run.json", seconds=0.2)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(ValueError, match=says):
        advise(path)


def test_what_else_is_sent_is_not_the_gradients(tmp_path: Path) -> None:
    said = advise(traced(tmp_path / "run.json", seconds=0.2, others=200_000))
    assert said.startswith("Gradients are 75% of the 2.4 MB ")


def test_of_a_job_on_one_host_every_rank_is_given_its_own(tmp_path: Path) -> None:
    assert " On 4 hosts, " in advise(traced(tmp_path / "run.json", seconds=0.2, ranks_on_host=4))


def test_a_job_that_exchanges_nothing_has_no_advice(tmp_path: Path) -> None:
    path = traced(tmp_path / "run.json", seconds=0.2)
    data = json.loads(path.read_text())
    data["steps"][0]["collectives"] = []
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="no step exchanged gradients"):
        advise(path)
