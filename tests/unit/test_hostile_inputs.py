"""A short run of benchmarks/fuzz.py over every format but packed models, whose run is with their tests."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import hostile_files
import hostile_payloads
import hostile_texts
from hostile import attempts

FORMATS = {**hostile_texts.formats(), **hostile_files.formats(), **hostile_payloads.formats()}
SLOW = ("run's", "payload", "model", "weights, npz")


@pytest.fixture(autouse=True)
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_inputs_are_read_or_refused_in_one_line_soon_and_in_little_memory(name: str) -> None:
    inputs = 4 if name.startswith(SLOW) else 40
    list(attempts(FORMATS[name], 2, seed=1))  # imports
    outcomes = list(attempts(FORMATS[name], inputs, seed=1))
    assert not [(seed, outcome) for seed, outcome in outcomes if outcome.is_fault]
