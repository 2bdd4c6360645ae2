"""A synchroniser that is run for its program: real work among workers who are not there, timed piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from dtrain.comm.simulated import SimulatedCommunicator
from dtrain.exchange import Request
from dtrain.plan.program import Await, Event, Instruction, Program, Signal, Start, Work

Clock = Callable[[], float]


class Recorder:
    """The lane and the communicator of one synchroniser, which write down what it does.

    Answers are there at once (`SimulatedCommunicator`); the making of them is not counted.

    Args:
        world_size: how many workers to pretend.
        backend: whose name the communicator goes by.
        clock: seconds, of this thread's work.
    """

    takes_thread = False
    rank = 0

    def __init__(self, world_size: int, *, backend: str = "gloo", clock: Clock = time.perf_counter) -> None:
        self.world_size, self.backend = world_size, backend
        self._others = SimulatedCommunicator(world_size)
        self._clock = clock
        self._compute: list[Instruction] = []
        self._exchange: list[Instruction] = []
        self._current, self._counts = self._compute, dict.fromkeys(("ready", "finished", "collective"), 0)
        self._since = clock()

    def take(self, *, steps: int = 1) -> Program:
        """What was done since the last call."""
        self._note()
        program = Program(tuple(self._compute), tuple(self._exchange), steps)
        self._compute.clear()
        self._exchange.clear()
        self._counts = dict.fromkeys(self._counts, 0)
        self._since = self._clock()
        return program

    def leave_out(self) -> None:
        """What was done since the last instruction does not count."""
        self._since = self._clock()

    def add_step(self) -> None:
        """A whole step of training goes here, of which nothing is measured now."""
        self._note()
        self._current.append(Work(0.0, whole_step=True))

    # A lane

    def point(self) -> Event:
        """See `sync.lanes.Lane`."""
        event = self._new("ready")
        self._note(Signal(event))
        return event

    def wait_for(self, point: Event) -> None:
        """See `sync.lanes.Lane`."""
        self._note(Await(point))

    @contextmanager
    def work(self) -> Iterator[None]:
        """See `sync.lanes.Lane`."""
        self._note()
        self._current = self._exchange
        yield
        self._note(Signal(self._new("finished")))
        self._current = self._compute

    def join(self) -> None:
        """See `sync.lanes.Lane`."""
        self._note(Await(("finished", self._counts["finished"] - 1)))

    # A communicator

    def start(self, request: Request) -> _Answer:
        """See `comm.Communicator`."""
        event = self._new("collective")
        self._note(Start(event, request.op, request.payload_bytes))
        answer = self._others.start(request).wait()
        self.leave_out()
        return _Answer(self, event, answer)

    def waited_for(self, event: Event) -> None:
        """Somebody waits here for a collective."""
        self._note(Await(event))

    def duplicate(self) -> Recorder:
        """Itself."""
        return self

    def close(self) -> None:
        """Nothing to leave."""

    def _new(self, kind: str) -> Event:
        self._counts[kind] += 1
        return kind, self._counts[kind] - 1

    def _note(self, instruction: Instruction | None = None) -> None:
        self._current.append(Work(self._clock() - self._since))
        if instruction is not None:
            self._current.append(instruction)
        self._since = self._clock()


class _Answer:
    def __init__(self, recorder: Recorder, event: Event, answer: Tensor) -> None:
        self._recorder, self._event, self._answer = recorder, event, answer

    def wait(self) -> Tensor:
        self._recorder.waited_for(self._event)
        return self._answer
