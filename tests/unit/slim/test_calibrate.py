"""Calibrated rounding: what it promises of outputs, grids and the network that it is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dtrain.pack import Model, Tensor, from_bytes, pack, to_bytes, unpack
from dtrain.pack.uniform import OnGrid
from dtrain.slim.calibrate import calibrate, dead_leaves
from dtrain.vision.models import build


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 24, 3, stride=2, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(24, 20, 1, bias=False),
        nn.Flatten(),
        nn.Linear(20 * 64, 10),
    ).eval()


def images(count: int, seed: int) -> torch.Tensor:
    """What neighbouring pixels have in common makes a difference to rounding."""
    noise = torch.randn(count, 3, 20, 20, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(noise, 5, stride=1)


def with_values(model: nn.Module, values: dict[str, np.ndarray]) -> nn.Module:
    model.load_state_dict({**model.state_dict(), **{name: torch.from_numpy(v) for name, v in values.items()}})
    return model


def error(values: dict[str, np.ndarray]) -> float:
    """Of outputs for images that calibration did not see."""
    with torch.no_grad():
        whole, rounded = network()(images(50, 1)), with_values(network(), values)(images(50, 1))
    return float((rounded - whole).norm() / whole.norm())


def nearest(steps: dict[str, float]) -> dict[str, np.ndarray]:
    state = network().state_dict()
    return {name: (torch.round(state[name] / step) * step).numpy() for name, step in steps.items()}


def test_outputs_err_less_than_with_every_weight_rounded_to_the_nearest() -> None:
    calibrated = calibrate(network(), images(40, 0), 1.0)
    assert error(calibrated.values) < 0.6 * error(nearest(calibrated.steps))


def test_dead_leaves_do_better_than_nothing_where_there_are_no_images() -> None:
    leaves = torch.from_numpy(dead_leaves(40, 16)).float() / 100 - 1
    calibrated = calibrate(network(), leaves, 1.0, stand_in=True)
    assert error(calibrated.values) < 0.8 * error(nearest(calibrated.steps))
    for name, step in calibrated.steps.items():
        if "bias" in name:
            assert np.abs(calibrated.values[name] - network().state_dict()[name].numpy()).max() <= 0.501 * step


def test_every_value_is_on_the_grid_of_its_tensor_and_every_layer_has_one() -> None:
    calibrated = calibrate(network(), images(10, 0), 0.3)
    assert set(calibrated.values) == set(calibrated.steps) == set(network().state_dict())
    for name, values in calibrated.values.items():
        levels = values / calibrated.steps[name]
        assert np.abs(levels - np.rint(levels)).max() < 1e-3
        assert np.abs(levels).max() > 1


def test_the_network_and_the_images_are_as_before() -> None:
    model, batch = network(), images(4, 0)
    calibrate(model, batch, 0.5)
    assert torch.equal(batch, images(4, 0))
    assert all(torch.equal(value, network().state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(batch), network()(batch))


def test_finer_steps_err_less() -> None:
    errors = [error(calibrate(network(), images(20, 0), step).values) for step in (0.1, 0.4, 1.6)]
    assert errors[0] < 0.5 * errors[1] < 0.25 * errors[2]


def test_inputs_that_are_always_zero_and_weights_that_are_all_zero_do_no_harm() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[0].bias[:4] = -1  # after the ReLU nothing is left of these channels
        model[4].weight.zero_()
        model[2].weight.zero_()
        model[2].bias.fill_(-1)  # nor anything of what the layer without biases takes
    values = calibrate(model, images(8, 0), 0.3).values
    assert all(np.isfinite(value).all() for value in values.values())
    assert not values["4.weight"].any()


def test_calibrated_values_pack_to_the_same_levels() -> None:
    calibrated = calibrate(network(), images(8, 0), 0.3)
    model = Model({name: Tensor.of(values) for name, values in calibrated.values.items()}, {})
    packed = to_bytes(pack(model, (OnGrid(calibrated.steps),)))
    unpacked = unpack(from_bytes(packed))
    for name, tensor in unpacked.tensors.items():
        np.testing.assert_array_equal(tensor.floats, calibrated.values[name])
    assert len(packed) < model.num_bytes / 4


def test_it_takes_squeezenet() -> None:
    model = build("squeezenet1_1", num_classes=10).eval()
    calibrated = calibrate(model, torch.randn(2, 3, 32, 32), 0.3)
    assert set(calibrated.values) == set(model.state_dict())


def test_dead_leaves_are_the_same_each_time_and_use_the_whole_range() -> None:
    leaves = dead_leaves(3, 40)
    assert leaves.shape == (3, 3, 40, 40)
    np.testing.assert_array_equal(leaves, dead_leaves(3, 40))
    assert leaves.min() < 30
    assert leaves.max() > 225


def test_a_convolution_that_pads_with_something_else_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match="padding reflect"):
        calibrate(model, images(2, 0), 0.3)
