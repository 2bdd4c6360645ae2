"""The parts of benchmarks/gpu.py: each yields lines of Markdown, and fails where something is not so."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from codec_throughput import CASES, Step, codecs_on, finish, layout, rows
from harness import paired
from metering_cost import OFF, ON, differences, metered, microseconds
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import dtrain
from dtrain.comm import detect_launch
from dtrain.comm.lockstep import lockstep
from dtrain.comm.torch_dist import open_default
from dtrain.compressors import COMPRESSORS, build
from dtrain.compressors.codecs import compiled
from dtrain.compressors.codecs.workspace import Workspace
from dtrain.exchange import Bucket, Context, Exchange, Layout, Scratch
from dtrain.sync.drive import drive_lockstep
from dtrain.vision import models

SEED = 0
NEAREST = {"int8": {}, "int4": {}, "one_bit": {}, "ternary": {"rounding": "nearest"}}
"""Codecs that kernels are written for."""
EXACT = ("none", "fp16", "bf16", "int8", "int4", "top_k", "random_k")
"""Whose arithmetic has one result, whatever the device. Others sum in an order of the device's own."""
BOUND = 0.01
"""Of what means of the others may differ by, in root mean squares."""
DRAWN = ("ternary",)
"""Whose random bits are the device's own: their means are not compared."""


@dataclass(frozen=True)
class Setting:
    """Where to run, and whether less of each part will do."""

    device: torch.device
    quick: bool

    @property
    def backend(self) -> str:
        """For ranks on this device."""
        return "nccl" if self.device.type == "cuda" else "gloo"


def messages(setting: Setting) -> Iterator[str]:
    """Kernels against torch's operations on the same device, byte for byte."""
    device = setting.device
    if len(codecs_on(device.type)) == 1:
        yield f"Not run: {compiled.why_not(compiled.COMPILERS[device.type])}."
        return
    kernels = codecs_on(device.type)[1]
    lengths = (1, 2049, 20_003) if setting.quick else (1, 639, 2047, 2049, 100_003, 6_000_001, 40_000_003)
    yield f"Bytes of messages, decoded values and residuals, by {kernels} and by torch, for lengths of {lengths}."
    yield ""
    yield "| codec | values | the same |"
    yield "|---|---|---|"
    different = []
    for name, options in NEAREST.items():
        codec = build(name, **options).inner.codec
        for kind, special in (
            ("finite", [-0.0, 1e-45, -1e-38]),
            ("with NaN and infinity", [float("nan"), float("inf")]),
        ):
            same = all(_alike(codec, numel, special, device, kernels) for numel in lengths)
            different += [] if same else [f"{name}, {kind}"]
            yield f"| {name} | {kind} | {'yes' if same else '**no**'} |"
    assert not different, f"not the same: {'; '.join(different)}"


def _alike(codec: Any, numel: int, special: list[float], device: torch.device, kernels: str) -> bool:
    generator = torch.Generator(device).manual_seed(SEED)
    values, spread, residual = (torch.randn(numel, device=device, generator=generator) for _ in range(3))
    values.mul_(spread.exp_())
    values[: len(special)] = torch.tensor(special, device=device)[:numel]
    bucket = Bucket(values, Layout(("values",), ((numel,),)))
    found = []
    for chosen in ("torch", kernels):
        compiled.choose(chosen, device.type)
        workspace = Workspace(Context(0, 1, 0), bucket, numel)
        message, left = values.new_empty(codec.num_bytes(numel), dtype=torch.uint8), torch.empty_like(values)
        codec.encode_corrected(values, residual, left, message, workspace, subtract=True)
        decoded, grown = torch.empty_like(values), residual.clone()
        codec.decode(message, decoded, workspace)
        codec.decode(message, grown, workspace, add=-1.0)
        found.append([message, *(one.view(torch.uint8) for one in (left, decoded, grown))])
    compiled.choose("auto", device.type)
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def compressors(setting: Setting) -> Iterator[str]:
    """What two ranks exchange in three steps, on the device and by torch on the CPU."""
    shape = Layout(("weight", "bias"), ((100, 333), (100,))) if setting.quick else layout(1)
    yield f"Two ranks in lockstep, three steps, {shape.numel:,} values: on the device and, by torch, on a CPU."
    yield ""
    yield "| compressor | messages that are the same | difference of means / their root mean square |"
    yield "|---|---|---|"
    different = []
    for name in COMPRESSORS:
        compiled.choose("torch", "cpu")
        by_cpu, expected = _three_steps(name, shape, torch.device("cpu"))
        compiled.choose("auto", setting.device.type)
        by_device, means = _three_steps(name, shape, setting.device)
        same = sum(a == b for a, b in zip(by_cpu, by_device, strict=True))
        off = float((means - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp_min(1e-30))
        allowed = 0.0 if name in EXACT else BOUND if name not in DRAWN else float("inf")
        different += [] if off <= allowed else [name]
        verdict = f" **above {allowed:g}**" if off > allowed else ""
        yield f"| {name} | {same} of {len(by_cpu)} | {off:.2g}{verdict} |"
    assert not different, f"further off than they may be: {', '.join(different)}"


def _three_steps(name: str, shape: Layout, device: torch.device) -> tuple[list[bytes], Tensor]:
    compressor, payloads = build(name), []
    generator = torch.Generator().manual_seed(SEED)
    states = [compressor.init(Bucket(torch.zeros(shape.numel, device=device), shape))] * 2
    scratch, means, communicators = [Scratch() for _ in range(2)], [], lockstep(2)
    for step in range(3):
        values = torch.randn(2, shape.numel, generator=generator).mul_(0.01).to(device)
        exchanges = [
            _noting(
                compressor.exchange(Bucket(values[r], shape), states[r], Context(r, 2, step, scratch=scratch[r])),
                payloads,
            )
            for r in range(2)
        ]
        results = drive_lockstep(exchanges, communicators)
        states = [result.state for result in results]
        means.append(results[0].mean.to("cpu", copy=True))
    return payloads, torch.cat(means)


def _noting(exchange: Exchange, payloads: list[bytes]) -> Exchange:
    answer: Any = None
    while True:
        try:
            asked = exchange.send(answer)
        except StopIteration as done:
            return done.value
        for request in asked if isinstance(asked, tuple) else (asked,):
            payloads.append(request.payload.reshape(-1).contiguous().view(torch.uint8).cpu().numpy().tobytes())
        answer = yield asked


def throughput(setting: Setting) -> Iterator[str]:
    """codec_throughput's table on this device."""
    shape = layout(1 if setting.quick else 5)
    value = torch.randn(shape.numel, device=setting.device)
    cases = {label: CASES[label] for label in ("int8", "top_k 0.001")} if setting.quick else CASES
    yield f"A bucket of {value.numel():,} float32 ({value.nbytes / 1e6:.1f} MB), as in codec_throughput."
    yield ""
    yield from rows(
        Bucket(value, shape),
        cases,
        codecs_on(setting.device.type),
        3 if setting.quick else 11,
        1 if setting.quick else 3,
    )


class Training:
    """Steps of stock DDP on synthetic images, whose gradients go through a compressor, on a group that is there."""

    def __init__(
        self, network: str, compressor: str | None, device: torch.device, batch_size: int, rank: int = 0
    ) -> None:
        torch.manual_seed(SEED)
        self.device = device
        self.model = DistributedDataParallel(models.build(network, num_classes=1000).to(device))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.synchronizer = None if compressor is None else dtrain.compress(self.model, compressor)
        generator = torch.Generator().manual_seed(SEED + rank)
        self.images = torch.randn(batch_size, 3, 64, 64, generator=generator).to(device)
        self.labels = torch.randint(1000, (batch_size,), generator=generator).to(device)

    def step(self, dtype: torch.dtype | None = None, scaler: Any = None) -> Tensor:
        """One step; its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss: Tensor = cross_entropy(self.model(self.images), self.labels)
        (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        return loss.detach()

    def close(self) -> None:
        """Leave the group."""
        if self.synchronizer is not None:
            self.synchronizer.close()

    def timed(self, steps: int) -> tuple[float, float, float]:
        """First loss, last loss, and the median of a step in milliseconds, the first two apart."""
        losses, seconds = [], []
        for _ in range(steps):
            start = time.perf_counter()
            losses.append(self.step())
            finish(self.device)
            seconds.append(time.perf_counter() - start)
        first, last = float(losses[0]), float(losses[-1])
        assert last == last, "the loss is NaN"
        return first, last, 1e3 * median(seconds[2:] or seconds)


def training(setting: Setting) -> Iterator[str]:
    """One rank, both networks, every compressor."""
    networks, chosen = ("squeezenet1_1", "alexnet"), [None, *COMPRESSORS]
    if setting.quick:
        networks, chosen = ("squeezenet1_1",), [None, "int8", "top_k"]
    steps, batch_size = (3, 2) if setting.quick else (12, 32)
    images = f"batches of {batch_size} images of 64 x 64"
    yield f"One rank over {setting.backend}, {images}, {steps} steps of plain SGD; None: stock DDP."
    yield ""
    yield "| network | compressor | first loss | last loss | ms per step, median |"
    yield "|---|---|---|---|---|"
    failures = []
    with _alone(setting):
        for network in networks:
            for compressor in chosen:
                try:
                    run = Training(network, compressor, setting.device, batch_size)
                    first, last, milliseconds = run.timed(steps)
                    run.close()
                    yield f"| {network} | {compressor} | {first:.3f} | {last:.3f} | {milliseconds:.2f} |"
                except Exception as error:
                    failures.append(f"{network} with {compressor}")
                    yield f"| {network} | {compressor} | **{type(error).__name__}: {str(error).splitlines()[0]}** | | |"
    assert not failures, ", ".join(failures)


class _alone:  # noqa: N801 - used as a function
    """A process group of this rank alone."""

    def __init__(self, setting: Setting) -> None:
        self._backend = setting.backend

    def __enter__(self) -> None:
        self._communicator = open_default(self._backend, detect_launch({}))

    def __exit__(self, *error: object) -> None:
        self._communicator.close()


def two_ranks(setting: Setting) -> Iterator[str]:
    """Two processes over gloo, which share the device."""
    names = ["int8", "top_k"] if setting.quick else list(COMPRESSORS)
    yield f"Two ranks over gloo, SqueezeNet 1.1 on {setting.device.type} tensors, 3 steps: replicas are then compared."
    yield ""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, setting.device.type, str(Path(folder) / "store")]
        environ = {**os.environ, "CUDA_MODULE_LOADING": "LAZY"}
        ranks = [
            subprocess.Popen(
                [*command, str(rank), *names], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ
            )
            for rank in range(2)
        ]
        outputs = [rank.communicate()[0] for rank in ranks]
    yield from outputs[0].splitlines()
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, f"a rank ended with {rank.returncode}: {output.strip().splitlines()[-1:]}"


def be_a_rank(device: torch.device, store: str, rank: int, names: list[str]) -> None:
    """One of two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    print("| compressor | first loss | last loss | replicas |\n|---|---|---|---|")
    failed = False
    for name in names:
        run = Training("squeezenet1_1", name, device, 2, rank)
        first, last, _ = run.timed(3)
        run.close()
        mine = nn.utils.parameters_to_vector(run.model.parameters()).detach().cpu()
        theirs = mine.clone()
        dist.broadcast(theirs, 0)
        largest = (theirs - mine).abs().max()
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        failed |= bool(largest > 0)
        print(
            f"| {name} | {first:.3f} | {last:.3f} | {'equal' if largest == 0 else f'**{float(largest):.2g} apart**'} |"
        )
    dist.destroy_process_group()
    sys.exit(int(failed))


def amp(setting: Setting) -> Iterator[str]:
    """Mixed precision, in bfloat16 and, on a GPU, in float16 with a GradScaler."""
    names, steps = (["int8"], 2) if setting.quick else (["none", "int8", "int4", "top_k", "power_sgd"], 8)
    kinds = [torch.bfloat16] if setting.device.type == "cpu" else [torch.bfloat16, torch.float16]
    yield "| computed in | compressor | first loss | last loss |"
    yield "|---|---|---|---|"
    with _alone(setting):
        for dtype in kinds:
            scaler = torch.amp.GradScaler(setting.device.type) if dtype == torch.float16 else None
            for name in names:
                run = Training("squeezenet1_1", name, setting.device, 2 if setting.quick else 32)
                losses = [float(run.step(dtype, scaler)) for _ in range(steps)]
                run.close()
                assert losses[-1] == losses[-1], f"{name}: the loss is NaN"
                yield f"| {dtype} | {name} | {losses[0]:.3f} | {losses[-1]:.3f} |"


def memory(setting: Setting) -> Iterator[str]:
    """What a step of a compressor needs besides its bucket."""
    shape = layout(1 if setting.quick else 5)
    bucket = Bucket(torch.randn(shape.numel, device=setting.device), shape)
    on_gpu = setting.device.type == "cuda"
    yield f"In buckets of {bucket.value.nbytes / 1e6:.1f} MB; the peak is over three steps at 2 ranks, on a GPU alone."
    yield ""
    yield "| compressor | state | buffers | peak |"
    yield "|---|---|---|---|"
    for label, (name, options) in CASES.items():
        if setting.quick and label not in ("int8", "top_k 0.01"):
            continue
        step = Step(build(name, **options), bucket, 2)
        step()
        peak = ""
        if on_gpu:
            finish(setting.device)
            before = torch.cuda.memory_allocated() - int(sum(step.extra_memory()) * bucket.value.nbytes)
            torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            step()
        if on_gpu:
            finish(setting.device)
            peak = f"{(torch.cuda.max_memory_allocated() - before) / bucket.value.nbytes:.2f}"
        state, buffers = step.extra_memory()
        yield f"| {label} | {state:.2f} | {buffers:.2f} | {peak} |"


def meter(setting: Setting) -> Iterator[str]:
    """Time per all_reduce of 4 bytes at one rank, and what the meter adds."""
    value = torch.zeros(1, device=setting.device)

    def run(count: int) -> None:
        for _ in range(count):
            dist.all_reduce(value)
        finish(setting.device)

    with _alone(setting):
        result = paired(
            {OFF: run, ON: metered(run)},
            repetitions=5 if setting.quick else 60,
            steps=100 if setting.quick else 200,
            warmup=100,
            meet=lambda: None,
        )
    yield "| us, meter off | quartiles | us more with it | quartiles |"
    yield "|---|---|---|---|"
    yield f"| {microseconds(list(result.seconds[OFF]))} | {microseconds(differences(result))} |"


PARTS: dict[str, Callable[[Setting], Iterator[str]]] = {
    "messages": messages,
    "compressors": compressors,
    "throughput": throughput,
    "training": training,
    "two ranks": two_ranks,
    "amp": amp,
    "memory": memory,
    "meter": meter,
}


if __name__ == "__main__":
    be_a_rank(torch.device(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
