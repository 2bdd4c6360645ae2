"""What a user gets from training over Horovod: the same as over gloo, an end when a rank is gone, clear refusals."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from programs import REPOSITORY, environment, finish, read_summary, run, start, train_command

pytest.importorskip("horovod.torch", reason="Horovod is not installed: make horovod")
pytestmark = pytest.mark.timeout(600)

SCRIPT = str(REPOSITORY / "launch" / "horovodrun.sh")
ENVIRONMENT = environment({"PYTHON": sys.executable})
HOROVODRUN = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "--network-interfaces", "lo", "-np", "2"]


def horovod_command(*settings: str, ranks: int = 2) -> list[str]:
    return [SCRIPT, "-n", str(ranks), *settings]


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


def check_same(gloo: Path, horovod: Path) -> None:
    """Fail unless both runs sent the same bytes and came to the same losses."""
    one, two = read_summary(gloo), read_summary(horovod)
    assert (one["backend"], two["backend"]) == ("gloo", "horovod")
    assert two["complete"] is True
    for key in ("payload_bytes_per_step", "wire_bytes_per_step", "init_wire_bytes", "total_wire_bytes_all_ranks"):
        assert two[key] == one[key] > 0, key
    assert len(losses(horovod)) == 5
    assert losses(horovod) == pytest.approx(losses(gloo), abs=1e-2)


# The same as over gloo


TWENTY_STEPS = ["model=squeezenet1_1", "data=digits", "num_steps=20", "batch_size=8", "log_every=5"]
TWENTY_STEPS += ["observe.progress=false"]


def test_20_steps_send_exactly_gloo_s_bytes_and_reach_its_loss(tmp_path: Path) -> None:
    """With top_k; with every other compressor in distributed/test_polled.py."""
    settings = [*TWENTY_STEPS, "compressor=top_k"]
    over_gloo, over_horovod = tmp_path / "A", tmp_path / "B"  # paths of one length: they are broadcast, and counted
    run(train_command(*settings, f"run_dir={over_gloo}", ranks=2), tmp_path).expect(0)
    run(horovod_command(*settings, f"run_dir={over_horovod}"), tmp_path, env=ENVIRONMENT).expect(0)
    check_same(over_gloo, over_horovod)
    environ = json.loads((over_horovod / "environment.json").read_text())
    assert (environ["launch"]["launcher"], environ["launch"]["world_size"]) == ("horovodrun", 2)


def test_with_mpi_below_horovod_it_is_the_same_again(tmp_path: Path) -> None:
    import horovod.torch as hvd

    if not hvd.mpi_built():
        pytest.skip("Horovod is built without MPI: pip install 'dtrain[mpi]', then make horovod")
    settings = [*TWENTY_STEPS, "compressor=top_k"]
    over_gloo, over_mpi = tmp_path / "A", tmp_path / "B"
    run(train_command(*settings, f"run_dir={over_gloo}", ranks=2), tmp_path).expect(0)
    run([SCRIPT, "--mpi", *settings, f"run_dir={over_mpi}"], tmp_path, env=ENVIRONMENT).expect(0)
    check_same(over_gloo, over_mpi)
    environ = json.loads((over_mpi / "environment.json").read_text())
    assert environ["launch"]["launcher"] == "mpirun"


def test_every_collective_of_a_run_is_in_the_ledger_with_its_seconds(tmp_path: Path) -> None:
    settings = ["num_steps=3", "batch_size=8", "run_dir=run", "observe.progress=false"]
    run(horovod_command(*settings, ranks=3), tmp_path, env=ENVIRONMENT).expect(0)
    for rank in range(3):
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
        "with open_communicator('horovod', detect_launch(os.environ), None) as communicator:\n"
        "    for _ in range(20):\n"
        "        perform(communicator, Request(Op.ALL_GATHER, torch.ones(300_000)))\n"
    )
    assert run([*HOROVODRUN, sys.executable, str(program)], tmp_path).expect(0).stderr == ""


# Somebody's own program


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What programs/horovod_user.py comes to, on two ranks."""
    folder = tmp_path_factory.mktemp("user")

    def train(*arguments: str) -> Any:
        program = str(REPOSITORY / "tests" / "system" / "programs" / "horovod_user.py")
        result = folder / f"{arguments[0]}.json"
        run([*HOROVODRUN, sys.executable, program, str(result), *arguments], folder).expect(0)
        return json.loads(result.read_text())

    return train


def test_two_lines_in_a_horovod_program_compress_it_and_show_the_saving(user: Any) -> None:
    stock, dense, sparse = user("stock"), user("none"), user("top_k", "density=0.01")
    assert stock["same"] and dense["same"] and sparse["same"]
    assert stock["accuracy"] > 93
    assert dense["accuracy"] == pytest.approx(stock["accuracy"], abs=1.0)
    assert sparse["accuracy"] >= stock["accuracy"] - 1.5
    assert dense["bytes"] / sparse["bytes"] > 20


# Failures


def test_when_a_rank_is_killed_the_others_end_and_it_is_named(tmp_path: Path) -> None:
    process = start(horovod_command("num_steps=100000", "batch_size=8", "run_dir=run"), tmp_path, ENVIRONMENT)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "metrics.jsonl").exists() or len(_ranks_in(tmp_path)) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.kill(_ranks_in(tmp_path)[1], signal.SIGKILL)
        ended = finish(process, 60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert ended.code != 0
    assert "rank 1 on localhost was killed by signal 9, so the others were ended" in ended.stderr, ended
    deadline = time.monotonic() + 10
    while _ranks_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _ranks_in(tmp_path) == {}


def _ranks_in(folder: Path) -> dict[int, int]:
    """The process of each rank that works in this folder."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            if (process / "cwd").readlink() == folder and (process / "comm").read_text().startswith("python"):
                environ = dict(part.partition("=")[::2] for part in (process / "environ").read_text().split("\0"))
                if "HOROVOD_RANK" in environ:
                    found[int(environ["HOROVOD_RANK"])] = int(process.name)
        except OSError:
            continue
    return found


def test_bf16_is_one_line_with_the_cure(tmp_path: Path) -> None:
    settings = ["compressor=bf16", "num_steps=3", "batch_size=8", "run_dir=run", "observe.progress=false"]
    ended = run(horovod_command(*settings), tmp_path, env=ENVIRONMENT).expect(2)
    message = "Horovod does not sum bfloat16: use float16 (compressor=fp16) or float32, or backend=gloo"
    lines = [line for line in ended.stderr.splitlines() if line.startswith("[0]")]
    assert lines == [f"[0]<stderr>:dtrain: error: {message}"]
    assert "rank 0 on localhost ended with exit code 2" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert not (tmp_path / "run").exists()


def test_one_worker_alone_needs_no_launcher(tmp_path: Path) -> None:
    settings = ["backend=horovod", "num_steps=1", "batch_size=8", "run_dir=run", "observe.progress=false"]
    run(train_command(*settings), tmp_path).expect(0)
    assert read_summary(tmp_path / "run")["world_size"] == 1


# The launch script


def dry_run(folder: Path, *arguments: str) -> str:
    done = run([SCRIPT, "--dry-run", *arguments], folder, env=ENVIRONMENT).expect(0)
    return done.stdout.strip().replace(sys.executable, "python").replace(f"{REPOSITORY}/", "")


def test_the_script_s_command(tmp_path: Path) -> None:
    launcher, training = "python launch/horovodrun.py --gloo -np", "python -m dtrain.train backend=horovod"
    assert dry_run(tmp_path, "seed=1") == f"{launcher} 2 --network-interfaces lo {training} seed=1"
    hosts = dry_run(tmp_path, "-n", "4", "--hosts", "node0:2,node1:2", r"run_dir=a b")
    assert hosts == rf"{launcher} 4 --hosts node0:2\,node1:2 {training} run_dir=a\ b"
    assert dry_run(tmp_path, "--mpi", "seed=1").endswith(f" -n 2 launch/mpi_rank.sh {training} seed=1")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["-n"], "-n needs a value"),
        (["-n", "two"], "-n two is not a number of workers"),
        (["--hosts", "node0,node1"], "node0,node1 is not of the form node0:2,node1:2"),
        (["--mpi", "--hosts", "node0:2"], "use launch/mpirun.sh --backend horovod"),
        (["--nodes", "2"], "no option --nodes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_script_says_a_mistake_in_one_line(tmp_path: Path, arguments: list[str], part: str) -> None:
    ended = run([SCRIPT, *arguments], tmp_path, env=ENVIRONMENT).expect(2)
    assert part in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_scripts_have_help(tmp_path: Path) -> None:
    assert "Usage: launch/horovodrun.sh" in run([SCRIPT, "--help"], tmp_path).expect(0).stdout
    build = str(REPOSITORY / "launch" / "build_horovod.sh")
    assert "Usage: launch/build_horovod.sh" in run([build, "--help"], tmp_path).expect(0).stdout
