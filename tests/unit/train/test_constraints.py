"""What pruning and weight sharing make of a model, and what training and exchanging then keep of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from workers import Workers

from dtrain.compressors import COMPRESSORS, Masked, NoCompression, Shared, build
from dtrain.exchange import Bucket, Compressor, Context, Layout, Op, State
from dtrain.sync.buckets import layout_of, trainable
from dtrain.train.config import Phase
from dtrain.train.constraints import compress, constraints_of, exchanged_as, num_values

WORLD_SIZE = 3


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 10))


def compressed(phase: Phase) -> tuple[nn.Sequential, dict[str, Tensor]]:
    made = model()
    compress(made, phase)
    return made, constraints_of(made, pruned=phase.prunes, shared=phase.shares)


def prune(density: float, **options: object) -> Phase:
    return Phase(1, density=density, **options)  # type: ignore[arg-type]


class Sgd:
    """Workers' SGD with momentum and weight decay on one flat vector of a model's parameters."""

    def __init__(self, made: nn.Module, compressor: Compressor) -> None:
        named = trainable(made)
        self.layout = layout_of(named)
        self.workers = Workers(compressor, self.layout, WORLD_SIZE)
        self.weights = torch.cat([p.detach().reshape(-1) for _, p in named]).requires_grad_()
        self.optimizer = torch.optim.SGD([self.weights], lr=0.1, momentum=0.9, weight_decay=1e-3)

    def step(self, also: Callable[[Tensor], Tensor] = lambda mean: mean) -> None:
        self.weights.grad = also(self.workers.exchange(self.workers.random())[0].mean.clone())
        self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        return {name: piece.clone() for name, piece in self.layout.pieces(self.weights.detach())}


def masked_by(layout: Layout, masks: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def apply(mean: Tensor) -> Tensor:
        for name, piece in layout.pieces(mean):
            if name in masks:
                piece.mul_(masks[name])
        return mean

    return apply


def averaged_by(layout: Layout, codes: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def apply(mean: Tensor) -> Tensor:
        for name, piece in layout.pieces(mean):
            if name in codes:
                piece[codes[name] < 0] = 0
                for centroid in range(int(codes[name].max()) + 1):
                    of_centroid = codes[name] == centroid
                    piece[of_centroid] = piece[of_centroid].double().mean().float()
        return mean

    return apply


# What is made of the weights


def test_pruning_leaves_the_greatest_weights_and_all_biases() -> None:
    made, masks = compressed(prune(0.25))
    before = dict(model().named_parameters())
    for name, parameter in made.named_parameters():
        kept = parameter != 0
        assert torch.equal(parameter[kept], before[name][kept])
        if parameter.dim() == 1:
            assert name not in masks
            continue
        assert int(kept.sum()) == round(0.25 * parameter.numel())
        assert before[name][kept].abs().min() >= before[name][~kept].abs().max()
        assert torch.equal(masks[name], kept)


def test_densities_by_name_go_before_the_one_for_all() -> None:
    made, masks = compressed(prune(0.5, densities={"0.weight": 1.0, "5.weight": 0.1}))
    assert masks.keys() == {"3.weight", "5.weight"}
    assert int((dict(made.named_parameters())["5.weight"] != 0).sum()) == 40


def test_a_density_of_no_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"densities names '5.bias', which is no weight: choose of 0.weight, 3.weight"):
        compress(model(), prune(0.5, densities={"5.bias": 0.5}))


def test_sharing_leaves_so_many_values_and_what_was_pruned() -> None:
    made, codes = compressed(prune(0.5, bits=3))
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1:
            assert len(parameter.unique()) <= 8
            assert torch.equal(codes[name] == -1, parameter == 0)
            for centroid in range(int(codes[name].max()) + 1):
                assert len(parameter[codes[name] == centroid].unique()) == 1


def test_bits_by_name_go_before_those_for_all() -> None:
    made, codes = compressed(Phase(1, bits=3, bits_of={"0.weight": 2}))
    assert [len(codes[name].unique()) for name in ("0.weight", "3.weight")] == [4, 8]
    made, codes = compressed(Phase(1, bits_of={"0.weight": 2}))
    assert [len(p.unique()) for name, p in made.named_parameters() if name in ("0.weight", "3.weight")] == [4, 32 * 40]


def test_pruning_again_removes_more_of_the_same() -> None:
    made, first = compressed(prune(0.5))
    compress(made, prune(0.2))
    second = constraints_of(made, pruned=True, shared=False)
    assert all((second[name] <= first[name]).all() for name in first)
    assert int(second["3.weight"].sum()) == round(0.2 * 32 * 40)


def test_a_phase_that_compresses_nothing_fixes_nothing() -> None:
    made, what = compressed(Phase(1))
    assert what == {}
    assert num_values(made, what) == sum(p.numel() for p in made.parameters())
    assert isinstance(exchanged_as(NoCompression(), what), NoCompression)


# What is exchanged


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_payload_is_4_bytes_a_survivor_and_4_a_centroid_and_the_biases(world_size: int) -> None:
    biases = 32 + 40 + 10
    for phase, kind in ((prune(0.33), Masked), (prune(0.33, bits=4), Shared)):
        made, what = compressed(phase)
        weights = [p for p in made.parameters() if p.dim() > 1]
        values = [int((p != 0).sum()) for p in weights]
        if phase.bits:
            values = [len(p[p != 0].unique()) for p in weights]
        workers = Workers(exchanged_as(NoCompression(), what), layout_of(trainable(made)), world_size)
        assert isinstance(workers.compressor, kind)
        workers.exchange(workers.random())
        assert workers.traffic() == [(Op.ALL_REDUCE, 4 * (sum(values) + biases))]
        assert num_values(made, what) == sum(values) + biases


def test_masked_training_is_dense_training_whose_mean_is_masked() -> None:
    made, masks = compressed(prune(0.3))
    ours, dense = Sgd(made, Masked(NoCompression(), masks)), Sgd(made, NoCompression())
    for _ in range(12):
        ours.step()
        dense.step(masked_by(dense.layout, masks))
        torch.testing.assert_close(ours.weights, dense.weights, rtol=1e-6, atol=1e-7)
    for name, weights in ours.tensors().items():
        if name in masks:
            assert torch.equal(weights != 0, masks[name])


def test_shared_training_is_dense_training_whose_mean_is_averaged_by_centroid_and_ties_hold_bitwise() -> None:
    made, codes = compressed(prune(0.6, bits=3))
    ours, dense = Sgd(made, Shared(NoCompression(), codes)), Sgd(made, NoCompression())
    for _ in range(12):
        ours.step()
        dense.step(averaged_by(dense.layout, codes))
        torch.testing.assert_close(ours.weights, dense.weights, rtol=1e-6, atol=1e-6)
    moved = 0
    for name, weights in ours.tensors().items():
        if name in codes:
            assert not weights[codes[name] < 0].any()
            for centroid in range(int(codes[name].max()) + 1):
                assert len(weights[codes[name] == centroid].view(torch.int32).unique()) == 1
            moved += int((weights != dict(made.named_parameters())[name]).sum())
    assert moved


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_compressor_inside_leaves_pruned_weights_zero_and_shared_ones_equal(name: str) -> None:
    made, codes = compressed(prune(0.5, bits=3))
    masks = {name: code >= 0 for name, code in codes.items()}
    for what in (masks, codes):
        ours = Sgd(made, exchanged_as(build(name), what))
        for _ in range(4):
            ours.step()
        for parameter, weights in ours.tensors().items():
            if parameter in what:
                assert not weights[~masks[parameter]].any()
            if parameter in what and what is codes:
                assert len(weights.unique()) <= 8
        assert not torch.equal(ours.weights, Sgd(made, NoCompression()).weights)


def test_a_bucket_of_which_nothing_is_left_sends_nothing() -> None:
    layout = Layout(("weight",), ((2, 2),))
    for compressor in (
        Masked(build("top_k"), {"weight": torch.zeros(2, 2, dtype=torch.bool)}),
        Shared(build("top_k"), {"weight": torch.full((2, 2), -1)}),
    ):
        workers = Workers(compressor, layout, 2)
        results = workers.exchange(workers.random())
        assert workers.traffic() == []
        assert not results[0].mean.any()


def test_masks_of_another_model_are_refused() -> None:
    bucket = Bucket(torch.zeros(6), Layout(("weight",), ((2, 3),)))
    with pytest.raises(ValueError, match=r"parameter 'weight' has shape \(2, 3\).*\(3, 2\)"):
        Masked(NoCompression(), {"weight": torch.ones(3, 2, dtype=torch.bool)}).init(bucket)


def test_slots_are_computed_once() -> None:
    compressor = Masked(NoCompression(), {"weight": torch.tensor([[True, False]])})
    bucket = Bucket(torch.ones(2), Layout(("weight",), ((1, 2),)))
    compressor.init(bucket)
    (known,) = compressor._known.values()
    next(compressor.exchange(bucket, State(), Context(0, 1, 0)))
    (again,) = compressor._known.values()
    assert again is known
    assert known.survivors is known.survivors
