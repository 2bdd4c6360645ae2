"""`python -m dtrain.train`: compose a configuration with Hydra, put the parts of a run together, and train."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import hydra
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dtrain.comm import (
    QUIET_SECONDS,
    CollectiveError,
    Communicator,
    Launch,
    all_gather,
    broadcast,
    detect_launch,
    fail_together,
    open_communicator,
)
from dtrain.meter import c10d
from dtrain.meter.ledger import Activity, Ledger, Purpose
from dtrain.meter.roll_call import RollCall, job_store
from dtrain.observe import run_directory
from dtrain.observe.jsonl import LedgerFile
from dtrain.observe.prometheus import RunCollector
from dtrain.observe.summary import Summary
from dtrain.sync.every_step import NonFiniteGradientError
from dtrain.sync.parameters import share_parameters
from dtrain.train.build import build
from dtrain.train.checkpoint import read_manifest, save_model
from dtrain.train.config import Span, TrainConfig, from_data
from dtrain.train.loop import Trainer
from dtrain.train.observers import facts_of, nic_window, open_endpoint, open_observers, run_metrics
from dtrain.train.phases import Phases, pack_model
from dtrain.train.task import Observer, Task
from dtrain.vision import data

USER_ERRORS = (ValueError, FileNotFoundError, ConnectionError, HydraException, OmegaConfBaseException)
RUN_ERRORS = (NonFiniteGradientError, CollectiveError)
FAILED, MISTAKE, INTERRUPTED = 1, 2, 130

START_SECONDS = 600.0
"""How long ranks wait for each other to start: one may have data to fetch first."""


def train(config: TrainConfig, launch: Launch, composed: DictConfig) -> int:
    """Run one worker's part of a training run. Returns the exit code.

    Raises ValueError, FileNotFoundError or ConnectionError, naming the cure, for what the user can mend.
    """
    parts = build(config, launch)
    nic = nic_window(config, launch)
    run_dir = Path()
    if launch.rank == 0:
        name = f"{config.model.name}-{config.compressor.name}"
        run_dir = run_directory.choose(config.run_dir, name, overwrite=config.overwrite)
        _check_resume(config.resume, run_dir)
    with ExitStack() as stack:
        endpoint = stack.enter_context(closing(open_endpoint(config.observe.prometheus, launch)))
        ledger = Ledger()
        if config.observe.meter:
            stack.enter_context(c10d.installed(ledger))
        stack.enter_context(_naming_the_missing(launch))
        communicator = stack.enter_context(
            open_communicator(
                config.backend.name,
                launch,
                ledger if config.observe.meter else None,
                timeout_seconds=config.backend.timeout_seconds,
            )
        )
        device = torch.device("cuda", launch.local_rank) if config.backend.name == "nccl" else torch.device("cpu")
        run_dir = _share_path(run_dir, communicator, ledger, device)
        if launch.rank == 0:
            run_directory.make(run_dir)
        model = parts.model.to(device)
        share_parameters(model, communicator, ledger)
        for_gradients = communicator.duplicate()
        stack.callback(for_gradients.close)
        ledger_file = LedgerFile(run_dir / "ledger" / f"rank{launch.rank}.jsonl")
        stack.callback(ledger_file.close)
        ledger.sinks.append(ledger_file)
        ledger.close()
        torch.manual_seed(config.seed * launch.world_size + launch.rank)  # dropout differs between ranks
        facts = facts_of(config, launch, parts, run_dir)
        metrics = run_metrics(facts, launch, ledger, nic)
        endpoint.show(metrics)
        observers: list[Observer] = []
        summary: Summary | None = None
        if launch.rank == 0:
            OmegaConf.save(composed, run_dir / "config.yaml", resolve=True)
            run_directory.write_environment(run_dir, asdict(launch))
            summary = Summary(run_dir / "summary.json", facts, ledger, nic)
            observers = [*open_observers(config, parts, run_dir, summary, ledger, stack), metrics]
        make_task = partial(
            Task,
            communicator=communicator,
            ledger=ledger,
            loader=parts.loader,
            eval_batches=lambda: data.eval_batches(
                parts.test_set,
                batch_size=config.batch_size,
                rank=launch.rank,
                world_size=launch.world_size,
                num_workers=parts.num_workers,
            ),
            observers=tuple(observers),
            device=device,
        )
        phases = Phases(config, parts, model, for_gradients, ledger, make_task, run_dir / "checkpoints")
        stack.callback(phases.close)
        trainer, complete = _train(phases, config.resume, metrics, summary)
        total = _total_wire_bytes(communicator, ledger, device)
        if summary is not None:
            save_model(model, run_dir / "model.safetensors", {**parts.description, "step": trainer.step})
            if config.phases:
                summary.packed_bytes = pack_model(run_dir / "model.safetensors")
                metrics.model_bytes["packed"] = summary.packed_bytes
            summary.write(complete=complete, total_wire_bytes_all_ranks=total)
    if launch.rank == 0:
        for skipped in trainer.skipped:
            print(f"skipped a step: {skipped}", flush=True)
        for line in summary.phase_lines() if summary is not None else ():
            print(line, flush=True)
        stopped = "" if complete else f"stopped after step {trainer.step}, marked incomplete: "
        print(f"{stopped}results in {run_dir}", flush=True)
    return 0 if complete else INTERRUPTED


@contextmanager
def _naming_the_missing(launch: Launch) -> Iterator[None]:
    """Where torchrun's store is at hand, a collective that fails inside says which rank is missing."""
    store = job_store(os.environ) if launch.launcher == "torchrun" else None
    if store is None:
        yield
        return
    roll_call = RollCall(store, launch.rank, launch.world_size, c10d.is_idle)
    try:
        roll_call.await_all(START_SECONDS)
        yield
    except CollectiveError as error:
        missing = roll_call.call()
        if not (missing and roll_call.is_first_of_host()):
            time.sleep(QUIET_SECONDS)  # the one that speaks may wait for what is under way before it ends
        raise CollectiveError(f"{missing}: {error}" if missing else str(error)) from error
    finally:
        roll_call.leave()


def _train(
    phases: Phases, resume_from: str | None, metrics: RunCollector, summary: Summary | None
) -> tuple[Trainer, bool]:
    """One phase after the other. Returns the trainer, and whether it reached the end of the last one."""
    folder = None if resume_from is None else Path(resume_from)
    step = 0 if folder is None else read_manifest(folder)[0]
    first, *others = phases.after(step)
    trainer = Trainer(*phases.begin(first, folder))
    trainer.step = step
    with _stopping(trainer):
        complete = _run_phase(trainer, first, phases, metrics, summary)
        for span in others:
            if not complete:
                break
            trainer.task, trainer.plan = phases.begin(span)
            complete = _run_phase(trainer, span, phases, metrics, summary)
    return trainer, complete


def _run_phase(trainer: Trainer, span: Span, phases: Phases, metrics: RunCollector, summary: Summary | None) -> bool:
    metrics.model_bytes["exchanged"] = 4 * phases.num_values
    if summary is not None and span.name:
        summary.begin_phase(span.name, phases.num_values)
    return trainer.run()


def _check_resume(resume: str | None, run_dir: Path) -> None:
    """Refuse what cannot be resumed before anything is made, or replaced."""
    if resume is None:
        return
    read_manifest(Path(resume))
    if Path(resume).resolve().is_relative_to(run_dir):
        raise ValueError(f"resume={resume} lies in run_dir={run_dir}, which would be replaced: choose another run_dir")


def _share_path(path: Path, communicator: Communicator, ledger: Ledger, device: torch.device) -> Path:
    """Rank 0's path, on every rank."""
    with ledger.scope(purpose=Purpose.CONTROL):
        text = torch.frombuffer(bytearray(os.fsencode(path)), dtype=torch.uint8).to(device)
        length = int(broadcast(communicator, torch.tensor([len(text)], device=device)))
        if communicator.rank != 0:
            text = torch.empty(length, dtype=torch.uint8, device=device)
        return Path(os.fsdecode(bytes(broadcast(communicator, text).tolist())))


def _total_wire_bytes(communicator: Communicator, ledger: Ledger, device: torch.device) -> float:
    """What all ranks sent in all, this last message included (it costs each rank the same)."""
    before = ledger.total().wire_bytes
    with ledger.scope(activity=Activity.EVAL, purpose=Purpose.METRICS):
        mine = torch.tensor([before], dtype=torch.float64, device=device)
        total = float(all_gather(communicator, mine).sum())
    own_last = ledger.total().wire_bytes - before
    ledger.close()
    return total + own_last * communicator.world_size


@contextmanager
def _stopping(trainer: Trainer) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks the trainer to stop; a second one ends the process at once."""

    def on_signal(number: int, frame: object) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(error: Exception, launch: Launch) -> int:
    """One line for each fault, whichever ranks it is of."""
    message = " ".join(str(error).partition("Config search path")[0].split())
    message = message.replace("To append to your config use", "Settings: `dtrain train --cfg job`. A new one:")
    # where torchrun's store is at hand, one rank of each host has been chosen to say which collective failed
    speaks = launch.rank == 0 or (isinstance(error, CollectiveError) and launch.launcher == "torchrun")
    if speaks:
        print(f"dtrain: error: {message}", file=sys.stderr, flush=True)
    if fail_together(launch, message, has_spoken=speaks) and not speaks:
        print(f"dtrain: error: rank {launch.rank}: {message}", file=sys.stderr, flush=True)
    return FAILED if isinstance(error, RUN_ERRORS) else MISTAKE


def main() -> int:
    """Entry point, with Hydra's command line.

    Exit codes: 0 done, 1 failed on the way, 2 a mistake in the request, 130 interrupted.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands errors on instead of printing and exiting itself
    launch = Launch("none", 0, 0, 1, 1)
    outcomes: list[int | Exception] = []

    @hydra.main(version_base="1.3", config_path="pkg://dtrain.conf", config_name="train")
    def run(composed: DictConfig) -> None:
        try:
            settings = cast("dict[str, Any]", OmegaConf.to_container(composed, resolve=True))
            outcomes.append(train(from_data(settings), launch, composed))
        except (*USER_ERRORS, *RUN_ERRORS) as error:  # kept from Hydra, which would announce it in a line of its own
            outcomes.append(error)

    try:
        launch = detect_launch(os.environ)
        run()
    except USER_ERRORS as error:
        return _fail(error, launch)
    except KeyboardInterrupt:
        return INTERRUPTED
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if errors:
        return _fail(errors[0], launch)
    return max((outcome for outcome in outcomes if isinstance(outcome, int)), default=0)


if __name__ == "__main__":
    sys.exit(main())
