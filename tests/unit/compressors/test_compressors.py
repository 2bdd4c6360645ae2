"""One contract for every compressor and combinator, in lockstep. A new compressor is one line in CASES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, comb, log2, prod
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from workers import contributions

from dtrain.comm.lockstep import lockstep
from dtrain.compressors import COMPRESSORS, Cast, ErrorFeedback, Masked, NoCompression, Only, Shared, Warmup, build
from dtrain.compressors.policies.error_feedback import Residual
from dtrain.compressors.policies.only import at_least
from dtrain.exchange import (
    Bucket,
    Compressor,
    Context,
    Dense,
    Exchange,
    Exchanged,
    Layout,
    Op,
    Request,
    Scratch,
    State,
    check_parts,
    put_together,
    take_apart,
)
from dtrain.meter.ledger import Ledger
from dtrain.meter.wire import wire_bytes
from dtrain.sync.drive import drive_lockstep

Traffic = list[tuple[Op, int]]
FP16, BF16 = torch.float16, torch.bfloat16


def dense(bytes_per_element: int) -> Callable[[Layout, int, int], Traffic]:
    """One all_reduce of everything."""
    return lambda layout, world_size, step: [(Op.ALL_REDUCE, bytes_per_element * layout.numel)]


def apart(large: int, small: int, *, threshold: int) -> Callable[[Layout, int, int], Traffic]:
    """One all_reduce of the parameters of at least `threshold` elements, one of the others; none of nothing."""

    def traffic(layout: Layout, world_size: int, step: int) -> Traffic:
        chosen = sum(size for size in layout.sizes if size >= threshold)
        payloads = (large * chosen, small * (layout.numel - chosen))
        return [(Op.ALL_REDUCE, payload) for payload in payloads if payload]

    return traffic


def two_phase(bytes_of: Callable[[int], int]) -> Callable[[Layout, int, int], Traffic]:
    """Shards of encoded values to their owners, and the encoded sum of one to all."""

    def traffic(layout: Layout, world_size: int, step: int) -> Traffic:
        shard = bytes_of(ceil(layout.numel / world_size))
        return [(Op.ALL_TO_ALL, world_size * shard), (Op.ALL_GATHER, shard)]

    return traffic


def kept(density: float, numel: int) -> int:
    return max(1, round(density * numel))


def sparse_bytes(density: float, numel: int, value_bits: int = 8) -> int:
    """Elias-Fano indices, values, and a scale with its width."""
    k = kept(density, numel)
    low_bits = int(log2(numel / k))
    return ceil((k * low_bits + k + ((numel - 1) >> low_bits)) / 8) + k * value_bits // 8 + 5


def sparse(density: float) -> Callable[[Layout, int, int], Traffic]:
    """Everybody's largest elements to all."""
    return lambda layout, world_size, step: [(Op.ALL_GATHER, sparse_bytes(density, layout.numel))]


def chunked(density: float, chunk: int) -> Callable[[Layout, int, int], Traffic]:
    """Of each chunk which elements, their mean in two bytes, two bits for each, and two levels."""

    def traffic(layout: Layout, world_size: int, step: int) -> Traffic:
        size = min(chunk, layout.numel)
        k, num_chunks = kept(density, size), ceil(layout.numel / size)
        which = ceil((comb(size, k) - 1).bit_length() / 8)
        return [(Op.ALL_GATHER, num_chunks * (which + 2) + ceil(num_chunks * k / 4) + 8)]

    return traffic


def sparse_split(density: float) -> Callable[[Layout, int, int], Traffic]:
    """The largest elements of each share to its owner, and those of its sum to all."""

    def traffic(layout: Layout, world_size: int, step: int) -> Traffic:
        size = sparse_bytes(density, ceil(layout.numel / world_size))
        return [(Op.ALL_TO_ALL, world_size * size), (Op.ALL_GATHER, size)]

    return traffic


def low_rank(rank: int) -> Callable[[Layout, int, int], Traffic]:
    """The left factors beside what is not compressed, then the right ones."""

    def traffic(layout: Layout, world_size: int, step: int) -> Traffic:
        matrices = [(shape[0], prod(shape[1:])) for shape in layout.shapes if len(shape) > 1]
        chosen = [(rows, columns) for rows, columns in matrices if rank * (rows + columns) < rows * columns]
        others = layout.numel - sum(rows * columns for rows, columns in chosen)
        first = others + sum(rank * rows for rows, _ in chosen)
        rounds = [first, sum(rank * columns for _, columns in chosen)]
        return [(Op.ALL_REDUCE, 4 * numel) for numel in rounds if numel]

    return traffic


def alternating(rank: int) -> Callable[[Layout, int, int], Traffic]:
    """One factor beside what is not compressed: the left ones in even steps, the right ones in odd ones."""

    def traffic(layout: Layout, world_size: int, step: int) -> Traffic:
        matrices = [(shape[0], prod(shape[1:])) for shape in layout.shapes if len(shape) > 1]
        chosen = [(rows, columns) for rows, columns in matrices if rank * (rows + columns) < rows * columns]
        others = layout.numel - sum(rows * columns for rows, columns in chosen)
        return [(Op.ALL_REDUCE, 4 * (others + sum(rank * sides[step % 2] for sides in chosen)))]

    return traffic


class OfLayout:
    """A compressor that is made for the shapes of a bucket's parameters."""

    def __init__(self, make: Callable[[Layout], Compressor]) -> None:
        self._make, self._made = make, dict[Layout, Compressor]()

    def _of(self, bucket: Bucket) -> Compressor:
        if bucket.layout not in self._made:
            self._made[bucket.layout] = self._make(bucket.layout)
        return self._made[bucket.layout]

    def init(self, bucket: Bucket) -> State:
        return self._of(bucket).init(bucket)

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        return self._of(bucket).exchange(bucket, state, context)


def masks(layout: Layout) -> dict[str, Tensor]:
    """Every third weight of what has dimensions, the first one left."""
    named = zip(layout.names, layout.shapes, layout.sizes, strict=True)
    return {name: (torch.arange(size) % 3 != 1).view(shape) for name, shape, size in named if len(shape) > 1}


def codes(layout: Layout) -> dict[str, Tensor]:
    """At most five centroids for what has dimensions; every fourth weight has none."""
    named = zip(layout.names, layout.shapes, layout.sizes, strict=True)
    every = {name: torch.arange(size).view(shape) for name, shape, size in named if len(shape) > 1}
    return {name: torch.where(numbers % 4 == 1, -1, numbers % 5) for name, numbers in every.items()}


def left(layout: Layout, numbers: Callable[[Layout], dict[str, Tensor]]) -> Layout:
    """What is exchanged of a bucket: survivors, or centroids."""
    shapes = []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        own = numbers(layout).get(name)
        count = 0 if own is None else int(own.sum() if own.dtype == torch.bool else own.max() + 1)
        shapes.append(shape if own is None else (count,))
    return Layout(layout.names, tuple(shapes))


def masked(inner: Callable[[], Compressor]) -> Callable[[], Compressor]:
    return lambda: OfLayout(lambda layout: Masked(inner(), masks(layout)))


def shared(inner: Callable[[], Compressor]) -> Callable[[], Compressor]:
    return lambda: OfLayout(lambda layout: Shared(inner(), codes(layout)))


class Case(NamedTuple):
    """A compressor and what its contract needs to know.

    `traffic(layout, world_size, step)` is what one rank hands over; `rounding` the unit roundoff of its sums;
    `largest` the largest magnitude that it can carry; `exact` says that `mean` is the true mean but for `rounding`.
    """

    make: Callable[[], Compressor]
    traffic: Callable[[Layout, int, int], Traffic]
    rounding: float = 2**-24
    largest: float = 1e38
    exact: bool = True


CASES = {
    "none": Case(lambda: build("none"), dense(4)),
    "fp16": Case(lambda: build("fp16"), dense(2), 2**-11, 6e4),
    "bf16": Case(lambda: build("bf16"), dense(2), 2**-8),
    "error feedback of none": Case(lambda: ErrorFeedback(NoCompression()), dense(4)),
    "error feedback of fp16": Case(lambda: ErrorFeedback(build("fp16")), dense(2), 2**-11, 6e4),
    "error feedback of bf16": Case(lambda: ErrorFeedback(build("bf16")), dense(2), 2**-8),
    "only large": Case(
        lambda: Only(build("fp16"), at_least(4)), apart(2, 4, threshold=4), 2**-11, 6e4
    ),
    "only large with error feedback": Case(
        lambda: Only(ErrorFeedback(build("fp16")), at_least(4), ErrorFeedback(build("bf16"))),
        apart(2, 2, threshold=4), 2**-8, 6e4,
    ),
    "only all": Case(lambda: Only(build("fp16"), at_least(0)), dense(2), 2**-11, 6e4),
    "only none": Case(lambda: Only(build("fp16"), at_least(10**9)), dense(4)),
    "error feedback of only": Case(
        lambda: ErrorFeedback(Only(build("fp16"), at_least(4))), apart(2, 4, threshold=4), 2**-11, 6e4
    ),
    "warm-up": Case(
        lambda: Warmup(NoCompression(), ErrorFeedback(build("fp16")), steps=2),
        lambda layout, n, step: [(Op.ALL_REDUCE, (4 if step < 2 else 2) * layout.numel)], 2**-11, 6e4,
    ),
    "int8": Case(lambda: build("int8"), two_phase(lambda m: m + 4 * ceil(m / 2048)), largest=3e37, exact=False),
    "int8, unbiased": Case(
        lambda: build("int8", rounding="stochastic"), two_phase(lambda m: m + 4 * ceil(m / 2048)),
        largest=3e37, exact=False,
    ),
    "int4": Case(
        lambda: build("int4"), two_phase(lambda m: ceil(m / 2) + 4 * ceil(m / 1024)), largest=3e37, exact=False
    ),
    "ternary, nearest": Case(
        lambda: build("ternary", rounding="nearest"), two_phase(lambda m: ceil(m / 5) + ceil(m / 640) + 4),
        largest=3e37, exact=False,
    ),
    "ternary": Case(
        lambda: build("ternary"), two_phase(lambda m: ceil(m / 5) + ceil(m / 640) + 4), largest=3e37, exact=False
    ),
    "rotated_signs": Case(
        lambda: build("rotated_signs"), two_phase(lambda m: 8 + 132 * ceil(m / 1024)), largest=3e36, exact=False
    ),
    "one_bit": Case(
        lambda: build("one_bit"), two_phase(lambda m: ceil(m / 8) + ceil(m / 256) + 4), largest=3e37, exact=False
    ),
    "top_k": Case(lambda: build("top_k", density=0.3), sparse(0.3), largest=3e37, exact=False),
    "chunked_top_k": Case(
        lambda: build("chunked_top_k", density=0.25, chunk=16, decay=1.0), chunked(0.25, 16), largest=3e36, exact=False
    ),
    "top_k, split": Case(
        lambda: build("top_k", density=0.3, exchange="split"), sparse_split(0.3), largest=3e37, exact=False
    ),
    "dgc": Case(lambda: build("dgc", density=0.3), sparse(0.3), largest=3e36, exact=False),
    "random_k": Case(
        lambda: build("random_k", density=0.3),
        lambda layout, n, step: [(Op.ALL_REDUCE, 4 * kept(0.3, layout.numel))], exact=False,
    ),
    "power_sgd": Case(lambda: build("power_sgd", power_sgd_rank=1), low_rank(1), largest=1e30, exact=False),
    "power_sgd, one all_reduce": Case(
        lambda: build("power_sgd", power_sgd_rank=1, all_reduces=1), alternating(1), largest=1e30, exact=False
    ),
    "starting late, biases exempt": Case(
        lambda: build("one_bit", start_after=1, exempt_below=4),
        lambda layout, n, step: (
            dense(4)(layout, n, step) if step == 0 else late_one_bit(layout, n)
        ), largest=3e37, exact=False,
    ),
    "masked": Case(
        masked(lambda: build("none")), lambda layout, n, step: dense(4)(left(layout, masks), n, step), exact=False
    ),
    "masked, error feedback around": Case(
        lambda: ErrorFeedback(masked(lambda: build("none"))()),
        lambda layout, n, step: dense(4)(left(layout, masks), n, step), exact=False,
    ),
    "shared": Case(
        shared(lambda: build("none")), lambda layout, n, step: dense(4)(left(layout, codes), n, step), exact=False
    ),
    "shared, error feedback around": Case(
        lambda: ErrorFeedback(shared(lambda: build("none"))()),
        lambda layout, n, step: dense(4)(left(layout, codes), n, step), exact=False,
    ),
    "cast of none": Case(lambda: Cast(NoCompression(), BF16), dense(2), 2**-8),
    "error feedback of only of casts": Case(
        lambda: ErrorFeedback(Only(build("fp16"), at_least(4), build("fp16"))), apart(2, 2, threshold=4), 2**-11, 6e4
    ),
}  # fmt: skip
for name in COMPRESSORS:
    inner = CASES[name]
    for outer, wrap, numbers in (("masked", masked, masks), ("shared", shared, codes)):
        CASES[f"{outer} {name}"] = Case(
            wrap(inner.make),
            lambda layout, n, step, numbers=numbers, inner=inner: inner.traffic(left(layout, numbers), n, step),
            inner.rounding, inner.largest, exact=False,
        )  # fmt: skip


def late_one_bit(layout: Layout, world_size: int) -> Traffic:
    chosen = layout.keep([size >= 4 for size in layout.sizes])
    encoded = CASES["one_bit"].traffic(chosen, world_size, 0) if chosen.numel else []
    rest = [(Op.ALL_REDUCE, 4 * (layout.numel - chosen.numel))] if layout.numel > chosen.numel else []
    return [*encoded[:1], *rest, *encoded[1:]]


LAYOUTS = {
    1: Layout(("bias",), ((1,),)),
    7: Layout(("norm", "weight", "bias"), ((), (2, 2), (2,))),
    200_003: Layout(("weight", "bias"), ((400, 500), (3,))),
}


def normal(numel: int, largest: float) -> Tensor:
    return torch.randn(numel)


def zeros(numel: int, largest: float) -> Tensor:
    return torch.zeros(numel)


def one_huge(numel: int, largest: float) -> Tensor:
    value = torch.randn(numel)
    value[numel // 2] = largest
    return value


def denormals(numel: int, largest: float) -> Tensor:
    return torch.randn(numel) * 1e-41


VALUES = (normal, zeros, one_huge, denormals)
SIZES = [*((1, n) for n in (1, 3, 8)), *((7, n) for n in (1, 2, 3, 4, 8)), (200_003, 3)]
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_size = pytest.mark.parametrize(("numel", "world_size"), SIZES)


class Job:
    """One bucket of `world_size` virtual workers through several steps."""

    def __init__(self, case: Case, layout: Layout, world_size: int) -> None:
        self.compressor, self.layout, self.world_size = case.make(), layout, world_size
        self.ledgers = [Ledger() for _ in range(world_size)]
        self.communicators = lockstep(world_size, self.ledgers)
        self.scratch = [Scratch() for _ in range(world_size)]
        empty = Bucket(torch.zeros(layout.numel), layout)
        self.states: list[State] = [self.compressor.init(empty) for _ in range(world_size)]
        self.contributed = torch.zeros(world_size, layout.numel)
        self.step = 0

    def exchange(self, values: Sequence[Tensor], *, wants_contribution: bool = True) -> list[Exchanged]:
        """One step, whose states are kept; `contributed` is then what each rank contributed to its mean."""
        contexts = [
            Context(
                rank,
                self.world_size,
                self.step,
                seed=5,
                wants_contribution=wants_contribution,
                scratch=self.scratch[rank],
            )
            for rank in range(self.world_size)
        ]
        exchanges = [
            self.compressor.exchange(Bucket(value * (1.0 / self.world_size), self.layout), state, context)
            for value, state, context in zip(values, self.states, contexts, strict=True)
        ]
        results = drive_lockstep(exchanges, self.communicators)
        self.states = [result.state for result in results]
        if wants_contribution:
            self.contributed = contributions(results, self.layout.numel) * self.world_size
        self.step += 1
        return results

    def values(self, make: Callable[[int, float], Tensor], largest: float) -> list[Tensor]:
        """Another value for every rank and step."""
        torch.manual_seed(self.step)
        return [make(self.layout.numel, largest) for _ in range(self.world_size)]

    def traffic(self) -> list[Traffic]:
        """What each rank handed over since the last call."""
        return [[(e.op, e.payload_bytes) for e in ledger.close().entries] for ledger in self.ledgers]


def copy_of(state: State) -> dict[str, dict[str, Tensor]]:
    return {name: {path: part.clone() for path, part in parts.items()} for name, parts in take_apart(state).items()}


def assert_same_state(one: State, parts: dict[str, dict[str, Tensor]]) -> None:
    other = take_apart(one)
    assert other.keys() == parts.keys()
    for name, by_path in parts.items():
        assert other[name].keys() == by_path.keys()
        for path, part in by_path.items():
            assert torch.equal(other[name][path], part), f"{path} of {name}"


def bits(tensor: Tensor) -> Tensor:
    """So that -0.0 differs from 0.0 and NaN equals itself."""
    return tensor.view(torch.int32)


def test_every_registered_compressor_is_under_contract() -> None:
    assert COMPRESSORS.keys() <= CASES.keys()


@every_case
@pytest.mark.parametrize(
    ("numel", "world_size", "make_value"),
    [(*size, make_value) for size in SIZES for make_value in (VALUES if size[0] < 1000 else VALUES[:1])],
)
def test_ranks_agree_bitwise_and_local_adds_up_to_the_mean(
    case: Case, numel: int, world_size: int, make_value: Callable[[int, float], Tensor]
) -> None:
    job = Job(case, LAYOUTS[numel], world_size)
    for _ in range(3):
        values = job.values(make_value, case.largest)
        results = job.exchange(values)
        for result in results[1:]:
            assert torch.equal(bits(result.mean), bits(results[0].mean))
        contributed = job.contributed.double()
        mean = results[0].mean.double()
        error = (contributed.sum(0) - world_size * mean).abs()
        allowed = contributed.abs().sum(0) * max(1e-6, world_size * case.rounding)
        smallest = 2.0**-149 * world_size**2  # one last place of a denormal, times world_size, per share
        assert torch.isfinite(mean).all()
        assert (error <= allowed + smallest).all(), f"off by up to {(error - allowed).max()}"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.exact])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_the_mean_is_the_mean(name: str, world_size: int) -> None:
    case = CASES[name]
    job = Job(case, LAYOUTS[7], world_size)
    before = torch.zeros(7)
    for _ in range(4):
        values = torch.stack(job.values(normal, case.largest))
        mean = job.exchange(values.unbind())[0].mean
        size = values.abs().mean(0)
        # the casts of this step's shares, the sums, and what error feedback adds from the step before
        assert ((mean - values.mean(0)).abs() <= (world_size + 2) * case.rounding * (size + before) + 1e-7).all()
        before = size


@every_case
@every_size
def test_bytes_and_rounds_are_the_formula_s_on_every_rank(case: Case, numel: int, world_size: int) -> None:
    job = Job(case, LAYOUTS[numel], world_size)
    for step in range(3):
        job.exchange(job.values(normal, case.largest))
        records = [ledger.close() for ledger in job.ledgers]
        expected = case.traffic(LAYOUTS[numel], world_size, step)
        wire = [wire_bytes("lockstep", op, payload, world_size) for op, payload in expected]
        for record in records:
            assert [(e.op, e.payload_bytes) for e in record.entries] == expected
            assert [e.wire_bytes for e in record.entries] == wire


@every_case
@pytest.mark.parametrize("wants_contribution", [True, False])
def test_the_state_is_not_changed(case: Case, wants_contribution: bool) -> None:
    job = Job(case, LAYOUTS[7], 3)
    for _ in range(4):
        values = job.values(normal, case.largest)
        states, copies = job.states, [copy_of(state) for state in job.states]
        job.exchange(values, wants_contribution=wants_contribution)
        for state, copy in zip(states, copies, strict=True):
            assert_same_state(state, copy)


@every_case
def test_the_result_has_the_shape_and_dtype_of_the_value(case: Case) -> None:
    job = Job(case, LAYOUTS[7], 2)
    for _ in range(3):
        values = job.values(normal, case.largest)
        for value, result in zip(values, job.exchange(values), strict=True):
            assert result.mean.shape == value.shape
            assert result.mean.dtype == value.dtype


@every_case
def test_buffers_of_earlier_steps_leave_no_trace(case: Case) -> None:
    one, two = Job(case, LAYOUTS[7], 3), Job(case, LAYOUTS[7], 3)
    for _ in range(4):
        values = one.values(normal, case.largest)
        two.scratch = [Scratch() for _ in range(3)]
        first, second = one.exchange(values), two.exchange(values)
        assert all(torch.equal(bits(a.mean), bits(b.mean)) for a, b in zip(first, second, strict=True))
        for state, other in zip(one.states, two.states, strict=True):
            assert_same_state(state, take_apart(other))


@every_case
def test_asking_for_the_contribution_changes_nothing_else(case: Case) -> None:
    """And it may be subtracted from the value itself, which is left as it was."""
    one, two = Job(case, LAYOUTS[7], 3), Job(case, LAYOUTS[7], 3)
    for _ in range(3):
        values = one.values(normal, case.largest)
        shares = [value * (1.0 / 3.0) for value in values]
        contexts = [
            Context(rank, 3, one.step, seed=5, wants_contribution=True, scratch=one.scratch[rank]) for rank in range(3)
        ]
        exchanges = [
            one.compressor.exchange(Bucket(share, one.layout), state, context)
            for share, state, context in zip(shares, one.states, contexts, strict=True)
        ]
        first = drive_lockstep(exchanges, one.communicators)
        second = two.exchange(values, wants_contribution=False)
        assert all(torch.equal(bits(a.mean), bits(b.mean)) for a, b in zip(first, second, strict=True))
        for value, share, result in zip(values, shares, first, strict=True):
            assert torch.equal(share, value * (1.0 / 3.0))
            expected, noted = share.clone(), torch.zeros(7)
            result.contribution.subtract_from(noted)
            result.contribution.subtract_from(share)
            torch.testing.assert_close(share, expected + noted, rtol=1e-5, atol=1e-6 * case.largest)
        for result, other in zip(first, second, strict=True):
            parts = take_apart(other.state)
            for name, by_path in take_apart(result.state).items():
                for path, part in by_path.items():  # what is noted apart is subtracted with another rounding
                    torch.testing.assert_close(part, parts[name][path], rtol=1e-5, atol=1e-5 * case.largest)
        one.states = two.states
        one.step += 1


@every_case
def test_a_contribution_that_nobody_wanted_says_so_when_it_is_used(case: Case) -> None:
    job = Job(case, LAYOUTS[7], 2)
    for result in job.exchange(job.values(normal, case.largest), wants_contribution=False):
        with pytest.raises(AssertionError, match=r"Context\.wants_contribution"):
            result.contribution.subtract_from(torch.zeros(7))


@every_case
def test_a_state_has_the_same_paths_and_shapes_in_every_bucketing(case: Case) -> None:
    """So one template over all parameters says what must have been saved."""
    layout = LAYOUTS[7]
    singles = [Layout((name,), (shape,)) for name, shape in zip(layout.names, layout.shapes, strict=True)]
    compressor = case.make()
    parts = {}
    for single in singles:
        parts |= take_apart(compressor.init(Bucket(torch.zeros(single.numel), single)))
    check_parts([compressor.init(Bucket(torch.zeros(7, device="meta"), layout))], parts)


@every_case
@pytest.mark.parametrize("world_size", [1, 3])
def test_resume_is_bitwise_also_under_another_bucketing(case: Case, world_size: int) -> None:
    """Saved by parameter name, taken up by other buckets, and from those by the first bucketing again."""
    layout = LAYOUTS[7]
    job = Job(case, layout, world_size)
    for _ in range(3):
        job.exchange(job.values(normal, case.largest))
    resumed = Job(case, layout, world_size)
    for rank, state in enumerate(job.states):
        saved = copy_of(state)
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            single = Layout((name,), (shape,))
            template = job.compressor.init(Bucket(torch.zeros(single.numel), single))
            assert_same_state(put_together(template, saved), {name: saved[name]} if name in saved else {})
        reverse = Layout(layout.names[::-1], layout.shapes[::-1])
        turned = put_together(job.compressor.init(Bucket(torch.zeros(7), reverse)), saved)
        assert_same_state(turned, saved)
        back = put_together(job.compressor.init(Bucket(torch.zeros(7), layout)), copy_of(turned))
        resumed.states[rank] = back
    resumed.step = job.step
    for _ in range(2):
        values = job.values(normal, case.largest)
        for one, two in zip(job.exchange(values), resumed.exchange(values), strict=True):
            assert torch.equal(bits(one.mean), bits(two.mean))


# Error feedback


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if isinstance(case.make(), ErrorFeedback)])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_error_feedback_loses_nothing_over_many_steps(name: str, world_size: int) -> None:
    """What went in = what was contributed + what is left."""
    job = Job(CASES[name], LAYOUTS[7], world_size)
    given = contributed = scale = torch.zeros(7, dtype=torch.float64)
    for _ in range(20):
        values = torch.stack(job.values(normal, 1.0))
        job.exchange(values.unbind())
        given = given + values.double().sum(0)
        contributed = contributed + job.contributed.double().sum(0)
        scale = scale + values.double().abs().sum(0)
    left = world_size * sum(residual_of(state).double() for state in job.states)
    assert ((given - contributed - left).abs() <= 1e-6 * scale).all()


def residual_of(state: Residual) -> Tensor:
    """What is left of this rank's shares: of its gradients divided by world_size."""
    return state.residual.value


@pytest.mark.parametrize("inner", ["fp16", "bf16"])
def test_error_feedback_delivers_what_rounding_alone_would_lose_for_ever(inner: str) -> None:
    """1 + 1/4 of the last place rounds to 1 in every step; the mean over 64 steps must be right all the same."""
    rounding = CASES[inner].rounding
    value = torch.full((7,), 1.0 + rounding / 2)
    sums = []
    for make in (lambda: build(inner), lambda: ErrorFeedback(build(inner))):
        job = Job(CASES[inner]._replace(make=make), LAYOUTS[7], 2)
        sums.append(sum(job.exchange([value, value])[0].mean.double() for _ in range(64)) / 64)
    without, with_feedback = sums
    assert torch.equal(without, torch.ones(7, dtype=torch.float64))
    assert ((with_feedback - value).abs() <= 2 * rounding / 64).all()


def test_error_feedback_starts_from_nothing_and_keeps_the_rounding() -> None:
    job = Job(CASES["error feedback of fp16"], LAYOUTS[1], 1)
    assert residual_of(job.states[0]).tolist() == [0.0]
    job.exchange([torch.tensor([1.0 + 2**-13])])
    assert residual_of(job.states[0]).tolist() == [2**-13]


def test_error_feedback_of_a_lossless_method_keeps_nothing() -> None:
    job = Job(CASES["error feedback of none"], LAYOUTS[7], 2)
    job.exchange(job.values(normal, 1.0))
    assert all(not residual_of(state).any() for state in job.states)


# What is special to each


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("name", ["none", "fp16", "bf16"])
def test_large_values_do_not_overflow_in_the_sum(name: str, world_size: int) -> None:
    largest = {"none": 3e38, "fp16": 60000.0, "bf16": 3e38}[name]
    job = Job(CASES[name], LAYOUTS[1], world_size)
    mean = job.exchange([torch.tensor([largest])] * world_size)[0].mean
    assert mean.item() == pytest.approx(largest, rel=0.02)


def test_a_value_too_large_for_fp16_is_not_passed_off_as_finite() -> None:
    job = Job(CASES["fp16"], LAYOUTS[1], 2)
    assert job.exchange([torch.tensor([1e6])] * 2)[0].mean.item() == float("inf")


def test_none_is_bitwise_the_sum_of_scaled_values() -> None:
    """What stock DDP computes: multiply by 1/n, then add."""
    job = Job(CASES["none"], LAYOUTS[7], 3)
    values = job.values(normal, 1.0)
    scaled = [value * (1.0 / 3.0) for value in values]
    assert torch.equal(job.exchange(values)[0].mean, scaled[0] + scaled[1] + scaled[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_none_keeps_the_dtype_of_the_bucket(dtype: torch.dtype) -> None:
    value = torch.arange(7, dtype=dtype)
    layout = LAYOUTS[7]
    exchange = NoCompression().exchange(Bucket(value, layout), State(), Context(0, 1, 0))
    (result,) = drive_lockstep([exchange], lockstep(1))
    assert result.mean.dtype == dtype
    assert torch.equal(result.mean, value)


class Gathering:
    """A compressor whose payloads are not all floating-point: a stand-in for those that send indices."""

    def init(self, bucket: Bucket) -> State:
        return State()

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        indices = torch.arange(bucket.layout.numel, dtype=torch.int32)
        everyone, gathered = yield (Request(Op.ALL_GATHER, bucket.value.clone()), Request(Op.ALL_GATHER, indices))
        assert gathered.dtype == torch.int32
        assert everyone.dtype == torch.float32
        return Exchanged(everyone.mean(0), Dense(bucket.value), state)


def test_cast_leaves_integers_alone_and_halves_the_rest() -> None:
    case = Case(lambda: Cast(Gathering(), FP16), lambda layout, n, step: [])
    job = Job(case, LAYOUTS[7], 2)
    job.exchange(job.values(normal, 1.0))
    assert job.traffic() == [[(Op.ALL_GATHER, 14), (Op.ALL_GATHER, 28)]] * 2


def test_only_sends_both_parts_in_the_same_round() -> None:
    compressor = CASES["only large"].make()
    bucket = Bucket(torch.randn(7), LAYOUTS[7])
    asked = next(compressor.exchange(bucket, compressor.init(bucket), Context(0, 2, 0)))
    assert isinstance(asked, tuple)
    assert [(r.op, r.payload.numel(), r.payload.dtype) for r in asked] == [
        (Op.ALL_REDUCE, 4, FP16),
        (Op.ALL_REDUCE, 3, torch.float32),
    ]


def test_only_puts_each_parameter_back_in_its_place() -> None:
    names = [f"p{i}" for i in range(6)]
    layout = Layout(tuple(names), ((2,), (9,), (1,), (3, 3), (4,), (10,)))
    job = Job(CASES["only large"]._replace(make=lambda: Only(build("fp16"), at_least(9))), layout, 2)
    value = torch.arange(layout.numel, dtype=torch.float32)
    results = job.exchange([value, value])
    assert torch.equal(results[0].mean, value)
    assert torch.equal(job.contributed[0], value)


def test_only_keeps_the_buffers_of_its_two_parts_apart_also_where_they_have_one_size() -> None:
    layout = Layout(("a", "b"), ((4,), (4,)))
    job = Job(CASES["none"]._replace(make=lambda: Only(NoCompression(), lambda name, shape: name == "a")), layout, 2)
    value = torch.arange(8.0)
    assert torch.equal(job.exchange([value, value])[0].mean, value)


def test_only_asks_its_predicate_for_name_and_shape() -> None:
    weights = Only(build("fp16"), lambda name, shape: name == "weight" and shape == (2, 2))
    job = Job(CASES["only large"]._replace(make=lambda: weights), LAYOUTS[7], 1)
    job.exchange([torch.zeros(7)])
    assert job.traffic() == [[(Op.ALL_REDUCE, 8), (Op.ALL_REDUCE, 12)]]


def test_warm_up_starts_the_second_method_with_a_fresh_state() -> None:
    job = Job(CASES["warm-up"], LAYOUTS[7], 1)
    value = torch.full((7,), 1.0 + 2**-13)
    means = [job.exchange([value])[0].mean for _ in range(3)]
    assert torch.equal(means[0], value)
    assert torch.equal(means[1], value)
    assert torch.equal(means[2], torch.ones(7))


def test_warm_up_of_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="give 0 or more"):
        Warmup(NoCompression(), NoCompression(), steps=-1)


def test_an_unknown_compressor_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"compressor gzip does not exist: choose one of none, fp16, bf16"):
        build("gzip")


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compressor none has no option density"):
        build("none", density=0.1)
