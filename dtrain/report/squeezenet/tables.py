"""The tables of the SqueezeNet paper: each row with its figure, what was counted or measured here, and what was not.

Sizes of networks are counted from the networks. Sizes of compressed ones are those of packed models (.dtz) in the run
directories that were given, and bytes per step those of the runs; without such, "not measured". ImageNet accuracy is
the paper's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from dtrain.report import units
from dtrain.report.packed import Packed
from dtrain.report.runs import Run
from dtrain.report.squeezenet.architecture import CLASSES, Complexity, complexity
from dtrain.report.squeezenet.pairs import dense, is_squeezenet
from dtrain.report.squeezenet.verdicts import Finding, Row, Verdict

IMAGENET = "ImageNet accuracy"
NOT_MEASURED = Verdict.NOT_MEASURED.value
PRINTING_TOLERANCE = 0.01
"""How far a counted size may be from every size that is printed so, relative: 5.7 MB are 5.62 MiB."""


# table 2


def table_2(runs: Sequence[Run]) -> Finding:
    """Sizes of AlexNet and SqueezeNet, plain and compressed."""
    alexnet, squeezenet = complexity("alexnet"), complexity("squeezenet1_0")
    of_alexnet, of_squeezenet = (_packed(runs, name) for name in ("alexnet", "squeezenet1_0"))

    def pruned(one: Packed) -> bool:
        return one.shared_bits is None and not one.low_rank and one.pruned

    def shared(low: int, high: int) -> Callable[[Packed], bool]:
        return lambda one: one.shared_bits is not None and low <= one.shared_bits <= high and one.pruned

    rows = (
        _plain("AlexNet", "240 MB", "57.2% / 80.3%", alexnet, 240, -1),
        _compressed("AlexNet, SVD", "48 MB (5x)", "56.0% / 79.4%", of_alexnet, lambda one: one.low_rank, 48.5e6),
        _compressed("AlexNet, pruned", "27 MB (9x)", "57.2% / 80.3%", of_alexnet, pruned, 27.5e6),
        _compressed("AlexNet, Deep Compression", "6.9 MB (35x)", "57.2% / 80.3%", of_alexnet, shared(1, 8), 6.95e6),
        _plain("SqueezeNet", "4.8 MB (50x)", "57.5% / 80.3%", squeezenet, 4.8, 1),
        _compressed(
            "SqueezeNet, 8 bits, 33% kept", "0.66 MB (363x)", "57.5% / 80.3%", of_squeezenet, shared(7, 8), 0.665e6
        ),
        _compressed(
            "SqueezeNet, 6 bits, 33% kept", "0.47 MB (510x)", "57.5% / 80.3%", of_squeezenet, shared(1, 6), 0.475e6
        ),
    )
    missing = [row.what for row in rows if row.verdict is Verdict.NOT_MEASURED]
    said = (
        "Verdicts are about sizes alone: a plain network's is counted; a compressed one's is that of a packed model, "
        "and holds if it is no larger than the paper's."
    )
    if missing:
        said += (
            f" Missing: packed models of {'; '.join(missing)}. Train with {CLASSES} classes, then `dtrain pack "
            "RUN/model.safetensors -o RUN/model.dtz`."
        )
    return _of(rows, said, tuple(run for run in runs if run.packed and run.num_classes == CLASSES))


def _packed(runs: Sequence[Run], model: str) -> list[tuple[Run, Packed]]:
    return [(run, one) for run in runs if run.model == model and run.num_classes == CLASSES for one in run.packed]


def _plain(what: str, size: str, accuracy: str, network: Complexity, printed: float, decimals: int) -> Row:
    verdict = _verdict(_is_printed_so(network.num_bytes, printed, decimals))
    return Row(what, f"{size}, {accuracy}", _size(network), IMAGENET, verdict, {"bytes": network.num_bytes})


def _compressed(
    what: str,
    size: str,
    accuracy: str,
    packed: Sequence[tuple[Run, Packed]],
    fits: Callable[[Packed], bool],
    most: float,
) -> Row:
    fitting = [(run, one) for run, one in packed if fits(one)]
    paper = f"{size}, {accuracy}"
    if not fitting:
        return Row(what, paper, NOT_MEASURED, f"size, {IMAGENET}", Verdict.NOT_MEASURED)
    run, one = min(fitting, key=lambda pair: pair[1].num_bytes)
    ours = f"{units.exact_bytes(one.num_bytes)}: {one.how} ({run.label}/{one.path.name})"
    return Row(what, paper, ours, IMAGENET, _verdict(one.num_bytes <= most), {"bytes": one.num_bytes})


# table 3


def table_3(runs: Sequence[Run]) -> Finding:
    """Sizes of SqueezeNet without a bypass, with simple and with complex bypass."""
    figures = (("none", "4.8 MB", 4.8, "57.5% / 80.3%"), ("simple", "4.8 MB", 4.8, "60.4% / 82.5%"))
    rows = tuple(
        _plain(
            "SqueezeNet" if bypass == "none" else f"SqueezeNet, {bypass} bypass",
            size,
            accuracy,
            complexity("squeezenet1_0", bypass=bypass),
            printed,
            1,
        )
        for bypass, size, printed, accuracy in (*figures, ("complex", "7.7 MB", 7.7, "58.8% / 82.0%"))
    )
    said = (
        "Counted from the networks; verdicts are about sizes alone. The 1x1 convolutions of the complex bypass, as the "
        "paper's figure 2 has them, are 341,248 parameters."
    )
    return _of(rows, said, ())


# the design space


BASE = {"squeeze_ratio": 0.5}
SPACE: tuple[tuple[str, Mapping[str, float], str, tuple[float, int] | None], ...] = (
    ("SR 0.125", {"squeeze_ratio": 0.125}, "4.8 MB, top-5 80.3%", (4.8, 1)),
    ("SR 0.25", {"squeeze_ratio": 0.25}, "", None),
    ("SR 0.5", {"squeeze_ratio": 0.5}, "13 MB", (13, 0)),
    ("SR 0.75", {"squeeze_ratio": 0.75}, "19 MB, top-5 86.0%", (19, 0)),
    ("SR 1", {"squeeze_ratio": 1.0}, "", None),
    ("3x3 1%, SR 0.5", {**BASE, "pct3x3": 0.01}, "5.7 MB", (5.7, 1)),
    ("3x3 25%, SR 0.5", {**BASE, "pct3x3": 0.25}, "", None),
    ("3x3 50%, SR 0.5", {**BASE, "pct3x3": 0.5}, "13 MB, top-5 85.6%", (13, 0)),
    ("3x3 75%, SR 0.5", {**BASE, "pct3x3": 0.75}, "", None),
    ("3x3 99%, SR 0.5", {**BASE, "pct3x3": 0.99}, "21 MB", (21, 0)),
)
"""Section 5's sweeps: options of the model `squeezenet`, the paper's figure, and the size in it (MB, decimals)."""


def design_space(runs: Sequence[Run]) -> Finding:
    """Sizes in the sweeps of squeeze ratio and share of 3x3 filters, with bytes per step where a run has them."""
    sent = {run.num_parameters: run for run in dense(runs) if is_squeezenet(run) and run.num_classes == CLASSES}
    rows = []
    used: list[Run] = []
    for what, options, paper, printed in SPACE:
        network = complexity("squeezenet", **options)
        ours, missing = _size(network), [IMAGENET]
        run = sent.get(network.num_parameters)
        numbers: dict[str, float] = {"bytes": network.num_bytes, "parameters": network.num_parameters}
        if run is None or run.wire_bytes_per_step is None:
            missing.append("bytes per step")
        else:
            if run not in used:
                used.append(run)
            ours += f"; a rank of {run.world_size} sends {units.exact_bytes(run.wire_bytes_per_step)} a step"
            numbers["wire_bytes_per_step"] = run.wire_bytes_per_step
        holds = None if printed is None else _verdict(_is_printed_so(network.num_bytes, *printed))
        rows.append(Row(what, paper or "not printed", ours, ", ".join(missing), holds, numbers))
    said = (
        f"Counted from the networks; a size holds if it is what is printed, as MB or as MiB, within "
        f"{units.percent(PRINTING_TOLERANCE)}. The paper's accuracies, and their plateaus, are not measured here."
    )
    return _of(rows, said, tuple(used))


def communication_is_a_line(runs: Sequence[Run]) -> Finding:
    """Wire bytes per step go with the parameters over many networks, not two."""
    groups: dict[tuple[int, str], dict[int, Run]] = {}
    for run in dense(runs):
        groups.setdefault((run.world_size, run.backend), {})[run.num_parameters] = run
    (world_size, backend), alike = max(groups.items(), key=lambda item: len(item[1]), default=((0, ""), {}))
    if len(alike) < _LEAST_MODELS:
        return Finding(
            Verdict.NOT_MEASURED,
            f"Missing: runs of {_LEAST_MODELS} networks or more of different sizes, at the same world size and "
            f"backend, with compressor none: there are {len(alike)}. benchmarks/design_space.py has some.",
        )
    points = [(run.num_parameters, run.wire_bytes_per_step or 0.0) for _, run in sorted(alike.items())]
    each = [wire / parameters for parameters, wire in points]
    slopes = [(w2 - w1) / (p2 - p1) for (p1, w1), (p2, w2) in pairwise(points)]
    off = max(each) / min(each) - 1
    said = (
        f"{len(points)} networks from {units.count(points[0][0])} to {units.count(points[-1][0])} parameters, "
        f"{world_size} ranks, {backend}: each step a rank sends {_span(each)} B a parameter "
        f"(relative difference {off:.2g}); from each network to the next larger one it sends "
        f"{_span(slopes)} B more for each parameter more. Up to {LINE_TOLERANCE:g} counts as a line through zero."
    )
    numbers = {run.label: wire for run, (_, wire) in zip(dict(sorted(alike.items())).values(), points, strict=True)}
    return Finding(_verdict(off <= LINE_TOLERANCE), said, tuple(alike.values()), numbers)


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.6g}", f"{max(values):.6g}"
    return low if low == high else f"{low} to {high}"


LINE_TOLERANCE = 1e-6
"""Of bytes per parameter between networks, relative; the exchange itself is exact."""

_LEAST_MODELS = 3


# one figure each


def less_compute(runs: Sequence[Run]) -> Finding:
    """Multiply-adds of versions 1.0 and 1.1, counted."""
    at = {}
    for size in (PAPER_IMAGE, CAFFE_IMAGE):
        published = complexity("squeezenet1_0", image_size=size, conv10_padding=1)
        at[size] = published.multiply_adds, complexity("squeezenet1_1", image_size=size).multiply_adds
    ratios = {size: old / new for size, (old, new) in at.items()}
    unpadded = complexity("squeezenet1_0", image_size=PAPER_IMAGE).multiply_adds / at[PAPER_IMAGE][1]
    counts = {size: " and ".join(f"{n / 1e6:,.1f} M" for n in pair) for size, pair in at.items()}
    said = (
        f"Counted on an image of {PAPER_IMAGE}x{PAPER_IMAGE} (the paper's table 1): {counts[PAPER_IMAGE]} "
        f"multiply-adds for 1.0 as it was published (conv10 padded) and 1.1, {units.ratio(ratios[PAPER_IMAGE])} less, "
        f"or {units.ratio(unpadded)} without the padding. On {CAFFE_IMAGE}x{CAFFE_IMAGE}, to which the published files "
        f"crop: {counts[CAFFE_IMAGE]}, {units.ratio(ratios[CAFFE_IMAGE])} less. 2.35x to 2.45x, at the paper's size, "
        f"counts as 2.4x. {IMAGENET} and time are not measured."
    )
    numbers = {f"ratio at {size}": ratio for size, ratio in ratios.items()}
    return Finding(_verdict(2.35 <= ratios[PAPER_IMAGE] < 2.45), said, (), numbers)


PAPER_IMAGE, CAFFE_IMAGE = 224, 227


def fits_an_fpga(runs: Sequence[Run]) -> Finding:
    """Weights against the 10 MB that the paper gives an FPGA."""
    rows = []
    for what, model, should_fit in _FOR_FPGA:
        network = complexity(model)
        ours = f"{_size(network)}; {units.short_bytes(network.activation_bytes)} in and out of one layer at most"
        numbers = {"bytes": network.num_bytes, "activation_bytes": network.activation_bytes}
        verdict = _verdict((network.num_bytes < _FPGA_BYTES) == should_fit)
        rows.append(Row(what, "fits" if should_fit else "does not fit", ours, "an FPGA", verdict, numbers))
    smallest = complexity("squeezenet1_0")
    both = units.short_bytes(smallest.num_bytes + smallest.activation_bytes)
    said = (
        f"Counted in fp32: the weights of SqueezeNet 1.0 take {units.short_bytes(smallest.num_bytes)} of the 10 MB, "
        f"and of the 8.5 MB of the paper's example. With what goes in and out of its largest layer on an image of "
        f"{PAPER_IMAGE}x{PAPER_IMAGE} they take {both}: whole fp32 activations do not fit beside them. An FPGA was not "
        "measured."
    )
    return _of(rows, said, ())


_FPGA_BYTES = 10e6
_FOR_FPGA = (
    ("AlexNet", "alexnet", False),
    ("SqueezeNet 1.0", "squeezenet1_0", True),
    ("SqueezeNet 1.1", "squeezenet1_1", True),
)


# words


def _of(rows: Sequence[Row], said: str, runs: Sequence[Run]) -> Finding:
    return Finding(_conjunction([row.verdict for row in rows]), said, tuple(runs), _numbers(rows), tuple(rows))


def _conjunction(verdicts: Sequence[Verdict | None]) -> Verdict:
    """A table holds if every row does."""
    for verdict in (Verdict.DOES_NOT_HOLD, Verdict.NOT_MEASURED):
        if verdict in verdicts:
            return verdict
    return Verdict.HOLDS


def _numbers(rows: Sequence[Row]) -> dict[str, float]:
    return {f"{row.what} ({key})": float(value) for row in rows for key, value in row.numbers.items()}


def _size(network: Complexity) -> str:
    mega, mebi = network.num_bytes / 1e6, network.num_bytes / 2**20
    return f"{units.count(network.num_parameters)} parameters, {mega:.2f} MB ({mebi:.2f} MiB)"


def _is_printed_so(num_bytes: int, printed: float, decimals: int) -> bool:
    half = 0.5 * 10**-decimals
    low, high = (printed - half) * (1 - PRINTING_TOLERANCE), (printed + half) * (1 + PRINTING_TOLERANCE)
    return any(low <= num_bytes / unit <= high for unit in (1e6, 2**20))


def _verdict(holds: bool) -> Verdict:
    return Verdict.HOLDS if holds else Verdict.DOES_NOT_HOLD
