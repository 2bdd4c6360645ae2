"""A run's phases: each makes something of the model, then trains it with a synchroniser and an optimizer of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dtrain.comm import CollectiveError
from dtrain.compressors import sends_few
from dtrain.observe.figures import PlanFigures
from dtrain.plan.candidates import Candidate
from dtrain.plan.choose import Chooser, Watch
from dtrain.plan.subject import of_job
from dtrain.sync.synchronizer import Reversible
from dtrain.train.auto import Auto, build
from dtrain.train.carry import Carried
from dtrain.train.checkpoint import CONSTRAINTS, TEACHER, Checkpoint
from dtrain.train.config import BEFORE, Phase, Span
from dtrain.train.constraints import Constraints, compress, constraints_of, exchanged_as, num_values
from dtrain.train.job import Job
from dtrain.train.loop import Learner, RegroupError
from dtrain.train.loss import against, against_labels
from dtrain.train.model_files import fill_model
from dtrain.train.resume import resume
from dtrain.train.synchronizers import AUTO, Exchanging
from dtrain.vision import models


class Phases:
    """One phase of a job after the other; a run without phases is one that changes nothing."""

    def __init__(self, job: Job) -> None:
        self._job = job
        teacher = job.config.teacher
        self._teacher = self._load_teacher(teacher) if teacher is not None and teacher != BEFORE else None
        self._constraints: Constraints = {}

    def run(self) -> bool:
        """Train from where the job's progress is. Returns whether the end of the last phase was reached."""
        job = self._job
        checkpoint, course = job.prepared.checkpoint, job.prepared.course
        for span in self._left():
            learner = self._begin(span, checkpoint)
            checkpoint = None  # the phases that follow begin anew
            try:
                for observer in job.observers:
                    observer.on_phase(span.name, num_values(job.model, self._constraints))
                teacher = self._teacher if job.config.teacher == BEFORE else None
                loop = job.loop(learner, course.place(span.end), self._constraints, teacher)
                try:
                    complete = loop.run()
                except (CollectiveError, RegroupError) as error:
                    if job.between is not None:
                        job.leave(learner, loop.in_common, self._constraints, teacher)
                    if isinstance(error, RegroupError):
                        job.saver.finish()
                    raise
            finally:
                learner.synchronizer.close()
            if not complete:
                return False
        return True

    def _left(self) -> tuple[Span, ...]:
        """The phases that are left, the one whose steps are being made among them."""
        spans, made = self._job.prepared.spans, self._job.prepared.course.steps(self._job.progress)
        return tuple(span for span in spans if span.end >= made) or spans[-1:]

    def _begin(self, span: Span, checkpoint: Checkpoint | Carried | None) -> Learner:
        """Start a phase, or go on with one at its checkpoint.

        Raises ValueError or FileNotFoundError, naming the cure.
        """
        job, config, spans = self._job, self._job.config, self._job.prepared.spans
        so_far = [other.phase for other in spans[: spans.index(span) + 1]]
        if checkpoint is None:
            self._make(span, so_far)
        elif any(phase.compresses for phase in so_far):
            self._take_up(checkpoint)
        optimizer = job.prepared.optimizer.build(job.model.parameters())
        synchronizer = self._synchronizer(optimizer)
        if checkpoint is not None:
            resume(checkpoint, job.model, optimizer, synchronizer, job.communicator)
        factors = config.optimizer.factors(max(1, span.end - span.start))  # of the phase: the schedule begins anew
        base = config.optimizer.learning_rate * span.phase.learning_rate
        return Learner(
            job.model,
            optimizer,
            synchronizer,
            lambda step: base * factors(step - span.start),
            against_labels if self._teacher is None else against(self._teacher, config.temperature),
        )

    def _make(self, span: Span, so_far: list[Phase]) -> None:
        """What the phase first makes of the model."""
        job, config = self._job, self._job.config
        if config.teacher == BEFORE and span.phase.compresses and self._teacher is None:
            self._teacher = copy.deepcopy(job.model)
        if span.phase.energy is not None:
            self._factorise(models.ranks_of(job.model, span.phase.energy))
        compress(job.model, span.phase)
        pruned, shared = any(phase.prunes for phase in so_far), any(phase.shares for phase in so_far)
        self._constraints = constraints_of(job.model, pruned=pruned, shared=shared)

    def _take_up(self, checkpoint: Checkpoint | Carried) -> None:
        """What phases had made of the model."""
        if self._job.config.teacher == BEFORE:
            self._teacher = self._new_teacher()
            fill_model(self._teacher, checkpoint.tensors(TEACHER), checkpoint.folder / TEACHER)
        self._factorise(checkpoint.description()["model"].get("ranks", {}), fill=False)
        self._constraints = checkpoint.tensors(CONSTRAINTS) if checkpoint.has(CONSTRAINTS) else {}

    def _synchronizer(self, optimizer: torch.optim.Optimizer) -> Reversible:
        job, config = self._job, self._job.config
        chosen = config.compressor.name == AUTO
        parts = Exchanging(
            exchanged_as(job.prepared.compressor, self._constraints),
            not chosen and sends_few(config.compressor.name),
            job.for_gradients,
            job.ledger,
            seed=config.seed,
            first_bucket_bytes=config.first_bucket_bytes,
            bucket_bytes=config.bucket_bytes,
            overlap=config.overlap,
            check_finite=config.on_nonfinite != "ignore",
        )
        return self._auto(optimizer, parts) if chosen else config.sync.build(job.model, optimizer, parts)

    def _auto(self, optimizer: torch.optim.Optimizer, parts: Exchanging) -> Auto:
        job, model = self._job, self._job.model
        if self._constraints:
            raise ValueError("compressor=auto does not know models that phases have made sparse: name a compressor")
        batch = next(iter(job.prepared.loader.epoch(0)))
        images, labels = batch.images.to(job.device), batch.labels.to(job.device)

        def loss(measured: nn.Module) -> Tensor:
            with torch.autocast(job.device.type, torch.bfloat16, enabled=job.config.amp):
                logits = measured(images)
            return against_labels(images, logits.float(), labels) / len(labels)

        tried_as = job.config.optimizer.tried_as
        chooser = Chooser(
            lambda: of_job(model, optimizer, tried_as, loss),
            tried_as,
            job.for_gradients,
            job.ledger,
            job.launch.local_world_size,
            less_often=job.config.sync.name == AUTO,
            tell=print if job.launch.rank == 0 else lambda reason: None,
        )

        def show(candidate: Candidate) -> None:
            seconds = chooser.forecast._asdict() if chooser.forecast is not None else {}
            for observer in job.observers:
                observer.on_plan(PlanFigures(candidate.label, seconds))

        def choose() -> Candidate:
            candidate = chooser.choose()
            show(candidate)
            return candidate

        def make(candidate: Candidate) -> Reversible:
            if chooser.forecast is None:  # nothing was chosen: it came with a checkpoint
                show(candidate)
            return build(candidate, model, optimizer, parts)

        return Auto(make, choose, Watch(job.for_gradients, job.ledger))

    def _factorise(self, ranks: Mapping[str, int], *, fill: bool = True) -> None:
        """And say so where the model is described."""
        models.factorise(self._job.model, ranks, fill=fill)
        if ranks:
            self._job.prepared.description["model"].setdefault("ranks", {}).update(ranks)

    def _load_teacher(self, path: str) -> nn.Module:
        teacher = self._new_teacher()
        models.load_weights(teacher, path)
        return teacher

    def _new_teacher(self) -> nn.Module:
        """A model such as this run began with."""
        whole = {key: value for key, value in self._job.prepared.description["model"].items() if key != "ranks"}
        return models.rebuild(whole).to(self._job.device)
