"""What every communicator must do, as requests with the answer that each rank must get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dtrain.exchange import Op, Request


class Collective(NamedTuple):
    """`payload(rank, world_size)` is handed over, `answer(rank, world_size)` must come back."""

    op: Op
    payload: Callable[[int, int], Tensor]
    answer: Callable[[int, int], Tensor]

    def request(self, rank: int, world_size: int) -> Request:
        """A fresh request of one rank."""
        return Request(self.op, self.payload(rank, world_size))


def _matrix(rank: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.arange(6).view(2, 3) + 10 * rank).to(dtype)


def _part(sender: int, receiver: int) -> Tensor:
    return torch.tensor([sender, receiver, sender * 100 + receiver], dtype=torch.float32)


def _sum(make: Callable[[int], Tensor]) -> Callable[[int, int], Tensor]:
    return lambda rank, n: torch.stack([make(k) for k in range(n)]).sum(0, dtype=make(0).dtype)


def _of(dtype: torch.dtype) -> Callable[[int, int], Tensor]:
    return lambda rank, n: _matrix(rank, dtype)


def _rows(make: Callable[[int], Tensor]) -> Callable[[int, int], Tensor]:
    return lambda rank, n: torch.stack([make(k) for k in range(n)])


COLLECTIVES: Mapping[str, Collective] = {
    "all_reduce_gives_the_sum": Collective(Op.ALL_REDUCE, _of(torch.float32), _sum(_matrix)),
    "all_reduce_sums_fp16": Collective(Op.ALL_REDUCE, _of(torch.float16), _sum(lambda k: _matrix(k, torch.float16))),
    "all_reduce_sums_bf16": Collective(Op.ALL_REDUCE, _of(torch.bfloat16), _sum(lambda k: _matrix(k, torch.bfloat16))),
    "all_reduce_sums_fp64": Collective(Op.ALL_REDUCE, _of(torch.float64), _sum(lambda k: _matrix(k, torch.float64))),
    "all_reduce_of_one_number": Collective(
        Op.ALL_REDUCE, lambda rank, n: torch.tensor([2.0**rank]), lambda rank, n: torch.tensor([2.0**n - 1])
    ),
    "all_gather_puts_rank_k_in_row_k": Collective(Op.ALL_GATHER, _of(torch.float32), _rows(_matrix)),
    "all_gather_of_bytes": Collective(Op.ALL_GATHER, _of(torch.uint8), _rows(lambda k: _matrix(k, torch.uint8))),
    "all_gather_of_a_number_without_dimensions": Collective(
        Op.ALL_GATHER, lambda rank, n: torch.tensor(rank), lambda rank, n: torch.arange(n)
    ),
    "all_to_all_row_k_goes_to_and_comes_from_rank_k": Collective(
        Op.ALL_TO_ALL,
        lambda rank, n: torch.stack([_part(rank, to) for to in range(n)]),
        lambda rank, n: torch.stack([_part(sender, rank) for sender in range(n)]),
    ),
    "broadcast_gives_what_rank_0_has": Collective(
        Op.BROADCAST, _of(torch.int64), lambda rank, n: _matrix(0, torch.int64)
    ),
}


def check_payload_is_only_lent(name: str, request: Request, rank: int, world_size: int) -> None:
    """Fail unless a payload that is not summed or broadcast is, once answered, what `rank` handed over."""
    if request.op in (Op.ALL_GATHER, Op.ALL_TO_ALL):
        handed_over = COLLECTIVES[name].payload(rank, world_size)
        assert torch.equal(request.payload, handed_over), f"{name} on rank {rank} of {world_size}: {request.payload}"


def check_answer(name: str, answer: Tensor, rank: int, world_size: int) -> None:
    """Fail unless this is what `rank` must get."""
    expected = COLLECTIVES[name].answer(rank, world_size)
    assert answer.dtype == expected.dtype, f"{name}: {answer.dtype} and not {expected.dtype}"
    assert answer.shape == expected.shape, f"{name}: {tuple(answer.shape)} and not {tuple(expected.shape)}"
    assert torch.equal(answer, expected), f"{name} on rank {rank} of {world_size}: {answer} and not {expected}"
