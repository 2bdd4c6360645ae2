"""Runs exchanges beside backward: one worker thread per rank, on a communicator of its own, in a fixed order.

Collectives that a backend would run from callbacks can start in a different order on each rank and deadlock; one thread
that takes jobs in the order of submission cannot.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

from dtrain.comm import Communicator
from dtrain.exchange import Exchange, Exchanged
from dtrain.meter.clock import clock_for
from dtrain.meter.ledger import Ledger
from dtrain.sync.drive import OnDone, Pipeline
from dtrain.sync.lanes import Lane, lane_for

StartExchange = Callable[[], Exchange]
OnError = Callable[[BaseException], None]


class _Job:
    """An exchange to start, and the point in the submitting stream that it must wait for."""

    def __init__(self, start: StartExchange, on_done: OnDone, on_error: OnError, ready: Any) -> None:
        self.start, self.on_done, self.on_error, self.ready = start, on_done, on_error, ready


class _Flush:
    """The end of a step: everything submitted before it is completed, then `then` is called."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then, self.done = then, threading.Event()


class Engine:
    """Takes exchanges with `submit` during backward and completes them all in `finish`.

    With `overlap` a thread works on them at once; without, they wait for `finish`. They run in a lane, that of the
    device unless another is given, each after what had been queued when it was submitted.
    """

    def __init__(
        self,
        communicator: Communicator,
        ledger: Ledger,
        device: torch.device,
        *,
        overlap: bool,
        lane: Lane | None = None,
    ) -> None:
        self._ledger, self._lane = ledger, lane or lane_for(device)
        self._pipeline = Pipeline(communicator, clock_for(device))
        self._error: BaseException | None = None
        self._waiting: list[OnError] = []
        self._jobs: queue.SimpleQueue[_Job | _Flush | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if overlap and self._lane.takes_thread:
            self._thread = threading.Thread(target=self._work, name="dtrain-exchange", daemon=True)
            self._thread.start()

    def submit(self, start: StartExchange, on_done: OnDone, on_error: OnError = lambda error: None) -> None:
        """Queue an exchange. All three functions run in the thread that works on it; one of the last two is called."""
        self._jobs.put(_Job(start, on_done, on_error, self._lane.point()))

    def flush(self, then: Callable[[], None] = lambda: None) -> _Flush:
        """Queue the completion of everything submitted so far; if it succeeds, `then` is called in the thread."""
        flush = _Flush(then)
        self._jobs.put(flush)
        return flush

    def finish(self) -> None:
        """Complete everything submitted so far; what follows in the training thread comes after it.

        Raises the first error that an exchange met, as it was.
        """
        flush = self.flush()
        if self._thread is None:
            self._run_until(flush)
        else:
            flush.done.wait()
        self._lane.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Until everything submitted is completed or has failed; not at all without `overlap` or once closed."""
        if self._thread is not None:
            self.flush().done.wait()

    def take_codec_seconds(self) -> float:
        """Seconds spent in compressors since the last call. Call it after `finish`."""
        return self._pipeline.take_codec_seconds()

    def close(self) -> None:
        """End the thread. Nothing may be submitted afterwards."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        self._run_until(None)

    def _run_until(self, last: _Flush | None) -> None:
        """Work until told to end or, where a flush is given, until that one is done."""
        with self._lane.work(), self._ledger.exchange():
            while (job := self._jobs.get()) is not None:
                try:
                    self._do(job)
                except BaseException as error:  # handed to whoever waits; the rest of the step is dropped
                    self._error = error
                    self._pipeline.abandon()
                if self._error is not None:
                    self._fail(job, self._error)
                if isinstance(job, _Flush):
                    self._waiting.clear()
                    job.done.set()
                    if job is last:
                        return

    def _do(self, job: _Job | _Flush) -> None:
        if self._error is not None:
            return
        if isinstance(job, _Flush):
            self._pipeline.finish()
            job.then()
            return
        self._lane.wait_for(job.ready)
        self._waiting.append(job.on_error)
        self._pipeline.submit(job.start(), self._settle(job))

    def _settle(self, job: _Job) -> OnDone:
        def done(result: Exchanged) -> None:
            self._waiting.remove(job.on_error)
            job.on_done(result)

        return done

    def _fail(self, job: _Job | _Flush, error: BaseException) -> None:
        """Tell everybody who still waits, this job's owner included."""
        waiting, self._waiting = self._waiting, []
        if isinstance(job, _Job) and job.on_error not in waiting:
            waiting.append(job.on_error)
        for on_error in waiting:
            on_error(error)
