"""The training loop, to be read in one sitting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from math import nan

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from dtrain.comm import all_gather
from dtrain.meter.ledger import Activity, Purpose, StepRecord, Times
from dtrain.observe.figures import EvalFigures, TrainFigures, split_transfer
from dtrain.sync.every_step import NonFiniteGradientError
from dtrain.train.task import Batch, Plan, Task


class _Interval:
    """What happened on this rank since the last logging point."""

    def __init__(self) -> None:
        self.loss_sum: Tensor | float = 0.0
        self.correct: Tensor | int = 0
        self.images = 0
        self.records: list[StepRecord] = []
        self.start = time.perf_counter()

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.loss_sum = self.loss_sum + loss.detach().double()
        self.correct = self.correct + (logits.detach().argmax(1) == labels).sum()
        self.images += len(labels)

    def gradient_seconds(self) -> list[float]:
        """How long this rank was in each gradient collective, in order; NaN where that is not known."""
        entries = [e for r in self.records for e in r.entries if e.purpose is Purpose.GRADIENT]
        return [nan if e.seconds is None else e.seconds for e in entries]

    def mean(self, of: Callable[[Times], float]) -> float:
        times = [r.times for r in self.records if r.times is not None]
        return sum(map(of, times)) / len(times)


class Trainer:
    """Trains by a plan; when it is done, another task and plan may follow.

    `stop_requested` may be set at any time; all ranks then stop together at a logging point.
    """

    def __init__(self, task: Task, plan: Plan) -> None:
        self.task, self.plan = task, plan
        self.stop_requested = False
        self.step = 0
        self.skipped: list[NonFiniteGradientError] = []

    def run(self) -> bool:
        """Train to the end of the plan. Returns whether it was reached, False after a request to stop."""
        task, plan = self.task, self.plan
        interval, stopped = _Interval(), False
        with task.ledger.scope(activity=Activity.TRAIN):
            for epoch, batch in self._batches():
                self._train_step(batch, interval)
                if self.step % plan.log_every == 0 or self.step == plan.num_steps:
                    stopped = self._log(epoch, interval)
                    interval = _Interval()
                if stopped:
                    break
                if plan.save_every and self.step % plan.save_every == 0:
                    task.save(self.step)
                if plan.eval_every and self.step % plan.eval_every == 0 and self.step < plan.num_steps:
                    self.evaluate(epoch)
                    interval.start = time.perf_counter()
        if not stopped:
            self.evaluate(max(0, self.step - 1) // task.loader.steps_per_epoch)
        return not stopped

    def evaluate(self, epoch: int) -> EvalFigures:
        """Score the model on the test set, every image once over all ranks."""
        with self.task.ledger.scope(activity=Activity.EVAL):
            return self._evaluate(epoch)

    def _evaluate(self, epoch: int) -> EvalFigures:
        task = self.task
        task.model.eval()
        score = torch.zeros(3, dtype=torch.float64, device=task.device)
        with torch.inference_mode():
            for batch in task.eval_batches():
                labels = batch.labels.to(task.device)
                logits = task.model(batch.images.to(task.device))
                loss = cross_entropy(logits, labels, reduction="sum")
                correct = (logits.argmax(1) == labels).sum()
                score[0] += loss
                score[1] += correct
                score[2] += len(labels)
        task.model.train()
        with task.ledger.scope(purpose=Purpose.METRICS):
            loss_sum, correct_sum, count = all_gather(task.communicator, score).sum(0).tolist()
        task.ledger.close()
        wire = task.ledger.total(activity=Activity.TRAIN, purpose=Purpose.GRADIENT).wire_bytes
        metrics = EvalFigures(self.step, epoch, loss_sum / count, correct_sum / count, int(count), wire)
        for observer in task.observers:
            observer.on_eval(metrics)
        return metrics

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """(epoch, batch) up to the last step of the plan."""
        per_epoch = self.task.loader.steps_per_epoch
        while self.step < self.plan.num_steps:
            epoch, start = divmod(self.step, per_epoch)
            for batch in self.task.loader.epoch(epoch, start):
                yield epoch, batch
                if self.step == self.plan.num_steps:
                    return

    def _train_step(self, batch: Batch, interval: _Interval) -> None:
        task, start = self.task, time.perf_counter()
        images, labels = batch.images.to(task.device), batch.labels.to(task.device)
        for group in task.optimizer.param_groups:
            group["lr"] = task.base_learning_rate * task.schedule(self.step)
        task.optimizer.zero_grad(set_to_none=True)
        micro = list(zip(images.chunk(self.plan.micro_batches), labels.chunk(self.plan.micro_batches), strict=True))
        for part, (some_images, some_labels) in enumerate(micro, start=1):
            with nullcontext() if part == len(micro) else task.synchronizer.no_sync():
                self._backward(some_images, some_labels, batch.global_size, interval)
        exposed = self._apply_gradients()
        times = Times(time.perf_counter() - start, task.synchronizer.take_codec_seconds(), exposed)
        interval.records.append(task.ledger.close(self.step, times))
        self.step += 1

    def _backward(self, images: Tensor, labels: Tensor, global_size: int, interval: _Interval) -> None:
        """Add these images' part of the gradient of the mean loss over the global batch, times the number of ranks."""
        task = self.task
        with torch.autocast(task.device.type, torch.bfloat16, enabled=self.plan.amp):
            logits = task.model(images)
        loss = task.loss(images, logits.float(), labels)
        (loss * (task.communicator.world_size / global_size)).backward()
        interval.add(loss, logits, labels)

    def _apply_gradients(self) -> float:
        """Exchange and step; a step whose gradients are not finite is an error, or left out, on every rank alike."""
        synchronizer, start = self.task.synchronizer, time.perf_counter()
        try:
            exposed = synchronizer.finish()
        except NonFiniteGradientError as error:
            if self.plan.on_nonfinite == "raise":
                raise
            synchronizer.discard()
            self.skipped.append(error)
            return time.perf_counter() - start
        if self.plan.clip_norm is not None:
            clip_grad_norm_(self.task.model.parameters(), self.plan.clip_norm)
        self.task.optimizer.step()
        synchronizer.commit()
        return exposed

    def _log(self, epoch: int, interval: _Interval) -> bool:
        """Report the interval to the observers. Returns whether any rank wants to stop."""
        task, elapsed = self.task, time.perf_counter() - interval.start
        sent = task.ledger.total().wire_bytes
        sums = [float(self.stop_requested), interval.loss_sum, interval.correct, interval.images, sent]
        mine = torch.tensor([float(x) for x in sums] + interval.gradient_seconds(), dtype=torch.float64)
        with task.ledger.scope(purpose=Purpose.METRICS):
            everyone = all_gather(task.communicator, mine.to(task.device)).cpu()
        stop, loss, correct, images, total_sent = everyone[:, :5].sum(0).tolist()
        split = split_transfer(everyone[:, 5:].tolist())
        num_steps = len(interval.records)
        metrics = TrainFigures(
            step=self.step,
            epoch=epoch,
            loss=loss / images,
            accuracy=correct / images,
            learning_rate=task.optimizer.param_groups[0]["lr"],
            images_per_second=images / elapsed,
            wire_bytes=task.ledger.total(activity=Activity.TRAIN, purpose=Purpose.GRADIENT).wire_bytes,
            step_seconds=interval.mean(lambda t: t.step),
            exposed_comm_seconds=interval.mean(lambda t: t.exposed_comm),
            codec_seconds=interval.mean(lambda t: t.codec),
            transfer_seconds=split.transfer / num_steps if split else None,
            straggler_wait_seconds=split.straggler_wait / num_steps if split else None,
            total_wire_bytes_all_ranks=total_sent,
        )
        for observer in task.observers:
            observer.on_train(metrics)
        return bool(stop > 0)
