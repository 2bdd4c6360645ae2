"""What a user gets from training over MPI: the same as over gloo, an end when a rank is gone, and clear refusals."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from programs import REPOSITORY, environment, finish, read_summary, run, start, train_command

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'dtrain[mpi]'")
pytestmark = pytest.mark.timeout(600)

MPIRUN = str(REPOSITORY / "launch" / "mpirun.sh")
ENVIRONMENT = environment({"PYTHON": sys.executable})


def mpi_command(*settings: str, ranks: int = 2) -> list[str]:
    return [MPIRUN, "-n", str(ranks), *settings]


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


# The same as over gloo


def test_20_steps_send_exactly_gloo_s_bytes_and_reach_its_loss(tmp_path: Path) -> None:
    """With top_k; with every other compressor in distributed/test_polled.py."""
    settings = ["model=squeezenet1_1", "data=digits", "compressor=top_k", "num_steps=20", "batch_size=8"]
    settings += ["log_every=5", "observe.progress=false"]
    over_gloo, over_mpi = tmp_path / "A", tmp_path / "B"  # paths of one length: they are broadcast, and counted
    run(train_command(*settings, f"run_dir={over_gloo}", ranks=2), tmp_path).expect(0)
    run(mpi_command(*settings, f"run_dir={over_mpi}"), tmp_path, env=ENVIRONMENT).expect(0)
    gloo, mpi = read_summary(over_gloo), read_summary(over_mpi)
    assert (gloo["backend"], mpi["backend"]) == ("gloo", "mpi")
    assert mpi["complete"] is True
    for key in ("payload_bytes_per_step", "wire_bytes_per_step", "init_wire_bytes", "total_wire_bytes_all_ranks"):
        assert mpi[key] == gloo[key] > 0, key
    assert len(losses(over_mpi)) == 5
    assert losses(over_mpi) == pytest.approx(losses(over_gloo), abs=1e-2)
    environ = json.loads((over_mpi / "environment.json").read_text())
    assert (environ["launch"]["launcher"], environ["launch"]["world_size"]) == ("mpirun", 2)


def test_every_collective_of_a_run_is_in_the_ledger_with_its_seconds(tmp_path: Path) -> None:
    settings = ["num_steps=3", "batch_size=8", "run_dir=run", "observe.progress=false"]
    settings += ["observe.prometheus.textfile=figures"]
    run(mpi_command(*settings, ranks=3), tmp_path, env=ENVIRONMENT).expect(0)
    for rank in range(3):
        figures = (tmp_path / "figures" / f"dtrain-run-rank{rank}.prom").read_text()
        assert f'dtrain_steps_total{{rank="{rank}",run="run"}} 3.0\n' in figures
        lines = (tmp_path / "run" / "ledger" / f"rank{rank}.jsonl").read_text().splitlines()
        steps = [record for record in map(json.loads, lines) if record["step"] is not None]
        assert [record["step"] for record in steps] == [0, 1, 2]
        for record in steps:
            gradients = [e for e in record["entries"] if e["purpose"] == "gradient"]
            assert sum(e["payload_bytes"] for e in gradients) == read_summary(tmp_path / "run")["grad_bytes"]
            assert all(e["seconds"] > 0 and e["world_size"] == 3 for e in gradients)


def test_processes_end_cleanly_right_after_their_last_collective(tmp_path: Path) -> None:
    """A thread that still lets go of a tensor when the interpreter ends would abort the process."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, torch\n"
        "from dtrain.comm import detect_launch, open_communicator, perform\n"
        "from dtrain.exchange import Op, Request\n"
        "with open_communicator('mpi', detect_launch(os.environ), None) as communicator:\n"
        "    for _ in range(20):\n"
        "        perform(communicator, Request(Op.ALL_GATHER, torch.ones(300_000)))\n"
    )
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    assert run([mpiexec, "-n", "4", sys.executable, str(program)], tmp_path).expect(0).stderr == ""


# Failures


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_when_a_rank_is_gone_the_others_end_and_it_is_named(tmp_path: Path, number: signal.Signals) -> None:
    settings = ["num_steps=100000", "batch_size=8", "run_dir=run", "observe.progress=false", "log_every=1"]
    process = start(mpi_command(*settings, "backend.timeout_seconds=12", ranks=3), tmp_path, ENVIRONMENT)
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "run" / "metrics.jsonl").exists() or len(_ranks_in(tmp_path)) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.kill(_ranks_in(tmp_path)[1], number)
        ended = finish(process, 120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert ended.code != 0
    if number is signal.SIGKILL:
        line = f"launch/mpirun.sh: rank 1 on {socket.gethostname()} was killed by SIGKILL; the job ends"
        assert [said for said in ended.stderr.splitlines() if said.startswith("launch/")] == [line]
    else:
        assert "dtrain: error: waited 12 s for an all_" in ended.stderr
        assert "on MPI: rank 1 is missing or stuck" in ended.stderr
    assert "Traceback" not in ended.stderr
    deadline = time.monotonic() + 10
    while _ranks_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _ranks_in(tmp_path) == {}


def _ranks_in(folder: Path) -> dict[int, int]:
    """The processes of Python that train in this folder, by rank."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            if (process / "cwd").readlink() != folder or b"dtrain.train" not in (process / "cmdline").read_bytes():
                continue
            environ = dict(item.split(b"=", 1) for item in (process / "environ").read_bytes().split(b"\0") if item)
            if (process / "comm").read_text().startswith("python") and b"PMI_RANK" in environ:
                found[int(environ[b"PMI_RANK"])] = int(process.name)
        except OSError:
            continue
    return found


def test_a_mistake_is_said_once(tmp_path: Path) -> None:
    ended = run(mpi_command("num_steps=5", "num_epochs=1", ranks=3), tmp_path, env=ENVIRONMENT).expect(2)
    line = "dtrain: error: num_steps and num_epochs are both set: set one to null (a recipe may have set it)\n"
    assert ended.stderr == line


def test_a_mistake_of_one_rank_alone_is_its_own_and_ends_the_others(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from dtrain.train.entry import main\n"
        "if os.environ['PMI_RANK'] == '1': sys.argv.append('num_epochs=1')\n"
        "sys.exit(main())\n"
    )
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    settings = ["backend=mpi", "num_steps=100000", "batch_size=8", "run_dir=run", "observe.progress=false"]
    ended = run([mpiexec, "-n", "2", sys.executable, str(program), *settings], tmp_path, env=ENVIRONMENT)
    assert ended.code != 0
    (line,) = [said for said in ended.stderr.splitlines() if said.startswith("dtrain: error: ")]
    assert line.startswith("dtrain: error: rank 1: num_steps and num_epochs are both set")


def test_bf16_is_one_line_with_the_cure(tmp_path: Path) -> None:
    settings = ["compressor=bf16", "num_steps=3", "batch_size=8", "run_dir=run", "observe.progress=false"]
    ended = run(mpi_command(*settings), tmp_path, env=ENVIRONMENT).expect(2)
    lines = [line for line in ended.stderr.splitlines() if "error" in line]
    message = "MPI does not sum bfloat16: use float16 (compressor=fp16) or float32, or backend=gloo"
    assert lines[0] == f"dtrain: error: {message}"
    assert lines[1:] in ([], [f"dtrain: error: rank 1: {message}"])  # mpiexec ends no rank that has not started MPI
    assert not (tmp_path / "run").exists()
    assert "Traceback" not in ended.stdout + ended.stderr


def test_a_launcher_of_another_mpi_is_refused(tmp_path: Path) -> None:
    """Each worker would be alone, and train without the others."""
    env = environment({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"})
    ended = run(train_command("backend=mpi", "num_steps=1"), tmp_path, env=env).expect(2)
    assert "mpirun started 2 workers, but mpi4py's MPI sees 1" in ended.stderr


def test_an_mpi_without_threads_is_refused(tmp_path: Path) -> None:
    program = (
        "import mpi4py; mpi4py.rc.thread_level = 'serialized'\n"
        "from mpi4py import MPI\n"
        "from dtrain.comm.mpi import MpiCommunicator\n"
        "MpiCommunicator(MPI.COMM_WORLD, None)\n"
    )
    ended = run([sys.executable, "-c", program], tmp_path).expect(1)
    assert "ValueError: backend=mpi needs MPI initialised with MPI_THREAD_MULTIPLE" in ended.stderr


def test_one_worker_alone_needs_no_launcher(tmp_path: Path) -> None:
    settings = ["backend=mpi", "num_steps=1", "batch_size=8", "run_dir=run", "observe.progress=false"]
    run(train_command(*settings), tmp_path).expect(0)
    assert read_summary(tmp_path / "run")["world_size"] == 1


# The launch script


def dry_run(folder: Path, version: str, *arguments: str) -> str:
    """What launch/mpirun.sh would run with an mpiexec that says it is of this version."""
    mpiexec = folder / "mpiexec"
    mpiexec.write_text(f"#!/bin/sh\necho '{version}'\n")
    mpiexec.chmod(0o755)
    command = [MPIRUN, "--dry-run", *arguments]
    done = run(command, folder, env={**ENVIRONMENT, "MPIEXEC": str(mpiexec)}).expect(0)
    return done.stdout.strip().replace(str(mpiexec), "mpiexec").replace(sys.executable, "python")


def test_the_script_fits_its_command_to_the_mpi(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("node0\nnode1\n")
    root = " --allow-run-as-root" if os.getuid() == 0 else ""
    training = f"{REPOSITORY}/launch/mpi_rank.sh python -m dtrain.train backend=mpi"
    hydra, open_mpi = "HYDRA build details:", "mpiexec (Open MPI) 5.0.11"
    hosts = ("-n", "4", "--hostfile", "hosts", r"run_dir=a b")
    mpiexec = "OMP_NUM_THREADS=1 mpiexec"
    assert dry_run(tmp_path, hydra, "seed=1") == f"{mpiexec} -n 2 {training} seed=1"
    assert dry_run(tmp_path, hydra, *hosts) == rf"{mpiexec} -n 4 -f hosts {training} run_dir=a\ b"
    assert dry_run(tmp_path, open_mpi) == f"{mpiexec} -n 2 --bind-to none{root} --oversubscribe {training}"
    with_hosts = f"{mpiexec} -n 4 --bind-to none{root} --hostfile hosts -x OMP_NUM_THREADS"
    assert dry_run(tmp_path, open_mpi, *hosts) == rf"{with_hosts} {training} run_dir=a\ b"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["-n"], "-n needs a value"),
        (["-n", "two"], "-n two is not a number of workers"),
        (["-n", "0"], "-n 0 is not a number of workers"),
        (["--hostfile", "nowhere"], "nowhere cannot be read"),
        (["--nodes", "2"], "no option --nodes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_script_says_a_mistake_in_one_line(tmp_path: Path, arguments: list[str], part: str) -> None:
    ended = run([MPIRUN, *arguments], tmp_path, env=ENVIRONMENT).expect(2)
    assert part in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_script_has_help(tmp_path: Path) -> None:
    assert "Usage: launch/mpirun.sh" in run([MPIRUN, "--help"], tmp_path).expect(0).stdout
