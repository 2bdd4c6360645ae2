"""Other ranks of the same host, whose work takes of caches and memory what is measured beside it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_LARGE = 2**22


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes compute and copy meanwhile, each on one thread. Raises OSError where one cannot."""
    command = [sys.executable, "-m", "dtrain.plan.neighbours"]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise OSError("a process that should have kept another core busy did not start")
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _work() -> None:
    """Convolutions, forward and backward, and passes over memory, as a rank of a training does."""
    torch.set_num_threads(1)
    layers = nn.Sequential(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    images, large = torch.randn(8, 32, 28, 28), torch.zeros(_LARGE)
    begun = False
    while True:
        layers(images).sum().backward()
        large.add_(1.0)
        if not begun:
            print("begun", flush=True)
            begun = True


if __name__ == "__main__":
    _work()
