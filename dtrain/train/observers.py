"""What watches a run: its facts, its metrics, and what rank 0 shows and writes."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from dtrain.arguments import check_name
from dtrain.comm import Communicator, Launch, all_gather_bytes
from dtrain.compressors.codecs import compiled
from dtrain.meter.ledger import Ledger, Purpose, StepRecord
from dtrain.meter.nic import is_loopback, isolated_interface, read_counters
from dtrain.observe import run_directory
from dtrain.observe.endpoint import Endpoint, warn_if_public
from dtrain.observe.jsonl import MetricsFile
from dtrain.observe.progress import ShowProgress
from dtrain.observe.prometheus import Changes, RunCollector, RunFacts
from dtrain.observe.summary import NicWindow, Summary
from dtrain.observe.trackers import open_tracker
from dtrain.sync.buckets import trainable
from dtrain.train.between import Between
from dtrain.train.config import Prometheus, TrainConfig
from dtrain.train.loop import Observer
from dtrain.train.prepare import Prepared
from dtrain.train.progress import Progress
from dtrain.vision import models

_MAX_ADDRESS_BYTES = 300
"""A host's name has at most 253."""


def nic_window(config: TrainConfig, launch: Launch) -> NicWindow | None:
    """The interface that carries nothing but this job's traffic, if one is known to.

    Raises ValueError for the name of one that does not exist.
    """
    interface = config.observe.nic_interface or isolated_interface(launch.world_size, launch.local_world_size)
    if interface is None:
        return None
    check_name("observe.nic_interface=", interface, read_counters())
    return NicWindow(interface, launch.local_world_size)


def open_endpoint(settings: Prometheus, launch: Launch) -> Endpoint:
    """Where Prometheus finds this rank, if it is to."""
    if settings.targets is not None and is_loopback(settings.host) and launch.world_size > launch.local_world_size:
        raise ValueError(
            f"observe.prometheus.targets would name {settings.host} for ranks of several hosts: add "
            "observe.prometheus.host=0.0.0.0, or the address of each host"
        )
    if settings.enabled and launch.local_rank == 0:
        warn_if_public(settings.host)
    return Endpoint(
        (settings.host, settings.port + launch.local_rank) if settings.enabled else None,
        Path(settings.targets) if settings.targets is not None else None,
        Path(settings.textfile) if settings.textfile is not None else None,
        master=os.environ.get("MASTER_ADDR"),
    )


def addresses_of_ranks(
    endpoint: Endpoint,
    settings: Prometheus,
    launch: Launch,
    communicator: Communicator,
    ledger: Ledger,
    device: torch.device,
) -> list[str]:
    """Where each rank's metrics are, on every rank; "" for one that other hosts do not reach, none if none has any."""
    if endpoint.address is None:  # on no rank: `enabled` is the same on all
        return []
    only_here = is_loopback(settings.host) and launch.world_size > launch.local_world_size
    own = "" if only_here else endpoint.address
    with ledger.scope(purpose=Purpose.CONTROL):
        texts = all_gather_bytes(communicator, own.encode(), device, limit=_MAX_ADDRESS_BYTES)
    return [text.decode(errors="replace") for text in texts]


def facts_of(config: TrainConfig, launch: Launch, prepared: Prepared, run_dir: Path) -> dict[str, Any]:
    """What is known of a run before its first step, as summary.json has it."""
    num_parameters = sum(p.numel() for _, p in trainable(prepared.model))
    return {
        "run": run_dir.name,
        "model": config.model.name,
        "variant": models.variant(prepared.model),
        "num_parameters": num_parameters,
        "num_classes": prepared.description["model"]["num_classes"],
        "image_size": prepared.description["data"]["image_size"],
        "data": config.data.name,
        "world_size": launch.world_size,
        "backend": config.backend.name,
        "compressor": config.compressor.name,
        "codec": compiled.in_use(),
        "batch_size_per_rank": config.batch_size,
        "grad_bytes": 4 * num_parameters,
        "seed": config.seed,
        "versions": run_directory.versions(),
    }


def open_collector(
    facts: dict[str, Any], launch: Launch, ledger: Ledger, nic: NicWindow | None, between: Between | None
) -> RunCollector:
    """This rank's metrics, from its ledger."""
    restarts, changes = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)), None
    if between is not None:
        group, restarts = between.group, between.member.restarts
        changes = Changes(group.generation, group.lost, group.joined)
    about = RunFacts(
        facts,
        launch.rank,
        host=socket.gethostname(),
        interface=nic.interface if nic is not None and launch.local_rank == 0 else None,
        restarts=restarts,
        changes=changes,
    )
    collector = RunCollector(about, ledger)
    ledger.sinks.append(collector.on_record)
    return collector


def open_observers(
    config: TrainConfig,
    prepared: Prepared,
    progress: Progress,
    run_dir: Path,
    about: dict[str, Any],
    summary: Summary,
    ledger: Ledger,
    stack: ExitStack,
) -> list[Observer]:
    """Rank 0's: what it shows and writes of the run, until `stack` is closed."""
    summary.start()
    metrics_file = MetricsFile(run_dir / "metrics.jsonl")
    stack.callback(metrics_file.close)
    observers: list[Observer] = [metrics_file, summary]
    for name in config.observe.trackers:
        tracker = open_tracker(name, run_dir, about)
        stack.push(tracker.__exit__)
        observers.append(tracker)
    if config.observe.progress:
        left = prepared.course.steps_left(progress, prepared.end, prepared.loader.global_batch_size)
        shown = ShowProgress(progress.step + left)
        stack.callback(shown.close)
        observers.append(shown)
    if config.observe.profile:
        _profile(run_dir / "trace.json", ledger, stack)
    return observers


def _profile(path: Path, ledger: Ledger, stack: ExitStack) -> None:
    """Trace six of rank 0's first steps, for chrome://tracing or Perfetto."""
    profiler = stack.enter_context(
        torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=1, warmup=1, active=6, repeat=1),
            on_trace_ready=lambda p: p.export_chrome_trace(str(path)),
        )
    )

    def on_record(record: StepRecord) -> None:
        if record.step is not None:
            profiler.step()

    ledger.sinks.append(on_record)
