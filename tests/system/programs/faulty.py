"""The trainer, with one fault: `faulty.py PLACE FAULT RANK SETTING...`, in step 7 or at the second checkpoint."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from dtrain.comm.torch_dist import TorchCommunicator
from dtrain.exchange import Op
from dtrain.train import entry, job, loop, saving

STEP = 7
place, fault, rank = sys.argv[1], sys.argv[2], sys.argv[3]
mine = os.environ["RANK"] == rank
in_step = threading.Event()  # from the beginning of that step on
saved = []
altered: list[bool] = []  # the next answer of a collective


def happen() -> None:
    if not mine:
        return
    if fault == "exception":
        raise RuntimeError("a fault of this test")
    if fault == "payload":
        altered.append(True)
        return
    if fault == "link":  # of this rank's node; the namespace is its own
        subprocess.run(["ip", "link", "set", "eth0", "down"], check=True)
        return
    if fault == "disk_full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the file of this test")
    pid = os.getppid() if fault == "agent" else os.getpid()
    os.kill(pid, signal.SIGKILL if fault == "agent" else getattr(signal, fault))


def before(owner: Any, name: str, when: Callable[[], bool]) -> None:
    """The fault happens once, before that function is called, when the time has come."""
    original, over = getattr(owner, name), []

    def replaced(*arguments: Any, **options: Any) -> Any:
        if not over and when():
            over.append(True)
            happen()
        return original(*arguments, **options)

    setattr(owner, name, replaced)


def second_file() -> bool:
    saved.append(True)
    return len(saved) > 3  # of the first checkpoint rank 0 writes three files, rank 1 two


original_step = loop.Loop._train_step


def train_step(self: Any, *arguments: Any) -> None:
    if self.progress.step == STEP:
        in_step.set()
    original_step(self, *arguments)


loop.Loop._train_step = train_step  # type: ignore[method-assign]
original_start = TorchCommunicator.start


class Altered:
    """A collective whose answer arrives with one bit turned over, as no checksum of TCP's has seen."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def wait(self) -> Any:
        answer = self._handle.wait()
        if altered:
            altered.pop()
            answer.view(-1).view(torch.uint8)[answer.nbytes // 2] ^= 0x10
        return answer


def start(self: Any, request: Any) -> Any:
    handle = original_start(self, request)
    is_mean = request.op is Op.ALL_GATHER and request.payload.nbytes > 1000  # what comes before, all ranks get alike
    return Altered(handle) if altered and is_mean else handle


TorchCommunicator.start = start  # type: ignore[method-assign]
match place:
    case "start":
        before(job, "share_parameters", lambda: True)
    case "forward":
        before(loop.Loop, "_backward", in_step.is_set)
    case "collective":
        before(TorchCommunicator, "start", in_step.is_set)
    case "checkpoint":
        before(saving.Saver, "_write", second_file)
sys.exit(entry.main(sys.argv[4:]))
