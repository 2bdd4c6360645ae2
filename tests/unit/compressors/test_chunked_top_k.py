"""The largest of each chunk, in two bits a value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from workers import Workers, check_resume, flat

from dtrain.compressors import build
from dtrain.compressors.chunked_top_k import ChunkedTopK
from dtrain.compressors.codecs.chunks import ChunkFormat
from dtrain.compressors.policies.error_feedback import Residual
from dtrain.exchange import Op


def test_a_message_of_the_paper_s_form_has_9_6_bits_a_value() -> None:
    form = ChunkFormat(64, 4096, 100)
    assert form.num_bytes == 100 * (59 + 2) + 1600 + 8
    workers = Workers(build("chunked_top_k"), flat(409_600), 2)
    workers.exchange(workers.random())
    assert workers.traffic() == [(Op.ALL_GATHER, form.num_bytes)]


def test_of_each_chunk_the_largest_arrive_with_their_sign_and_one_of_two_magnitudes() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 64, generator=generator)
    form = ChunkFormat(8, 64, 5)
    indices, values = form.unpack(form.pack(rows)[None])
    wanted = rows.abs().topk(8, dim=1).indices.sort(1).values
    assert torch.equal(indices.view(5, 8) - 64 * torch.arange(5)[:, None], wanted)
    kept = rows.gather(1, wanted)
    assert torch.equal(values.view(5, 8).sign(), kept.sign())
    assert all(len(row.abs().unique()) <= 2 for row in values.view(5, 8))
    assert (values.view(5, 8) - kept).norm() / kept.norm() < 0.2


def test_a_chunk_of_zeros_stays_zero() -> None:
    form = ChunkFormat(2, 8, 2)
    rows = torch.zeros(2, 8)
    rows[1, 3] = 2.0
    indices, values = form.unpack(form.pack(rows)[None])
    whole = torch.zeros(16).index_add_(0, indices[0], values[0])
    assert not whole[:8].any() and whole[11] == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_finite_where_it_arrives(bad: float) -> None:
    workers = Workers(build("chunked_top_k", density=0.1, chunk=64), flat(300), 2)
    values = workers.random()
    values[1][130] = bad
    assert not torch.isfinite(workers.exchange(values)[0].mean).all()


def test_what_was_not_sent_fades_by_the_decay() -> None:
    value = torch.zeros(64)
    value[:8] = torch.arange(8, 0, -1)
    left = {}
    for decay in (1.0, 0.5):
        workers = Workers(build("chunked_top_k", density=1 / 64, chunk=64, decay=decay), flat(64), 1)
        workers.exchange([value])
        for _ in range(3):
            workers.exchange([torch.zeros(64)])
        (state,) = workers.states
        assert isinstance(state, Residual)
        left[decay] = state.residual.value
    assert torch.equal((left[1.0] != 0).nonzero(), (left[0.5] != 0).nonzero())
    assert left[0.5][7] == pytest.approx(left[1.0][7] * 0.5**3)


def test_resumed_it_goes_on_bit_for_bit() -> None:
    check_resume(build("chunked_top_k", density=0.05, chunk=128), flat(1003), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "density=0 "),
        ({"chunk": 0}, "chunk=0"),
        ({"decay": 0.0}, "decay=0.0"),
        ({"density": 0.1}, "give smaller chunks"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("chunked_top_k", **options)


def test_the_defaults_are_the_paper_s() -> None:
    assert ChunkedTopK() == ChunkedTopK(64 / 4096, 4096)
