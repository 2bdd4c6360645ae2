"""A run's phases: each makes something of the model, then trains it with a synchroniser and an optimizer of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from dtrain.comm import Communicator
from dtrain.meter.ledger import Ledger
from dtrain.pack import pack, read_safetensors, to_bytes
from dtrain.sync.every_step import EagerSynchronizer
from dtrain.train import checkpoint
from dtrain.train.build import Parts, optimizer
from dtrain.train.config import BEFORE, Span, TrainConfig
from dtrain.train.constraints import Fixed, compress, exchanged_as, fixed, num_values
from dtrain.train.loss import against, against_labels
from dtrain.train.resume import resume, save
from dtrain.train.schedule import Schedule, shifted
from dtrain.train.task import Plan, Task
from dtrain.vision import models

FIXED, TEACHER, PACKED = "fixed.safetensors", "teacher.safetensors", "model.dtz"


class Phases:
    """Begins one phase after the other; a run without phases is one that changes nothing.

    Args:
        model: the same on every rank, as it is from phase to phase.
        communicator: for gradients alone.
        task: makes a task of what differs between phases (and `model`).
        checkpoints: the folder that they go into.
    """

    def __init__(
        self,
        config: TrainConfig,
        parts: Parts,
        model: nn.Module,
        communicator: Communicator,
        ledger: Ledger,
        task: Callable[..., Task],
        checkpoints: Path,
    ) -> None:
        self._config, self._parts, self._model = config, parts, model
        self._communicator, self._ledger, self._make_task, self._checkpoints = communicator, ledger, task, checkpoints
        self._teacher = self._read_teacher(config.teacher) if config.teacher not in (None, BEFORE) else None
        self._synchronizer: EagerSynchronizer | None = None
        self._fixed: Fixed = {}

    @property
    def num_values(self) -> int:
        """Numbers that a step of this phase exchanges, before the compressor."""
        return num_values(self._model, self._fixed)

    def after(self, step: int) -> tuple[Span, ...]:
        """The phases that are left after so many steps, the one whose steps they are among them."""
        return tuple(span for span in self._parts.spans if span.end >= step) or self._parts.spans[-1:]

    def begin(self, span: Span, resume_from: Path | None = None) -> tuple[Task, Plan]:
        """Start a phase, or go on with one at its checkpoint.

        Raises ValueError or FileNotFoundError, naming the cure.
        """
        self.close()
        config, spans = self._config, self._parts.spans
        so_far = [other.phase for other in spans[: spans.index(span) + 1]]
        pruned, shared = any(phase.prunes for phase in so_far), any(phase.shares for phase in so_far)
        if resume_from is None:
            if config.teacher == BEFORE and span.phase.compresses and self._teacher is None:
                self._teacher = copy.deepcopy(self._model)
            if span.phase.energy is not None:
                self._factorise(models.ranks_of(self._model, span.phase.energy))
            compress(self._model, span.phase)
            self._fixed = fixed(self._model, pruned=pruned, shared=shared)
        elif any(phase.compresses for phase in so_far):
            if config.teacher == BEFORE:
                self._teacher = self._read_teacher(str(resume_from / TEACHER))
            description = checkpoint.read_description(resume_from / "model.safetensors")
            self._factorise(description["model"].get("ranks", {}), fill=False)
            self._fixed = checkpoint.load_tensors(resume_from / FIXED)
        self._synchronizer = EagerSynchronizer(
            self._model,
            exchanged_as(self._parts.compressor, self._fixed),
            self._communicator,
            self._ledger,
            seed=config.seed,
            first_bucket_bytes=config.first_bucket_bytes,
            bucket_bytes=config.bucket_bytes,
            overlap=config.overlap,
            check_finite=config.on_nonfinite != "ignore",
        )
        task: Task = self._make_task(
            model=self._model,
            optimizer=optimizer(config, self._model),
            schedule=self._schedule(span),
            base_learning_rate=config.optimizer.learning_rate * span.phase.learning_rate,
            synchronizer=self._synchronizer,
            save=lambda step: self._save(task, step),
            loss=against(self._teacher, config.temperature) if self._teacher is not None else against_labels,
        )
        if resume_from is not None:
            resume(task, resume_from)
        return task, replace(self._parts.plan, num_steps=span.end)

    def close(self) -> None:
        """Let go of the model and end the thread of this phase."""
        if self._synchronizer is not None:
            self._synchronizer.close()
            self._synchronizer = None

    def _factorise(self, ranks: Mapping[str, int], *, fill: bool = True) -> None:
        """And say so where the model is described."""
        models.factorise(self._model, ranks, fill=fill)
        if ranks:
            self._parts.description["model"].setdefault("ranks", {}).update(ranks)

    def _schedule(self, span: Span) -> Schedule:
        """Of the phase: it begins anew."""
        return shifted(self._config.optimizer.factors(max(1, span.end - span.start)), span.start)

    def _read_teacher(self, path: str) -> nn.Module:
        whole = {key: value for key, value in self._parts.description["model"].items() if key != "ranks"}
        teacher = models.rebuild(whole)
        models.load_weights(teacher, path)
        return teacher.to(next(self._model.parameters()).device)

    def _save(self, task: Task, step: int) -> None:
        folder = self._checkpoints / f"step-{step:06d}"
        if self._config.phases and self._communicator.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.save_tensors(self._fixed, folder / FIXED)
            if self._config.teacher == BEFORE and self._teacher is not None:
                checkpoint.save_model(self._teacher, folder / TEACHER, self._parts.description)
        save(task, self._parts.description, folder, step)


def pack_model(path: Path) -> int:
    """Pack a model.safetensors without loss into a model.dtz beside it; its bytes."""
    packed = to_bytes(pack(read_safetensors(path)))
    target = path.with_name(PACKED)
    partial = target.with_name(target.name + ".partial")
    partial.write_bytes(packed)
    partial.replace(target)
    return len(packed)
