"""What the SqueezeNet paper claims, as functions over runs.

Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size" (arXiv 1602.07360);
FireCaffe is Iandola et al., arXiv 1511.00175. A figure of the paper is never mixed with one of ours: where we have not
measured the same thing, the verdict is "not measured", and says what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dtrain.report import units
from dtrain.report.runs import Run, result_of
from dtrain.report.squeezenet import reached, tables
from dtrain.report.squeezenet.architecture import complexity
from dtrain.report.squeezenet.pairs import (
    dense,
    dense_pairs,
    is_alexnet,
    is_squeezenet,
    missing_pair,
    network_name,
    runs_of,
)
from dtrain.report.squeezenet.verdicts import Claim, Finding, JudgedClaim, Verdict, judge

PAPER_CLASSES = 1000
"""The head of both networks in the paper. With 10 classes the parameters stand in the ratio 78x: another comparison."""

FEWEST_TIMES_FEWER, MOST_TIMES_FEWER = 235 / 4.85, 245 / 4.75
"""The paper's 50x is 240 MB / 4.8 MB (Table 2): every ratio of two sizes that are printed so counts as 50x."""

RATIO_TOLERANCE = 1e-6
"""How far the ratio of wire bytes may be from the ratio of parameters, relative; the exchange itself is exact."""


def claims(runs: Sequence[Run]) -> tuple[JudgedClaim, ...]:
    """Every claim of the paper with what these runs measured and a verdict; always all claims, in the same order."""
    return judge(CLAIMS, runs)


def fewer_parameters(runs: Sequence[Run]) -> Finding:
    """50x fewer parameters than AlexNet, within what the paper's rounding allows."""
    full = [run for run in runs if run.num_classes == PAPER_CLASSES]
    pairs = [(a, s) for a in filter(is_alexnet, full) for s in filter(is_squeezenet, full)]
    if not pairs:
        return _counted_parameters(runs)
    ratios = {f"{network_name(a)} / {network_name(s)}": a.num_parameters / s.num_parameters for a, s in pairs}
    found = _sentences(
        f"{network_name(a)} has {units.count(a.num_parameters)} parameters and {network_name(s)} has "
        f"{units.count(s.num_parameters)}: {units.ratio(a.num_parameters / s.num_parameters)} fewer."
        for a, s in pairs
    )
    allowed = (
        f" 50x is the paper's 240 MB / 4.8 MB, both rounded, so {units.ratio(FEWEST_TIMES_FEWER)} to "
        f"{units.ratio(MOST_TIMES_FEWER)} counts as 50x."
    )
    holds = any(FEWEST_TIMES_FEWER <= a.num_parameters / s.num_parameters <= MOST_TIMES_FEWER for a, s in pairs)
    return Finding(_verdict(holds), found + allowed, runs_of(pairs), ratios)


def _counted_parameters(runs: Sequence[Run]) -> Finding:
    """Of the networks themselves, as in the tables, where no two runs have them with the paper's head."""
    alexnet, squeezenet = complexity("alexnet"), complexity("squeezenet1_0")
    ratio = alexnet.num_parameters / squeezenet.num_parameters
    small = any(run.num_classes != PAPER_CLASSES for run in runs)
    note = " Smaller heads shrink AlexNet's last layer too, so their ratio is not the paper's." if small else ""
    found = (
        f"Counted from the networks with {PAPER_CLASSES} classes, not from runs: alexnet has "
        f"{units.count(alexnet.num_parameters)} parameters and squeezenet1_0 has "
        f"{units.count(squeezenet.num_parameters)}: {units.ratio(ratio)} fewer."
    )
    holds = FEWEST_TIMES_FEWER <= ratio <= MOST_TIMES_FEWER
    return Finding(_verdict(holds), found + note, (), {"alexnet / squeezenet1_0": ratio})


def communication_goes_with_parameters(runs: Sequence[Run]) -> Finding:
    """Wire bytes per step of the two networks stand in the ratio of their parameters."""
    pairs = dense_pairs(runs)
    if not pairs:
        return Finding(Verdict.NOT_MEASURED, missing_pair(dense(runs), "on 2 ranks or more with compressor none"))
    sentences: list[str] = []
    numbers: dict[str, float] = {}
    holds = True
    for alexnet, squeezenet in pairs:
        wire = (alexnet.wire_bytes_per_step or 0) / (squeezenet.wire_bytes_per_step or 1)
        parameters = alexnet.num_parameters / squeezenet.num_parameters
        off = abs(wire / parameters - 1)
        holds = holds and off <= RATIO_TOLERANCE
        heads = f", {units.count(alexnet.num_classes)} classes" if alexnet.num_classes != PAPER_CLASSES else ""
        sentences.append(
            f"{alexnet.world_size} ranks, {alexnet.backend}{heads}: each step a rank sends "
            f"{units.exact_bytes(alexnet.wire_bytes_per_step)} for {alexnet.model} and "
            f"{units.exact_bytes(squeezenet.wire_bytes_per_step)} for {squeezenet.model}, {wire:.4f}x fewer; "
            f"the parameters stand in the ratio {parameters:.4f}x (relative difference {off:.2g})."
        )
        numbers |= {
            f"wire_ratio {alexnet.label} / {squeezenet.label}": wire,
            f"parameter_ratio {alexnet.label} / {squeezenet.label}": parameters,
        }
    measured = f"{_sentences(sentences)} Up to {RATIO_TOLERANCE:g} counts as proportional."
    return Finding(_verdict(holds), measured, runs_of(pairs), numbers)


def four_bytes_per_parameter(runs: Sequence[Run]) -> Finding:
    """The payload of a dense fp32 step is exactly 4 bytes a parameter."""
    measurable = [run for run in dense(runs) if run.payload_bytes_per_step]
    if not measurable:
        return Finding(Verdict.NOT_MEASURED, "Missing: a run on 2 ranks or more with compressor none.")
    measured = _sentences(
        f"{run.model}: {units.exact_bytes(run.payload_bytes_per_step)} of payload for "
        f"{units.count(run.num_parameters)} parameters, "
        f"{(run.payload_bytes_per_step or 0) / run.num_parameters:.6g} B each."
        for run in measurable
    )
    holds = all(run.payload_bytes_per_step == 4 * run.num_parameters for run in measurable)
    numbers = {run.label: (run.payload_bytes_per_step or 0) / run.num_parameters for run in measurable}
    return Finding(_verdict(holds), measured, tuple(measurable), numbers)


def model_size(runs: Sequence[Run]) -> Finding:
    """4.8 MB for the uncompressed SqueezeNet 1.0, and in which megabytes; counted where no run has it."""
    full = [run for run in runs if run.num_classes == PAPER_CLASSES and is_squeezenet(run)]
    papers = [run.num_parameters for run in full if run.model == "squeezenet1_0"]
    sizes = [_size_in_fp32(network_name(run), run.num_parameters) for run in full]
    numbers = {f"{run.label} (B)": 4.0 * run.num_parameters for run in full}
    if not papers:
        counted = complexity("squeezenet1_0").num_parameters
        papers = [counted]
        sizes.insert(0, f"Counted from the network, not from a run: {_size_in_fp32('squeezenet1_0', counted)}")
        numbers["squeezenet1_0 (B)"] = 4.0 * counted
    printed = [round(4 * parameters / unit, 1) == 4.8 for parameters in papers for unit in (1e6, 2**20)]
    note = " The paper's 4.8 MB is MiB (2^20 B)." if any(printed[1::2]) else ""
    return Finding(_verdict(any(printed)), _sentences(sizes) + note, tuple(full), numbers)


def _size_in_fp32(network: str, num_parameters: int) -> str:
    return (
        f"{network}: 4 B x {units.count(num_parameters)} parameters = {4 * num_parameters / 1e6:.2f} MB, or "
        f"{4 * num_parameters / 2**20:.2f} MiB."
    )


def deep_compression(runs: Sequence[Run]) -> Finding:
    """The size is in table 2; the claim is also about accuracy."""
    row = tables.table_2(runs).rows[-1]
    if not row.numbers:
        return Finding(
            Verdict.NOT_MEASURED,
            "Missing: a squeezenet1_0 with the paper's 1000-class head, pruned, shared in 6 bits and packed (Table 2), "
            "and its ImageNet accuracy.",
        )
    ratio = complexity("alexnet").num_bytes / row.numbers["bytes"]
    return Finding(
        Verdict.NOT_MEASURED,
        f"Its size here is {row.ours}, {units.ratio(ratio)} less than AlexNet takes in fp32. Missing: the ImageNet "
        "accuracy of that file.",
        numbers={"times smaller than AlexNet": ratio},
    )


def alexnet_level_accuracy(runs: Sequence[Run]) -> Finding:
    """Never blended: ImageNet is the paper's data set, and what was trained here is reported as what it is."""
    scored = [run for run in runs if run.accuracy is not None]
    missing = "ImageNet accuracy is not measured here."
    if not scored:
        return Finding(Verdict.NOT_MEASURED, f"{missing} No run was evaluated on anything else either.")
    by_data = {
        data: ", ".join(f"{run.name} {result_of(run, scored)}" for run in scored if run.data == data)
        for data in dict.fromkeys(run.data for run in scored)
    }
    found = " ".join(f"Top-1 on the test set of {data}: {values}." for data, values in by_data.items())
    note = "Another task than the paper's; the figures do not compare with its."
    numbers = {run.label: run.accuracy for run in scored if run.accuracy is not None}
    return Finding(Verdict.NOT_MEASURED, f"{missing} {found} {note}", tuple(scored), numbers)


def _sentences(sentences: Iterable[str]) -> str:
    return " ".join(dict.fromkeys(sentences))


def _verdict(holds: bool) -> Verdict:
    return Verdict.HOLDS if holds else Verdict.DOES_NOT_HOLD


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "fewer_parameters",
        "50x fewer parameters",
        "SqueezeNet has 50x fewer parameters than AlexNet.",
        "SqueezeNet paper, abstract and Table 2",
        fewer_parameters,
    ),
    Claim(
        "communication_goes_with_parameters",
        "Less communication, in proportion to parameters",
        "In data-parallel training the communication is directly proportional to the number of parameters, so smaller "
        "networks need less of it across servers.",
        "SqueezeNet paper, abstract and section 1, after FireCaffe",
        communication_goes_with_parameters,
    ),
    Claim(
        "four_bytes_per_parameter",
        "A step exchanges one gradient value per parameter",
        "What a worker hands over each step is as large as the model: 4 B per parameter in fp32.",
        "FireCaffe (arXiv 1511.00175)",
        four_bytes_per_parameter,
    ),
    Claim(
        "model_size",
        "A 4.8 MB model",
        "SqueezeNet takes 4.8 MB in fp32, without compression.",
        "SqueezeNet paper, Table 2",
        model_size,
    ),
    Claim(
        "deep_compression",
        "510x smaller with Deep Compression, at the same accuracy",
        "Pruned to 33% and quantized to 6 bits, SqueezeNet takes 0.47 MB, 510x less than AlexNet's 240 MB, at the same "
        "accuracy.",
        "SqueezeNet paper, abstract and Table 2",
        deep_compression,
    ),
    Claim(
        "alexnet_level_accuracy",
        "AlexNet-level accuracy",
        "On ImageNet SqueezeNet reaches 57.5% top-1 and 80.3% top-5, AlexNet 57.2% and 80.3%.",
        "SqueezeNet paper, Table 2",
        alexnet_level_accuracy,
    ),
    Claim(
        "bytes_to_accuracy",
        "AlexNet's accuracy for a ten-thousandth of its bytes",
        f"SqueezeNet, compressed, reaches AlexNet's best accuracy in fp32 after {reached.TIMES_FEWER:,}x fewer bytes, "
        "all ranks and the whole run counted.",
        "not the paper's: how far its claim goes with what this project exchanges",
        reached.bytes_to_accuracy,
    ),
    Claim(
        "table_2",
        "Table 2, sizes",
        "AlexNet from 240 MB to 48, 27 and 6.9 MB, SqueezeNet from 4.8 MB to 0.66 and 0.47 MB (and top-1 / top-5).",
        "SqueezeNet paper, Table 2",
        tables.table_2,
    ),
    Claim(
        "table_3",
        "Table 3, sizes",
        "SqueezeNet takes 4.8 MB without a bypass and with simple ones, 7.7 MB with complex ones.",
        "SqueezeNet paper, Table 3",
        tables.table_3,
    ),
    Claim(
        "design_space",
        "The design space, sizes",
        "Squeeze ratios from 0.125 to 1, and 1% to 99% of 3x3 filters at a squeeze ratio of 0.5.",
        "SqueezeNet paper, section 5 and figure 3",
        tables.design_space,
    ),
    Claim(
        "communication_is_a_line",
        "Bytes against parameters, a line through many networks",
        "The communication of data-parallel training is directly proportional to the number of parameters.",
        "SqueezeNet paper, section 1, after FireCaffe",
        tables.communication_is_a_line,
    ),
    Claim(
        "less_compute",
        "Version 1.1 computes 2.4x less",
        "SqueezeNet 1.1 needs 2.4x less computation than 1.0 at the same accuracy: 0.72 and 1.72 GFLOPs an image.",
        "the authors' SqueezeNet repository (version 1.1), not the paper",
        tables.less_compute,
    ),
    Claim(
        "fits_an_fpga",
        "Small enough for an FPGA",
        "FPGAs often have less than 10 MB of on-chip memory (a Virtex-7: 8.5 MB) and no other; a model that is small "
        "enough could be stored there.",
        "SqueezeNet paper, section 1",
        tables.fits_an_fpga,
    ),
)
