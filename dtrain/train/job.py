"""A job: what a training run consists of on one rank, put together in one place and owned by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dtrain.comm import Communicator, Launch, all_gather
from dtrain.files import write_whole
from dtrain.meter.ledger import Activity, Ledger, Purpose
from dtrain.observe import run_directory
from dtrain.observe.endpoint import Endpoint
from dtrain.observe.jsonl import LedgerFile
from dtrain.observe.summary import Summary
from dtrain.pack import pack, read_safetensors, to_bytes
from dtrain.sync.parameters import share_parameters
from dtrain.train.agreement import check_settings
from dtrain.train.between import Between
from dtrain.train.boundary import Boundary, StopRequest
from dtrain.train.carry import carry, share
from dtrain.train.checkpoint import Manifest, open_checkpoint
from dtrain.train.config import TrainConfig
from dtrain.train.constraints import Constraints
from dtrain.train.loop import Batch, Learner, Loop, Observer, Plan, Skipped
from dtrain.train.meeting import meet, share_hosts, share_path
from dtrain.train.model_files import save_model
from dtrain.train.observers import (
    addresses_of_ranks,
    facts_of,
    nic_window,
    open_collector,
    open_endpoint,
    open_observers,
)
from dtrain.train.prepare import Prepared, from_checkpoint, keep_steps, prepare
from dtrain.train.progress import Place, Progress
from dtrain.train.restart import Start, choose_start, count_attempt
from dtrain.train.saving import Saver
from dtrain.train.settings import kept_in_checkpoints, shared_by_ranks
from dtrain.vision import data

MODEL, PACKED = "model.safetensors", "model.dtz"


@dataclass(frozen=True)
class Job:
    """One rank's part of a run, from its start to its end; phases of training take from it what they need.

    `communicator` is for everything but gradients, which have `for_gradients` to themselves. `summary` is rank 0's.
    `progress`, `boundary` and `skipped` go on from phase to phase. `between`: what this group of workers has of the one
    before it, and leaves to the next; None where workers do not come and go.
    """

    config: TrainConfig
    launch: Launch
    prepared: Prepared
    run_dir: Path
    device: torch.device
    model: nn.Module
    communicator: Communicator
    for_gradients: Communicator
    ledger: Ledger
    observers: tuple[Observer, ...]
    summary: Summary | None
    progress: Progress
    saver: Saver
    boundary: Boundary
    between: Between | None
    endpoint: Endpoint
    skipped: Skipped = field(default_factory=Skipped)

    def loop(self, learner: Learner, end: Place, constraints: Constraints, teacher: nn.Module | None) -> Loop:
        """The training of a phase. `constraints` and `teacher` go into its checkpoints."""
        config, course = self.config, self.prepared.course

        def save() -> None:
            self.saver.save(
                learner.model,
                learner.optimizer,
                learner.synchronizer,
                progress=self.progress,
                samples_seen=course.samples(self.progress),
                step_samples=course.step_samples,
                description=self.prepared.description,
                constraints=constraints,
                teacher=teacher,
            )

        return Loop(
            learner=learner,
            plan=Plan(
                log_every=config.log_every,
                eval_every_epochs=config.eval_every_epochs,
                save_every=config.save_steps,
                on_nonfinite=config.on_nonfinite,
                micro_batches=config.micro_batches * self.prepared.loader.num_parts,
                amp=config.amp,
                clip_norm=config.optimizer.clip_norm,
            ),
            course=course,
            end=end,
            communicator=self.communicator,
            ledger=self.ledger,
            loader=self.prepared.loader,
            eval_batches=self._eval_batches,
            save=save,
            declare=self.saver.declare,
            observers=self.observers,
            device=self.device,
            progress=self.progress,
            boundary=self.boundary,
            skipped=self.skipped,
        )

    def leave(self, learner: Learner, in_common: Progress, constraints: Constraints, teacher: nn.Module | None) -> None:
        """Leave to the next group what replicas had in common when they were last equal."""
        assert self.between is not None
        learner.synchronizer.roll_back()
        course = self.prepared.course
        manifest = Manifest(
            **asdict(in_common),
            samples_seen=course.samples(in_common),
            step_samples=course.step_samples,
            world_size=self.launch.world_size,
            settings=self.saver.settings,
            files={},
        )
        state, described = learner.synchronizer.state_dict(), self.prepared.description
        self.between.carried = carry(
            manifest, self.run_dir, described, learner.model, learner.optimizer, state, constraints, teacher
        )

    def finish(self, *, complete: bool) -> None:
        """Write what the run came to: its last checkpoint, the model, packed too after phases, and the summary."""
        self.saver.finish()
        self.endpoint.is_complete = complete
        total = _total_wire_bytes(self.communicator, self.ledger, self.device)
        if self.summary is None:
            return
        path = self.run_dir / MODEL
        save_model(self.model, path, {**self.prepared.description, "step": self.progress.step})
        if self.config.phases:
            packed = to_bytes(pack(read_safetensors(path)))
            write_whole(path.with_name(PACKED), packed)
            for observer in self.observers:
                observer.on_packed(len(packed))
        self.summary.write(complete=complete, total_wire_bytes_all_ranks=total)

    def _eval_batches(self) -> Iterable[Batch]:
        return data.eval_batches(
            self.prepared.test_set,
            batch_size=self.config.batch_size,
            rank=self.launch.rank,
            world_size=self.launch.world_size,
            num_workers=self.prepared.num_workers,
        )


@contextmanager
def open_job(
    config: TrainConfig, launch: Launch, composed: DictConfig, stop: StopRequest, between: Between | None = None
) -> Iterator[Job]:
    """Meet the other workers and put everything together; at the end, let go of it in the reverse order.

    Raises ValueError, FileNotFoundError or ConnectionError, naming the cure, for what the user can mend.
    """
    start = Start(Path())
    if launch.rank == 0:
        start = choose_start(config) if between is None or between.run_dir is None else Start(between.run_dir, True)
    prepared = prepare(config, launch)
    nic = nic_window(config, launch)
    with ExitStack() as stack:
        endpoint = stack.enter_context(open_endpoint(config.observe.prometheus, launch))
        ledger = Ledger()
        communicator = stack.enter_context(meet(config, launch, ledger, between.group.name if between else None))
        on_gpu = config.backend.device_type == "cuda"
        device = torch.device("cuda", launch.local_rank) if on_gpu else torch.device("cpu")
        facts = {**prepared.facts, "checkpoint": prepared.checkpoint.identity() if prepared.checkpoint else None}
        check_settings(shared_by_ranks(config, facts), communicator, ledger, device)
        run_dir = share_path(start.run_dir, communicator, ledger, device)
        prepared = _take_up(start, prepared, config, communicator, ledger, device)
        if between is not None and (carried := share(between.carried, between.group, communicator, ledger)) is not None:
            prepared = keep_steps(from_checkpoint(prepared, config, carried))
        checkpoint = prepared.checkpoint
        if launch.rank == 0:
            if between is None:  # else a worker that hangs may have it, without whom the others go on
                stack.enter_context(run_directory.claimed(run_dir))
            run_directory.make(run_dir, asdict(launch), goes_on=start.goes_on)
            for line in start.lines:
                print(line, flush=True)
            if start.checkpoint is not None:
                ledger.sinks.append(count_attempt(run_dir, start.checkpoint))
        ledger.recent.folder = run_dir
        model = prepared.model.to(device)
        share_parameters(model, communicator, ledger)
        hosts = share_hosts(communicator, ledger, device)
        for_gradients = communicator.duplicate()
        stack.callback(for_gradients.close)
        addresses = addresses_of_ranks(endpoint, config.observe.prometheus, launch, communicator, ledger, device)
        ledger_file = LedgerFile(run_dir / "ledger" / f"rank{launch.rank}.jsonl")
        stack.callback(ledger_file.close)
        ledger.sinks.append(ledger_file)
        ledger.close()
        torch.manual_seed(config.seed * launch.world_size + launch.rank)  # dropout differs between ranks
        about = facts_of(config, launch, prepared, run_dir)
        collector = open_collector(about, launch, ledger, nic, between)
        endpoint.show(collector, addresses)
        summary: Summary | None = None
        observers: tuple[Observer, ...] = ()
        progress = checkpoint.manifest.progress if checkpoint is not None else Progress()
        if launch.rank == 0:
            write_whole(run_dir / run_directory.CONFIG, OmegaConf.to_yaml(composed, resolve=True))
            summary = Summary(run_dir / "summary.json", about, ledger, nic, hosts)
            observers = (*open_observers(config, prepared, progress, run_dir, about, summary, ledger, stack), collector)
        kept = kept_in_checkpoints(config, prepared.facts)
        saver = Saver(run_dir, communicator, ledger, device, kept, config.keep_checkpoints)
        stack.callback(saver.close)
        yield Job(
            config,
            launch,
            prepared,
            run_dir,
            device,
            model,
            communicator,
            for_gradients,
            ledger,
            observers,
            summary,
            progress,
            saver,
            Boundary(config.save_seconds, saver.is_written, stop, between.is_waited_for if between else _never),
            between,
            endpoint,
        )


def _take_up(
    start: Start, prepared: Prepared, config: TrainConfig, communicator: Communicator, ledger: Ledger, device: Any
) -> Prepared:
    """Where rank 0 found a checkpoint of an earlier sitting, every rank goes on from it, the same on all hosts.

    Raises ValueError or FileNotFoundError, naming the cure.
    """
    nothing = Path()
    found = nothing if start.checkpoint is None else start.checkpoint.folder
    folder = share_path(found, communicator, ledger, device)
    if folder == nothing:
        return prepared
    checkpoint = open_checkpoint(folder)
    check_settings({"checkpoint": checkpoint.identity()}, communicator, ledger, device)
    return keep_steps(from_checkpoint(prepared, config, checkpoint))


def _never() -> bool:
    return False


def _total_wire_bytes(communicator: Communicator, ledger: Ledger, device: Any) -> float:
    """What all ranks sent in all, this last message included (it costs each rank the same)."""
    before = ledger.total().wire_bytes
    with ledger.scope(activity=Activity.EVAL, purpose=Purpose.METRICS):
        mine = torch.tensor([before], dtype=torch.float64, device=device)
        total = float(all_gather(communicator, mine).sum())
    own_last = ledger.total().wire_bytes - before
    ledger.close()
    return total + own_last * communicator.world_size
