"""What a run directory says, read once and checked once, so that tables, claims and charts only ever see sound values.

Training writes `summary.json` and `metrics.jsonl`; people rename, copy and interrupt runs. Everything that can be wrong
with the files is found here, as one `ValueError` that names the file and the cure. Text is made printable here too, so
that no run name can move a terminal's cursor or break an SVG.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtrain.report import units
from dtrain.report.curves import Curve, read_curves
from dtrain.report.fields import SCHEMA, Fields, printable, read_object
from dtrain.report.packed import Packed, read_packed

HOLDS_WITHIN = 0.01
"""Of accuracy: a saving that costs more is no saving, and never goes before one that holds."""


@dataclass(frozen=True)
class TrainedPhase:
    """A phase of a run that has phases. Bytes are per step, as in `Run`; `accuracy` is that of its last evaluation."""

    name: str
    steps: int
    exchanged_values: int
    payload_bytes_per_step: float | None
    wire_bytes_per_step: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Straggler:
    """A rank that the others waited for: its part of all that waiting, and what that is of the steps' time."""

    rank: int
    host: str
    share_of_wait: float | None
    share_of_step: float | None


@dataclass(frozen=True)
class Run:
    """One training run. Field names are the keys of `summary.json`; bytes and seconds as there.

    Per-step figures are rank 0's, phase train, purpose gradient, over the whole run. `None` is a figure that the run
    does not have: never measured, not isolated (`nic`), or meaningless (a saving at world size 1).
    """

    path: Path
    label: str  # unique among the runs that were loaded together
    run: str
    model: str
    variant: str
    num_parameters: int
    num_classes: int
    image_size: int | None
    data: str
    world_size: int
    backend: str
    compressor: str
    num_steps: int
    num_rounds: int
    batch_size_per_rank: int
    grad_bytes: float
    payload_bytes_per_step: float | None
    wire_bytes_per_step: float | None
    nic_bytes_per_step: float | None
    init_wire_bytes: float | None
    saving_vs_fp32: float | None
    saving_vs_fp16: float | None
    accuracy: float | None
    loss: float | None
    images_per_second: float | None
    step_seconds_median: float | None
    exposed_comm_seconds_median: float | None
    codec_seconds_median: float | None
    transfer_seconds_median: float | None
    straggler_wait_seconds_median: float | None
    stragglers: tuple[Straggler, ...] | None
    total_wire_bytes_all_ranks: float | None
    wire_bytes_by_phase_and_purpose: Mapping[str, float]
    phases: tuple[TrainedPhase, ...]
    packed_bytes: int | None
    seed: int
    versions: Mapping[str, str]
    complete: bool
    training: Curve
    evaluation: Curve
    packed: tuple[Packed, ...]

    @property
    def name(self) -> str:
        """The label, with ` (incomplete)` behind it where the run was interrupted."""
        return self.label if self.complete else f"{self.label} (incomplete)"

    @property
    def has_local_rounds(self) -> bool:
        """Whether workers exchanged what several steps changed; the last round of a run may be a step more."""
        return self.num_rounds + 1 < self.num_steps

    @property
    def exchange(self) -> str:
        """The compressor, and how often it was used where that is not in every step."""
        steps = f" every {self.num_steps / max(1, self.num_rounds):.3g} steps" if self.has_local_rounds else ""
        return self.compressor + steps

    @property
    def compute_and_other_seconds_median(self) -> float | None:
        """The median step less what it waited for its exchange, in seconds; at least 0.

        The wait holds the codec's work as far as backward does not hide it, so the codec is not subtracted again.
        """
        step, exposed = self.step_seconds_median, self.exposed_comm_seconds_median
        return None if step is None or exposed is None else max(0.0, step - exposed)


def differ_in_length(runs: Iterable[Run]) -> bool:
    """Whether they took different numbers of steps, which must then be said beside what they came to."""
    return len({run.num_steps for run in runs}) > 1


def result_of(run: Run, runs: Iterable[Run]) -> str:
    """What a run came to, as it is written beside the others': `98.1%`, or `98.1% after 1,080 steps`."""
    if run.accuracy is None:
        return "accuracy not measured"
    after = f" after {units.count(run.num_steps)} steps" if differ_in_length(runs) else ""
    return units.percent(run.accuracy) + after


def load_runs(paths: Iterable[str | Path]) -> tuple[Run, ...]:
    """Reads run directories (`runs/<name>/`), in the order given, each under a label of its own.

    A run's label is its name; runs that share a name get as much of their path as tells them apart.

    Raises:
        ValueError: no path, a path given twice, or a directory whose `summary.json` is missing, broken or of another
            schema. The message names the file and the cure.
    """
    directories = [Path(path) for path in paths]
    if not directories:
        raise ValueError("no run given: name at least one run directory, such as runs/demo/squeezenet1_1")
    resolved = [directory.resolve() for directory in directories]
    for directory, place in zip(directories, resolved, strict=True):
        if resolved.count(place) > 1:
            raise ValueError(f"{directory} is given more than once: name each run directory once")
    runs = [_read_run(directory) for directory in directories]
    labels = _labels([run.run for run in runs], resolved)
    return tuple(dataclasses.replace(run, label=label) for run, label in zip(runs, labels, strict=True))


def _read_run(directory: Path) -> Run:
    path = directory / "summary.json"
    if not path.is_file():
        raise ValueError(_not_a_run(directory))
    summary = Fields(path, read_object(path))
    summary.require_schema(SCHEMA)
    training, evaluation = read_curves(directory / "metrics.jsonl")
    name = summary.text("run")
    return Run(
        path=directory,
        label=name,
        run=name,
        model=summary.text("model"),
        variant=summary.text("variant"),
        num_parameters=summary.count("num_parameters", at_least=1),
        num_classes=summary.count("num_classes", at_least=1),
        image_size=summary.optional_count("image_size"),
        data=summary.text("data"),
        world_size=summary.count("world_size", at_least=1),
        backend=summary.text("backend"),
        compressor=summary.text("compressor"),
        num_steps=summary.count("num_steps"),
        num_rounds=summary.optional_count("num_rounds") or summary.count("num_steps"),
        batch_size_per_rank=summary.count("batch_size_per_rank"),
        grad_bytes=float(summary.count("grad_bytes")),
        payload_bytes_per_step=summary.measured("payload_bytes_per_step"),
        wire_bytes_per_step=summary.measured("wire_bytes_per_step"),
        nic_bytes_per_step=summary.measured("nic_bytes_per_step"),
        init_wire_bytes=summary.measured("init_wire_bytes"),
        saving_vs_fp32=summary.measured("saving_vs_fp32"),
        saving_vs_fp16=summary.measured("saving_vs_fp16"),
        accuracy=summary.measured("accuracy"),
        loss=summary.measured("loss", may_diverge=True),
        images_per_second=summary.measured("images_per_second", required=False),
        step_seconds_median=summary.measured("step_seconds_median"),
        exposed_comm_seconds_median=summary.measured("exposed_comm_seconds_median"),
        codec_seconds_median=summary.measured("codec_seconds_median"),
        transfer_seconds_median=summary.measured("transfer_seconds_median", required=False),
        straggler_wait_seconds_median=summary.measured("straggler_wait_seconds_median", required=False),
        stragglers=_stragglers(summary),
        total_wire_bytes_all_ranks=summary.measured("total_wire_bytes_all_ranks"),
        wire_bytes_by_phase_and_purpose=summary.table_of_bytes("wire_bytes_by_phase_and_purpose"),
        phases=tuple(_phase(fields) for fields in summary.objects("phases")),
        packed_bytes=summary.optional_count("packed_bytes"),
        seed=summary.count("seed"),
        versions=summary.table_of_text("versions"),
        complete=summary.flag("complete"),
        training=training,
        evaluation=evaluation,
        packed=read_packed(directory),
    )


def _stragglers(summary: Fields) -> tuple[Straggler, ...] | None:
    if summary.values.get("stragglers") is None:
        return None
    return tuple(
        Straggler(
            rank=fields.count("rank"),
            host=fields.text("host"),
            share_of_wait=fields.measured("share_of_wait"),
            share_of_step=fields.measured("share_of_step"),
        )
        for fields in summary.objects("stragglers")
    )


def _phase(fields: Fields) -> TrainedPhase:
    return TrainedPhase(
        name=fields.text("name"),
        steps=fields.count("steps"),
        exchanged_values=fields.count("exchanged_values"),
        payload_bytes_per_step=fields.measured("payload_bytes_per_step"),
        wire_bytes_per_step=fields.measured("wire_bytes_per_step"),
        accuracy=fields.measured("accuracy"),
    )


def _not_a_run(directory: Path) -> str:
    inside = sorted(path.parent for path in directory.glob("*/summary.json")) if directory.is_dir() else []
    if inside:
        named = " ".join(str(path) for path in inside[:4])
        return f"{directory} is not a run directory but holds some: give {named}{' ...' if len(inside) > 4 else ''}"
    problem = "has no summary.json" if directory.is_dir() else "is not a directory"
    return f"{directory} {problem}: give a run directory, such as runs/demo/squeezenet1_1 (dtrain train writes one)"


def _labels(names: Sequence[str], places: Sequence[Path]) -> list[str]:
    labels = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        alike = [index for index, other in enumerate(names) if other == name]
        longest = max(len(places[index].parts) for index in alike)
        for depth in range(1, longest + 1):
            suffixes = ["/".join(places[index].parts[-depth:]) for index in alike]
            if len(set(suffixes)) == len(suffixes):
                break
        for index, suffix in zip(alike, suffixes, strict=True):
            labels[index] = f"{name} [{printable(suffix)}]"
    if len(set(labels)) < len(labels):
        labels = [f"{label} #{number}" for number, label in enumerate(labels, start=1)]
    return labels
