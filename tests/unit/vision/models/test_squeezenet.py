"""SqueezeNet's sizes, names and small print, and the registry that builds it."""

import json
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dtrain.vision.models import MODELS, SqueezeNet, build, complete_options, variant
from dtrain.vision.models.fire import Fire, fire_widths
from dtrain.vision.models.squeezenet import squeezenet1_0, squeezenet1_1

CONF = Path(__file__).parents[4] / "conf" / "model"


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return build(name, num_classes=1000, **options)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def torchvision_names(fires: list[int]) -> list[str]:
    layers = ["features.0"]
    layers += [f"features.{fire}.{part}" for fire in fires for part in ("squeeze", "expand1x1", "expand3x3")]
    return [f"{layer}.{kind}" for layer in [*layers, "classifier.1"] for kind in ("weight", "bias")]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("squeezenet1_0", {}, 1_248_424),
        ("squeezenet1_0", {"bypass": "simple"}, 1_248_424),
        ("squeezenet1_0", {"bypass": "complex"}, 1_589_672),
        ("squeezenet1_0", {"conv10_padding": 1, "final_relu": True}, 1_248_424),
        ("squeezenet1_1", {}, 1_235_496),
        ("squeezenet", {}, 1_248_424),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, options: dict[str, object], expected: int) -> None:
    assert num_parameters(on_meta(name, **options)) == expected


@pytest.mark.parametrize(
    ("squeeze_ratio", "pct3x3", "megabytes"),
    [
        (0.125, 0.5, 4.99),
        (0.25, 0.5, 7.87),
        (0.5, 0.5, 13.62),
        (0.75, 0.5, 19.37),
        (1.0, 0.5, 25.12),
        (0.5, 0.01, 5.89),
        (0.5, 0.25, 9.69),
        (0.5, 0.75, 17.55),
        (0.5, 0.99, 21.30),
    ],
)
def test_design_space_has_the_sizes_of_the_papers_sweeps(squeeze_ratio: float, pct3x3: float, megabytes: float) -> None:
    model = on_meta("squeezenet", squeeze_ratio=squeeze_ratio, pct3x3=pct3x3)
    assert round(4 * num_parameters(model) / 1e6, 2) == megabytes


@pytest.mark.parametrize(
    ("name", "fires"),
    [("squeezenet1_0", [3, 4, 5, 7, 8, 9, 10, 12]), ("squeezenet1_1", [3, 4, 6, 7, 9, 10, 11, 12])],
)
def test_state_dict_has_torchvisions_names_in_torchvisions_order(name: str, fires: list[int]) -> None:
    assert list(on_meta(name).state_dict()) == torchvision_names(fires)


def test_fire_widths_follow_the_papers_table_1() -> None:
    widths = fire_widths(base_e=128, incr_e=128, pct3x3=0.5, freq=2, squeeze_ratio=0.125)
    assert [fire.squeeze for fire in widths] == [16, 16, 32, 32, 48, 48, 64, 64]
    assert [fire.expand1x1 for fire in widths] == [64, 64, 128, 128, 192, 192, 256, 256]
    assert [fire.expand3x3 for fire in widths] == [64, 64, 128, 128, 192, 192, 256, 256]


def test_a_fraction_that_rounding_error_put_below_a_whole_filter_is_not_lost() -> None:
    assert 0.29 * 100 < 29
    assert fire_widths(base_e=100, incr_e=0, pct3x3=0.29, freq=1, squeeze_ratio=0.1)[0].expand3x3 == 29


@pytest.mark.parametrize(
    ("bypass", "kinds"),
    [
        ("none", [None] * 8),
        ("simple", [None, nn.Identity] * 4),
        ("complex", [nn.Conv2d, nn.Identity] * 4),
    ],
)
def test_bypasses_go_around_the_papers_fire_modules(bypass: str, kinds: list[type | None]) -> None:
    model = on_meta("squeezenet1_0", bypass=bypass)
    bypasses = [module.bypass for module in model.modules() if isinstance(module, Fire)]
    assert [around if around is None else type(around) for around in bypasses] == kinds


def test_a_bypass_adds_the_input_to_the_output() -> None:
    widths = fire_widths(base_e=8, incr_e=0, pct3x3=0.5, freq=1, squeeze_ratio=0.5)[0]
    plain, bypassed = Fire(8, widths), Fire(8, widths, nn.Identity())
    bypassed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(bypassed(x), plain(x) + x)


@pytest.mark.parametrize(("name", "smallest"), [("squeezenet1_0", 21), ("squeezenet1_1", 17)])
def test_the_smallest_image_works_and_a_smaller_one_names_it(name: str, smallest: int) -> None:
    model = on_meta(name)
    assert model(torch.empty(2, 3, smallest, smallest, device="meta")).shape == (2, 1000)
    for height, width in ((smallest - 1, smallest), (smallest, smallest - 1), (16, 16)):
        images = torch.empty(2, 3, height, width, device="meta")
        with pytest.raises(
            ValueError, match=f"{height}x{width} pixels are too small .* at least {smallest}x{smallest}"
        ):
            model(images)
        with pytest.raises(RuntimeError, match="too small"):
            model.features(images)


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
@pytest.mark.parametrize("size", [(32, 32), (64, 48), (224, 224), (227, 227)])
def test_other_image_sizes_and_class_counts_work(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        logits = build(name, num_classes=7)(torch.empty(2, 3, *size))
    assert logits.shape == (2, 7)


def test_pooling_counts_a_partial_window_as_caffe_does() -> None:
    with torch.device("meta"):
        features = squeezenet1_0().features
        assert features[2](features[0](torch.empty(1, 3, 64, 64))).shape[-2:] == (14, 14)  # 29 pixels; 14 is exact
        assert features[2](features[0](torch.empty(1, 3, 227, 227))).shape[-2:] == (55, 55)
        assert features(torch.empty(1, 3, 227, 227)).shape[-2:] == (13, 13)
        assert features(torch.empty(1, 3, 32, 32)).shape[-2:] == (1, 1)  # 13 -> 6 -> 3 -> 1; without it 6 -> 2 -> none


def logits_with(images: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    model = build("squeezenet1_0", num_classes=5, **options).eval()
    model.load_state_dict(weights)
    with torch.inference_mode():
        logits: Tensor = model(images)
    return logits


def test_conv10_padding_averages_a_border_of_biases_in() -> None:
    weights = squeezenet1_0(num_classes=5).state_dict()
    bias = weights["classifier.1.bias"].copy_(torch.randn(5))
    images = torch.randn(2, 3, 32, 32)  # one position is left before conv10: 3x3 = 9 once padded
    plain, padded = logits_with(images, weights), logits_with(images, weights, conv10_padding=1)
    torch.testing.assert_close(padded, (plain + 8 * bias) / 9)


def test_final_relu_is_off_by_default_and_clips_logits_when_on() -> None:
    weights = squeezenet1_0(num_classes=5).state_dict()
    images = torch.randn(4, 3, 32, 32)
    plain, clipped = logits_with(images, weights), logits_with(images, weights, final_relu=True)
    assert (plain < 0).any()
    torch.testing.assert_close(clipped, plain.clamp(min=0))  # one position, so clipping and averaging commute


def test_weights_are_initialised_as_in_torchvision() -> None:
    torch.manual_seed(0)
    model = squeezenet1_1()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            assert not weight.any()
        elif name == "classifier.1.weight":
            assert weight.std().item() == pytest.approx(0.01, rel=0.02)
            assert weight.abs().max() > 0.03  # normal, not uniform
        else:
            bound = math.sqrt(6 / weight[0].numel())
            assert 0.95 * bound < weight.abs().max() <= bound


def test_the_same_seed_gives_the_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build("squeezenet1_1", num_classes=10).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
@pytest.mark.parametrize("bypass", ["none", "simple", "complex"])
def test_the_first_logits_are_small_whatever_the_bypass(name: str, bypass: str) -> None:
    torch.manual_seed(0)
    model = build(name, num_classes=10, bypass=bypass).eval()
    with torch.inference_mode():
        logits = model(torch.randn(8, 3, 32, 32))
    assert 0.01 < logits.abs().max() < 3


@pytest.mark.parametrize("bypass", ["none", "simple", "complex"])
def test_it_learns_from_scratch_at_32_pixels(bypass: str) -> None:
    torch.manual_seed(0)
    model = build("squeezenet1_1", num_classes=4, bypass=bypass, dropout=0)
    labels = torch.arange(4).repeat(4)
    images = torch.randn(4, 3, 32, 32)[labels] + 0.1 * torch.randn(16, 3, 32, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses[-5:]) < 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"bypass": "simpel"},
            r"bypass simpel does not exist \(did you mean simple\?\): choose one of none, ",
        ),
        ({"pct3x3": 1.0}, "0 < pct3x3 < 1"),
        ({"pct3x3": 0.001}, "fire2 would have no filters"),
        ({"squeeze_ratio": 1.5}, "squeeze_ratio <= 1"),
        ({"freq": 0}, "freq >= 1"),
        ({"incr_e": -1}, "incr_e >= 0"),
        ({"pool_after": [4, 1]}, "increasing layer numbers from 1 to 9"),
        ({"pool_after": [1, 10]}, "increasing layer numbers from 1 to 9"),
        ({"conv1_kernel": 0}, "at least 1"),
        ({"conv10_padding": 2}, "must be 0"),
        ({"dropout": 1.0}, "probability below 1"),
        ({"final_relu": "no"}, "must be true or false"),
        ({"final_relu": 1}, "must be true or false"),
        ({"base_e": 64.0}, "base_e=64.0 must be a whole number"),
        ({"pool_after": "1,4"}, "must be a list"),
        ({"num_layers": 3}, "no option num_layers.*: it has base_e, .* dropout"),
    ],
)
def test_an_option_that_makes_no_sense_is_a_value_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("squeezenet", num_classes=10, **options)


@pytest.mark.parametrize("num_classes", [0, -1, True, 2.0, None])
def test_a_class_count_that_makes_no_sense_is_a_value_error(num_classes: object) -> None:
    with pytest.raises(ValueError, match="positive integer"):
        build("squeezenet1_1", num_classes=num_classes)  # type: ignore[arg-type]


def test_an_unknown_model_is_a_value_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"resnet50.*squeezenet1_0, squeezenet1_1, squeezenet, alexnet"):
        build("resnet50", num_classes=10)


@pytest.mark.parametrize("name", MODELS)
def test_the_configuration_offers_every_option_with_its_default(name: str) -> None:
    offered = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(offered, dict)
    assert offered.pop("name") == name
    assert offered.pop("num_classes") is None
    assert list(offered) == list(complete_options(name))
    assert complete_options(name, **offered) == complete_options(name)


def test_every_configuration_file_is_of_a_registered_model() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(MODELS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("squeezenet", {"squeeze_ratio": 0.5, "pool_after": [1, 3, 5], "bypass": "complex"}),
        ("squeezenet1_0", {"conv10_padding": 1, "final_relu": True, "dropout": 0}),
    ],
)
def test_a_model_is_rebuilt_from_its_options_in_json(name: str, options: dict[str, object]) -> None:
    saved = json.dumps(complete_options(name, **options))
    model, again = on_meta(name, **options), on_meta(name, **json.loads(saved))
    assert repr(again) == repr(model)  # every layer and its arguments
    assert variant(again) == variant(model)


def test_version_1_1_is_a_point_of_the_design_space() -> None:
    with torch.device("meta"):
        point = SqueezeNet(conv1_channels=64, conv1_kernel=3, pool_after=(1, 3, 5))
        assert repr(point) == repr(squeezenet1_1())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "torchvision layout, no bypass, final ReLU off"),
        ({"bypass": "simple", "final_relu": True}, "torchvision layout, simple bypass, final ReLU on"),
        ({"squeeze_ratio": 0.5}, "torchvision layout, squeeze_ratio 0.5, no bypass, final ReLU off"),
        ({"conv10_padding": 1}, "Caffe v1.0 layout (conv10 padded by 1), no bypass, final ReLU off"),
    ],
)
def test_the_variant_says_layout_fire_modules_bypass_and_final_relu(options: dict[str, object], expected: str) -> None:
    assert variant(on_meta("squeezenet", **options)) == expected


def test_a_model_from_elsewhere_is_called_by_its_class() -> None:
    assert variant(nn.Linear(1, 1)) == "Linear"
