"""What a user gets from training over MPI or Horovod: the same as over gloo, an end when a rank is gone, refusals."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launchers import BOTH, ENVIRONMENT, HOROVOD, MPI, Launcher, needs_horovod
from programs import finish, read_summary, run, train_command

pytestmark = pytest.mark.timeout(600)
both = pytest.mark.parametrize("launcher", BOTH)

SHORT = ["batch_size=8", "run_dir=run", "observe.progress=false"]
SENT = ("payload_bytes_per_step", "wire_bytes_per_step", "init_wire_bytes", "total_wire_bytes_all_ranks")
TWENTY_STEPS = ["model=squeezenet1_1", "data=digits", "num_steps=20", "batch_size=8", "log_every=5"]
TWENTY_STEPS += ["observe.progress=false", "compressor=top_k", "guard=off"]


def sent(summary: dict[str, Any]) -> dict[str, float]:
    """What was sent, all of it but the 8 bytes in which ranks look every few seconds whether one is to stop."""
    found = {key: float(summary[key]) for key in SENT}
    looks = summary["wire_bytes_by_phase_and_purpose"].get("train/control", 0)
    found["total_wire_bytes_all_ranks"] -= looks * summary["world_size"]
    assert all(value > 0 for value in found.values())
    return found


# The same as over gloo


@pytest.fixture(scope="module")
def over_gloo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("same") / "gloo"
    run(train_command(*TWENTY_STEPS, f"run_dir={run_dir}", ranks=2), run_dir.parent).expect(0)
    return run_dir


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


@pytest.mark.parametrize(
    "launcher",
    [
        *BOTH,
        pytest.param(replace(HOROVOD, known_as="mpirun", options=("--mpi",)), id="horovod on mpi", marks=needs_horovod),
    ],
)
def test_20_steps_send_exactly_gloo_s_bytes_and_reach_its_loss(over_gloo: Path, launcher: Launcher) -> None:
    """With top_k; with every other compressor in distributed/test_polled.py."""
    if launcher.options:
        import horovod.torch as hvd

        if not hvd.mpi_built():
            pytest.skip("Horovod is built without MPI: pip install 'dtrain[mpi]', then make horovod")
    name = f"{launcher.backend}{len(launcher.options)}"
    run_dir = over_gloo.with_name(name[-4:])  # paths of one length: they are broadcast, and counted
    run(launcher.training(*TWENTY_STEPS, f"run_dir={run_dir}"), run_dir.parent, env=ENVIRONMENT).expect(0)
    gloo, here = read_summary(over_gloo), read_summary(run_dir)
    assert (gloo["backend"], here["backend"]) == ("gloo", launcher.backend)
    assert here["complete"] is True
    assert sent(here) == sent(gloo)
    assert len(losses(run_dir)) == 5
    assert losses(run_dir) == pytest.approx(losses(over_gloo), abs=1e-2)
    environ = json.loads((run_dir / "environment.json").read_text())
    assert (environ["launch"]["launcher"], environ["launch"]["world_size"]) == (launcher.known_as, 2)


@both
def test_fragments_travel_beside_steps_as_they_do_over_gloo(tmp_path: Path, launcher: Launcher) -> None:
    settings = [*TWENTY_STEPS, "sync=streaming", "sync.every=8", "sync.fragments=2", "sync.delay=2", "save_every=9"]
    run(train_command(*settings, "run_dir=gloo", ranks=2), tmp_path).expect(0)
    run(launcher.training(*settings, "run_dir=here"), tmp_path, env=ENVIRONMENT).expect(0)
    gloo, here = read_summary(tmp_path / "gloo"), read_summary(tmp_path / "here")
    assert (gloo["num_steps"], gloo["num_rounds"]) == (here["num_steps"], here["num_rounds"]) == (20, 3)
    assert sent(here) == sent(gloo)
    assert losses(tmp_path / "here") == pytest.approx(losses(tmp_path / "gloo"), abs=1e-2)


@both
def test_every_collective_of_a_run_is_in_the_ledger_with_its_seconds(tmp_path: Path, launcher: Launcher) -> None:
    settings = ["num_steps=3", *SHORT, "observe.prometheus.textfile=figures"]
    run(launcher.training(*settings, ranks=3), tmp_path, env=ENVIRONMENT).expect(0)
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


@both
def test_processes_end_cleanly_right_after_their_last_collective(tmp_path: Path, launcher: Launcher) -> None:
    """A thread that still lets go of a tensor when the interpreter ends would abort the process."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, torch\n"
        "from dtrain.comm import detect_launch, open_communicator, perform\n"
        "from dtrain.exchange import Op, Request\n"
        f"with open_communicator({launcher.backend!r}, detect_launch(os.environ), None) as communicator:\n"
        "    for _ in range(20):\n"
        "        perform(communicator, Request(Op.ALL_GATHER, torch.ones(300_000)))\n"
    )
    assert run(launcher.program(4, str(program)), tmp_path).expect(0).stderr == ""


@both
def test_one_worker_alone_says_so(tmp_path: Path, launcher: Launcher) -> None:
    alone = run(train_command(f"backend={launcher.backend}", "num_steps=1", *SHORT), tmp_path).expect(2)
    assert "so it would train alone" in alone.stderr
    run(launcher.training("num_steps=1", *SHORT, ranks=1), tmp_path, env=ENVIRONMENT).expect(0)
    assert read_summary(tmp_path / "run")["world_size"] == 1


# Failures


@both
def test_when_a_rank_is_killed_the_others_end_and_it_is_named(tmp_path: Path, launcher: Launcher) -> None:
    with launcher.under_way(tmp_path, "observe.progress=false", ranks=3) as process:
        os.kill(launcher.ranks_in(tmp_path)[1], signal.SIGKILL)
        ended = finish(process, 120)
    assert ended.code != 0
    assert [said for said in ended.stderr.splitlines() if said.startswith("dtrain launch: ")] == [launcher.killed]
    if launcher is MPI:
        assert "Traceback" not in ended.stderr


@both
def test_a_mistake_is_said_once(tmp_path: Path, launcher: Launcher) -> None:
    ended = run(launcher.training("num_steps=5", "num_epochs=1", ranks=3), tmp_path, env=ENVIRONMENT).expect(2)
    line = "dtrain: error: num_steps and num_epochs are both set: set one to null (a recipe may have set it)"
    assert [said for said in ended.stderr.splitlines() if "dtrain: error" in said] == [launcher.prefix + line]
    if launcher is MPI:
        assert ended.stderr == f"{line}\n"


@both
def test_bf16_is_one_line_with_the_cure(tmp_path: Path, launcher: Launcher) -> None:
    ended = run(launcher.training("compressor=bf16", "num_steps=3", *SHORT), tmp_path, env=ENVIRONMENT).expect(2)
    title = {"mpi": "MPI", "horovod": "Horovod"}[launcher.backend]
    message = f"{title} does not sum bfloat16: use float16 (compressor=fp16) or float32, or backend=gloo"
    lines = [line for line in ended.stderr.splitlines() if " error" in line]
    first = f"{launcher.prefix}dtrain: error: {message}"
    other = f"{launcher.prefix.replace('0', '1')}dtrain: error: rank 1: {message}"  # it may be ended before it says so
    assert lines in ([first], [first, other], [other, first])
    assert launcher.failed in ended.stderr
    assert not (tmp_path / "run").exists()
    assert "Traceback" not in ended.stdout + ended.stderr


# The launch scripts


MISTAKES = [
    (MPI, ["-n", "two"], "two is not a number from 1"),
    (MPI, ["--nodes", "2"], "--nodes is for ranks of gloo and NCCL"),
    (MPI, ["--hostfile", "nowhere"], "nowhere cannot be read"),
    (MPI, ["--interface", "lo"], "--interface goes without MPI"),
    (HOROVOD, ["--hosts", "node0:"], "-H node0: is not of the form node0:2,node1:2"),
    (HOROVOD, ["--mpi", "--interface", "lo"], "--interface goes without MPI"),
]


@pytest.mark.parametrize(
    ("launcher", "arguments", "part"), MISTAKES, ids=[f"{m[0].script} {' '.join(m[1])}" for m in MISTAKES]
)
def test_the_script_says_a_mistake_with_its_cure(
    tmp_path: Path, launcher: Launcher, arguments: list[str], part: str
) -> None:
    ended = run([launcher.path, *arguments], tmp_path, env=ENVIRONMENT).expect(2)
    assert part in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("launcher", [MPI, HOROVOD], ids=lambda launcher: launcher.script)
def test_the_script_has_help(tmp_path: Path, launcher: Launcher) -> None:
    assert "usage: dtrain launch" in run([launcher.path, "--help"], tmp_path).expect(0).stdout
