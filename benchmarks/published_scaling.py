"""Published scaling, not ours, against what dtrain.plan predicts from the sizes, compute times and links printed there.

    python benchmarks/published_scaling.py

Nothing is fitted. Every input stands here with its source and goes into the result file. GPUs cast for free, so the
exchange of `none` has no codec time; a rank's GPU is its one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import log2, sqrt

import torch
from harness import write_result

from dtrain.exchange import Op
from dtrain.plan.calibration import Calibration, Recording
from dtrain.plan.candidates import NONE
from dtrain.plan.link import TCP_SHARE, Link
from dtrain.plan.planner import Job
from dtrain.plan.program import Await, Instruction, Lane, Signal, Start, Work
from dtrain.plan.scaling import Uncertain, scale
from dtrain.plan.subject import of_size
from dtrain.plan.timeline import Host
from dtrain.sync.buckets import assign, trainable

SOURCES = {
    "F": "Iandola et al., FireCaffe, CVPR 2016, arXiv 1511.00175. Its abstract prints the speed-ups (GoogLeNet "
    "47x, Network-in-Network 39x on 128 GPUs), reduction trees and Cray interconnects. No time of a step. Its "
    "whole text was not at hand: the batch of 1024 over all GPUs, so 8 each, is from memory of its tables.",
    "G": "Caffe's models/bvlc_googlenet/readme.md: 1688.8 ms forward and backward at batch 128 on a K40c, 13.2 ms "
    "an image. 13.4 M parameters, counted from its layers with both auxiliary heads. Titan's K20X has 8% less "
    "of peak fp32.",
    "N": "Network-in-Network in Caffe's model zoo (gist d802a5849de39225bcc6): 29 MB, 7.6 M parameters counted "
    "from its layers. No time of a step: GoogLeNet's (G) by multiply-adds an image, 1.1 x 10^9, counted "
    "likewise, against GoogLeNet's 1.5 x 10^9 (Szegedy et al., CVPR 2015).",
    "T": "Cray Gemini, www.euroben.nl/reports/web13/xe6.php: over 6 GB/s each way measured, 0.7 to 1.4 us.",
    "H": "Horovod's README until October 2017 (pull request 44 took the table out). 16 GPUs on 4 servers, RoCE at "
    "25 Gbit/s, NCCL: 15.0x, 14.6x, 13.7x of one Pascal GPU's 134.4, 119.4 and 130.9 images/s at batch 64. On "
    "other servers, plain 40 Gbit/s, NCCL over TCP, 64 GPUs on 16 servers: 53.3x, 56.9x, 40.7x of 148.8, "
    "136.0 and 149.6 images/s.",
    "I": "Horovod's README after it: 32 servers with 4 Pascal GPUs each, RoCE at 25 Gbit/s: 90%, 90%, 79%. (The "
    "paper, Sergeev and Del Balso, arXiv 1802.05799, has up to 128 GPUs.) Images/s of one GPU as in H.",
    "J": "Horovod's docs/benchmarks.rst: 128 servers with 4 Pascal GPUs each, RoCE at 25 Gbit/s: 90%, 90%, 68%. "
    "Images/s of one GPU as in H.",
    "P": "Parameters: torchvision's networks, Inception V3 without its auxiliary head; BERT-base 110 M (Devlin et "
    "al., NAACL 2019).",
    "A": "Agarwal et al., On the Utility of Gradient Compression, MLSys 2022, arXiv 2103.00543. Its abstract: "
    "faster than plain DDP in 6 of more than 200 setups. Its scripts (uw-mad-dash/GradCompressionUtility) "
    "have 4 V100s a node, 8 for BERT; such nodes of AWS have 10 and 25 Gbit/s. Its whole text was not at "
    "hand: by a published summary of it, encoding and decoding take about 50 ms, fourfold compression is "
    "enough and pays below about 8 Gbit/s, and backward takes 1.04 to 1.1 times as long beside collectives. "
    "Compute times: V.",
    "V": "A V100 in fp32: ResNet-50 363.1 images/s (NVIDIA DeepLearningExamples, RN50v1.5, PyTorch 18.09); "
    "ResNet-101 202.8 images/s at batch 64 (horovod issue 416); an encoder as BERT-base's 35 sequences/s of "
    "384 tokens at batch 8 (NVIDIA DeepLearningExamples, ELECTRA-base).",
}

ROCE = Link(25e9, latency_seconds=10e-6, ranks=4)
TCP_40 = Link(40e9, latency_seconds=100e-6, ranks=4)
P3_8XLARGE, P3_16XLARGE = (Link(rate, latency_seconds=100e-6, ranks=n) for rate, n in ((10e9, 4), (25e9, 8)))
GEMINI = Link(8 * 6e9, latency_seconds=1.4e-6, share=1.0)
ASSUMED = f"""\
Latencies of a message are printed in T alone (1.4 us): 10 us over RoCE and 100 us over TCP, the plan's default, are
assumed. Of an Ethernet link's bits {TCP_SHARE:.1%} are data; Gemini has 6 GB/s. Gradients are ready in proportion to
their size over backward, two thirds of a step, in buckets of 25 MiB. A node's GPUs share its link, which a ring passes
once. A GPU is its rank's one core: what a codec takes, backward lacks."""


@dataclass(frozen=True)
class Case:
    """A published figure: `reported` is the share of linear speed-up, None where the paper prints none."""

    paper: str
    model: str
    num_parameters: int
    step_seconds: float
    link: Link
    world_size: int
    reported: float | None
    sources: str


VGG, RESNET_50, RESNET_101, INCEPTION, BERT = 138_357_544, 25_557_032, 44_549_160, 23_834_568, 110_000_000
GOOGLENET, NIN = 13_378_280, 7_595_176
FIRECAFFE_IMAGES = 1024 // 128
IMAGE_SECONDS = 1.6888 / 128


def horovod() -> list[Case]:
    models = {"Inception V3": INCEPTION, "ResNet-101": RESNET_101, "VGG-16": VGG}
    at_25, at_40 = (134.4, 119.4, 130.9), (148.8, 136.0, 149.6)
    runs: list[tuple[int, Link, Sequence[float], Sequence[float], str]] = [
        (16, ROCE, at_25, (2022.6, 1746.2, 1787.4), "H, P"),
        (64, TCP_40, at_40, (7932.1, 7741.6, 6084.2), "H, P"),
        (128, ROCE, at_25, (0.90, 0.90, 0.79), "I, H, P"),
        (512, ROCE, at_25, (0.90, 0.90, 0.68), "J, H, P"),
    ]
    return [
        Case("Horovod", model, size, 64 / rate, link, n, found if found < 1 else found / (n * rate), sources)
        for n, link, rates, reported, sources in runs
        for (model, size), rate, found in zip(models.items(), rates, reported, strict=True)
    ]


FIRECAFFE = [
    Case("FireCaffe", "GoogLeNet", GOOGLENET, FIRECAFFE_IMAGES * IMAGE_SECONDS, GEMINI, 128, 47 / 128, "F, G, T"),
    Case("FireCaffe", "NiN", NIN, FIRECAFFE_IMAGES * IMAGE_SECONDS * 1.1 / 1.5, GEMINI, 128, 39 / 128, "F, N, G, T"),
]
AGARWAL = [
    Case("Agarwal et al.", model, size, seconds, link, 64, None, "A, V, P")
    for link in (P3_8XLARGE, P3_16XLARGE)
    for model, size, seconds in (
        ("ResNet-50", RESNET_50, 64 / 363.1),
        ("ResNet-101", RESNET_101, 64 / 202.8),
        ("BERT-base", BERT, 8 / 35),
    )
]


@cache
def known_step(num_parameters: int, seconds: float) -> tuple[Lane, tuple[int, ...]]:
    """A step without an exchange, and the elements of each bucket."""
    subject = of_size(num_parameters, seconds, "sgd")
    return subject.step[0], tuple(sum(p.numel() for _, p in bucket) for bucket in assign(trainable(subject.model)))


def calibration_of(
    case: Case, *, overlaps: bool = True, backward: float = 1.0, less: float = 1.0, codec_seconds: float = 0.0
) -> Calibration:
    """The job, its exchange lane with no codec time but what is named, and with so many times fewer bytes.

    Without overlap buckets are ready once backward is done. Backward may take longer than it does alone.
    """
    step, sizes = known_step(case.num_parameters, case.step_seconds)
    forward, *rest = step
    assert isinstance(forward, Work)
    rest = [Work(backward * one.seconds) if isinstance(one, Work) else one for one in rest]
    if not overlaps:
        rest.sort(key=lambda one: [Work, Signal, Await].index(type(one)))
    lane: list[Instruction] = []
    for i, size in enumerate(sizes):
        codec = codec_seconds * size / sum(sizes)
        lane += [Await(("ready", i)), Work(codec), Start(("collective", i), Op.ALL_REDUCE, round(4 * size / less))]
    lane += [Await(("collective", i)) for i in range(len(sizes))]
    recording = Recording((((*lane, Signal(("finished", 0)))),))
    return Calibration(case.model, {}, ((forward, *rest),), {NONE.label: {case.world_size: recording}})


def efficiency(
    case: Case,
    calibration: Calibration,
    *,
    backend: str = "nccl",
    link: Link | None = None,
    spread: float = 0.0,
) -> float:
    """The predicted share of linear speed-up over a step alone."""
    link = link or case.link
    job = Job(case.world_size, Host(link.ranks, link.ranks), link, backend)
    (point,) = scale(calibration, [NONE], job, [case.world_size], Uncertain(spread))
    return case.step_seconds / point.seconds


def slower(link: Link, times: float) -> Link:
    return replace(link, bits_per_second=link.bits_per_second / times)


def tree(case: Case) -> Link:
    """On which a ring takes as long as a tree without a pipeline: all bytes at each level, up and down."""
    n = case.world_size
    return slower(case.link, log2(n) * n / (n - 1))


def predictions(cases: Iterable[Case]) -> list[str]:
    rows = [
        "| paper | model | GPUs (a node) | link | parameters, M | step alone, ms | reported | predicted | difference, "
        "points | inputs |",
        "|---" * 10 + "|",
    ]
    for case in cases:
        found = efficiency(case, calibration_of(case))
        known = case.reported is not None
        rows.append(
            f"| {case.paper} | {case.model} | {case.world_size} ({case.link.ranks}) "
            f"| {case.link.bits_per_second / 1e9:g} Gbit/s | {case.num_parameters / 1e6:.1f} "
            f"| {1e3 * case.step_seconds:.0f} | {f'{case.reported:.0%}' if known else 'not at hand'} | {found:.0%} "
            f"| {f'{100 * (found - (case.reported or 0)):+.0f}' if known else ''} | {case.sources} |"
        )
    return rows


SPREAD, LONGER = 0.03, 1.07
CHANGES: dict[str, Callable[[Case], float]] = {
    "as above": lambda case: efficiency(case, calibration_of(case)),
    "rings": lambda case: efficiency(case, calibration_of(case), backend="mpi"),
    "rings, one at a time": lambda case: in_turn(case, 1.0),
    f"backward {LONGER} times as long": lambda case: efficiency(case, calibration_of(case, backward=LONGER)),
    "both": lambda case: in_turn(case, LONGER),
    f"ranks vary by {SPREAD:.0%}": lambda case: efficiency(case, calibration_of(case), spread=SPREAD),
    "no overlap": lambda case: efficiency(case, calibration_of(case, overlaps=False)),
    "half the link": lambda case: efficiency(case, calibration_of(case), link=slower(case.link, 2)),
    "each GPU's bytes through the NIC": lambda case: efficiency(
        case, calibration_of(case), link=slower(case.link, case.link.ranks)
    ),
}


def in_turn(case: Case, backward: float) -> float:
    """By rings only, a collective after another."""
    link = replace(case.link, concurrent=1)
    return efficiency(case, calibration_of(case, backward=backward), backend="mpi", link=link)


def changes(cases: Iterable[Case]) -> list[str]:
    rows = [f"| paper, model, GPUs | reported | {' | '.join(CHANGES)} |", "|---" * (len(CHANGES) + 2) + "|"]
    for case in cases:
        figures = " | ".join(f"{predict(case):.0%}" for predict in CHANGES.values())
        rows.append(f"| {case.paper}, {case.model}, {case.world_size} | {case.reported:.0%} | {figures} |")
    return rows


def trees(cases: Iterable[Case]) -> list[str]:
    rows = ["| paper, model, GPUs | reported | as above | tree without a pipeline | and no overlap |", "|---" * 5 + "|"]
    for case in cases:
        lanes = calibration_of(case), calibration_of(case, overlaps=False)
        figures = efficiency(case, lanes[0]), *(efficiency(case, one, link=tree(case)) for one in lanes)
        words = " | ".join(f"{figure:.0%}" for figure in figures)
        rows.append(f"| {case.paper}, {case.model}, {case.world_size} | {case.reported:.0%} | {words} |")
    return rows


FOURFOLD, CODEC_SECONDS = 4.0, 0.05


def worth(cases: Iterable[Case]) -> list[str]:
    return [
        "| model | GPUs (a node) | link | none | a quarter of the bytes, no codec time | faster by | its codec may "
        f"take, ms | with {1e3 * CODEC_SECONDS:.0f} ms it pays below |",
        "|---" * 8 + "|",
        *map(worth_of, cases),
    ]


def worth_of(case: Case) -> str:
    """What fourfold compression could win, what its codec may take, and below which link it pays."""
    dense, free = (efficiency(case, calibration_of(case, less=less)) for less in (1.0, FOURFOLD))
    budget = highest(1e-3, 10.0, lambda seconds: pays(case, seconds, case.link))
    rate = highest(1e8, 1e12, lambda rate: pays(case, CODEC_SECONDS, replace(case.link, bits_per_second=rate)))
    return (
        f"| {case.model} | {case.world_size} ({case.link.ranks}) | {case.link.bits_per_second / 1e9:g} Gbit/s "
        f"| {dense:.0%} | {free:.0%} | {free / dense:.2f} | {1e3 * budget:.0f} | {rate / 1e9:.0f} Gbit/s |"
    )


def pays(case: Case, codec_seconds: float, link: Link) -> bool:
    compressed = efficiency(case, calibration_of(case, less=FOURFOLD, codec_seconds=codec_seconds), link=link)
    return compressed > efficiency(case, calibration_of(case), link=link)


def highest(low: float, high: float, holds: Callable[[float], bool]) -> float:
    """Up to where it holds, on a logarithmic axis."""
    while high / low > 1.01:
        middle = sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


NOTES = """\
- **Horovod, Inception V3 and ResNet-101**: predictions are 4 to 8 points high, 16 for Inception over TCP. In the
  plan collectives cost a GPU nothing; Agarwal et al. saw backward take 1.04 to 1.1 times as long beside them. 1.07
  alone leaves 0 to 4 points, and 12 for Inception over TCP.
- **Horovod, VGG-16**: 6 to 34 points high, most over TCP and at 512 GPUs. With NCCL the plan has messages go by
  trees, and two collectives under way at once. NCCL had rings only until 2.4 (2019), and a communicator runs one
  collective at a time: then 1,022 messages follow one another for each bucket at 512 GPUs, and predictions are 90,
  68, 81 and 65% against 85, 64, 79 and 68%. How far this goes rests on the latencies, which are assumed.
- **The link that 4 GPUs share** is not to blame: rings pass it once, as the plan has it. Would each GPU's bytes
  pass it, VGG-16 could reach 31% on 16 GPUs, and it reached 85%.
- **FireCaffe**: 57 and 60 points high, for the plan does not know its algorithm. A reduction tree without a
  pipeline sends all bytes at each of 7 levels, up and down: 7 times what a ring sends. With that and no overlap 46
  and 52% are predicted, which leaves 9 and 22 points. Not in the plan either: 8 images a GPU, where the time of an
  image was measured with 128, and copies between GPU and host.
- **Agarwal et al.**: their times were not at hand, so only their verdict can be compared. Where nodes have 25
  Gbit/s the plan agrees for ResNets: fourfold compression for nothing would win 5 to 6%, and its codec may take 12
  to 15 ms of the GPU. At 10 Gbit/s it does not agree: it would win a third and more, with a codec of up to 79 to
  110 ms; one of 50 ms pays below 12 to 13 Gbit/s here, below about 8 there. BERT would gain at both. Methods that
  send all to all ranks, whose bytes grow with the number of ranks, are among their more than 200 setups and not
  here.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # nothing is timed
    published = [*FIRECAFFE, *horovod()]
    body = [
        "Figures of others, not ours, against what `dtrain.plan` predicts with `none` and backend nccl: the share of "
        "linear speed-up. Nothing is measured here and nothing was fitted; letters name the inputs below.",
        "\n".join(predictions([*published, *AGARWAL])),
        ASSUMED.replace("\n", " "),
        "## Which assumption is to blame",
        "Predictions with one assumption changed (`both`: two).",
        "\n".join(changes(horovod())),
        "\n".join(trees(FIRECAFFE)),
        "## Where compression would pay, for Agarwal et al.'s setups",
        "\n".join(worth(AGARWAL)),
        "## What comes of it",
        NOTES.rstrip(),
        "## Inputs",
        "\n".join(f"- **{letter}**: {text}" for letter, text in SOURCES.items()),
    ]
    path = write_result(
        "published_scaling", arguments.hardware, "Published scaling against predictions", "\n\n".join(body)
    )
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
