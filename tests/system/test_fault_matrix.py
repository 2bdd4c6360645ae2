"""Every kind of fault at every place of a run and on either rank: it ends in time and says who, leaves no process, and
the same command goes on to the weights of an undisturbed run, bit for bit. (docs/faults.md has the table.)

DTRAIN_FULL=1 runs all of it, in about half an hour; else one cell: others are in tests of their own.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from programs import dtrain_command, environment, run, under_torchrun
from test_interruption import processes_about

FAULTY = str(Path(__file__).parent / "programs" / "faulty.py")
SETTINGS = ("data=digits", "model=squeezenet1_1", "compressor=int4", "num_steps=12", "save_every=3", "log_every=2")
SETTINGS += ("batch_size=4", "eval_every_epochs=0", "run_dir=run", "resume=latest", "backend.timeout_seconds=8")
SETTINGS += ("backend.start_timeout_seconds=20", "observe.progress=false")
SETTINGS += ("threads=1",)  # the same arithmetic on one host and on a node for each rank


class Fault(NamedTuple):
    """What happens, where, on which rank."""

    place: str
    kind: str
    rank: int


class Outcome(NamedTuple):
    """How torchrun ends, and what somebody says of it; {rank} is the one that the fault is on."""

    code: int
    said: str


PLACES = ("start", "forward", "collective", "checkpoint")
KINDS = ("exception", "SIGKILL", "SIGTERM", "SIGSTOP", "agent")
ALL = [Fault(place, kind, rank) for kind in KINDS for place in PLACES for rank in (0, 1)]
ALL += [Fault("checkpoint", "disk_full", rank) for rank in (0, 1)]
ALL += [Fault(place, "link", rank) for place in PLACES for rank in (0, 1)]
ALL += [Fault("collective", "payload", rank) for rank in (0, 1)]
IN_CI = (Fault("checkpoint", "SIGKILL", 1), Fault("collective", "link", 1))


def outcome(fault: Fault) -> Outcome:
    """What is promised."""
    match fault.kind:
        case "exception":
            return Outcome(1, "a fault of this test")
        case "disk_full":
            return Outcome(1, "the file of this test: No space left on device")
        case "SIGKILL":
            return Outcome(1, "Signal 9 (SIGKILL)")
        case "SIGTERM" if fault.place == "start":
            return Outcome(1, "SIGTERM")
        case "SIGTERM":
            return Outcome(1, "stopped by SIGTERM after step")
        case "SIGSTOP":
            return Outcome(1, f"rank {fault.rank} ")
        case "payload":  # of two that differ neither can know which is right
            return Outcome(1, "replicas have diverged by step 9: rank 1 has parameters that rank 0 has not")
        case "link":  # which end is cut off neither can know
            return Outcome(1, "does not answer")
    return Outcome(-9, "")


def command(fault: Fault) -> list[str]:
    """The trainer with the fault, on two ranks; for one of a link on a node each."""
    program = [FAULTY, fault.place, fault.kind, str(fault.rank), *SETTINGS]
    if fault.kind != "link":
        return under_torchrun(2, *program)
    on_node = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", *program]
    return dtrain_command("cluster", "run", "--nodes", "2", "--", *on_node)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model of a run without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(under_torchrun(2, "-m", "dtrain.train", *SETTINGS), folder).expect(0)
    return (folder / "run" / "model.safetensors").read_bytes()


@pytest.mark.alone
@pytest.mark.parametrize(
    "fault",
    ALL if os.environ.get("DTRAIN_FULL") else IN_CI,
    ids=lambda fault: f"{fault.place}-{fault.kind}-{fault.rank}",
)
def test_it_ends_in_time_says_who_and_goes_on(tmp_path: Path, fault: Fault, undisturbed: bytes) -> None:
    expected = outcome(fault)
    if fault.kind == "link" and os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    ended = run(command(fault), tmp_path, timeout=100.0, env=environment()).expect(expected.code)
    assert expected.said in ended.stdout + ended.stderr, f"{ended.stdout}\n{ended.stderr}"
    deadline = time.monotonic() + 30.0
    while (left := processes_about(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    run(under_torchrun(2, "-m", "dtrain.train", *SETTINGS), tmp_path).expect(0)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == undisturbed
