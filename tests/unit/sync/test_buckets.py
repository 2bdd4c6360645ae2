import pytest
import torch
from torch import nn

from dtrain.exchange import Layout
from dtrain.sync.buckets import NamedParameter, assign, layout_of, trainable
from dtrain.vision.models import build


def named(*sizes: int, dtype: torch.dtype = torch.float32) -> list[NamedParameter]:
    return [NamedParameter(f"p{i}", nn.Parameter(torch.zeros(size, dtype=dtype))) for i, size in enumerate(sizes)]


def names(buckets: list[list[NamedParameter]]) -> list[list[str]]:
    return [[name for name, _ in bucket] for bucket in buckets]


def test_buckets_run_in_reverse_parameter_order() -> None:
    assert names(assign(named(1, 1, 1), first_bytes=1000)) == [["p2", "p1", "p0"]]


def test_a_bucket_closes_once_it_holds_its_limit_and_the_first_limit_is_its_own() -> None:
    buckets = assign(named(10, 10, 10, 10, 10, 10), first_bytes=40, cap_bytes=100)
    assert names(buckets) == [["p5"], ["p4", "p3", "p2"], ["p1", "p0"]]


def test_a_parameter_larger_than_the_limit_shares_with_what_came_before_it() -> None:
    assert names(assign(named(1, 500, 1), first_bytes=8, cap_bytes=8)) == [["p2", "p1"], ["p0"]]


def test_parameters_of_different_dtype_never_share_a_bucket() -> None:
    mixed = [*named(10, 10), *named(10, 10, dtype=torch.float64)]
    mixed = [NamedParameter(f"q{i}", mixed[j].parameter) for i, j in enumerate((0, 2, 1, 3))]
    buckets = assign(mixed, first_bytes=1000, cap_bytes=1000)
    assert names(buckets) == [["q3", "q1"], ["q2", "q0"]]


@pytest.mark.parametrize("first_bytes", [1, 100_000, 10**9])
@pytest.mark.parametrize("cap_bytes", [1, 100_000, 10**9])
def test_every_parameter_is_in_exactly_one_bucket(first_bytes: int, cap_bytes: int) -> None:
    parameters = trainable(build("squeezenet1_1", num_classes=10))
    buckets = assign(parameters, first_bytes=first_bytes, cap_bytes=cap_bytes)
    assert [name for bucket in names(buckets) for name in bucket] == [name for name, _ in reversed(parameters)]


def test_no_parameters_are_no_buckets() -> None:
    assert assign([]) == []


def test_the_layout_has_names_and_shapes_in_the_bucket_s_order() -> None:
    model = nn.Linear(3, 2)
    (bucket,) = assign(trainable(model))
    assert layout_of(bucket) == Layout(("bias", "weight"), ((2,), (2, 3)))


def test_frozen_parameters_are_left_out_and_shared_ones_are_taken_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    assert [name for name, _ in trainable(model)] == ["0.weight", "0.bias", "1.weight", "2.bias"]


def test_the_default_sizes_are_those_of_ddp() -> None:
    """SqueezeNet 1.1 with 1000 classes: conv10 alone is more than 1 MiB, the rest less than 25."""
    buckets = names(assign(trainable(build("squeezenet1_1", num_classes=1000))))
    assert [bucket[0] for bucket in buckets] == ["classifier.1.bias", "features.12.expand3x3.bias"]
