"""`dtrain launch`: what it would run, and its mistakes."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dtrain.cli import main

DryRun = Callable[..., str]
AGENT = "OMP_NUM_THREADS=3 python -m dtrain.launch.agent"


@pytest.fixture
def dry_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> DryRun:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)

    def of(*arguments: str) -> str:
        assert main(["launch", "--dry-run", *arguments]) == 0
        return capsys.readouterr().out.strip().replace(sys.executable, "python")

    return of


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    try:
        code = main(["launch", *arguments])
    except SystemExit as ended:  # argparse's
        code = int(str(ended.code))
    assert code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_one_host_is_a_job_of_its_own(dry_run: DryRun) -> None:
    assert dry_run() == f"{AGENT} --nproc-per-node=2 --standalone -m dtrain.train"
    line = dry_run("-n", "4", "--restarts", "1", "run_dir=a b", "seed=1")
    assert line == f"{AGENT} --nproc-per-node=4 --standalone --max-restarts=1 -m dtrain.train 'run_dir=a b' seed=1"
    assert shlex.split(line)[-2:] == ["run_dir=a b", "seed=1"]


def test_a_name_needs_a_rendezvous_that_has_place_for_it(dry_run: DryRun) -> None:
    rendezvous = "--rdzv-backend=c10d --rdzv-endpoint=localhost:0 --rdzv-id=mine"
    assert dry_run("--id", "mine") == f"{AGENT} --nproc-per-node=2 {rendezvous} -m dtrain.train"


def test_somebody_s_own_program(dry_run: DryRun, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.touch()
    ranks = f"{AGENT} --nproc-per-node=2 --standalone"
    assert dry_run("--", str(script), "-n", "7") == f"{ranks} {script} -n 7"
    assert dry_run("--program", str(script), "-n", "7") == f"{ranks} {script} -n 7"
    assert dry_run("-n", "2", "--", "-m", "dtrain.meter", "x.py") == f"{ranks} -m dtrain.meter x.py"
    assert dry_run("--", "sh", "-c", "exit 3") == f"{ranks} --no-python sh -c 'exit 3'"


def test_several_hosts_by_hand_meet_at_the_master(dry_run: DryRun) -> None:
    hosts = ("--nodes", "2", "--node-rank", "1", "--master")
    ranks = f"{AGENT} --nproc-per-node=2 --nnodes=2 --node-rank=1"
    assert dry_run(*hosts, "a", "seed=1") == f"{ranks} --master-addr=a --master-port=29500 -m dtrain.train seed=1"
    assert " --master-addr=a --master-port=4000 " in dry_run(*hosts, "a:4000")


def test_where_the_environment_says_how_hosts_meet_it_stays(dry_run: DryRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_NNODES", "2")  # of dtrain cluster run, and of Kubeflow
    assert dry_run("-n", "1") == f"{AGENT} --nproc-per-node=1 -m dtrain.train"


def test_hosts_that_come_and_go(dry_run: DryRun) -> None:
    line = dry_run("--elastic", "1:4", "--id", "mine", "--master", "a", "--restarts", "3")
    rendezvous = "--nnodes=1:4 --rdzv-backend=c10d --rdzv-endpoint=a:29500 --rdzv-id=mine --max-restarts=3"
    assert line == f"{AGENT} --nproc-per-node=2 {rendezvous} -m dtrain.train"


def test_the_interface_is_gloo_s_and_nccl_s(dry_run: DryRun) -> None:
    assert dry_run("--interface", "lo").startswith(
        "OMP_NUM_THREADS=3 GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo python "
    )


def test_the_backend_says_which_launcher_it_needs(
    dry_run: DryRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpiexec = tmp_path / "mpiexec"
    mpiexec.write_text("#!/bin/sh\necho HYDRA build details:\n")
    mpiexec.chmod(0o755)
    monkeypatch.setenv("MPIEXEC", str(mpiexec))
    line = dry_run("-n", "3", "backend=mpi", "seed=1")
    assert line.startswith(f"OMP_NUM_THREADS=3 {mpiexec} -n 3 bash ")
    assert line.endswith("mpi_rank.sh python -m dtrain.train backend=mpi seed=1")
    assert f"{mpiexec} -n 5 -hosts a:2,b:3 bash" in dry_run("-H", "a:2,b:3", "--launcher", "mpirun", "backend=horovod")


def test_a_task_of_slurm_s_is_a_rank(dry_run: DryRun, monkeypatch: pytest.MonkeyPatch) -> None:
    step = {"JOB_ID": "7", "STEP_ID": "0", "PROCID": "1", "LOCALID": "1", "STEP_NUM_TASKS": "2"}
    for name, value in {**step, "STEP_NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    place = "RANK=1 LOCAL_RANK=1 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=15707"
    assert dry_run("seed=1") == f"{place} OMP_NUM_THREADS=3 python -m dtrain.train seed=1"
    assert dry_run("--", "sh", "-c", "exit 3") == f"{place} OMP_NUM_THREADS=3 sh -c 'exit 3'"


def test_in_slurm_what_says_how_many_ranks_is_srun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "4")
    assert mistake(capsys).endswith("this job of Slurm's has 4 hosts, and one would be used: srun dtrain launch ...")
    for name, value in {"STEP_ID": "0", "PROCID": "0", "LOCALID": "0", "STEP_NUM_TASKS": "4"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert "srun --ntasks=N says how many ranks" in mistake(capsys, "-n", "4")
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(SystemExit):  # and says nothing
        main(["launch", "-n", "4"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["-n"], "-n: expected one argument"),
        (["-n", "two"], "two is not a number from 1"),
        (["seed=1", "-n", "2"], "-n stands behind a setting: put options before settings"),
        (["--nodes", "2"], "--nodes 2 needs --node-rank R and --master HOST"),
        (["--nodes", "2", "--node-rank", "2", "--master", "a"], "--node-rank 2 is not from 0 to 1"),
        (["--nodes", "2", "--node-rank", "0", "--master", "a:b"], "--master a:b is not HOST or HOST:PORT"),
        (["--master", "a"], "add --nodes N"),
        (["--elastic", "4:1"], "4:1 is not MIN:MAX"),
        (["--elastic", "1:4"], "--elastic MIN:MAX goes with --id ID and --master HOST"),
        (["--interface", "eth99"], "--interface eth99 does not exist here: choose one of"),
        (["--ssh-options", "-p 1"], "add -H or --hostfile"),
        (["-H", "a", "--hostfile", "b"], "leave one out"),
        (["-H", "a", "--nodes", "2"], "--nodes is for hosts that are started by hand"),
        (["--id", "a", "backend=mpi"], "--id is for ranks of gloo and NCCL"),
        (["--"], "name a program"),
        (["seed=1", "--", "x.py"], "seed=1 is a setting of dtrain's training"),
        (["--", "no-such-program"], "no-such-program is not in PATH"),
        (["--", "no-such.py"], "no-such.py is no file here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_names_its_cure(capsys: pytest.CaptureFixture[str], arguments: list[str], part: str) -> None:
    assert part in mistake(capsys, *arguments)
