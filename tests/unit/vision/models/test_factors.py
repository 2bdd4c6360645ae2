from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dtrain.train.model_files import load_model_state, read_description, save_model
from dtrain.vision import models


def low_rank_layers() -> nn.Sequential:
    """Whose weights are of rank 2 in each group."""
    torch.manual_seed(0)
    grouped = nn.Conv2d(8, 24, 3, stride=2, padding=1, groups=2)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), grouped, nn.Flatten(), nn.Linear(24 * 16, 30))
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                groups = getattr(layer, "groups", 1)
                rows, columns = layer.weight.shape[0] // groups, layer.weight[0].numel()
                product = torch.randn(groups, rows, 2) @ torch.randn(groups, 2, columns) / 10
                layer.weight.copy_(product.reshape(layer.weight.shape))
    return model


def test_the_rank_is_found_and_the_factors_compute_the_same() -> None:
    model = low_rank_layers()
    images = torch.randn(4, 3, 8, 8)
    before, count = model(images), sum(p.numel() for p in model.parameters())
    ranks = models.ranks_of(model, 0.99999)
    assert ranks == {"0": 2, "1": 2, "3": 2}
    models.factorise(model, ranks)
    torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in model.parameters()) < count / 4
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name.startswith("1.")]
    assert shapes == [(4, 4, 3, 3), (24, 2, 1, 1), (24,)]


def test_a_layer_that_two_would_not_be_smaller_than_stays() -> None:
    torch.manual_seed(0)
    assert models.ranks_of(nn.Sequential(nn.Linear(20, 20)), 0.99) == {}


@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_the_energy_is_kept(energy: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 50))
    weight = torch.randn(50, 50) @ torch.diag(0.8 ** torch.arange(50)) @ torch.randn(50, 60)
    with torch.no_grad():
        model[0].weight.copy_(weight)
    ranks = models.ranks_of(model, energy)
    for rank, enough in ((ranks["0"], True), (ranks["0"] - 1, False)):
        two = nn.Sequential(model[0])
        models.factorise(two, {"0": rank})
        state = two.state_dict()
        product = state["0.1.weight"] @ state["0.0.weight"]
        kept = 1 - (weight - product).square().sum() / weight.square().sum()
        assert bool(kept >= energy) is enough


def test_a_factored_squeezenet_is_saved_and_rebuilt(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.build("squeezenet1_1", num_classes=10)
    built = {"name": "squeezenet1_1", "num_classes": 10, "options": models.complete_options("squeezenet1_1")}
    ranks = models.ranks_of(model, 0.5)
    assert ranks
    models.factorise(model, ranks)
    save_model(model, tmp_path / "model.safetensors", {"model": {**built, "ranks": ranks}})
    other = models.rebuild(read_description(tmp_path / "model.safetensors")["model"])
    load_model_state(other, tmp_path / "model.safetensors")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), other.eval()(images))
