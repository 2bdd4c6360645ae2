"""No exchange on a GPU makes the host wait, but for those that say so: on the meta device no value can be looked at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from workers import flat

from dtrain.comm.lockstep import lockstep
from dtrain.compressors import COMPRESSORS, build
from dtrain.compressors.codecs import elias_fano, selection
from dtrain.compressors.codecs.random_bits import RandomBits
from dtrain.compressors.codecs.selection import largest, largest_among, num_kept
from dtrain.compressors.codecs.sparse import SparseFormat
from dtrain.exchange import Bucket, Context, Layout
from dtrain.sync.drive import drive_lockstep

WORLD_SIZE = 3
WAITS = {
    "chunked_top_k": "numbers of a thousand bits are taken apart until no carry is left",
    "rotated_signs": "the host draws the rotation whose number came with the message",
}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in COMPRESSORS if name not in WAITS),
    ("int8", {"rounding": "stochastic"}),
    ("int4", {"rounding": "stochastic"}),
    ("ternary", {"rounding": "nearest"}),
    ("top_k", {"density": 0.05, "value_bits": 16}),
    ("top_k", {"density": 0.001, "exchange": "split"}),
    ("dgc", {"density": 0.01, "exchange": "split", "clip_norm": 1.0}),
    ("power_sgd", {"power_sgd_rank": 1, "all_reduces": 1}),
    ("int4", {"exempt_below": 100, "start_after": 1}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_an_exchange_shows_the_host_no_value(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RandomBits, "fill", lambda self, words, kernels: None)  # torch has no generator for it
    layout = Layout(("weight", "bias"), ((64, 333), (64,)))
    compressor = build(name, **options)
    bucket = Bucket(torch.empty(layout.numel, device="meta"), layout)
    state = compressor.init(bucket)
    for step in range(2):
        contexts = [Context(rank, WORLD_SIZE, step, wants_contribution=True) for rank in range(WORLD_SIZE)]
        results = drive_lockstep([compressor.exchange(bucket, state, c) for c in contexts], lockstep(WORLD_SIZE))
        state = results[0].state
        assert results[0].mean.shape == bucket.value.shape
        results[0].contribution.subtract_from(torch.empty_like(bucket.value))


@pytest.mark.parametrize("name", WAITS)
def test_those_that_wait_are_found_out(name: str) -> None:
    compressor, bucket = build(name), Bucket(torch.empty(5000, device="meta"), flat(5000))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        drive_lockstep([compressor.exchange(bucket, compressor.init(bucket), Context(0, 1, 0))], lockstep(1))


@pytest.mark.parametrize("density", [1e-4, 0.003, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["normal", "few values", "mostly zeros", "not finite"])
def test_the_largest_that_the_host_did_not_see_are_those_that_it_finds(kind: str, density: float) -> None:
    value = torch.randn(10_007, generator=torch.Generator().manual_seed(0))
    if kind == "few values":
        value.round_()
    if kind == "mostly zeros":
        value[torch.arange(len(value)) % 50 > 0] = 0.0
    if kind == "not finite":
        value[::700], value[3::1000] = float("-inf"), float("nan")
    k = num_kept(density, len(value))
    unseen = selection._largest_unseen(selection._magnitude(value), k)
    assert torch.equal(unseen, largest(value, k))


@pytest.mark.parametrize("k", [1, 40, 300])
def test_the_largest_among_named_ones_are_named_zeros_too(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    named = torch.randint(0, 9000, (400,), generator=generator)
    value = torch.zeros(9000).index_add_(0, named[:100], torch.randn(100, generator=generator))
    seen = largest_among(value, named, k)
    assert set(seen.tolist()) <= set(named.tolist())
    assert torch.equal(selection._largest_among_unseen(value, named, k), seen)


@pytest.mark.parametrize("numel", [2, 9, 64, 1000, 2**14])
@pytest.mark.parametrize("density", [1e-4, 0.03, 0.4, 1.0])
def test_indices_that_the_host_did_not_see_are_those_that_it_decodes_and_spoilt_messages_are_marked(
    numel: int, density: float
) -> None:
    generator, k = torch.Generator().manual_seed(numel), num_kept(density, numel)
    indices = torch.randperm(numel, generator=generator)[:k].sort().values
    message = elias_fano.encode(indices, numel)
    noise = torch.randint(0, 256, (30, len(message)), generator=generator, dtype=torch.uint8)
    flips = message ^ (1 << torch.randint(0, 8, (30, 1), generator=generator)).to(torch.uint8)
    rows = torch.cat((message[None], noise, flips))
    found, whole = elias_fano.decode_unseen(rows, k, numel)
    assert whole[0]
    assert ((found >= 0) & (found < numel)).all()
    for row, unseen, is_whole in zip(rows, found, whole.tolist(), strict=True):
        try:
            seen = elias_fano.decode(row[None], k, numel)[0]
        except ValueError:
            assert not is_whole
        else:
            assert is_whole
            assert torch.equal(unseen, seen)


def test_values_of_a_spoilt_message_are_nan_where_the_host_does_not_look() -> None:
    form = SparseFormat(20, 1000, 8)
    whole = form.pack_largest(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    spoilt = whole.clone()
    spoilt[: elias_fano.num_bytes(20, 1000)] = 0
    indices, values = form._unpack_unseen(torch.stack([whole, spoilt]))
    assert torch.equal(torch.stack((indices[0], values[0])), torch.cat(form.unpack(whole[None])))
    assert values[1].isnan().all()
    assert indices.max() < 1000
