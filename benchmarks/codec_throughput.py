"""What compressing costs beside copying: every compressor on a 25 MB bucket, one thread, as a ratio to `out.copy_(x)`.

OMP_NUM_THREADS=1 python benchmarks/codec_throughput.py                     # about 2 minutes
OMP_NUM_THREADS=1 python benchmarks/codec_throughput.py --codec numba --only int8 "top_k 0.001"
OMP_NUM_THREADS=1 python benchmarks/codec_throughput.py --device cuda --hardware h200
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from harness import Paired, paired, quartiles, write_result
from torch import Tensor

from dtrain.compressors import COMPRESSORS, ErrorFeedback, build
from dtrain.compressors.codecs import compiled
from dtrain.compressors.codecs.workspace import Workspace
from dtrain.compressors.two_phase import TwoPhase
from dtrain.exchange import Bucket, Compressor, Context, Exchange, Layout, Op, Request, Scratch, State, take_apart
from dtrain.sync.buckets import layout_of, trainable
from dtrain.vision import models

COPIES_OF_THE_MODEL = 5
TARGETS = {
    "torch": {
        "fp16": 0.5,
        "int8": 0.3,
        "int4": 0.2,
        "one_bit": 0.25,
        "ternary": 0.17,
        "top_k": 0.25,
        "power_sgd": 0.25,
    },
    "numba": dict.fromkeys(("int8", "int4", "one_bit", "ternary"), 0.6)
    | dict.fromkeys(("int8 stochastic", "int4 stochastic", "ternary stochastic"), 0.4)
    | {"top_k 0.001": 0.45, "top_k 0.01": 0.3, "power_sgd r=1": 0.3},
    "triton": {},
}
"""Of encode + decode, by codec and by the case or its compressor."""
STEP_TARGETS = {
    "torch": {},
    "numba": dict.fromkeys(("int8", "int4", "one_bit", "ternary"), 0.25) | {"top_k 0.001": 0.4},
    "triton": {},
}
Key = tuple[str, str]
"""A case, and which codec does it: torch, numba or triton."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fp16": ("fp16", {}),
    "bf16": ("bf16", {}),
    "int8": ("int8", {}),
    "int8 stochastic": ("int8", {"rounding": "stochastic"}),
    "int4": ("int4", {}),
    "int4 stochastic": ("int4", {"rounding": "stochastic"}),
    "ternary": ("ternary", {"rounding": "nearest"}),
    "ternary stochastic": ("ternary", {"rounding": "stochastic"}),
    "rotated_signs": ("rotated_signs", {}),
    "one_bit": ("one_bit", {}),
    "top_k 0.001": ("top_k", {"density": 0.001}),
    "top_k 0.01": ("top_k", {"density": 0.01}),
    "chunked_top_k": ("chunked_top_k", {}),
    "dgc 0.001": ("dgc", {"density": 0.001}),
    "random_k 0.01": ("random_k", {"density": 0.01}),
    "power_sgd r=1": ("power_sgd", {"power_sgd_rank": 1}),
    "power_sgd r=4": ("power_sgd", {"power_sgd_rank": 4}),
}
assert {name for name, _ in CASES.values()} | {"none"} == COMPRESSORS.keys()


class Moved(NamedTuple):
    """Bytes that kernels read and write for each value, of arrays as long as the bucket or a shard of it.

    In encode + decode, and in a step at 2 ranks: of values, and so many times a message. What is read again from a
    buffer of a chunk, or within a block, is a cache's.
    """

    codec: float
    step: float
    messages: tuple[float, float] = (0.0, 0.0)


# A step: value, residual, what is left (12), the shard's sum without the own part (2), the mean (4), and the owner's
# part of what is left: the mean, that sum, and what is left, read and written (8).
_EXACT = Moved(8, 26, (2, 3.5))
MOVED: dict[str, Moved] = {
    "fp16": Moved(12, 12),
    "bf16": Moved(12, 12),
    "int8": _EXACT,
    "int4": _EXACT,
    "one_bit": _EXACT._replace(step=30, messages=(2, 4)),  # what goes to others is subtracted once scales are known
    "ternary": _EXACT._replace(step=30, messages=(2, 4)),
    "int8 stochastic": Moved(8, 10, (2, 3.5)),  # no residual
    "int4 stochastic": Moved(8, 10, (2, 3.5)),
    "ternary stochastic": Moved(8, 10, (2, 3.5)),
    "top_k 0.001": Moved(8, 20),  # the choice 4, zeros 4; value, residual, what is left 12
    "top_k 0.01": Moved(8, 20),
    "chunked_top_k": Moved(16, 28),  # a copy with zeros to whole chunks 8
    "dgc 0.001": Moved(32, 32),  # velocity and what it adds up to, 12 each
    "random_k 0.01": Moved(12, 24),  # the largest and the least, for NaN, 4 each
    "power_sgd r=1": Moved(12, 32),  # two products 4 each, the mean 4; what is left 12, less its product 8
    "power_sgd r=4": Moved(36, 56),  # each further rank adds to the mean, 8
}
"""By case; what goes by torch operations, each a pass over chunks, is not in it."""
BYTES_OF_A_COPY = 8
"""For each value: one read, one written."""
MEMORY_BOUND = 0.7
"""Of the time, if so much is what a copy of as many bytes takes."""


def layout(copies: int = COPIES_OF_THE_MODEL) -> Layout:
    """The parameters of squeezenet1_0, several times over: five are 6.2 million, 25.0 MB."""
    with torch.device("meta"):
        one = layout_of(trainable(models.build("squeezenet1_0", num_classes=1000)))
    names = tuple(f"{copy}.{name}" for copy in range(copies) for name in one.names)
    return Layout(names, one.shapes * copies)


def loop_back(exchange: Exchange, world_size: int) -> State:
    """Run an exchange whose other workers gather what this one does, and add nothing. Returns the state after it."""
    answer: Any = None
    while True:
        try:
            asked = exchange.send(answer)
        except StopIteration as done:
            state: State = done.value.state
            return state
        requests = asked if isinstance(asked, tuple) else (asked,)
        answers = tuple(_answer(request, world_size) for request in requests)
        answer = answers if isinstance(asked, tuple) else answers[0]


def _answer(request: Request, world_size: int) -> Tensor:
    payload = request.payload
    if request.op is Op.ALL_GATHER:
        return payload.expand(world_size, *payload.shape)
    return payload


class Step:
    """A compressor's part of training steps: one rank of `world_size`, state and buffers kept from step to step."""

    def __init__(self, compressor: Compressor, bucket: Bucket, world_size: int) -> None:
        self.compressor, self.bucket = compressor, bucket
        self.state = compressor.init(bucket)
        self.context = Context(0, world_size, 1000, scratch=Scratch())

    def __call__(self) -> None:
        exchange = self.compressor.exchange(self.bucket, self.state, self.context)
        self.state = loop_back(exchange, self.context.world_size)
        self.context = replace(self.context, step=self.context.step + 1)

    def extra_memory(self) -> tuple[float, float]:
        """(state, buffers) in buckets."""
        bucket = self.bucket.value.untyped_storage().nbytes()
        state = {
            part.untyped_storage().data_ptr(): part.untyped_storage().nbytes()
            for parts in take_apart(self.state).values()
            for part in parts.values()
        }
        buffers = {
            buffer.untyped_storage().data_ptr(): buffer.untyped_storage().nbytes()
            for buffer in self.context.scratch._buffers.values()
        }
        return sum(state.values()) / bucket, sum(n for at, n in buffers.items() if at not in state) / bucket


def codec_of(compressor: Compressor, bucket: Bucket) -> Callable[[], None]:
    """Encode and decode a bucket once, without error feedback."""
    inner = compressor.inner if isinstance(compressor, ErrorFeedback) else compressor
    if not isinstance(inner, TwoPhase):
        return Step(inner, bucket, 1)
    codec, value = inner.codec, bucket.value
    message = value.new_empty(codec.num_bytes(value.numel()), dtype=torch.uint8)
    out, context = torch.empty_like(value), Context(0, 1, 0)

    def run() -> None:
        workspace = Workspace(context, bucket, value.numel())
        codec.encode(value, message, workspace)
        codec.decode(message, out, workspace)

    return run


def codecs_on(device_type: str) -> list[str]:
    """Those that encode there."""
    compiler = compiled.COMPILERS[device_type]
    return ["torch"] if compiled.why_not(compiler) else ["torch", compiler]


def by(codec: str, device: torch.device, function: Callable[[], None]) -> Callable[[], None]:
    """The same, done by that codec."""

    def run() -> None:
        compiled.choose(codec, device.type)
        function()

    return run


def repeat(function: Callable[[], object]) -> Callable[[int], None]:
    def run(steps: int) -> None:
        for _ in range(steps):
            function()

    return run


def where_time_goes(function: Callable[[], object], device: torch.device) -> str:
    """The three operations that take most of the time, with their share of it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(3):
            function()
        finish(device)
    by_cuda = device.type == "cuda"
    events = [(e.key, e.self_device_time_total if by_cuda else e.self_cpu_time_total) for e in profile.key_averages()]
    total = sum(time for _, time in events)
    top = sorted(events, key=lambda event: -event[1])[:3]
    return ", ".join(f"{key.removeprefix('aten::')} {time / total:.0%}" for key, time in top)


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rows(
    bucket: Bucket, cases: dict[str, tuple[str, dict[str, Any]]], by_codecs: list[str], repetitions: int, steps: int
) -> Iterator[str]:
    device, out = bucket.value.device, torch.empty_like(bucket.value)
    compressors = {label: build(name, **options) for label, (name, options) in cases.items()}
    keys = [(label, codec) for label in cases for codec in by_codecs]
    codecs = {key: codec_of(compressors[key[0]], bucket) for key in keys}
    whole = {key: Step(compressors[key[0]], bucket, 2) for key in keys}
    variants = {"copy": repeat(lambda: out.copy_(bucket.value))}
    variants |= {f"codec {key}": repeat(by(key[1], device, codec)) for key, codec in codecs.items()}
    variants |= {f"step {key}": repeat(by(key[1], device, step)) for key, step in whole.items()}

    def run_and_finish(run: Callable[[int], None]) -> Callable[[int], None]:
        def both(count: int) -> None:
            run(count)
            finish(device)

        return both

    timed = paired(
        {label: run_and_finish(run) for label, run in variants.items()},
        repetitions=repetitions,
        steps=steps,
        warmup=3,
        meet=lambda: None,
    )
    copy = quartiles(timed.seconds["copy"])[1]
    yield f"`out.copy_(x)`: {1e3 * copy:.2f} ms, {bucket.value.nbytes / copy / 1e9:.1f} GB/s."
    yield ""
    yield (
        "| compressor | by | encode + decode, ms | copy / it | quartiles | target | a step at 2 ranks, ms | copy / it "
        "| quartiles | target | state, buckets | buffers, buckets | most of what torch does in encode + decode |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for key, step in whole.items():
        yield _row(key, step, codecs[key], timed, device)
    if "numba" in by_codecs:
        yield ""
        yield "What bounds it, by numba:"
        yield ""
        yield from (_bound(label, compressors[label], bucket, timed) for label in cases)


def _row(key: Key, step: Step, codec: Callable[[], None], timed: Paired, device: torch.device) -> str:
    label, codec_name = key
    parts = []
    for what, targets in (("codec", TARGETS[codec_name]), ("step", STEP_TARGETS[codec_name])):
        low, ratio, high = quartiles([1 / r for r in timed.ratios(f"{what} {key}")])
        milliseconds = 1e3 * quartiles(timed.seconds[f"{what} {key}"])[1]
        target = targets.get(label, targets.get(label.split()[0] if codec_name == "torch" else label, ""))
        parts.append(f"{milliseconds:.1f} | {ratio:.3f} | {low:.3f} to {high:.3f} | {target}")
    state, buffers = step.extra_memory()
    doing = where_time_goes(by(codec_name, device, codec), device)
    return f"| {label} | {codec_name} | {' | '.join(parts)} | {state:.2f} | {buffers:.2f} | {doing} |"


def _bound(label: str, compressor: Compressor, bucket: Bucket, timed: Paired) -> str:
    """A line on a method: bytes moved, and how much of the time a copy takes for as many."""
    inner = compressor.inner if isinstance(compressor, ErrorFeedback) else compressor
    message = inner.codec.num_bytes(bucket.value.numel()) / bucket.value.numel() if isinstance(inner, TwoPhase) else 0.0
    if label not in MOVED:
        return f"- {label}: torch's operations, each a pass over a chunk"
    moved, copy, parts = MOVED[label], quartiles(timed.seconds["copy"])[1], []
    both = (("codec", moved.codec, moved.messages[0]), ("step", moved.step, moved.messages[1]))
    for what, of_values, of_messages in both:
        seconds, num_bytes = (
            quartiles(timed.seconds[f"{what} {(label, 'numba')}"])[1],
            of_values + of_messages * message,
        )
        share = num_bytes / BYTES_OF_A_COPY * copy / seconds
        bound = "memory" if share >= MEMORY_BOUND else "the core"
        rate = num_bytes * bucket.value.numel() / seconds / 1e9
        parts.append(f"{num_bytes:.1f} B a value at {rate:.1f} GB/s, {share:.0%} of it as by a copy: {bound}")
    return f"- {label}: encode + decode {parts[0]}; a step {parts[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--codec", nargs="+", choices=compiled.CODECS[1:], help="which to measure; default: all there are"
    )
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), default=list(CASES), help="cases; writes no file")
    parser.add_argument("--copies", type=int, default=COPIES_OF_THE_MODEL, help="of the model in the bucket")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3, help="per block")
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = layout(arguments.copies)
    value = torch.randn(shape.numel, device=arguments.device)
    cases = {label: CASES[label] for label in arguments.only}
    how = (arguments.codec or codecs_on(value.device.type), arguments.repetitions, arguments.steps)
    table = "\n".join(rows(Bucket(value, shape), cases, *how))
    if len(cases) < len(CASES):
        print(table)
        return
    side = int(value.numel() ** 0.5)
    square = Bucket(value[: side * side], Layout(("weight",), ((side, side),)))
    low_rank = {label: case for label, case in CASES.items() if case[0] == "power_sgd"}
    one_matrix = "\n".join(rows(square, low_rank, *how))
    body = (
        f"A bucket of {value.numel():,} float32 ({value.nbytes / 1e6:.1f} MB): squeezenet1_0's parameters, "
        f"{arguments.copies} times, with normal values (seed 0). Blocks of {arguments.steps} runs in turn and in "
        f"alternating order, {arguments.repetitions} times; medians, ratios by pairs. A ratio of 0.25 means: as long "
        "as four copies into memory that is there already.\n\n"
        "Encode + decode: the bare method, once over the bucket. A step: all that the registered compressor does for "
        "one rank of two, with error feedback, the sum and the second encoding, its communication replaced by its own "
        "messages. State lives from step to step; buffers are kept for speed; beside both, the mean itself is a bucket "
        "where a method is not sparse.\n\n"
        "By torch: its operations. By numba or triton: compiled kernels, with the same messages; what has none goes by "
        "torch. What bounds a method is memory where a copy of the bytes that it moves, of arrays as long as the "
        f"bucket or a shard, takes {MEMORY_BOUND:.0%} of its time or more; else the core, and the caches that it reads "
        "again.\n\n"
        f"{table}\n\n## One matrix of {side} x {side}\n\n"
        "What PowerSGD costs depends on how many matrices there are: above 130 of them, most small, for which calling "
        f"the operations takes longer than they do.\n\n{one_matrix}"
    )
    print(body)
    print(write_result("codec_throughput", arguments.hardware, "What compressing costs beside copying", body))


if __name__ == "__main__":
    main()
