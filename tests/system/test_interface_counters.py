"""Counted against observed: what the kernel's counters say that a run sent, in a network namespace with nothing else.

Both models, 2, 3 and 4 ranks; per step, from the difference of a longer and a shorter run, so that connecting, starting
and saving cancel out. AlexNet moves up to 1.5 GB a step; set DTRAIN_FULL=1 to give it 40 and 10 steps as well.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from programs import environment, read_summary, run, train_command

from dtrain.meter.nic import read_counters

MISSING = [tool for tool in ("unshare", "ip") if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="making a network namespace needs root"),
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not found: install util-linux and iproute2"),
    pytest.mark.timeout(900),
]

FULL = os.environ.get("DTRAIN_FULL") == "1"
IN_A_NEW_NAMESPACE = ["unshare", "--net", "sh", "-c"]
SCRIPT = 'ip link set lo up && "$@"; code=$?; cat /proc/self/net/dev > counters.txt; exit $code'


class Measured(NamedTuple):
    """One run: its summary, and what loopback sent in all."""

    summary: dict[str, Any]
    observed_bytes: int


def measure(folder: Path, model: str, ranks: int, num_steps: int) -> Measured:
    """A run of `num_steps` in a namespace of its own."""
    folder.mkdir()
    command = train_command(
        f"model={model}",
        "model.num_classes=1000",
        "data=synthetic",
        "data.image_size=39",
        "data.num_train_images=160",
        "data.num_test_images=4",
        "data.num_workers=0",
        "batch_size=1",
        f"num_steps={num_steps}",
        "eval_every_epochs=0",
        "run_dir=run",
        "observe.progress=false",
        ranks=ranks,
    )
    run([*IN_A_NEW_NAMESPACE, SCRIPT, "sh", *command], folder, timeout=600, env=environment()).expect(0)
    (folder / "run" / "model.safetensors").unlink()
    counters = read_counters(str(folder / "counters.txt"))
    assert set(counters) == {"lo"}, "not a fresh namespace"
    return Measured(read_summary(folder / "run"), counters["lo"].transmitted_bytes)


def cells() -> list[Any]:
    steps = {"squeezenet1_0": (40, 10), "alexnet": (40, 10) if FULL else (8, 2)}
    return [pytest.param(model, n, *steps[model], id=f"{model} on {n}") for model in steps for n in (2, 3, 4)]


@pytest.mark.parametrize(("model", "ranks", "many", "few"), cells())
def test_counted_bytes_are_the_interface_s_within_half_a_percent(
    tmp_path: Path, model: str, ranks: int, many: int, few: int, record_property: pytest.FixtureRequest
) -> None:
    long, short = (measure(tmp_path / f"steps{n}", model, ranks, n) for n in (many, few))
    extra = many - few
    observed = (long.observed_bytes - short.observed_bytes) / extra
    everything = "total_wire_bytes_all_ranks"
    counted = (long.summary[everything] - short.summary[everything]) / extra
    gradients = long.summary["wire_bytes_per_step"] * ranks
    parameters = {"squeezenet1_0": 1_248_424, "alexnet": 60_965_224}[model]
    print(
        f"{model}, {ranks} ranks, {many} - {few} steps: counted {counted:,.0f} B/step (gradients {gradients:,.0f}), "
        f"observed {observed:,.0f}, observed/counted {observed / counted:.5f}"
    )
    assert gradients == pytest.approx(2 * (ranks - 1) * 4 * parameters, rel=1e-12)
    assert counted == pytest.approx(gradients, rel=1e-3)  # the rest is a line of metrics every 10 steps
    assert observed == pytest.approx(counted, rel=0.005)
    # the run measured the same on its own, per rank and from its first step to its last
    nic = long.summary["nic_bytes_per_step"]
    assert nic is not None
    assert nic * ranks == pytest.approx(counted, rel=0.01)
