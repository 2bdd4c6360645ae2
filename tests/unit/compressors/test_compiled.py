"""Compiled kernels say what torch's operations say, byte for byte: messages, means and what is kept.

Numba's; or Triton's, in its interpreter, where DTRAIN_TEST_CODEC says so: see test_triton.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fresh_kernels
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dtrain.comm.lockstep import lockstep
from dtrain.compressors import build
from dtrain.compressors.codecs import combinations, compiled, elias_fano, log_values, selection, workspace
from dtrain.compressors.codecs.chunks import ChunkFormat
from dtrain.compressors.codecs.selection import largest, num_kept
from dtrain.exchange import Bucket, Context, Exchange, Layout, Scratch, State, take_apart
from dtrain.sync.drive import drive_lockstep

CODEC = os.environ.get("DTRAIN_TEST_CODEC", "numba")
pytest.importorskip(CODEC, reason=f"{CODEC} is not installed (the extra fast, or make triton)")
of_numba = pytest.mark.skipif(
    CODEC != "numba", reason="of what Triton has no kernels for, or too slow in its interpreter"
)

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("int8", {}),
    "int8 stochastic": ("int8", {"rounding": "stochastic"}),
    "int4": ("int4", {}),
    "int4 stochastic": ("int4", {"rounding": "stochastic"}),
    "one_bit": ("one_bit", {}),
    "ternary": ("ternary", {"rounding": "nearest"}),
    "ternary stochastic": ("ternary", {}),
    "rotated_signs": ("rotated_signs", {}),
    "top_k": ("top_k", {"density": 0.01}),
    "top_k split": ("top_k", {"density": 0.05, "exchange": "split", "value_bits": 16}),
    "dgc": ("dgc", {"density": 0.02}),
    "chunked_top_k": ("chunked_top_k", {"chunk": 1000}),
}
if CODEC == "triton":
    METHODS = {name: METHODS[name] for name in ("int8", "int4", "one_bit", "ternary")}
SPECIAL = [float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-45, -1e-40, 1.1754944e-38, 3.4e38, -3.4e38, 1e-30]


@pytest.fixture(autouse=True, scope="module")
def chosen_by_nobody_afterwards() -> Iterator[None]:
    yield
    compiled.choose("auto")


class Trace(NamedTuple):
    """Of some steps: payloads and means, as bytes, and the last states of all ranks, by path."""

    messages: list[bytes]
    means: list[bytes]
    states: list[dict[str, Tensor]]


def on(codec: str, exchange: Exchange, messages: list[bytes]) -> Exchange:
    """The same exchange, each of whose pieces of work is done by that codec; payloads are noted."""
    answer: Any = None
    while True:
        compiled.choose(codec)
        try:
            asked = exchange.send(answer)
        except StopIteration as done:
            return done.value
        finally:
            compiled.choose("auto")
        for request in asked if isinstance(asked, tuple) else (asked,):
            messages.append(raw(request.payload))
        answer = yield asked


def raw(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes()


def train(method: str, steps: Sequence[Sequence[Tensor]], codecs: Sequence[str], dtype: torch.dtype) -> Trace:
    """One exchange after another, rank k with codecs[k]."""
    name, options = METHODS[method]
    compressor, n, layout = build(name, **options), len(codecs), Layout(("weight",), ((steps[0][0].numel(),),))
    states: list[State] = [compressor.init(Bucket(torch.zeros(layout.numel, dtype=dtype), layout))] * n
    scratch, communicators = [Scratch() for _ in range(n)], lockstep(n)
    messages: list[list[bytes]] = [[] for _ in range(n)]
    means: list[bytes] = []
    for step, values in enumerate(steps):
        results = drive_lockstep(
            [
                on(
                    codecs[rank],
                    compressor.exchange(
                        Bucket((values[rank] / n).to(dtype), layout), states[rank], Context(rank, n, step, 1, False, s)
                    ),
                    messages[rank],
                )
                for rank, s in enumerate(scratch)
            ],
            communicators,
        )
        means += [raw(result.mean) for result in results]
        if torch.isfinite(results[0].mean).all():
            states = [result.state for result in results]
    return Trace(
        [message for rank in messages for message in rank],
        means,
        [dict(*take_apart(state).values()) for state in states],
    )


def assert_alike(method: str, steps: Sequence[Sequence[Tensor]], dtype: torch.dtype = torch.float32) -> None:
    """By torch, by kernels and by every other rank by either."""
    n = len(steps[0])
    reference = train(method, steps, ["torch"] * n, dtype)
    mixed = [(CODEC, "torch")[rank % 2] for rank in range(n)]
    for codecs in ([CODEC] * n, mixed) if CODEC == "numba" else (mixed,):  # the interpreter is slow
        trace = train(method, steps, codecs, dtype)
        assert trace.messages == reference.messages, codecs
        assert trace.means == reference.means, codecs
        for state, other in zip(trace.states, reference.states, strict=True):
            assert {path: raw(value) for path, value in state.items()} == {p: raw(v) for p, v in other.items()}


def draw(seed: int, numel: int, world_size: int, scale: float, special: Sequence[float]) -> list[Tensor]:
    """Values of a wide range, some of them special, some rounded so that they lie between two codes."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((world_size, numel)) * np.exp(random.standard_normal((world_size, numel)))
    rounded = np.rint(values * 4) / 4
    values = np.where(random.random(values.shape) < 0.3, rounded, values).astype(np.float32) * np.float32(scale)
    for value in special:
        values[random.integers(world_size), random.integers(numel)] = value
    return list(torch.from_numpy(values).unbind())


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=12 if CODEC == "numba" else 2, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    numel=st.one_of(st.integers(1, 9), st.sampled_from([640, 2047, 2048, 2049, 4097]), st.integers(10, 9000)),
    world_size=st.integers(1, 3),
    scale=st.sampled_from([1.0, 1e-3, 1e-38, 1e30]),
    special=st.lists(st.sampled_from(SPECIAL), max_size=3),
    chunk=st.sampled_from([2048, 6000, workspace.CHUNK]),
)
@example(seed=0, numel=1, world_size=3, scale=1.0, special=[], chunk=2048)
@example(seed=1, numel=9000, world_size=2, scale=1.0, special=[], chunk=6000)
def test_every_message_mean_and_residual_is_the_reference_s(
    method: str, seed: int, numel: int, world_size: int, scale: float, special: list[float], chunk: int
) -> None:
    if CODEC == "triton":  # a CPU has several NaNs, a GPU one: see the next test
        special = [value for value in special if abs(value) < 1e38]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace, "CHUNK", chunk)
        patch.setattr(selection, "SAMPLED_FROM", 1000)
        num_steps = 3 if CODEC == "numba" else 2
        steps = [draw(seed + i, numel, world_size, scale, special if i == 1 else []) for i in range(num_steps)]
        assert_alike(method, steps)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of the interpreter's numpy
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_blocks_that_are_not_finite_are_the_reference_s_and_no_others(method: str, value: float) -> None:
    steps = [draw(0, 5000, 2, 1.0, [value])]
    means = []
    for codec in ("torch", CODEC):
        trace = train(method, steps, [codec] * 2, torch.float32)
        means.append(torch.frombuffer(bytearray(trace.means[0]), dtype=torch.float32))
    assert not torch.isfinite(means[0]).all()
    assert torch.equal(*(torch.isfinite(mean) for mean in means))
    assert torch.equal(*(mean[torch.isfinite(mean)] for mean in means))


@pytest.mark.parametrize(("method", "levels", "block"), [("int8", 127, 2048), ("int4", 7, 1024)])
def test_values_half_way_between_two_codes_are_rounded_as_torch_rounds_them(
    method: str, levels: int, block: int
) -> None:
    """Torch rounds value x inverse + 1.5 x 2^23 once: a product that is rounded first meets a tie that is none."""
    random, num_blocks = np.random.default_rng(0), 64 if CODEC == "numba" else 4
    largest = random.uniform(1, 2, (num_blocks, 1)).astype(np.float32)
    scale = largest * np.float32(1 / levels)
    values = (random.integers(-levels, levels, (num_blocks, block)) + np.float32(0.5)).astype(np.float32) * scale
    values = np.nextafter(values, random.choice([-np.inf, np.inf], values.shape).astype(np.float32))
    values[:, :1] = largest
    assert_alike(method, [[torch.from_numpy(values).view(-1) * 2] * 2])


@of_numba
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_go_by_torch_with_the_same_result(dtype: torch.dtype) -> None:
    assert_alike("int4", [draw(0, 3000, 2, 1.0, [])] * 2, dtype)


@of_numba
@pytest.mark.parametrize("density", [1e-5, 0.001, 0.01, 0.2, 1.0])
@pytest.mark.parametrize("kind", ["normal", "few values", "mostly zeros", "ascending", "not finite"])
def test_the_largest_are_the_reference_s_ties_and_all(kind: str, density: float) -> None:
    value = draw(0, 70_001, 1, 1.0, [])[0]
    if kind == "few values":
        value = value.mul_(2).round_()
    if kind == "mostly zeros":
        value[torch.arange(70_001) % 100 > 0] = 0.0
    if kind == "ascending":
        value = torch.arange(70_001.0)
    if kind == "not finite":
        value[::700] = float("inf")
        nans = value.view(torch.int32)[3::1000]
        nans.copy_(0x7FC00000 + torch.arange(len(nans)))  # of several payloads, which must not count
    k = num_kept(density, len(value))
    chosen = []
    for codec in ("torch", "numba"):
        compiled.choose(codec)
        chosen.append(largest(value, k))
    assert torch.equal(*chosen)
    loops = compiled.sparse_loops_for(value)
    assert loops is not None
    if kind == "normal" and density < 0.2:
        assert selection._largest_compiled(loops, value, k) is not None


@of_numba
@pytest.mark.parametrize("numel", [2, 9, 64, 1000, 2**20, 2**40])
@pytest.mark.parametrize("density", [1e-4, 0.03, 0.4, 1.0])
def test_elias_fano_is_the_reference_s_and_refuses_what_it_refuses(numel: int, density: float) -> None:
    random = np.random.default_rng(0)
    k = min(num_kept(density, numel), 5000)
    places = min(numel, 2**20)
    indices = torch.from_numpy(np.sort(random.choice(places, k, replace=False)) * (numel // places))
    compiled.choose("torch")
    message = elias_fano.encode(indices, numel)
    said: dict[str, list[str]] = {"torch": [], "numba": []}
    noise = (random.random((8, len(message))) < 0.1) * 2 ** np.arange(8)[:, None]
    twice = indices.clone()
    twice[-1:] = twice[-2:-1] if k > 1 else numel
    spoilt = [message, elias_fano.encode(twice, numel), *(message ^ torch.from_numpy(noise).byte())]
    for codec, answers in said.items():
        compiled.choose(codec)
        assert torch.equal(elias_fano.encode(indices, numel), message)
        assert torch.equal(elias_fano.decode(torch.stack([message, message]), k, numel)[1], indices)
        for one in spoilt:
            try:
                answers.append(str(elias_fano.decode(one[None], k, numel).tolist()))
            except ValueError as error:
                answers.append(str(error))
    assert said["torch"] == said["numba"]


@of_numba
@pytest.mark.parametrize("value_bits", [8, 16, 32])
@pytest.mark.parametrize("special", [[], [0.0, -0.0], [float("nan")], [-float("inf"), 1e-45], [3.4e38, -1e-40]])
def test_logarithms_are_the_reference_s_of_whatever_is_in_a_message(value_bits: int, special: list[float]) -> None:
    values = [draw(seed, 1000, 1, scale, special)[0] for seed, scale in enumerate([1.0, 1e-38, 0.0])]
    random = np.random.default_rng(0)
    noise = torch.from_numpy(random.integers(0, 256, (5, log_values.num_bytes(1000, value_bits)), dtype=np.uint8))
    answers = []
    for codec in ("torch", "numba"):
        compiled.choose(codec)
        messages = torch.stack([log_values.encode(value, value_bits) for value in values])
        answers.append([raw(messages), raw(log_values.decode(torch.cat([messages, noise]), 1000, value_bits))])
    assert answers[0] == answers[1]


@of_numba
@pytest.mark.parametrize(("k", "numel"), [(1, 1), (1, 9), (4, 9), (9, 9), (64, 4096), (20, 21), (90, 5000)])
def test_numbers_of_combinations_are_the_reference_s_and_others_are_refused(k: int, numel: int) -> None:
    random = np.random.default_rng(k)
    rows = [np.sort(random.choice(numel, k, replace=False)) for _ in range(20)]
    rows += [np.arange(k), np.arange(numel - k, numel)]
    indices = torch.from_numpy(np.stack(rows))
    noise = torch.from_numpy(random.integers(0, 256, (40, combinations.num_bytes(k, numel)), dtype=np.uint8))
    answers: dict[str, list[str]] = {"torch": [], "numba": []}
    for codec, said in answers.items():
        compiled.choose(codec)
        data = combinations.encode(indices, numel)
        said.append(str(data.tolist()))
        assert torch.equal(combinations.decode(data, k, numel), indices)
        for one in torch.cat([noise, data + torch.tensor(1, dtype=torch.uint8)]):
            try:
                said.append(str(combinations.decode(one[None], k, numel).tolist()))
            except ValueError as error:
                said.append(str(error))
    assert answers["torch"] == answers["numba"]


@of_numba
@pytest.mark.parametrize("kind", ["normal", "equal ones", "zeros", "not finite"])
def test_of_equal_ones_a_chunk_sends_those_that_torch_chooses(kind: str) -> None:
    value = draw(0, 4 * 640, 1, 1.0, [])[0].view(4, 640)
    if kind == "equal ones":
        value[1:3].mul_(2).round_()
    if kind == "zeros":
        value[1, 5:] = 0.0
    if kind == "not finite":
        value[0, ::7], value[2, ::100] = float("inf"), float("nan")
    form, messages = ChunkFormat(10, 640, 4), []
    for codec in ("torch", "numba"):
        compiled.choose(codec)
        messages.append(raw(form.pack(value)))
    assert messages[0] == messages[1]


@of_numba
def test_processors_that_share_a_folder_write_no_file_of_each_other_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numba, binding = pytest.importorskip("numba"), pytest.importorskip("llvmlite.binding")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    written: list[set[Path]] = []
    for processor in (binding.get_host_cpu_name(), "another"):
        monkeypatch.setattr(binding, "get_host_cpu_name", lambda processor=processor: processor)
        before = set(tmp_path.rglob("*.nb?"))
        arrays = [np.ones(3, np.float32) for _ in range(4)]
        fresh_kernels.load().correct_and_take_magnitudes(*arrays)
        written.append({path for path in tmp_path.rglob("*.nb?") if path not in before})
    assert [sorted(path.suffix for path in paths) for paths in written] == [[".nbc", ".nbi"]] * 2
