"""The training loop, to be read in one sitting."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from dtrain.comm import Communicator, all_gather
from dtrain.meter.ledger import Activity, Ledger, Purpose, Times
from dtrain.observe.figures import EvalFigures, PlanFigures, TrainFigures
from dtrain.sync.synchronizer import NonFiniteGradientError, Reversible, Spent
from dtrain.train.agreement import check_replicas
from dtrain.train.boundary import NOTHING, STOP, Agreed, Boundary
from dtrain.train.interval import ASKED, Interval
from dtrain.train.loss import Loss, against_labels
from dtrain.train.progress import Course, Place, Progress


class Batch(Protocol):
    """What a loader yields; `global_size` counts the images of this step over all ranks."""

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def global_size(self) -> int: ...


class Loader(Protocol):
    """A rank's share of the training set; the same number of steps on every rank."""

    @property
    def num_samples(self) -> int: ...
    def epoch(self, epoch: int, start: int = 0, end: int | None = None) -> Iterator[Batch]: ...


class Observer(Protocol):
    """Reads what is reported of a run; nothing flows back."""

    def on_phase(self, name: str, num_values: int) -> None:
        """A phase begins, "" in a run without, whose steps exchange so many numbers each before compression."""
        ...

    def on_train(self, figures: TrainFigures) -> None: ...
    def on_eval(self, figures: EvalFigures) -> None: ...
    def on_plan(self, figures: PlanFigures) -> None:
        """A method was chosen for the steps that follow."""
        ...

    def on_packed(self, num_bytes: int) -> None:
        """The trained model was packed into so many bytes."""
        ...


@dataclass(frozen=True)
class Learner:
    """What learns in a phase. `learning_rate` is a function of the planned steps that were made."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    synchronizer: Reversible
    learning_rate: Callable[[float], float]
    loss: Loss = against_labels


@dataclass(frozen=True)
class Plan:
    """How often to look up, in steps and epochs; 0 means never. The run is evaluated at its end anyway. `save_every`
    is for checkpoints by steps; those by time are the boundary's.

    `micro_batches` is how many parts a batch goes through the model in, for less memory; `amp` computes in bfloat16
    where autocast does; `clip_norm` bounds the L2 norm of the mean gradient.
    """

    log_every: int
    eval_every_epochs: int
    save_every: int
    on_nonfinite: Literal["raise", "skip", "ignore"] = "raise"
    micro_batches: int = 1
    amp: bool = False
    clip_norm: float | None = None


@dataclass
class Skipped:
    """Steps that were left out since their gradients were not finite: how many, and the last few."""

    count: int = 0
    last: deque[NonFiniteGradientError] = field(default_factory=lambda: deque(maxlen=5))

    def add(self, error: NonFiniteGradientError) -> None:
        self.count += 1
        self.last.append(error)


class RegroupError(Exception):
    """Workers wait to come in: this group ends here, on every rank alike, between two steps and with equal replicas."""


@dataclass
class Loop:
    """Trains one phase, from where `progress` is to `end`. `communicator` is not used during backward.

    `in_common` is how far replicas came when they were last equal.

    `save` begins a checkpoint, `declare` says that it is whole, once all have written it (`saving.py`); every rank
    calls them after the same steps. `boundary` is this rank's part in agreeing on when.
    """

    learner: Learner
    plan: Plan
    course: Course
    end: Place
    communicator: Communicator
    ledger: Ledger
    loader: Loader
    eval_batches: Callable[[], Iterable[Batch]]
    save: Callable[[], None]
    declare: Callable[[], None]
    observers: tuple[Observer, ...]
    device: torch.device
    progress: Progress = field(default_factory=Progress)
    boundary: Boundary = field(default_factory=Boundary)
    skipped: Skipped = field(default_factory=Skipped)
    in_common: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.in_common = copy(self.progress)

    def run(self) -> bool:
        """Train to the end. Returns whether it was reached, False after a request to stop. Raises RegroupError.

        Before a stop for SIGTERM a checkpoint is saved: of the state amidst a local round, too, so before replicas are
        aligned to be checked.
        """
        plan, progress, boundary = self.plan, self.progress, self.boundary
        interval, agreed = self._new_interval(), NOTHING
        boundary.begin(progress.step)
        last_epoch = progress.epoch if progress.position else max(0, progress.epoch - 1)
        with self.ledger.scope(activity=Activity.TRAIN):
            for last_epoch, batch in self._batches():
                self._train_step(batch, interval)
                goes_on = progress.is_before(self.end)
                if progress.step % plan.log_every == 0 or not goes_on:
                    agreed = self._log(last_epoch, interval)
                    interval = self._new_interval()
                else:
                    agreed = self._look() if boundary.is_due(progress.step) else NOTHING
                if agreed.declare:
                    self.declare()
                if agreed.stop:
                    break
                if agreed.regroup:
                    self._check_replicas()
                    self.in_common = copy(progress)
                    raise RegroupError
                if agreed.save or (plan.save_every and progress.step % plan.save_every == 0):
                    self._save()
                    boundary.begin(progress.step)
                if goes_on and self._evaluates():
                    self.declare()  # an evaluation may be long, and a run that is killed in it loses nothing
                    if self.evaluate(last_epoch) is None:
                        agreed = STOP
                        break
                    interval.start = time.perf_counter()
                    boundary.begin(progress.step)
        if not agreed.stop:
            self.declare()
            if self.evaluate(last_epoch) is not None:
                return True
        if self.boundary.stop.is_preemption:
            self._save()
        self._check_replicas()
        return False

    def evaluate(self, epoch: int) -> EvalFigures | None:
        """Score the model on the test set, every image once over all ranks; the replicas must be the same by then.

        Returns None where a rank was asked to stop meanwhile: then all do, and nothing is said of the model.
        """
        self._check_replicas()
        with self.ledger.scope(activity=Activity.EVAL):
            return self._evaluate(epoch)

    def _new_interval(self) -> Interval:
        return Interval(times_collectives=self.learner.synchronizer.ends_with_step)

    def _save(self) -> None:
        """Where replicas should be equal now, see that they are: what came altered must not be gone on from."""
        synchronizer = self.learner.synchronizer
        if synchronizer.ends_with_step and synchronizer.num_own_steps == 0:
            self._compare_replicas()
        self.save()

    def _check_replicas(self) -> None:
        try:
            self.learner.synchronizer.align()
        except NonFiniteGradientError as error:
            if self.plan.on_nonfinite == "raise":
                raise
            self.skipped.add(error)
        self._compare_replicas()

    def _compare_replicas(self) -> None:
        with self.ledger.scope(activity=Activity.EVAL):
            check_replicas(self.learner.model, self.progress.step, self.communicator, self.ledger, self.device)

    def _evaluates(self) -> bool:
        """Whether an epoch has just ended after which the model is tested."""
        every, progress = self.plan.eval_every_epochs, self.progress
        return every > 0 and progress.position == 0 and progress.epoch % every == 0

    def _evaluate(self, epoch: int) -> EvalFigures | None:
        model, asked = self.learner.model, self.boundary.stop
        model.eval()
        score = torch.zeros(3, dtype=torch.float64, device=self.device)
        with torch.inference_mode():
            for batch in self.eval_batches():
                if asked.signal:
                    score[2] = -asked.signal  # in place of the number of images, as there is one message
                    break
                labels = batch.labels.to(self.device)
                logits = model(batch.images.to(self.device))
                loss = cross_entropy(logits, labels, reduction="sum")
                correct = (logits.argmax(1) == labels).sum()
                score[0] += loss
                score[1] += correct
                score[2] += len(labels)
        model.train()
        with self.ledger.scope(purpose=Purpose.METRICS):
            scores = all_gather(self.communicator, score)
        self.ledger.close()
        asked.agreed = max(0, -int(scores[:, 2].min()))
        if asked.agreed:
            return None
        loss_sum, correct_sum, count = scores.sum(0).tolist()
        wire = self.ledger.total(activity=Activity.TRAIN, purpose=Purpose.GRADIENT).wire_bytes
        figures = EvalFigures(self.progress.step, epoch, loss_sum / count, correct_sum / count, int(count), wire)
        for observer in self.observers:
            observer.on_eval(figures)
        return figures

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """(epoch, batch) up to the end."""
        progress, end = self.progress, self.end
        while progress.is_before(end):
            epoch, start = progress.epoch, progress.position
            for batch in self.loader.epoch(epoch, start, end.position if epoch == end.epoch else None):
                yield epoch, batch

    def _train_step(self, batch: Batch, interval: Interval) -> None:
        learner, start = self.learner, time.perf_counter()
        images, labels = batch.images.to(self.device), batch.labels.to(self.device)
        for group in learner.optimizer.param_groups:
            group["lr"] = learner.learning_rate(self.course.steps(self.progress))
        learner.optimizer.zero_grad(set_to_none=True)
        micro = list(zip(images.chunk(self.plan.micro_batches), labels.chunk(self.plan.micro_batches), strict=True))
        for part, (some_images, some_labels) in enumerate(micro, start=1):
            with nullcontext() if part == len(micro) else learner.synchronizer.no_sync():
                self._backward(some_images, some_labels, batch.global_size, interval)
        spent = self._apply_gradients()
        times = Times(time.perf_counter() - start, spent.codec, spent.exposed)
        interval.records.append(self.ledger.close(self.progress.step, times))
        self.progress.advance(batch.global_size, self.loader.num_samples)
        if learner.synchronizer.num_own_steps == 0:
            self.in_common = copy(self.progress)

    def _backward(self, images: Tensor, labels: Tensor, global_size: int, interval: Interval) -> None:
        """Add these images' part of the gradient of the mean loss over the global batch, times the number of ranks."""
        learner = self.learner
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.amp):
            logits = learner.model(images)
        loss = learner.loss(images, logits.float(), labels)
        (loss * (self.communicator.world_size / global_size)).backward()
        interval.add(loss, logits, labels)

    def _apply_gradients(self) -> Spent:
        """Exchange and step; a step whose gradients are not finite is an error, or left out, on every rank alike."""
        learner, start = self.learner, time.perf_counter()
        try:
            before = learner.synchronizer.before_step()
            if self.plan.clip_norm is not None:
                clip_grad_norm_(learner.model.parameters(), self.plan.clip_norm)
            learner.optimizer.step()
            after = learner.synchronizer.after_step()
        except NonFiniteGradientError as error:
            if self.plan.on_nonfinite == "raise":
                raise
            learner.synchronizer.discard()
            self.skipped.add(error)
            return Spent(time.perf_counter() - start, 0.0)
        return Spent(before.exposed + after.exposed, before.codec + after.codec)

    def _look(self) -> Agreed:
        """What ranks agree on where no logging point is near."""
        mine = torch.tensor([self.boundary.told(self.progress.step)], dtype=torch.float64)
        if self.communicator.world_size > 1:
            with self.ledger.scope(purpose=Purpose.CONTROL):
                mine = all_gather(self.communicator, mine.to(self.device)).cpu()
        return self.boundary.heard(mine.view(-1).tolist(), self.progress.step)

    def _log(self, epoch: int, interval: Interval) -> Agreed:
        """Report the interval to the observers. Returns what ranks agree on."""
        mine = interval.as_tensor(self.boundary.told(self.progress.step), self.ledger.total().wire_bytes)
        with self.ledger.scope(purpose=Purpose.METRICS):
            everyone = all_gather(self.communicator, mine.to(self.device)).cpu()
        wire = self.ledger.total(activity=Activity.TRAIN, purpose=Purpose.GRADIENT).wire_bytes
        rate = self.learner.optimizer.param_groups[0]["lr"]
        figures = interval.figures(everyone, self.progress.step, epoch, rate, wire)
        for observer in self.observers:
            observer.on_train(figures)
        return self.boundary.heard(everyone[:, ASKED].tolist(), self.progress.step)
