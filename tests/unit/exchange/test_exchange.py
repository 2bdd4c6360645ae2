from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dtrain.exchange import (
    NOT_KEPT,
    Bucket,
    Context,
    Dense,
    Exchange,
    Exchanged,
    Layout,
    Op,
    Request,
    Scratch,
    Sparse,
    State,
    check_parts,
    put_together,
    take_apart,
    together,
)

LAYOUT = Layout(("weight", "bias", "gain"), ((2, 3), (2,), ()))


def bucket(layout: Layout, start: float = 0.0) -> Bucket:
    return Bucket(torch.arange(layout.numel, dtype=torch.float32) + start, layout)


# Layout


def test_a_layout_counts_elements() -> None:
    assert LAYOUT.sizes == (6, 2, 1)
    assert LAYOUT.numel == 9


def test_pieces_are_views_in_the_parameters_own_shapes() -> None:
    flat = torch.arange(9.0)
    pieces = dict(LAYOUT.pieces(flat))
    assert pieces["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert pieces["bias"].tolist() == [6, 7]
    assert pieces["gain"].item() == 8
    pieces["bias"][0] = -1.0
    assert flat[6] == -1.0


def test_keep_leaves_the_chosen_in_order() -> None:
    assert LAYOUT.keep([True, False, True]) == Layout(("weight", "gain"), ((2, 3), ()))
    assert LAYOUT.keep([False, False, False]).numel == 0


def test_layouts_with_the_same_parameters_are_equal_and_can_be_keys() -> None:
    assert Layout(("a",), ((2,),)) == Layout(("a",), ((2,),))
    assert len({Layout(("a",), ((2,),)), Layout(("a",), ((2,),)), Layout(("a",), ((1, 2),))}) == 2


@pytest.mark.parametrize(
    ("dtype", "num_bytes"), [(torch.float32, 24), (torch.float16, 12), (torch.uint8, 6), (torch.int64, 48)]
)
def test_the_payload_of_a_request_is_counted_in_bytes(dtype: torch.dtype, num_bytes: int) -> None:
    assert Request(Op.ALL_REDUCE, torch.zeros(2, 3, dtype=dtype)).payload_bytes == num_bytes


# Scratch


def test_a_scratch_buffer_is_handed_out_again_for_the_same_name_and_shape() -> None:
    scratch, like = Scratch(), torch.zeros(3)
    first = scratch.empty("a", like)
    assert scratch.empty("a", like) is first
    assert scratch.empty("b", like) is not first
    assert scratch.empty("a", torch.zeros(4)).shape == (4,)
    assert scratch.empty("a", like, dtype=torch.float16).dtype == torch.float16


def test_scratch_buffers_inside_another_compressor_do_not_collide() -> None:
    scratch, like = Scratch(), torch.zeros(3)
    buffers = [
        scratch.empty("a", like),
        scratch.inner("x").empty("a", like),
        scratch.inner("y").empty("a", like),
        scratch.inner("x").inner("x").empty("a", like),
    ]
    assert len({buffer.data_ptr() for buffer in buffers}) == 4
    assert scratch.inner("x").empty("a", like) is buffers[1]


def test_two_contexts_share_no_scratch() -> None:
    assert Context(0, 1, 0).scratch is not Context(0, 1, 0).scratch


# Side by side


def rounds(*sizes: int | tuple[int, ...], log: list[object]) -> Exchange:
    """Asks for an all_reduce of each size; a tuple of sizes goes out together."""
    for size in sizes:
        if isinstance(size, tuple):
            log.append((yield tuple(Request(Op.ALL_REDUCE, torch.zeros(s)) for s in size)))
        else:
            log.append((yield Request(Op.ALL_REDUCE, torch.zeros(size))))
    return Exchanged(torch.tensor([float(len(sizes))]), NOT_KEPT, State())


def answer_by_size(*exchanges: Exchange) -> tuple[list[list[int]], tuple[Exchanged, ...]]:
    """Drives `together`, answering each request with its size."""
    asked: list[list[int]] = []
    running = together(*exchanges)
    try:
        requests = next(running)
        while True:
            asked.append([r.payload.numel() for r in requests])
            requests = running.send(tuple(torch.tensor(r.payload.numel()) for r in requests))
    except StopIteration as done:
        return asked, done.value


def test_requests_of_a_round_go_out_in_one_tuple_and_answers_find_their_way_back() -> None:
    one: list[object] = []
    two: list[object] = []
    asked, results = answer_by_size(rounds(1, (2, 3), 4, log=one), rounds((5, 6), 7, log=two))
    assert asked == [[1, 5, 6], [2, 3, 7], [4]]
    assert [result.mean.item() for result in results] == [3.0, 2.0]
    assert one == [torch.tensor(1), (torch.tensor(2), torch.tensor(3)), torch.tensor(4)]
    assert two == [(torch.tensor(5), torch.tensor(6)), torch.tensor(7)]


def test_an_exchange_without_rounds_beside_another() -> None:
    asked, results = answer_by_size(rounds(log=[]), rounds(1, log=[]), rounds(log=[]))
    assert asked == [[1]]
    assert [result.mean.item() for result in results] == [0.0, 1.0, 0.0]


def test_nothing_together_asks_nothing() -> None:
    assert answer_by_size() == ([], ())
    asked, results = answer_by_size(rounds(log=[]))
    assert asked == []
    assert len(results) == 1


# States by parameter name


@dataclass(frozen=True)
class Momentum(State):
    momentum: Bucket
    deeper: State


@dataclass(frozen=True)
class Outer(State):
    residual: Bucket
    inner: State


@dataclass(frozen=True)
class One(State):
    residual: Bucket


def state(layout: Layout) -> State:
    return Outer(bucket(layout, 100.0), Momentum(bucket(layout, 200.0), State()))


def test_a_state_is_taken_apart_by_parameter_and_path() -> None:
    parts = take_apart(state(LAYOUT))
    assert parts.keys() == {"weight", "bias", "gain"}
    assert {path: part.tolist() for path, part in parts["bias"].items()} == {
        "residual": [106, 107],
        "inner.momentum": [206, 207],
    }
    assert parts["weight"]["residual"].shape == (2, 3)


def test_a_stateless_compressor_has_no_parts() -> None:
    assert take_apart(State()) == {}
    assert take_apart(One(Bucket(torch.zeros(0), Layout((), ())))) == {}


@given(st.permutations(range(6)), st.integers(0, 6), st.integers(0, 6))
def test_a_state_survives_any_other_bucketing(order: list[int], cut: int, other_cut: int) -> None:
    shapes = ((2, 2), (3,), (), (1,), (2, 1, 2), (5,))
    first = [Layout((f"p{i}",), (shapes[i],)) for i in range(6)]
    whole = Layout(tuple(f"p{i}" for i in order), tuple(shapes[i] for i in order))
    parts = {name: by_path for i, layout in enumerate(first) for name, by_path in take_apart(one(layout, i)).items()}
    low, high = sorted((cut, other_cut))
    rebuilt: dict[str, list[float]] = {}
    for chunk in (slice(0, low), slice(low, high), slice(high, 6)):
        layout = Layout(whole.names[chunk], whole.shapes[chunk])
        template = One(Bucket(torch.full((layout.numel,), -1.0), layout))
        for name, by_path in take_apart(put_together(template, parts)).items():
            rebuilt[name] = by_path["residual"].flatten().tolist()
    assert rebuilt == {f"p{i}": one(first[i], i).residual.value.tolist() for i in range(6)}


def one(layout: Layout, index: int) -> One:
    return One(bucket(layout, 10.0 * index))


def test_a_parameter_of_which_nothing_was_saved_stays_as_init_made_it() -> None:
    template = put_together(one(LAYOUT, 0), {"bias": {"residual": torch.tensor([-1.0, -2.0])}, "gain": {}})
    assert template.residual.value.tolist() == [0, 1, 2, 3, 4, 5, -1, -2, 8]


BIAS = torch.zeros(2)
UNFIT = {
    "missing": ({"residual": BIAS}, r"no 'inner.momentum' is saved of parameter 'bias', and this run needs it"),
    "too many": (
        {"residual": BIAS, "inner.momentum": BIAS, "q": BIAS},
        r"saved state 'q' of parameter 'bias' has no place in this run",
    ),
    "another shape": (
        {"residual": BIAS, "inner.momentum": torch.zeros(3)},
        r"'inner.momentum' of parameter 'bias' has shape \(3,\), this run needs \(2,\)",
    ),
}


@pytest.mark.parametrize(("saved", "message"), UNFIT.values(), ids=UNFIT.keys())
def test_saved_parts_that_do_not_fit_are_refused_by_name(saved: dict[str, Tensor], message: str) -> None:
    message += ".*: saved with another compressor or other options"
    with pytest.raises(ValueError, match=message):
        put_together(state(LAYOUT), {"bias": saved})
    with pytest.raises(ValueError, match=message):
        check_parts([state(LAYOUT)], take_apart(state(LAYOUT)) | {"bias": saved})


def test_parts_are_checked_over_all_buckets() -> None:
    halves = [LAYOUT.keep([True, False, False]), LAYOUT.keep([False, True, True])]
    parts = take_apart(state(LAYOUT))
    check_parts([state(half) for half in halves], parts)
    check_parts([State()], {})
    with pytest.raises(ValueError, match="no 'residual' is saved of parameter 'weight'"):
        check_parts([state(half) for half in halves], {name: parts[name] for name in ("bias", "gain")})
    with pytest.raises(ValueError, match="'residual' of parameter 'weight' has no place in this run"):
        check_parts([state(halves[1])], parts)
    with pytest.raises(ValueError, match="'residual' of parameter 'weight' has no place in this run"):
        check_parts([State()], parts)


# Contributions


def test_a_contribution_subtracts_itself() -> None:
    residual = torch.arange(4.0)
    Dense(torch.ones(4)).subtract_from(residual)
    Sparse(torch.tensor([0, 3]), torch.tensor([-1.0, 5.0])).subtract_from(residual)
    assert residual.tolist() == [0, 0, 1, -3]
    with pytest.raises(AssertionError, match=r"set Context\.wants_contribution"):
        NOT_KEPT.subtract_from(residual)
