"""Other ranks of the same host, whose work takes of caches and memory what is measured beside it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event

import torch
from torch import nn

_LARGE = 2**22


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes compute and copy meanwhile, each on one thread."""
    context = multiprocessing.get_context("spawn")
    begun = [context.Event() for _ in range(count)]
    processes = [context.Process(target=_work, args=(event,), daemon=True) for event in begun]
    for process in processes:
        process.start()
    try:
        for event in begun:
            event.wait()
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _work(begun: Event) -> None:
    """Convolutions, forward and backward, and passes over memory, as a rank of a training does."""
    torch.set_num_threads(1)
    layers = nn.Sequential(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    images, large = torch.randn(8, 32, 28, 28), torch.zeros(_LARGE)
    while True:
        layers(images).sum().backward()
        large.add_(1.0)
        begun.set()
