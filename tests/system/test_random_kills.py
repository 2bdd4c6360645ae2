"""Killed again and again, in any way and at any time, a run ends in bitwise the weights of one that was left alone.

As long as its world size stays. DTRAIN_FULL=1 kills a hundred times, under torchrun too, whose agent starts ranks again
by itself; otherwise the same command is given again, with resume=latest. DTRAIN_SEED is of when and what.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from programs import finish, read_summary, run, start, train_command, under_torchrun
from safetensors.torch import load_file

FULL = os.environ.get("DTRAIN_FULL") == "1"
KILLS, SEED, STEPS, RANKS = 100 if FULL else 3, int(os.environ.get("DTRAIN_SEED", "0")), 40 if FULL else 20, 2
SETTINGS = (
    "data=synthetic",
    "data.image_size=32",
    "data.num_train_images=200",
    "data.num_test_images=20",
    "batch_size=8",
    "compressor=int8",
    "eval_every_epochs=1",
    f"num_steps={STEPS}",
    "save_every=2",
    "keep_checkpoints=3",
    "log_every=5",
    "resume=latest",
    "run_dir=run",
    "observe.progress=false",
)
RESTARTS = 1000

pytestmark = pytest.mark.timeout(3600 if FULL else 300)


def children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return []


def send(pids: list[int], number: int) -> bool:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
    return bool(pids)


WAYS: dict[str, Callable[[int, random.Random], bool]] = {
    "SIGKILL to a rank": lambda pid, chance: send([chance.choice(ranks)] if (ranks := children(pid)) else [], 9),
    "SIGKILL to all ranks": lambda pid, chance: send(children(pid), 9),
    "SIGKILL to the launcher": lambda pid, chance: send([pid], 9),
    "SIGKILL to all": lambda pid, chance: send([*children(pid), pid], 9),
    "SIGTERM to the launcher": lambda pid, chance: send([pid], signal.SIGTERM),
    "SIGTERM to a rank": lambda pid, chance: send([chance.choice(ranks)] if (ranks := children(pid)) else [], 15),
}


class Killer:
    """Kills a job until it has killed often enough."""

    def __init__(self, kills: int, seed: int) -> None:
        self.left, self.chance, self.made = kills, random.Random(seed), Counter[str]()

    def run(self, command: list[str], folder: Path) -> int:
        """Give the command until the run is complete. Returns how often it was given."""
        given = 0
        while True:
            process, given = start(command, folder), given + 1
            try:
                killed = self._meddle(process, folder / "run" / "ledger" / "rank0.jsonl")
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                raise
            ended = finish(process, 120)  # its pipes are closed once all of its processes have ended
            if ended.code == 0:
                return given
            assert killed, ended
            assert ended.code != 2, ended

    def _meddle(self, process: subprocess.Popen[str], ledger: Path) -> bool:
        """Kill at times of chance, before and after the first step, as long as it runs. Returns whether it did."""
        any_made = False
        while self.left:
            begun = time.time()
            amid_the_start = self.chance.random() < 0.25
            while not amid_the_start and not trains_since(ledger, begun):
                if process.poll() is not None:
                    return any_made
                time.sleep(0.02)
            time.sleep(self.chance.uniform(0, 2))
            way = self.chance.choice(sorted(WAYS))
            if process.poll() is not None:
                return any_made
            if WAYS[way](process.pid, self.chance):
                self.left, self.made[way], any_made = self.left - 1, self.made[way] + 1, True
                if "launcher" in way or way.endswith("all"):
                    return True
        return any_made


def trains_since(ledger: Path, begun: float) -> bool:
    """Whether a step was made since then."""
    try:
        return ledger.stat().st_mtime > begun and '"step": ' in ledger.read_text()
    except OSError:
        return False


def assert_same_end(one: Path, other: Path) -> None:
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    for name in ("optimizer0", "optimizer1", "rank0", "rank1"):
        path = f"checkpoints/step-{STEPS:06d}/{name}.safetensors"
        whole, rest = load_file(one / path), load_file(other / path)
        assert whole.keys() == rest.keys()
        assert all(torch.equal(whole[key], rest[key]) for key in whole), name


def test_it_ends_in_the_weights_of_a_run_that_was_left_alone(tmp_path: Path) -> None:
    again = train_command(*SETTINGS, ranks=RANKS)
    by_itself = under_torchrun(RANKS, "-m", "dtrain.train", *SETTINGS)
    by_itself.insert(by_itself.index("--standalone"), f"--max-restarts={RESTARTS}")
    (tmp_path / "alone").mkdir()
    run(again, tmp_path / "alone").expect(0)
    killer, jobs, begun = Killer(KILLS, SEED), 0, time.monotonic()
    while killer.left:
        folder, jobs = tmp_path / f"job{jobs}", jobs + 1
        folder.mkdir()
        given = killer.run(by_itself if FULL and jobs % 3 == 2 else again, folder)
        assert read_summary(folder / "run")["complete"] is True
        assert_same_end(tmp_path / "alone" / "run", folder / "run")
        sittings = 1 + len(list((folder / "run" / "earlier").glob("*")))
        print(
            f"job {jobs}: the same bits after {sittings} sittings of {given} commands, {KILLS - killer.left} kills in "
            f"all: {dict(killer.made)}, {time.monotonic() - begun:.0f} s",
            flush=True,
        )
