"""launch/torchrun.sh: the command it makes of its options, and a run with it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from programs import REPOSITORY, environment, read_summary, run

pytestmark = pytest.mark.timeout(600)

TORCHRUN = str(REPOSITORY / "launch" / "torchrun.sh")
ENVIRONMENT = environment({"PYTHON": sys.executable})


def dry_run(folder: Path, *arguments: str, threads: str = "3") -> str:
    env = {**ENVIRONMENT, "OMP_NUM_THREADS": threads}
    done = run([TORCHRUN, "--dry-run", *arguments], folder, env=env).expect(0)
    return done.stdout.strip().replace(sys.executable, "python").replace(f"{REPOSITORY}/", "")


def test_one_host_is_a_job_of_its_own(tmp_path: Path) -> None:
    torchrun = "OMP_NUM_THREADS=3 python launch/torchrun.py"
    assert dry_run(tmp_path) == f"{torchrun} --nproc-per-node=2 --standalone -m dtrain.train"
    many = dry_run(tmp_path, "-n", "4", "run_dir=a b", "seed=1")
    assert many == rf"{torchrun} --nproc-per-node=4 --standalone -m dtrain.train run_dir=a\ b seed=1"


def test_several_hosts_meet_at_the_master(tmp_path: Path) -> None:
    hosts = ("--nodes", "2", "--node-rank", "1", "--master")
    ranks = "python launch/torchrun.py --nproc-per-node=2 --nnodes=2 --node-rank=1"
    end = "-m dtrain.train seed=1"
    assert f"{ranks} --master-addr=node0 --master-port=29500 {end}" in dry_run(tmp_path, *hosts, "node0", "seed=1")
    assert f"{ranks} --master-addr=node0 --master-port=4000 {end}" in dry_run(tmp_path, *hosts, "node0:4000", "seed=1")


def test_the_interface_is_gloo_s_and_nccl_s(tmp_path: Path) -> None:
    line = dry_run(tmp_path, "--interface", "lo")
    assert line.startswith("OMP_NUM_THREADS=3 GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo python ")


@pytest.mark.parametrize("ranks", [1, 2, 1000])
@pytest.mark.parametrize("script", ["torchrun.sh", "mpirun.sh"])
def test_the_ranks_share_the_cores(tmp_path: Path, script: str, ranks: int) -> None:
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    env = {key: value for key, value in ENVIRONMENT.items() if key != "OMP_NUM_THREADS"}
    command = [str(REPOSITORY / "launch" / script), "-n", str(ranks), "--dry-run"]
    assert run(command, tmp_path, env=env).expect(0).stdout.startswith(f"OMP_NUM_THREADS={threads} ")


def test_two_ranks_train(tmp_path: Path) -> None:
    settings = ["num_steps=2", "batch_size=8", "run_dir=a run", "observe.progress=false"]
    run([TORCHRUN, "--interface", "lo", *settings], tmp_path, env=ENVIRONMENT).expect(0)
    summary = read_summary(tmp_path / "a run")
    assert (summary["world_size"], summary["num_steps"], summary["complete"]) == (2, 2, True)


def test_a_mistake_in_a_setting_is_the_last_line_with_its_exit_code(tmp_path: Path) -> None:
    environ = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
    ended = run([TORCHRUN, "modle=alexnet"], tmp_path, env=environ).expect(2)
    first, last = ended.stderr.splitlines()
    assert first.startswith("dtrain: error: modle is not a setting (did you mean model?)")
    (log,) = tmp_path.glob("dtrain-torchrun-*.log")
    assert "ChildFailedError" in log.read_text() or "FAILED" in log.read_text()
    assert last.startswith("launch/torchrun.sh: rank 0 on ")
    assert f"ended with exit code 2 (torchrun's log: {log}): modle is not a setting (did you mean model?)" in last


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["-n"], "-n needs a value"),
        (["-n", "two"], "-n two is not a number of workers"),
        (["--nodes", "0"], "--nodes 0 is not a number of hosts"),
        (["--nodes", "2"], "--nodes 2 needs --node-rank R and --master HOST"),
        (["--nodes", "2", "--node-rank", "2", "--master", "a"], "--node-rank 2 is not from 0 to 1"),
        (["--nodes", "2", "--node-rank", "0", "--master", "a:b"], "--master a:b is not HOST or HOST:PORT"),
        (["--master", "a"], "add --nodes N"),
        (["--interface", "eth99"], "--interface eth99 does not exist here"),
        (["--hostfile", "x"], "no option --hostfile"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: list[str], part: str) -> None:
    ended = run([TORCHRUN, *arguments], tmp_path, env=ENVIRONMENT).expect(2)
    assert part in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_it_has_help(tmp_path: Path) -> None:
    assert "Usage: launch/torchrun.sh" in run([TORCHRUN, "--help"], tmp_path).expect(0).stdout
