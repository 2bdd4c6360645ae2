"""launch/torchrun.sh and `dtrain launch` on one host: what becomes of the ranks (what is run, tests/unit/launch)."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from programs import REPOSITORY, dtrain_command, environment, finish, read_summary, run, start

pytestmark = pytest.mark.timeout(600)

TORCHRUN = str(REPOSITORY / "launch" / "torchrun.sh")
ENVIRONMENT = environment({"PYTHON": sys.executable})


@pytest.mark.parametrize("ranks", [2, 1000])
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


def test_the_exit_code_is_that_of_the_rank_which_failed_and_there_is_one_line(tmp_path: Path) -> None:
    program = "[ $RANK = 1 ] && exit 7; sleep 60"
    ended = run(dtrain_command("launch", "-n", "2", "--", "sh", "-c", program), tmp_path).expect(7)
    (line,) = ended.stderr.splitlines()
    assert line.startswith("dtrain launch: rank 1 on ")
    assert line.endswith(" ended with exit code 7, so the others were ended")


def test_a_mistake_in_a_setting_is_said_with_its_cure_and_exit_code(tmp_path: Path) -> None:
    ended = run([TORCHRUN, "modle=alexnet"], tmp_path, env=ENVIRONMENT).expect(2)
    first, last = ended.stderr.splitlines()
    assert first.startswith("dtrain: error: modle is not a setting (did you mean model?)")
    assert last.startswith("dtrain launch: rank 0 on ")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_reach_the_ranks(tmp_path: Path, number: signal.Signals, code: int) -> None:
    program = f"trap 'echo told; exit 0' {number.name[3:]}; echo up; while :; do sleep 0.1; done"
    process = start(dtrain_command("launch", "-n", "2", "--", "bash", "-c", program), tmp_path)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
    time.sleep(0.2)
    os.kill(process.pid, number)
    ended = finish(process, 60).expect(code)
    assert ended.stdout == "told\ntold\n"
    assert "Traceback" not in ended.stderr
