"""Start ranks of a program on this host, as torchrun does, in a fraction of the time.

    python tests/plain_launcher.py RANKS (-m MODULE | PROGRAM.py) [ARGUMENT ...]

For tests that are about what ranks do and not about torchrun. Most of what a short run takes is importing torch, once
for torchrun's agent and once for each rank: here ranks are forked from a process that has imported it, and that keeps
the job's store as the agent does. When one fails the others are ended, and its code is ours, as a shell has it: 137 for
SIGKILL. SIGINT and SIGTERM are passed on.
"""

from __future__ import annotations

import gc
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

GRACE_SECONDS = 10.0
"""How long a rank may take to end after SIGTERM."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM)


def fork(variables: dict[str, str], program: Sequence[str], listener: socket.socket) -> int:
    """Start a rank; in it, this does not return."""
    pid = os.fork()
    if pid == 0:
        listener.close()
        os.environ.update(variables)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        run(program)
        sys.exit()
    return pid


def run(program: Sequence[str]) -> None:
    """As python would with these arguments."""
    del sys.path[0]  # this file's folder
    if program[0] == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = list(program[1:])
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(program[0]).resolve().parent))
        sys.argv = list(program)
        runpy.run_path(program[0], run_name="__main__")


def wait(ranks: Sequence[int]) -> int:
    """For all ranks, or for the first that fails and then, not for long, the others. The code of the first failure."""
    left, code, deadline = set(ranks), 0, float("inf")
    while left:
        pid, status = os.waitpid(-1, os.WNOHANG)
        left.discard(pid)
        if pid and status and not code:
            code = os.waitstatus_to_exitcode(status)
            deadline = time.monotonic() + GRACE_SECONDS
            send(left, signal.SIGTERM)
        if time.monotonic() > deadline:
            send(left, signal.SIGKILL)
        if not pid:
            time.sleep(0.02)
    return code if code >= 0 else 128 - code


def send(ranks: set[int], number: int) -> None:
    for pid in ranks:
        os.kill(pid, number)


def main() -> int:
    import torch._dynamo  # noqa: F401  # as any optimizer of torch does
    import torch.distributed as dist

    num_ranks, program = int(sys.argv[1]), sys.argv[2:]
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    job |= {"LOCAL_WORLD_SIZE": str(num_ranks), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    job["TORCHELASTIC_RESTART_COUNT"] = "0"
    gc.freeze()  # pages stay shared
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    ranks = [fork({**job, "RANK": str(rank), "LOCAL_RANK": str(rank)}, program, listener) for rank in range(num_ranks)]

    def pass_on(number: int, frame: FrameType | None) -> None:
        for pid in ranks:
            os.kill(pid, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    # not before: its threads would not be in the forked processes
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    code = wait(ranks)
    del store
    return code


if __name__ == "__main__":
    sys.exit(main())
