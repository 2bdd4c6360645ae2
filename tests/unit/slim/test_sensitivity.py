"""The sensitivity scan: what it says of layers whose worth is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dtrain.pack.prune import Prune
from dtrain.slim.sensitivity import scan


def network() -> nn.Sequential:
    """The first layer has 10 weights of a hundred that matter, the second 60."""
    layers = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    with torch.no_grad():
        for layer, kept in zip(layers, (10, 60), strict=True):
            layer.weight.fill_(1e-3)
            layer.weight.view(-1)[:kept] = 1.0
    return layers


def surviving(layers: nn.Module) -> float:
    return float(sum((parameter > 0.5).sum() for name, parameter in layers.named_parameters() if "weight" in name))


def test_each_layer_gets_the_least_density_that_it_bears() -> None:
    assert scan(network(), surviving, loss=0.0) == {"0.weight": 0.1, "1.weight": 0.7}
    assert scan(network(), surviving, loss=30.0) == {"0.weight": 0.1, "1.weight": 0.33}


def test_a_layer_that_bears_none_stays_whole() -> None:
    assert scan(network(), surviving, loss=0.0, densities=(0.05,)) == {"0.weight": 1.0, "1.weight": 1.0}


def test_the_network_is_as_before_even_after_a_failure() -> None:
    layers, calls = network(), []
    before = {name: value.clone() for name, value in layers.state_dict().items()}

    def fail(layers: nn.Module) -> float:
        calls.append(layers)
        if len(calls) == 3:
            raise RuntimeError("no more")
        return 0.0

    with pytest.raises(RuntimeError, match="no more"):
        scan(layers, fail, loss=-0.0)
    assert all(torch.equal(before[name], value) for name, value in layers.state_dict().items())


def test_its_densities_are_what_prune_takes() -> None:
    Prune(scan(network(), surviving, loss=0.0))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        scan(network(), surviving, loss=-1.0)
    with pytest.raises(ValueError, match="fraction kept"):
        scan(network(), surviving, loss=0.0, densities=(0.0,))
