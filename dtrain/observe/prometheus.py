"""A run as Prometheus metrics: read off the ledger when somebody asks, the same few series all along."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dtrain.exchange import Op
from dtrain.meter.ledger import Activity, Ledger, Purpose, StepRecord
from dtrain.meter.nic import read_counters
from dtrain.meter.saving import dense_wire_bytes
from dtrain.observe.figures import EvalFigures, PlanFigures, TrainFigures

STEP_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
COLLECTIVE_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

Rows = Iterable[tuple[Sequence[str], float]]


class Changes(NamedTuple):
    """How often workers came together anew, and how many were lost and joined since the first of them began."""

    groups: int
    lost: int
    joined: int


@dataclass(frozen=True)
class RunFacts:
    """What is said of one rank's run beside what happens in it.

    `facts` are those of summary.json (run, model, compressor, grad_bytes, world_size, ...). `interface` is one that
    carries nothing but this job; the first rank of each host has it, so that a sum over ranks counts each once.
    `restarts`: how often the launcher started this rank again. `changes`: of the workers of a job in which they
    come and go, which rank 0 says.
    """

    facts: Mapping[str, Any]
    rank: int
    host: str
    interface: str | None
    restarts: int = 0
    changes: Changes | None = None


class _Histogram:
    """Counts by upper bound, the last without one."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        bounds = [str(bound) for bound in self.bounds] + ["+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


class _Score(NamedTuple):
    loss: float
    accuracy: float


class RunCollector(Collector):
    """One rank's metrics: a sink of its ledger and, on rank 0, an observer of the trainer. `collect` is thread-safe.

    Bytes are those of the ledger's totals when a record was closed: those of a step come with the step, so that what is
    sent in a step is exact however seldom Prometheus asks. Every series has the labels `run` and `rank`. How many there
    are depends on which operations the run uses, never on how long it is, how many buckets it has or how large the
    model is.
    """

    def __init__(self, about: RunFacts, ledger: Ledger) -> None:
        self._about, self._ledger = about, ledger
        self._lock = threading.Lock()
        self.run = str(about.facts["run"]).encode(errors="replace").decode()  # any bytes may name a folder
        self.rank = about.rank
        self._own = (self.run, str(self.rank))
        self._totals = ledger.split()
        self._step_seconds = _Histogram(STEP_SECONDS)
        self._collective_seconds: dict[Op, _Histogram] = {}
        self._codec_seconds = self._exposed_seconds = 0.0
        self._last_step = 0.0
        self._train: TrainFigures | None = None
        self._plan: PlanFigures | None = None
        self._steps_before = 0  # of this process, at the last logging point: a run that was resumed counts on
        self._waits: dict[str, float] = {}
        self._scores: dict[str, _Score] = {}
        self._model_bytes: dict[str, int] = {"fp32": int(about.facts["grad_bytes"])}

    def on_record(self, record: StepRecord) -> None:
        """Take in a record of the ledger."""
        totals = self._ledger.split()
        with self._lock:
            self._totals = totals
            for entry in record.entries:
                if entry.seconds is not None:
                    if entry.op not in self._collective_seconds:
                        self._collective_seconds[entry.op] = _Histogram(COLLECTIVE_SECONDS)
                    self._collective_seconds[entry.op].observe(entry.seconds)
            if record.step is not None and record.times is not None:
                self._step_seconds.observe(record.times.step)
                self._codec_seconds += record.times.codec
                self._exposed_seconds += record.times.exposed_comm
                self._last_step = time.time()

    def on_train(self, figures: TrainFigures) -> None:
        with self._lock:
            num_steps = sum(self._step_seconds.counts) - self._steps_before
            self._steps_before += num_steps
            for name in ("transfer_seconds", "straggler_wait_seconds"):
                mean = getattr(figures, name)
                if mean is not None:
                    self._waits[name] = self._waits.get(name, 0.0) + num_steps * mean
            self._train = figures
            self._scores["train"] = _Score(figures.loss, figures.accuracy)

    def on_eval(self, figures: EvalFigures) -> None:
        with self._lock:
            self._scores["test"] = _Score(figures.loss, figures.accuracy)

    def on_plan(self, figures: PlanFigures) -> None:
        with self._lock:
            self._plan = figures

    def on_phase(self, name: str, num_values: int) -> None:
        """A phase begins, or a run without any, whose steps exchange so many numbers each: 4 B each, if dense."""
        with self._lock:
            self._model_bytes["exchanged"] = 4 * num_values

    def on_packed(self, num_bytes: int) -> None:
        """The trained model was packed into so many bytes beside it."""
        with self._lock:
            self._model_bytes["packed"] = num_bytes

    def collect(self) -> Iterator[Metric]:
        """What Prometheus asks for. Waits for nothing but a lock that the training thread holds for microseconds."""
        with self._lock:
            families = [*self._bytes(), *self._times(), *self._job()]
        yield from (*families, *self._interface())

    def _bytes(self) -> Iterator[Metric]:
        compressor, totals = str(self._about.facts["compressor"]), self._totals
        split = ("op", "phase", "purpose", "compressor")
        for name, of, text in (
            ("payload_bytes", "payload_bytes", "Bytes that this rank handed to collectives"),
            ("wire_bytes", "wire_bytes", "Bytes that this rank had to send for them, by the collective's algorithm"),
            ("collectives", "count", "Collectives"),
        ):
            rows = [((*key, compressor), float(getattr(total, of))) for key, total in totals.items()]
            yield self._counter(name, text, rows, split)
        facts, steps = self._about.facts, sum(self._step_seconds.counts)
        dense = dense_wire_bytes(facts["backend"], facts["grad_bytes"], facts["world_size"])
        key = (Op.ALL_REDUCE, Activity.TRAIN, Purpose.GRADIENT, compressor)
        text = "Bytes that a dense fp32 all_reduce of the gradients would have sent in the steps so far"
        yield self._counter("dense_bytes", text, [(key, dense * steps)] if totals else [], split)

    def _times(self) -> Iterator[Metric]:
        labels = ("run", "rank")
        collectives = HistogramMetricFamily(
            "dtrain_collective_seconds",
            "How long this rank was in a collective, waiting for slower ranks included",
            labels=(*labels, "op"),
        )
        for op, histogram in self._collective_seconds.items():
            collectives.add_metric((*self._own, op), histogram.buckets(), histogram.sum)
        yield collectives
        steps = HistogramMetricFamily("dtrain_step_seconds", "A training step, from batch to weights", labels=labels)
        steps.add_metric(self._own, self._step_seconds.buckets(), self._step_seconds.sum)
        yield steps
        yield self._counter("steps", "Training steps", [((), sum(self._step_seconds.counts))])
        text = "Exchanges of gradients, or of what several steps changed"
        yield self._counter("rounds", text, [((), self._ledger.rounds)])
        yield self._counter("codec_seconds", "Time in the compressor", [((), self._codec_seconds)])
        text = "Time that steps really waited for their exchange, after backward"
        yield self._counter("exposed_comm_seconds", text, [((), self._exposed_seconds)])
        now = self._ledger.activity
        text = "1 for what the rank is doing: train, eval (testing), ..., init before and after training"
        yield self._gauge("phase", text, [((activity,), float(activity == now)) for activity in Activity], ("phase",))
        if self._last_step:
            yield self._gauge("last_step_timestamp_seconds", "When the last step ended", [((), self._last_step)])

    def _job(self) -> Iterator[Metric]:
        """What each rank says of itself; then what rank 0 says of all."""
        facts = self._about.facts
        info = InfoMetricFamily("dtrain_run", "What runs here", labels=("run", "rank"))
        names = ("model", "data", "backend", "compressor", "world_size", "batch_size_per_rank")
        described = {name: str(facts[name]) for name in names}
        versions = {f"{name}_version": facts["versions"][name] for name in ("dtrain", "torch")}
        info.add_metric(self._own, {**described, **versions, "host": self._about.host})
        yield info
        yield self._gauge("world_size", "Ranks that train together", [((), facts["world_size"])])
        yield self._counter("restarts", "Times that the launcher started this rank again", [((), self._about.restarts)])
        if self._about.rank != 0:
            return
        if self._about.changes is not None:
            groups, lost, joined = self._about.changes
            yield self._counter("groups", "Times that workers came together, the first included", [((), groups)])
            yield self._counter("workers_lost", "Workers that the others went on without", [((), lost)])
            yield self._counter("workers_joined", "Workers that came to those who trained", [((), joined)])
        if self._plan is not None:
            chosen = InfoMetricFamily("dtrain_plan", "What compressor=auto chose", labels=("run", "rank"))
            chosen.add_metric(self._own, {"method": self._plan.chosen})
            yield chosen
            text = "A step as the plan predicts it: with what it chose, with a dense fp32 exchange, and with fp16"
            rows = [((exchange,), seconds) for exchange, seconds in self._plan.step_seconds.items()]
            yield self._gauge("plan_step_seconds", text, rows, ("exchange",))
        yield self._gauge("model_parameters", "Trainable parameters", [((), facts["num_parameters"])])
        text = "The model: fp32 is 4 bytes a parameter, exchanged what is left of it in this phase, packed a .dtz file"
        yield self._gauge("model_bytes", text, [((form,), size) for form, size in self._model_bytes.items()], ("form",))
        scores = self._scores.items()
        yield self._gauge("loss", "Mean loss, of the last logging point or test", _of(scores, "loss"), ("split",))
        yield self._gauge("accuracy_ratio", "Top-1 accuracy, likewise", _of(scores, "accuracy"), ("split",))
        if self._train is not None:
            text = "Images of all ranks, at the last logging point"
            yield self._gauge("images_per_second", text, [((), self._train.images_per_second)])
        for name, text in (
            ("transfer_seconds", "Time in gradient collectives on the rank that came last"),
            ("straggler_wait_seconds", "Time that ranks waited in them for the one that came last, on average"),
        ):
            yield self._counter(name, text, [((), self._waits[name])] if name in self._waits else [])

    def _interface(self) -> Iterator[Metric]:
        """Of an interface that carries only this job; elsewhere the kernel's counters say nothing of it."""
        device = self._about.interface
        counters = read_counters().get(device) if device is not None else None
        if device is not None and counters is not None:
            text = "Bytes that the kernel saw leave on the job's interface"
            yield self._counter("nic_transmit_bytes", text, [((device,), counters.transmitted_bytes)], ("device",))
            text = "Bytes that the kernel saw arrive there"
            yield self._counter("nic_receive_bytes", text, [((device,), counters.received_bytes)], ("device",))

    def _counter(self, name: str, text: str, rows: Rows, labels: Sequence[str] = ()) -> Metric:
        family = CounterMetricFamily(f"dtrain_{name}", text, labels=("run", "rank", *labels))
        for values, value in rows:
            family.add_metric((*self._own, *values), value)
        return family

    def _gauge(self, name: str, text: str, rows: Rows, labels: Sequence[str] = ()) -> Metric:
        family = GaugeMetricFamily(f"dtrain_{name}", text, labels=("run", "rank", *labels))
        for values, value in rows:
            family.add_metric((*self._own, *values), value)
        return family


def _of(scores: Iterable[tuple[str, _Score]], field: str) -> Rows:
    return [((split,), getattr(score, field)) for split, score in scores]
