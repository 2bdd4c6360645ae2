"""`python -m dtrain.train`: read the command line, put a job together, and train it."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from omegaconf import DictConfig

from dtrain.arguments import FAILED, INTERRUPTED, MISTAKE, on_signals, say_error
from dtrain.comm import CollectiveError, Launch, detect_launch, fail_together, join_step
from dtrain.comm.membership import MEMBER, NOTHING, Member
from dtrain.meter.rendezvous import AddressError
from dtrain.sync.synchronizer import NonFiniteGradientError
from dtrain.train.agreement import DivergedError
from dtrain.train.between import Between
from dtrain.train.boundary import StopRequest
from dtrain.train.checkpoint_folder import folder_of
from dtrain.train.compose import Request, plain, read_request, read_resumed
from dtrain.train.config import TrainConfig, from_data
from dtrain.train.job import Job, open_job
from dtrain.train.loop import RegroupError, Skipped
from dtrain.train.parent import end_with_agent
from dtrain.train.phases import Phases

USER_ERRORS = (ValueError, FileNotFoundError, ConnectionError)
RUN_ERRORS = (NonFiniteGradientError, CollectiveError, DivergedError)
PREEMPTED = os.EX_TEMPFAIL
"""An exit code, 75: the run was saved for SIGTERM; the same command goes on with it, with resume=latest."""
FORWARDED_SECONDS = 5.0
"""A scheduler sends SIGTERM to all processes, and torchrun's agent, one of them, sends it on to its ranks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Exit codes: 0 done, 1 failed on the way, 2 a mistake in the request, 75 saved for SIGTERM, 130 interrupted.
    """
    return _run(lambda: read_request(sys.argv[1:] if arguments is None else arguments))


def resume(arguments: Sequence[str]) -> int:
    """`dtrain resume RUN [KEY=VALUE ...]`: train on in a run's own directory, with the settings that it has.

    Exit codes as of `main`.
    """
    return _run(lambda: read_resumed(arguments))


def _run(read: Callable[[], Request]) -> int:
    launch = Launch("none", 0, 0, 1, 1)
    try:
        end_with_agent(os.environ)
        launch = detect_launch(os.environ)
        request = read()
        if request.composed is None:
            if launch.rank == 0:
                print(request.text, end="", flush=True)
            return 0
        config = from_data(plain(request.composed))
        if MEMBER in os.environ:
            return train_with_others(config, request.composed)
        launch = join_step(launch, config.backend.name, os.environ)
        return train(config, launch, request.composed)
    except BrokenPipeError:
        raise
    except (*USER_ERRORS, *RUN_ERRORS, OSError) as error:
        return _fail(error, detect_launch(os.environ) if MEMBER in os.environ else launch)


def train(config: TrainConfig, launch: Launch, composed: DictConfig) -> int:
    """Run one worker's part of a training run. Returns the exit code.

    Raises ValueError, FileNotFoundError or ConnectionError, naming the cure, for what the user can mend.
    """
    stop = StopRequest()
    with open_job(config, launch, composed, stop) as job:
        phases = Phases(job)
        with _stopping(stop, launch):
            complete = phases.run()
            job.finish(complete=complete)
    return _end(job, complete)


def train_with_others(config: TrainConfig, composed: DictConfig) -> int:
    """Run one worker's part of a run whose workers come and go (`dtrain elastic`). Returns the exit code.

    Raises ValueError, FileNotFoundError or ConnectionError, naming the cure, for what the user can mend.
    """
    if config.sync.name == "streaming":
        raise ValueError("sync=streaming cannot go on without a worker that is lost: use sync=local")
    if config.backend.name != "gloo":
        raise ValueError(f"workers come and go over backend=gloo alone: leave backend={config.backend.name} out")
    member, stop = Member(os.environ), StopRequest()
    between = Between(member, member.join(NOTHING))
    with _stopping(stop, between.group.launch):
        while True:
            try:
                with open_job(config, between.group.launch, composed, stop, between) as job:
                    complete = Phases(job).run()
                    job.finish(complete=complete)
                return _end(job, complete)
            except (CollectiveError, RegroupError):
                pass  # the supervisor says who was lost
            gc.collect()  # what the error held of the old group: it must be gone
            between.join_next()


def _end(job: Job, complete: bool) -> int:
    if job.launch.rank == 0:
        for line in _closing_lines(job, complete):
            print(line, flush=True)
    if complete:
        return 0
    return PREEMPTED if job.boundary.stop.is_preemption else INTERRUPTED


def _closing_lines(job: Job, complete: bool) -> Iterator[str]:
    """What a person wants to know at the end."""
    yield from _skipped_lines(job.skipped)
    if job.summary is not None:
        yield from job.summary.phase_lines()
    step = job.progress.step
    if complete:
        yield f"results in {job.run_dir}"
    elif job.boundary.stop.is_preemption:
        yield f"stopped by SIGTERM after step {step} and saved in {folder_of(job.run_dir, step)}: resume=latest goes on"
    else:
        yield f"stopped after step {step}, marked incomplete: results in {job.run_dir}"


def _skipped_lines(skipped: Skipped) -> Iterator[str]:
    if skipped.count > len(skipped.last):
        yield f"skipped {skipped.count:,} steps, the last of them:"
    for error in skipped.last:
        yield f"skipped a step: {error}"


@contextmanager
def _stopping(stop: StopRequest, launch: Launch) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks the run to stop; a second one ends the process at once."""
    asked = 0.0

    def ask(number: signal.Signals) -> None:
        nonlocal asked
        if not stop.signal:
            stop.signal, asked = number, time.monotonic()
        elif number != signal.SIGTERM:
            raise KeyboardInterrupt
        elif launch.launcher != "torchrun" or time.monotonic() - asked > FORWARDED_SECONDS:
            _end_by_sigterm()

    with on_signals(ask, signal.SIGINT, signal.SIGTERM):
        try:
            yield
        except CollectiveError:
            if stop.signal == signal.SIGTERM:  # the launcher ends this rank since another has failed, and says it
                _end_by_sigterm()
            raise


def _end_by_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _fail(error: Exception, launch: Launch) -> int:
    """One line for each fault, whichever ranks it is of."""
    of_the_system = isinstance(error, OSError) and error.errno is not None  # a disk is full, or a folder is gone
    message = " ".join((_named(error) if isinstance(error, OSError) else str(error)).split())
    # where torchrun's store is at hand, one rank of each host has been chosen to say which collective failed
    # of it; and where there is none, nobody hears of the others
    of_meeting = isinstance(error, CollectiveError | AddressError) and launch.launcher == "torchrun"
    speaks = launch.rank == 0 or of_meeting
    if speaks:
        say_error(message)
    if fail_together(launch, message, has_spoken=speaks) and not speaks:
        say_error(f"rank {launch.rank}: {message}")
    return FAILED if of_the_system or isinstance(error, RUN_ERRORS) else MISTAKE


def _named(error: OSError) -> str:
    """With the path first, as other messages have it; what was written before stays whole, for which files.py is."""
    return str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
