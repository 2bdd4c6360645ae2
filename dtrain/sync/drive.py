"""Run exchanges against a communicator: the one loop between compressors and the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dtrain.comm import Communicator, Handle
from dtrain.exchange import Exchange, Exchanged, Request
from dtrain.meter.clock import HOST_CLOCK, Clock

OnDone = Callable[[Exchanged], None]


class _Flight:
    """One exchange between two of its rounds."""

    def __init__(self, exchange: Exchange, on_done: OnDone) -> None:
        self.exchange, self.on_done = exchange, on_done
        self.handles: tuple[Handle, ...] = ()
        self.single = False

    def start(self, asked: Request | tuple[Request, ...], communicator: Communicator) -> None:
        self.single = isinstance(asked, Request)
        requests = (asked,) if isinstance(asked, Request) else asked
        self.handles = tuple(communicator.start(request) for request in requests)

    def answer(self) -> Tensor | tuple[Tensor, ...]:
        answers = tuple(handle.wait() for handle in self.handles)
        return answers[0] if self.single else answers


class Pipeline:
    """Keeps several exchanges in flight, so that one encodes while another is on the network.

    Collectives go out in an order that depends only on the order of `submit` and on the number of rounds, never on
    timing, since it must be the same on every rank: a submitted exchange starts its first round, then every older one
    advances by one round.
    """

    def __init__(self, communicator: Communicator, clock: Clock = HOST_CLOCK) -> None:
        self._communicator = communicator
        self._clock = clock
        self._flights: list[_Flight] = []
        self._codec_marks: list[tuple[Any, Any]] = []

    def submit(self, exchange: Exchange, on_done: OnDone) -> None:
        """Start an exchange; `on_done` gets its result, from this call or a later one."""
        older = list(self._flights)
        flight = _Flight(exchange, on_done)
        self._flights.append(flight)
        self._advance(flight, None)
        for waiting in older:
            self._advance(waiting, waiting.answer())

    def finish(self) -> None:
        """Bring every exchange to its end."""
        while self._flights:
            for flight in list(self._flights):
                self._advance(flight, flight.answer())

    def abandon(self) -> None:
        """Forget every exchange in flight, after an error."""
        self._flights.clear()

    def take_codec_seconds(self) -> float:
        """Seconds spent in compressors since the last call."""
        marks, self._codec_marks = self._codec_marks, []
        return sum(self._clock.seconds(start, end) for start, end in marks)

    def _advance(self, flight: _Flight, answer: Tensor | tuple[Tensor, ...] | None) -> None:
        start = self._clock.mark()
        try:
            asked = flight.exchange.send(answer)
        except StopIteration as done:
            self._codec_marks.append((start, self._clock.mark()))
            self._flights.remove(flight)
            flight.on_done(done.value)
            return
        self._codec_marks.append((start, self._clock.mark()))
        flight.start(asked, self._communicator)


def drive(exchange: Exchange, communicator: Communicator) -> Exchanged:
    """Run one exchange to its end."""
    results: list[Exchanged] = []
    pipeline = Pipeline(communicator)
    pipeline.submit(exchange, results.append)
    pipeline.finish()
    return results[0]


def drive_lockstep(exchanges: Sequence[Exchange], communicators: Sequence[Communicator]) -> list[Exchanged]:
    """Run the same exchange for all virtual workers of `comm.lockstep`, round by round.

    Raises RuntimeError where ranks disagree on the number of rounds.
    """
    results: dict[int, Exchanged] = {}
    flights = [
        _Flight(exchange, lambda out, rank=rank: results.__setitem__(rank, out))  # type: ignore[misc]
        for rank, exchange in enumerate(exchanges)
    ]
    answers: list[Any] = [None] * len(flights)
    while True:
        for flight, communicator, answer in zip(flights, communicators, answers, strict=True):
            try:
                flight.start(flight.exchange.send(answer), communicator)
            except StopIteration as done:
                flight.on_done(done.value)
        if results:
            if len(results) < len(flights):
                raise RuntimeError(f"only ranks {sorted(results)} finished: ranks disagree on the number of rounds")
            return [results[rank] for rank in range(len(flights))]
        answers = [flight.answer() for flight in flights]
