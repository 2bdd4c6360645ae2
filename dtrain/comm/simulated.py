"""A communicator without other workers: it notes what would be sent, and answers with the right shapes."""

from __future__ import annotations

from torch import Tensor

from dtrain.exchange import Op, Request


class _Answer:
    def __init__(self, answer: Tensor) -> None:
        self._answer = answer

    def wait(self) -> Tensor:
        return self._answer


class RehearsalCommunicator:
    """Stands for rank 0 of `world_size` workers, all of whom hand over what rank 0 does.

    `requests` lists (operation, payload bytes) in order. Sizes and rounds are the same on every rank, so this is what
    each one would send.
    """

    backend = "rehearsal"
    rank = 0

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.requests: list[tuple[Op, int]] = []

    def start(self, request: Request) -> _Answer:
        """Note a request; its answer is there at once."""
        self.requests.append((request.op, request.payload_bytes))
        payload = request.payload
        match request.op:
            case Op.ALL_REDUCE:
                return _Answer(payload * self.world_size)
            case Op.ALL_GATHER:
                return _Answer(payload.expand(self.world_size, *payload.shape).clone())
            case Op.ALL_TO_ALL:
                return _Answer(payload[:1].expand_as(payload).clone())
        return _Answer(payload)

    def duplicate(self) -> RehearsalCommunicator:
        """Itself."""
        return self

    def close(self) -> None:
        """Nothing to leave."""
