from __future__ import annotations

import pytest

from dtrain.meter.saving import dense_wire_bytes, savings

GRAD_BYTES = 4000


@pytest.mark.parametrize(("world_size", "sent"), [(1, 0), (2, 4000), (4, 6000)])
def test_dense_is_a_ring_all_reduce_of_fp32(world_size: int, sent: float) -> None:
    assert dense_wire_bytes("gloo", GRAD_BYTES, world_size) == sent


def test_a_saving_is_the_baseline_over_what_was_sent_and_half_of_it_against_fp16() -> None:
    saved = savings(1500, backend="gloo", grad_bytes=GRAD_BYTES, world_size=4)
    assert saved == (4.0, 2.0)
    assert saved._asdict() == {"saving_vs_fp32": 4.0, "saving_vs_fp16": 2.0}


def test_dense_fp32_saves_nothing_and_costs_twice_fp16() -> None:
    assert savings(6000, backend="gloo", grad_bytes=GRAD_BYTES, world_size=4) == (1.0, 0.5)


@pytest.mark.parametrize(("sent", "world_size"), [(100.0, 1), (0.0, 1), (0.0, 2), (None, 2)])
def test_no_saving_is_stated_for_one_worker_or_where_nothing_was_sent_or_counted(
    sent: float | None, world_size: int
) -> None:
    assert savings(sent, backend="gloo", grad_bytes=GRAD_BYTES, world_size=world_size) == (None, None)
