"""What is Horovod's own when training runs over it: what it shares with MPI is in test_mpi_and_horovod_runs.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from launchers import ENVIRONMENT, HOROVOD, needs_horovod
from programs import REPOSITORY, run

pytestmark = [needs_horovod, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What programs/horovod_user.py comes to, on two ranks."""
    folder = tmp_path_factory.mktemp("user")

    def train(*arguments: str) -> Any:
        program = str(REPOSITORY / "tests" / "system" / "programs" / "horovod_user.py")
        result = folder / f"{arguments[0]}.json"
        run(HOROVOD.program(2, program, str(result), *arguments), folder).expect(0)
        return json.loads(result.read_text())

    return train


def test_two_lines_in_a_horovod_program_compress_it_and_show_the_saving(user: Any) -> None:
    stock, dense, sparse = user("stock"), user("none"), user("top_k", "density=0.01")
    assert stock["same"] and dense["same"] and sparse["same"]
    assert stock["accuracy"] > 93
    assert dense["accuracy"] == pytest.approx(stock["accuracy"], abs=1.0)
    assert sparse["accuracy"] >= stock["accuracy"] - 1.5
    assert dense["bytes"] / sparse["bytes"] > 20


def dry_run(folder: Path, *arguments: str) -> str:
    done = run([HOROVOD.path, "--dry-run", *arguments], folder, env=ENVIRONMENT).expect(0)
    return done.stdout.strip().replace(sys.executable, "python").replace(f"{REPOSITORY}/", "")


def test_the_script_s_command(tmp_path: Path) -> None:
    launcher, training = "python -m dtrain.launch.horovodrun --gloo -np", "python -m dtrain.train backend=horovod"
    assert dry_run(tmp_path, "seed=1") == f"{launcher} 2 --network-interfaces lo {training} seed=1"
    hosts = dry_run(tmp_path, "-n", "4", "--hosts", "node0:2,node1:2", "run_dir=a b")
    assert hosts == f"{launcher} 4 --hosts node0:2,node1:2 {training} 'run_dir=a b'"
    assert dry_run(tmp_path, "--mpi", "seed=1").endswith(f" -n 2 bash dtrain/launch/mpi_rank.sh {training} seed=1")


def test_the_script_that_builds_it_has_help(tmp_path: Path) -> None:
    build = str(REPOSITORY / "launch" / "build_horovod.sh")
    assert "Usage: launch/build_horovod.sh" in run([build, "--help"], tmp_path).expect(0).stdout
