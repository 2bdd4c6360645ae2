"""`examples/gpt.py`, which exchanges what several local steps changed: killed, and gone on with."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from programs import REPOSITORY, finish, on_ranks, run, start

pytestmark = pytest.mark.timeout(600)

ROUNDS = {
    "local": ("--every=8", "--round=start_after=6", "--round=outer=sgd"),
    "streaming": ("--every=8", "--round=fragments=2", "--round=delay=2", "--round=kept=0.25"),
}


FULL = os.environ.get("DTRAIN_FULL") == "1"
CELLS = [(rounds, ranks) for rounds in ROUNDS for ranks in (2, 4) if FULL or rounds == "local" or ranks == 2]


@pytest.mark.parametrize(("rounds", "ranks"), CELLS)
def test_killed_and_resumed_it_ends_in_the_same_weights(tmp_path: Path, rounds: str, ranks: int) -> None:
    program = [str(REPOSITORY / "examples" / "gpt.py"), "--local=ternary", "--guard=off", "--steps=30", *ROUNDS[rounds]]
    run(on_ranks(ranks, *program, "--save=whole"), tmp_path).expect(0)
    process = start(on_ranks(ranks, *program, "--save=killed", "--save-every=5", "--steps=100000"), tmp_path)
    wanted = [tmp_path / "killed" / "step15" / f"rank{rank}.pt" for rank in range(ranks)]
    deadline = time.monotonic() + 120
    while not all(path.is_file() for path in wanted):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process, 60)
    run(on_ranks(ranks, *program, "--save=resumed", "--resume=killed/step15"), tmp_path).expect(0)
    for rank in range(ranks):
        whole, resumed = (
            torch.load(tmp_path / name / "step30" / f"rank{rank}.pt", weights_only=True)
            for name in ("whole", "resumed")
        )
        for key, value in whole["model"].items():
            assert torch.equal(value, resumed["model"][key]), key
