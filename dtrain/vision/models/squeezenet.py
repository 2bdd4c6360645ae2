"""SqueezeNet (Iandola et al. 2016, arXiv 1602.07360): the network whose small gradients this project measures.

One constructor spans the paper's design space (section 5); versions 1.0 and 1.1 are two points of it. Parameters have
torchvision's names, so that its weight files load as they are.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from dtrain.arguments import check_name
from dtrain.vision.models.fire import FIRST_FIRE, LAST_FIRE, Fire, fire_widths
from dtrain.vision.models.image_size import check_image_size, smallest_image
from dtrain.vision.models.initialise import HE, initialise

BYPASSES = ("none", "simple", "complex")
VERSION_1 = {"base_e": 128, "incr_e": 128, "pct3x3": 0.5, "freq": 2, "squeeze_ratio": 0.125}


class SqueezeNet(nn.Module):
    """Images (N, 3, H, W), floating point -> logits (N, num_classes). The defaults are version 1.0.

    Images: any size from `min_image_size` a side, which is 21 for version 1.0 and 17 for 1.1 (so 32x32 works and 16x16
    does not); smaller ones raise ValueError. Published weights want 227x227 (Caffe) or 224x224 (torchvision).

    Args:
        num_classes: filters of conv10.
        base_e, incr_e, pct3x3, freq, squeeze_ratio: see `fire_widths`. squeeze_ratio is the paper's SR.
        bypass: "none"; "simple": identity around each Fire module that keeps the number of channels (fire3, 5, 7, 9);
            "complex": a 1x1 convolution around the others too (section 6, figure 2).
        conv1_channels, conv1_kernel, conv1_stride: the first convolution, unpadded.
        pool_after: the layers, in the paper's numbering (1 is conv1, 2 to 9 the Fire modules), followed by a 3x3
            max-pool of stride 2 whose last window may be partial, as in Caffe.
        conv10_padding: zero padding of the 1x1 conv10. 1 in the published Caffe version 1.0, 0 in version 1.1 and in
            both of torchvision's. With 1 the average counts a border that holds nothing but the bias: a small loss at
            227x227 (15x15 against 13x13), but 8 of 9 positions at 32x32, hence the default.
        final_relu: ReLU after conv10, which all published weights were trained with. From scratch it stops training:
            a class whose logits fall below zero everywhere gets no gradient and does not come back. So off by default.
        dropout: probability, before conv10.

    Weights are initialised as torchvision does, except around a bypass (see `_bypass_gains`).

    Raises ValueError for options out of range.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        base_e: int = 128,
        incr_e: int = 128,
        pct3x3: float = 0.5,
        freq: int = 2,
        squeeze_ratio: float = 0.125,
        bypass: str = "none",
        conv1_channels: int = 96,
        conv1_kernel: int = 7,
        conv1_stride: int = 2,
        pool_after: Sequence[int] = (1, 4, 8),
        conv10_padding: int = 0,
        final_relu: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        widths = fire_widths(base_e, incr_e, pct3x3, freq, squeeze_ratio)
        _check_layers(bypass, conv1_channels, conv1_kernel, conv1_stride, pool_after, conv10_padding, dropout)
        conv1 = nn.Conv2d(3, conv1_channels, conv1_kernel, conv1_stride)
        self.features = nn.Sequential(conv1, nn.ReLU(inplace=True))
        self.caffe_layers = {"conv1": "features.0"}
        """Caffe's name of each layer with weights, and the module path that it has here."""
        if 1 in pool_after:
            self.features.append(_max_pool())
        channels = conv1_channels
        for number, fire in enumerate(widths, start=FIRST_FIRE):
            path = f"features.{len(self.features)}"
            around = _bypass(bypass, channels, fire.out_channels)
            self.features.append(Fire(channels, fire, around))
            for caffe, ours in (("squeeze1x1", "squeeze"), ("expand1x1", "expand1x1"), ("expand3x3", "expand3x3")):
                self.caffe_layers[f"fire{number}/{caffe}"] = f"{path}.{ours}"
            if isinstance(around, nn.Conv2d):
                self.caffe_layers[f"fire{number}/bypass1x1"] = f"{path}.bypass"
            if number in pool_after:
                self.features.append(_max_pool())
            channels = fire.out_channels
        conv10 = nn.Conv2d(channels, num_classes, kernel_size=1, padding=conv10_padding)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            conv10,
            nn.ReLU(inplace=True) if final_relu else nn.Identity(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.caffe_layers["conv10"] = "classifier.1"
        initialise(self, classifier=conv10, exceptions=_bypass_gains(self))

        self.min_image_size = smallest_image(self.features)
        fires = {"base_e": base_e, "incr_e": incr_e, "pct3x3": pct3x3, "freq": freq, "squeeze_ratio": squeeze_ratio}
        self.variant = ", ".join(
            (
                "Caffe v1.0 layout (conv10 padded by 1)" if conv10_padding else "torchvision layout",
                *(f"{name} {value:g}" for name, value in fires.items() if value != VERSION_1[name]),
                f"{'no' if bypass == 'none' else bypass} bypass",
                f"final ReLU {'on' if final_relu else 'off'}",
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        check_image_size(images, self.min_image_size, "this SqueezeNet")
        logits: Tensor = self.classifier(self.features(images))
        return logits.flatten(start_dim=1)


def squeezenet1_0(
    *,
    num_classes: int = 1000,
    bypass: str = "none",
    conv10_padding: int = 0,
    final_relu: bool = False,
    dropout: float = 0.5,
) -> SqueezeNet:
    """Version 1.0, the paper's table 1: 1,248,424 parameters with 1000 classes. Options as `SqueezeNet`."""
    return SqueezeNet(
        num_classes=num_classes,
        bypass=bypass,
        conv10_padding=conv10_padding,
        final_relu=final_relu,
        dropout=dropout,
    )


def squeezenet1_1(
    *,
    num_classes: int = 1000,
    bypass: str = "none",
    final_relu: bool = False,
    dropout: float = 0.5,
) -> SqueezeNet:
    """Version 1.1, 2.4x less arithmetic than 1.0: 1,235,496 parameters with 1000 classes. Options as `SqueezeNet`."""
    return SqueezeNet(
        num_classes=num_classes,
        bypass=bypass,
        conv1_channels=64,
        conv1_kernel=3,
        pool_after=(1, 3, 5),
        final_relu=final_relu,
        dropout=dropout,
    )


def _check_layers(
    bypass: str,
    conv1_channels: int,
    conv1_kernel: int,
    conv1_stride: int,
    pool_after: Sequence[int],
    conv10_padding: int,
    dropout: float,
) -> None:
    check_name("bypass ", bypass, BYPASSES)
    if min(conv1_channels, conv1_kernel, conv1_stride) < 1:
        raise ValueError("conv1_channels, conv1_kernel and conv1_stride must be at least 1")
    if list(pool_after) != sorted(set(pool_after) & set(range(1, LAST_FIRE + 1))):
        raise ValueError(f"pool_after must be increasing layer numbers from 1 to {LAST_FIRE}, got {pool_after}")
    if conv10_padding not in (0, 1):
        raise ValueError(f"conv10_padding must be 0 (torchvision, v1.1) or 1 (Caffe v1.0), got {conv10_padding}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a probability below 1, got {dropout}")


def _max_pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)


def _bypass(kind: str, in_channels: int, out_channels: int) -> nn.Module | None:
    if kind == "none":
        return None
    if in_channels == out_channels:
        return nn.Identity()
    return nn.Conv2d(in_channels, out_channels, kernel_size=1) if kind == "complex" else None


def _bypass_gains(model: nn.Module) -> dict[nn.Module, float]:
    """Gains that let bypasses train: the bypass carries the signal at first, and its Fire module adds a quarter.

    With He's gain on both, each sum doubles what came in or more: complex bypass then starts at a loss of 40 on digits
    and overflows within some steps at a learning rate of 0.005; simple bypass stays at chance.
    """
    gains: dict[nn.Module, float] = {}
    for fire in model.modules():
        if isinstance(fire, Fire) and fire.bypass is not None:
            gains |= {fire.expand1x1: HE / 4, fire.expand3x3: HE / 4, fire.bypass: 1.0}
    return gains
