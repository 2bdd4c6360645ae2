"""Run exchanges against a communicator: the one loop between compressors and the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dtrain.comm import Communicator, Handle
from dtrain.exchange import Exchange, Exchanged, Request
from dtrain.meter.clock import HOST_CLOCK, Clock
from dtrain.sync.fuse import SMALL_BYTES, start_together

OnDone = Callable[[Exchanged], None]

MAX_MARKS = 4096
"""Of codec time, before the older half is added up: far more than a step has, so that no step waits for it."""


class _Flight:
    """One exchange between two of its rounds."""

    def __init__(self, exchange: Exchange, on_done: OnDone) -> None:
        self.exchange, self.on_done = exchange, on_done
        self.requests: tuple[Request, ...] = ()
        self.handles: Sequence[Handle] | None = None
        self.single = False

    def ask(self, asked: Request | tuple[Request, ...]) -> None:
        """Take the exchange's next round; it is not started yet."""
        self.single = isinstance(asked, Request)
        self.requests = (asked,) if isinstance(asked, Request) else asked
        self.handles = None

    def answer(self) -> Tensor | tuple[Tensor, ...]:
        assert self.handles is not None, "a round is started before it is waited for"
        answers = tuple(handle.wait() for handle in self.handles)
        return answers[0] if self.single else answers


def _start(flights: Sequence[_Flight], communicator: Communicator, small_bytes: int) -> None:
    """Start the rounds of these exchanges, the small messages of all of them joined."""
    requests = [request for flight in flights for request in flight.requests]
    handles = iter(start_together(requests, communicator, small_bytes=small_bytes))
    for flight in flights:
        flight.handles = [next(handles) for _ in flight.requests]


class Pipeline:
    """Keeps several exchanges in flight, so that one encodes while another is on the network.

    Collectives go out in an order that depends only on the order of `submit`, the number of rounds and their sizes,
    never on timing, since it must be the same on every rank: a submitted exchange starts its first round, then every
    older one advances by one round. A round whose messages are all below `small_bytes` waits for `finish`, where those
    of all exchanges travel together; 0 sends each request in a collective of its own.
    """

    def __init__(
        self, communicator: Communicator, clock: Clock = HOST_CLOCK, *, small_bytes: int = SMALL_BYTES
    ) -> None:
        self._communicator, self._clock, self._small_bytes = communicator, clock, small_bytes
        self._flights: list[_Flight] = []
        self._codec_marks: list[tuple[Any, Any]] = []
        self._codec_seconds = 0.0

    def submit(self, exchange: Exchange, on_done: OnDone) -> None:
        """Start an exchange; `on_done` gets its result, from this call or a later one."""
        older = [flight for flight in self._flights if flight.handles is not None]
        flight = _Flight(exchange, on_done)
        self._flights.append(flight)
        self._advance(flight, None)
        self._start_large([flight])
        for waiting in older:
            self._advance(waiting, waiting.answer())
        self._start_large(older)

    def finish(self) -> None:
        """Bring every exchange to its end."""
        while self._flights:
            held = [flight for flight in self._flights if flight.handles is None]
            if held:
                _start(held, self._communicator, self._small_bytes)
            for flight in list(self._flights):
                self._advance(flight, flight.answer())

    def abandon(self) -> None:
        """Forget every exchange in flight, after an error."""
        self._flights.clear()

    def take_codec_seconds(self) -> float:
        """Seconds spent in compressors since the last call."""
        self._add_up(len(self._codec_marks))
        seconds, self._codec_seconds = self._codec_seconds, 0.0
        return seconds

    def _note_codec(self, start: Any) -> None:
        """The compressor ran from `start` until now."""
        self._codec_marks.append((start, self._clock.mark()))
        if len(self._codec_marks) == MAX_MARKS:  # nobody may ever ask
            self._add_up(MAX_MARKS // 2)

    def _add_up(self, count: int) -> None:
        """Turn the oldest marks into seconds; on CUDA the host waits for the work between them."""
        marks, self._codec_marks = self._codec_marks[:count], self._codec_marks[count:]
        self._codec_seconds += sum(self._clock.seconds(start, end) for start, end in marks)

    def _advance(self, flight: _Flight, answer: Tensor | tuple[Tensor, ...] | None) -> None:
        start = self._clock.mark()
        try:
            asked = flight.exchange.send(answer)
        except StopIteration as done:
            self._note_codec(start)
            self._flights.remove(flight)
            flight.on_done(done.value)
            return
        self._note_codec(start)
        flight.ask(asked)

    def _start_large(self, flights: Sequence[_Flight]) -> None:
        for flight in flights:
            large = any(request.payload_bytes >= self._small_bytes for request in flight.requests)
            if flight in self._flights and large:
                _start([flight], self._communicator, self._small_bytes)


def drive(exchange: Exchange, communicator: Communicator) -> Exchanged:
    """Run one exchange to its end, each request in a collective of its own."""
    results: list[Exchanged] = []
    pipeline = Pipeline(communicator, small_bytes=0)
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
                flight.ask(flight.exchange.send(answer))
                _start([flight], communicator, small_bytes=0)
            except StopIteration as done:
                flight.on_done(done.value)
        if results:
            if len(results) < len(flights):
                raise RuntimeError(f"only ranks {sorted(results)} finished: ranks disagree on the number of rounds")
            return [results[rank] for rank in range(len(flights))]
        answers = [flight.answer() for flight in flights]
