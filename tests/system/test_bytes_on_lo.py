"""Counted bytes against the kernel's, by the benchmark that writes the result file."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from bytes_on_lo import MODELS, measure

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not (shutil.which("unshare") and shutil.which("ip")), reason="needs unshare and ip (iproute2)"),
    pytest.mark.timeout(900),
]


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("model", MODELS)
def test_the_kernel_saw_what_was_counted_within_half_a_percent(model: str, world_size: int) -> None:
    cell = measure(model, world_size)
    assert cell.ratio == pytest.approx(1.0, abs=0.005)
    # the run's own figure, all ranks together; its window holds a few messages of metrics too
    assert cell.nic_bytes_per_step * world_size == pytest.approx(cell.observed_bytes, rel=0.01)
