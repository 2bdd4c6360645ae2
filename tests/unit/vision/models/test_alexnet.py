"""AlexNet's two layouts: sizes, names, small images, and a start from which it learns."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dtrain.vision.models import build, variant

LAYOUTS = ("alexnet", "alexnet_torchvision")


def on_meta(name: str, num_classes: int = 1000) -> nn.Module:
    with torch.device("meta"):
        return build(name, num_classes=num_classes)


@pytest.mark.parametrize(("name", "expected"), [("alexnet", 60_965_224), ("alexnet_torchvision", 61_100_840)])
def test_parameter_counts_are_the_published_ones(name: str, expected: int) -> None:
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == expected


def test_torchvision_layout_has_torchvisions_names_and_shapes() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in on_meta("alexnet_torchvision").state_dict().items()}
    weights = {
        "features.0": (64, 3, 11, 11),
        "features.3": (192, 64, 5, 5),
        "features.6": (384, 192, 3, 3),
        "features.8": (256, 384, 3, 3),
        "features.10": (256, 256, 3, 3),
        "classifier.1": (4096, 9216),
        "classifier.4": (4096, 4096),
        "classifier.6": (1000, 4096),
    }
    expected = {}
    for layer, shape in weights.items():
        expected |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
    assert list(shapes.items()) == list(expected.items())


def test_paper_layout_splits_conv2_4_and_5_in_two_groups() -> None:
    convolutions = [layer for layer in on_meta("alexnet").modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.groups for layer in convolutions] == [1, 2, 1, 2, 2]
    assert [tuple(layer.weight.shape[:2]) for layer in convolutions] == [
        (96, 3),
        (256, 48),
        (384, 256),
        (384, 192),
        (256, 192),
    ]


def test_paper_layout_normalises_between_relu_and_pool() -> None:
    features = on_meta("alexnet").features
    assert isinstance(features, nn.Sequential)
    stage = [nn.Conv2d, nn.ReLU, nn.LocalResponseNorm, nn.MaxPool2d]
    assert [type(layer) for layer in features[:8]] == stage * 2
    assert not any(isinstance(layer, nn.LocalResponseNorm) for layer in features[8:])


def test_local_response_norm_is_caffes() -> None:
    norm = on_meta("alexnet").get_submodule("features.2")
    x = 100 * torch.rand(2, 9, 3, 3)
    expected = torch.empty_like(x)
    for channel in range(9):
        window = x[:, max(channel - 2, 0) : channel + 3]
        expected[:, channel] = x[:, channel] / (1 + 1e-4 / 5 * window.square().sum(1)) ** 0.75
    torch.testing.assert_close(norm(x), expected)
    assert (expected < 0.9 * x).any()  # the images are bright enough for it to matter


@pytest.mark.parametrize(("name", "native"), [("alexnet", 227), ("alexnet_torchvision", 224)])
def test_pooling_to_6x6_is_the_identity_at_the_native_size(name: str, native: int) -> None:
    model = on_meta(name)
    assert model.features(torch.empty(1, 3, native, native, device="meta")).shape == (1, 256, 6, 6)
    features = torch.randn(2, 256, 6, 6)
    assert torch.equal(model.avgpool(features), features)


@pytest.mark.parametrize(
    ("name", "size"), [(name, size) for name in LAYOUTS for size in [(64, 64), (96, 64), (224, 224), (227, 227)]]
)
def test_other_image_sizes_and_class_counts_work(name: str, size: tuple[int, int]) -> None:
    assert on_meta(name, num_classes=7)(torch.empty(2, 3, *size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(("name", "smallest"), [("alexnet", 39), ("alexnet_torchvision", 63)])
def test_the_smallest_image_works_and_a_smaller_one_names_it(name: str, smallest: int) -> None:
    model = on_meta(name)
    assert model(torch.empty(2, 3, smallest, smallest, device="meta")).shape == (2, 1000)
    for height, width in ((smallest - 1, smallest), (smallest, smallest - 1), (16, 16)):
        images = torch.empty(2, 3, height, width, device="meta")
        with pytest.raises(
            ValueError, match=f"{height}x{width} pixels are too small .* at least {smallest}x{smallest}"
        ):
            model(images)
        with pytest.raises(RuntimeError, match=r"too small|size"):
            model.features(images)


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_learns_from_scratch_at_64_pixels(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, num_classes=2, dropout=0)
    labels = torch.arange(2).repeat(2)
    images = torch.randn(2, 3, 64, 64)[labels] + 0.1 * torch.randn(4, 3, 64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(0.69, abs=0.1)
    assert losses[-1] < 0.3


def test_dropout_is_where_each_layout_has_it() -> None:
    places = {name: [type(layer).__name__ for layer in on_meta(name).classifier] for name in LAYOUTS}
    assert places["alexnet"] == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert places["alexnet_torchvision"] == ["Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Linear"]


def test_each_layout_says_which_it_is() -> None:
    assert variant(on_meta("alexnet")).startswith("paper layout")
    assert variant(on_meta("alexnet_torchvision")).startswith("torchvision layout")


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dropout", [-0.1, 1])
def test_a_dropout_that_is_no_probability_is_a_value_error(name: str, dropout: float) -> None:
    with pytest.raises(ValueError, match="probability below 1"), torch.device("meta"):
        build(name, num_classes=10, dropout=dropout)
