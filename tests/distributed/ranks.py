"""Facts that need real processes: `@on_ranks(2, 3)` above a test runs its body on every rank of a gloo group.

With `launcher="mpiexec"` or "horovodrun", or both, the ranks are those of that launcher, and there is no gloo group.

Starting a process costs seconds (importing torch), so all tests of a world size share one start: `launch` starts the
ranks, each runs the selected tests one after the other, every one on a fresh process group, and writes down what came
of it. A test fails with what any rank says; ranks that never got to it fail with their output.

    @on_ranks(2, 3)
    def test_all_reduce_gives_the_sum(here: Here) -> None: ...
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch.distributed as dist

FOLDER = Path(__file__).resolve().parent
COLLECTIVE_TIMEOUT = timedelta(seconds=40)
"""A rank whose partner failed waits this long."""
LAUNCH_TIMEOUT_SECONDS = 500.0
"""For all tests of a world size, beside those of another."""

RANK_VARIABLES = {"mpiexec": "PMI_RANK", "horovodrun": "HOROVOD_RANK"}
NEEDS = {
    "mpiexec": pytest.mark.skipif(
        find_spec("mpi4py") is None, reason="mpi4py is not installed: pip install 'dtrain[mpi]'"
    ),
    "horovodrun": pytest.mark.skipif(find_spec("horovod") is None, reason="Horovod is not installed: make horovod"),
}


class Here(NamedTuple):
    """Where a body runs; `folder` is the same, and empty, for all ranks of one test."""

    rank: int
    world_size: int
    launcher: str | None
    store: dist.Store
    folder: Path

    def join(self, timeout: timedelta = COLLECTIVE_TIMEOUT) -> None:
        """Join the default process group; only for tests with `joined=False`."""
        dist.init_process_group("gloo", store=self.store, rank=self.rank, world_size=self.world_size, timeout=timeout)


class Fact(NamedTuple):
    """A body, and whether it starts inside a process group."""

    body: Callable[[Here], None]
    joined: bool


FACTS: dict[str, Fact] = {}


def on_ranks(
    *world_sizes: int, joined: bool = True, launcher: str | tuple[str, ...] | None = None
) -> Callable[[Callable[[Here], None]], Callable[..., None]]:
    """Make a test of a body that runs on every rank, once per world size and launcher."""
    launchers = launcher if isinstance(launcher, tuple) else (launcher,)
    cases = [
        pytest.param(
            size,
            one,
            id=f"{one}-{size}" if one else f"{size}",  # the same for all that share a start: see tests/conftest.py
            marks=[NEEDS[one]] if one else [],
        )
        for one in launchers
        for size in world_sizes
    ]

    def decorate(body: Callable[[Here], None]) -> Callable[..., None]:
        key = f"{body.__module__}:{body.__name__}"
        FACTS[key] = Fact(body, joined and launcher is None)

        @pytest.mark.ranks(key)
        @pytest.mark.timeout(LAUNCH_TIMEOUT_SECONDS + 60)
        @pytest.mark.parametrize(("world_size", "launcher"), cases)
        def test(launched: Callable[[int, str | None], Outcome], world_size: int, launcher: str | None) -> None:
            launched(world_size, launcher).check(key)

        test.__name__, test.__module__, test.__doc__ = body.__name__, body.__module__, body.__doc__
        return test

    return decorate


class Outcome:
    """What the ranks of one launch said."""

    def __init__(self, folder: Path, world_size: int, ended: str, outputs: Sequence[Path]) -> None:
        self._ended = ended
        self._output = [path.read_text(errors="replace") for path in outputs]
        self._errors: list[dict[str, str | None]] = [{} for _ in range(world_size)]
        for rank in range(world_size):
            results = folder / f"results{rank}.jsonl"
            for line in results.read_text().splitlines() if results.exists() else ():
                result = json.loads(line)
                self._errors[rank][result["key"]] = result["error"]

    def check(self, key: str) -> None:
        """Fail unless every rank ran this test and none had anything to object."""
        problems = []
        for rank, errors in enumerate(self._errors):
            if key not in errors:
                problems.append(f"rank {rank} did not get to it ({self._ended}):\n{self._output[rank][-3000:]}")
            elif errors[key] is not None:
                problems.append(f"rank {rank}: {errors[key]}")
        if problems:
            pytest.fail("\n".join(problems), pytrace=False)


def launch(world_size: int, keys: Sequence[str], folder: Path, launcher: str | None = None) -> Outcome:
    """Run these tests on `world_size` processes, and end them all, come what may."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_SHOW_CPP_STACKTRACES": "0", "GLOO_SOCKET_IFNAME": "lo"}
    environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER), str(FOLDER.parent), *sys.path])
    program, arguments = [sys.executable, "-W", "ignore", __file__, str(folder)], [str(world_size), *keys]
    commands = [[*program, str(rank), *arguments] for rank in range(world_size)]
    if launcher == "mpiexec":
        mpiexec = str(Path(sys.executable).with_name("mpiexec"))
        commands = [[mpiexec, "-n", str(world_size), *program, RANK_VARIABLES[launcher], *arguments]]
    if launcher == "horovodrun":
        horovodrun = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "--network-interfaces", "lo"]
        commands = [[*horovodrun, "-np", str(world_size), *program, RANK_VARIABLES[launcher], *arguments]]
    processes, outputs = [], [folder / f"output{i}.txt" for i in range(len(commands))]
    try:
        for command, path in zip(commands, outputs, strict=True):
            with path.open("w") as output:
                processes.append(subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT))
        ended = _wait(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return Outcome(folder, world_size, ended, outputs if launcher is None else outputs * world_size)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> str:
    """Until all are done, one has died, or time is up; says which."""
    deadline = time.monotonic() + LAUNCH_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if None not in codes or any(codes):
            return f"exit codes {codes}"
        time.sleep(0.1)
    return f"not done after {LAUNCH_TIMEOUT_SECONDS:.0f} s"


def _run(folder: Path, rank: int, world_size: int, launcher: str | None, keys: Sequence[str]) -> None:
    """What one rank does."""
    for key in keys:
        importlib.import_module(key.partition(":")[0])
    store = dist.FileStore(str(folder / "store"), world_size)
    facts = importlib.import_module("ranks").FACTS  # this file runs as __main__
    for number, key in enumerate(keys):
        own = folder / str(number)
        own.mkdir(exist_ok=True)
        here = Here(rank, world_size, launcher, dist.PrefixStore(key, store), own)
        start = time.monotonic()
        print(f"{key} ...", flush=True)
        error = _run_one(facts[key], here)
        if error is not None:
            _leave()  # others that wait for this rank learn of it at once
        # nobody leaves while another is still connecting, nor starts the next test while another is in this one
        store.set(f"{key} done {rank}", "")
        store.wait([f"{key} done {k}" for k in range(world_size)], 2 * COLLECTIVE_TIMEOUT)
        _leave()
        print(f"{key} {'failed' if error else 'held'} after {time.monotonic() - start:.1f} s", flush=True)
        with (folder / f"results{rank}.jsonl").open("a") as results:
            results.write(json.dumps({"key": key, "error": error}) + "\n")


def _run_one(fact: Fact, here: Here) -> str | None:
    """What went wrong, if anything did."""
    try:
        if fact.joined:
            here.join()
        fact.body(here)
    except BaseException:
        return traceback.format_exc(limit=-6)[-6000:]
    return None


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    own_rank = os.environ.get(sys.argv[2], sys.argv[2])  # a number, or the variable that holds it
    own_launcher = {variable: name for name, variable in RANK_VARIABLES.items()}.get(sys.argv[2])
    _run(Path(sys.argv[1]), int(own_rank), int(sys.argv[3]), own_launcher, sys.argv[4:])
