"""Payloads of every compressor, damaged between two ranks: what comes of them is refused, or is a mean of some kind.

A rank trusts its peers (docs/threat-model.md), so any values may come out; but no crash, no hang and no memory beyond
what sound payloads take.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from hostile import Format, hostile_bytes
from torch import Tensor

from dtrain.comm.lockstep import LockstepCommunicator, lockstep
from dtrain.compressors import COMPRESSORS, build
from dtrain.compressors.policies.error_feedback import ErrorFeedback
from dtrain.exchange import Bucket, Compressor, Context, Exchanged, Layout, Request

OPTIONS: Mapping[str, list[dict[str, Any]]] = {
    "top_k": [{"exchange": way, "value_bits": bits} for way in ("all_gather", "split") for bits in (8, 16, 32)],
    "dgc": [{"exchange": way} for way in ("all_gather", "split")],
    "ternary": [{}, {"rounding": "stochastic"}],
    "power_sgd": [{}, {"power_sgd_rank": 2}],
}
LAYOUT = Layout(("a", "b", "c"), ((24, 30), (13,), (4, 3, 5)))
WORLD_SIZE, STEPS = 3, 3


def formats() -> dict[str, Format]:
    """One for each compressor."""
    return {f"payload {name}": Format(partial(_seed), partial(_exchange, name)) for name in COMPRESSORS}


def _seed(rng: random.Random) -> bytes:
    """Of what is done to the payloads, which are made anew for each input."""
    return rng.randbytes(8)


def _exchange(name: str, seed: bytes) -> None:
    rng = random.Random(seed)
    compressor: Compressor = build(name, **rng.choice(OPTIONS.get(name, [{}])))
    if rng.random() < 0.5:
        compressor = ErrorFeedback(compressor)
    generator = torch.Generator().manual_seed(1)
    communicators = lockstep(WORLD_SIZE)
    states = [compressor.init(Bucket(torch.zeros(LAYOUT.numel), LAYOUT)) for _ in communicators]
    for step in range(STEPS):
        results = _step(compressor, communicators, states, step, generator, rng)
        states = [result.state for result in results]
        damaged = results[0]
        if damaged.mean.shape != (LAYOUT.numel,):
            raise AssertionError(f"a mean of shape {tuple(damaged.mean.shape)}")
        damaged.contribution.subtract_from(torch.zeros(LAYOUT.numel))


def _step(
    compressor: Compressor,
    communicators: list[LockstepCommunicator],
    states: list[Any],
    step: int,
    generator: torch.Generator,
    rng: random.Random,
) -> list[Exchanged]:
    """Rank 0 is answered something else than was sent."""
    exchanges = [
        compressor.exchange(
            Bucket(torch.randn(LAYOUT.numel, generator=generator), LAYOUT),
            state,
            Context(communicator.rank, WORLD_SIZE, step, wants_contribution=True),
        )
        for communicator, state in zip(communicators, states, strict=True)
    ]
    answers: list[Any] = [None] * WORLD_SIZE
    results: dict[int, Exchanged] = {}
    while len(results) < WORLD_SIZE:
        asked: dict[int, Request | tuple[Request, ...]] = {}
        for rank, exchange in enumerate(exchanges):
            try:
                asked[rank] = exchange.send(answers[rank])
            except StopIteration as done:
                results[rank] = done.value
        handles = {
            rank: [communicators[rank].start(one) for one in (ask if isinstance(ask, tuple) else (ask,))]
            for rank, ask in asked.items()
        }
        for rank, ask in asked.items():
            got = tuple(handle.wait() for handle in handles[rank])
            if rank == 0:
                got = tuple(damaged(rng, one) if rng.random() < 0.4 else one for one in got)
            answers[rank] = got if isinstance(ask, tuple) else got[0]
    return [results[rank] for rank in range(WORLD_SIZE)]


def damaged(rng: random.Random, answer: Tensor) -> Tensor:
    """Other bytes, as many; of floating-point numbers some that are hard to calculate with."""
    answer = answer.clone()
    if answer.is_floating_point() and rng.random() < 0.5:
        values = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 3e38, -3e38, 1e-45, 1.0)
        flat = answer.view(-1)
        for _ in range(rng.choice((1, 1, 5, flat.numel()))):
            flat[rng.randrange(flat.numel())] = rng.choice(values)
        return answer
    size = answer.numel() * answer.element_size()
    data = bytes(answer.contiguous().view(-1).view(torch.uint8).tolist())
    for _ in range(rng.choice((1, 1, 3))):
        data = hostile_bytes(rng, data)
    data = (data + bytes(size))[:size]
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(answer.dtype).view(answer.shape)
