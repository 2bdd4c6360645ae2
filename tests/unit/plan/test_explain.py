from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from dtrain.plan.explain import Explanation, explain, explain_table
from dtrain.sync.fuse import SMALL_BYTES


def top_k(**more: object) -> Explanation:
    return explain("top_k", density=0.001, model="squeezenet1_1", world_size=2, **more)  # type: ignore[arg-type]


def test_small_messages_of_all_buckets_are_listed_as_the_one_collective_that_they_are() -> None:
    (only,) = top_k().rounds
    assert only.buckets == (0, 1)
    assert only.op == "all_gather"


def test_large_messages_are_listed_by_bucket_in_the_order_in_which_they_go_out() -> None:
    rounds = explain("int8", model="squeezenet1_1", world_size=2).rounds
    assert min(r.payload_bytes for r in rounds) >= SMALL_BYTES
    assert [(r.buckets, r.op) for r in rounds] == [
        ((0,), "all_to_all"),
        ((1,), "all_to_all"),
        ((0,), "all_gather"),
        ((1,), "all_gather"),
    ]


def test_a_dense_exchange_is_the_whole_model_and_saves_nothing() -> None:
    dense = explain("none", model="squeezenet1_1", world_size=4)
    assert dense.payload_bytes == 4 * dense.num_parameters
    assert dense.wire_bytes == pytest.approx(1.5 * dense.payload_bytes)
    assert (dense.saving_vs_fp32, dense.saving_vs_fp16) == (pytest.approx(1.0), pytest.approx(0.5))


def test_one_worker_sends_nothing_and_saves_nothing_that_could_be_stated() -> None:
    alone = explain("top_k", model="squeezenet1_1", world_size=1)
    assert (alone.wire_bytes, alone.saving_vs_fp32, alone.saving_vs_fp16) == (0, None, None)


def test_json_names_the_buckets_of_each_collective() -> None:
    data = json.loads(json.dumps(top_k().as_json()))
    assert data["rounds"][0]["buckets"] == [0, 1]


def test_the_table_shows_runs_of_buckets() -> None:
    out = StringIO()
    Console(file=out, width=100).print(explain_table(top_k()))
    assert "0 to 1" in out.getvalue()


def test_no_workers_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        explain("none", model="squeezenet1_1", world_size=0)
