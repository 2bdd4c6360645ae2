"""The batch script of the documentation in a real Slurm, of four slurmd on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from programs import REPOSITORY, environment, read_summary, run
from safetensors.torch import load_file
from slurm_cluster import missing, slurm

NUM_NODES = 4
SETTINGS = ("num_steps=30", "batch_size=8", "log_every=5", "eval_every_epochs=0", "seed=1", "compressor=int4")
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd and munged need root"),
    pytest.mark.skipif(bool(missing()), reason=f"{', '.join(missing())} not found: install slurm-wlm and munge"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with slurm(tmp_path_factory.mktemp("slurm"), NUM_NODES) as variables:
        yield environment({**variables, "PATH": path})


def said(cluster: Mapping[str, str], folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=dict(cluster), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def await_text(path: Path, text: str) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, path.read_text() if path.exists() else f"no {path}"
        time.sleep(0.1)


def await_state(cluster: Mapping[str, str], folder: Path, job: str, wanted: str) -> None:
    deadline = time.monotonic() + 60
    while f"JobState={wanted} " not in (state := said(cluster, folder, "scontrol", "--oneliner", "show", "job", job)):
        assert time.monotonic() < deadline, state
        time.sleep(0.2)


def test_a_preempted_job_goes_back_into_the_queue_and_ends_with_the_weights_of_one_that_srun_started_undisturbed(
    tmp_path: Path, cluster: Mapping[str, str]
) -> None:
    script, output = str(REPOSITORY / "launch" / "slurm.sbatch"), tmp_path / "output"
    job = said(cluster, tmp_path, "sbatch", "--parsable", f"--output={output}", script, *SETTINGS)
    await_text(output, "step 5/30")
    said(cluster, tmp_path, "scancel", "--batch", "--signal=TERM", job)  # as --signal=B:TERM@60 does before the limit
    await_text(output, "stopped by SIGTERM")

    # meanwhile, by the trainer's own command
    undisturbed = [sys.executable, "-m", "dtrain.train", *SETTINGS, "run_dir=undisturbed"]
    run(["srun", f"--nodes={NUM_NODES}", f"--ntasks={NUM_NODES}", *undisturbed], tmp_path, env=cluster).expect(0)
    await_state(cluster, tmp_path, job, "PENDING")
    said(cluster, tmp_path, "scontrol", "update", f"JobId={job}", "StartTime=now")  # else Slurm waits two minutes
    await_text(output, "results in")
    await_state(cluster, tmp_path, job, "COMPLETED")

    text, summary = output.read_text(), read_summary(tmp_path / "runs" / f"slurm-{job}")
    assert "going on from" in text
    assert "Traceback" not in text and "Exception raised" not in text
    assert (summary["complete"], summary["world_size"]) == (True, NUM_NODES)
    first, second = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("undisturbed", f"runs/slurm-{job}")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
