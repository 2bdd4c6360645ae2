"""What is MPI's own when training runs over it: what it shares with Horovod is in test_mpi_and_horovod_runs.py."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from launchers import ENVIRONMENT, MPI, needs_mpi
from programs import REPOSITORY, dtrain_command, environment, finish, run, train_command

pytestmark = [needs_mpi, pytest.mark.timeout(600)]


def test_when_a_rank_hangs_the_others_end_and_it_is_named(tmp_path: Path) -> None:
    settings = ["observe.progress=false", "backend.timeout_seconds=12"]
    with MPI.under_way(tmp_path, *settings, ranks=3) as process:
        os.kill(MPI.ranks_in(tmp_path)[1], signal.SIGSTOP)
        ended = finish(process, 120)
    assert ended.code != 0
    assert "dtrain: error: waited 12 s for an all_" in ended.stderr
    assert f"on MPI: rank 1 on host {socket.gethostname()} is missing or stuck" in ended.stderr
    assert "rank 1 left no dump" in run(dtrain_command("trace", "run"), tmp_path).expect(0).stdout
    assert "Traceback" not in ended.stderr


def test_a_mistake_of_one_rank_alone_is_its_own_and_ends_the_others(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from dtrain.train.entry import main\n"
        "if os.environ['PMI_RANK'] == '1': sys.argv.append('num_epochs=1')\n"
        "sys.exit(main())\n"
    )
    settings = ["backend=mpi", "num_steps=100000", "batch_size=8", "run_dir=run", "observe.progress=false"]
    ended = run(MPI.program(2, str(program), *settings), tmp_path, env=ENVIRONMENT)
    assert ended.code != 0
    (line,) = [said for said in ended.stderr.splitlines() if said.startswith("dtrain: error: ")]
    assert line.startswith("dtrain: error: rank 1: num_steps and num_epochs are both set")


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


def dry_run(folder: Path, version: str, *arguments: str) -> str:
    """What launch/mpirun.sh would run with an mpiexec that says it is of this version."""
    mpiexec = folder / "mpiexec"
    mpiexec.write_text(f"#!/bin/sh\necho '{version}'\n")
    mpiexec.chmod(0o755)
    command = [MPI.path, "--dry-run", *arguments]
    done = run(command, folder, env={**ENVIRONMENT, "MPIEXEC": str(mpiexec)}).expect(0)
    return done.stdout.strip().replace(str(mpiexec), "mpiexec").replace(sys.executable, "python")


def test_the_script_fits_its_command_to_the_mpi(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("node0\nnode1\n")
    root = " --allow-run-as-root" if os.getuid() == 0 else ""
    training = f"bash {REPOSITORY}/dtrain/launch/mpi_rank.sh python -m dtrain.train backend=mpi"
    hydra, open_mpi = "HYDRA build details:", "mpiexec (Open MPI) 5.0.11"
    hosts = ("-n", "4", "--hostfile", "hosts", "run_dir=a b")
    mpiexec = "OMP_NUM_THREADS=1 mpiexec"
    assert dry_run(tmp_path, hydra, "seed=1") == f"{mpiexec} -n 2 {training} seed=1"
    assert dry_run(tmp_path, hydra, *hosts) == f"{mpiexec} -n 4 -f hosts {training} 'run_dir=a b'"
    assert dry_run(tmp_path, open_mpi) == f"{mpiexec} -n 2 --bind-to none{root} --oversubscribe {training}"
    with_hosts = f"{mpiexec} -n 4 --bind-to none{root} --hostfile hosts -x OMP_NUM_THREADS"
    assert dry_run(tmp_path, open_mpi, *hosts) == f"{with_hosts} {training} 'run_dir=a b'"
