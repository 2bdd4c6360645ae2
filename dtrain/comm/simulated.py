"""Workers who are not there: rank 0's collectives among any number of them, without a network or a second process."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dtrain.exchange import Op, Request


class _Answer:
    def __init__(self, answer: Tensor) -> None:
        self._answer = answer

    def wait(self) -> Tensor:
        return self._answer


class SimulatedCommunicator:
    """Rank 0 of `world_size` workers, all of whom hand over what rank 0 does: answers are what that gives.

    Sizes and rounds are the same on every rank, so what this one is asked for is what each would send.

    Args:
        world_size: how many workers, this one included.
        backend: whose name it goes by, for the byte model of `meter.wire`.
        on_start: called with each request as it is started, in order; a fused one has those that it joins in `parts`.
    """

    rank = 0

    def __init__(
        self, world_size: int, *, backend: str = "simulated", on_start: Callable[[Request], None] | None = None
    ) -> None:
        self.world_size, self.backend, self._on_start = world_size, backend, on_start

    def start(self, request: Request) -> _Answer:
        """Start a collective; its answer is there at once, and apart from the payload.

        Raises ValueError for what no communicator performs.
        """
        if self._on_start is not None:
            self._on_start(request)
        return _Answer(self._perform(request.op, request.payload))

    def _perform(self, op: Op, payload: Tensor) -> Tensor:
        match op:
            case Op.ALL_REDUCE:
                return payload * self.world_size
            case Op.ALL_GATHER:
                return payload.expand(self.world_size, *payload.shape).clone()
            case Op.ALL_TO_ALL:
                return payload[:1].expand_as(payload).clone()
            case Op.BROADCAST:
                return payload.clone()
        raise ValueError(f"a communicator does not perform {op}: use all_reduce, all_gather or all_to_all")

    def duplicate(self) -> SimulatedCommunicator:
        """Itself: nothing interleaves."""
        return self

    def close(self) -> None:
        """Nothing to leave."""
