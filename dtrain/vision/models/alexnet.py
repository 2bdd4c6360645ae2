"""AlexNet, the baseline of the SqueezeNet paper: the network whose gradients are 49 times larger.

Two layouts go by that name and differ in size, so every report says which: the original one (Krizhevsky et al. 2012),
whose weights Caffe published, and torchvision's single-column one (Krizhevsky 2014, arXiv 1404.5997).
"""

from itertools import count

from torch import Tensor, nn

from dtrain.vision.models.image_size import check_image_size, smallest_image
from dtrain.vision.models.initialise import initialise

POOLED = 6  # fc6 reads 256 x 6 x 6, whatever the image size


class AlexNet(nn.Module):
    """Images (N, 3, H, W), floating point -> logits (N, num_classes); `alexnet` and `alexnet_torchvision` build one.

    `features` -> average pooling to 6x6, which is the identity at the native image size and keeps the number of
    parameters at any other -> `classifier`. Images smaller than `min_image_size` a side raise ValueError.

    Weights start with gain 1 and biases at zero: what a ReLU takes from the mean square, the max-pools give back. At
    64x64 this learns from the first steps at a learning rate of 0.005; He's gain overflows or stalls, and torch's
    default stays at chance for a hundred steps and more.
    """

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential, *, variant: str) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(POOLED)
        self.classifier = classifier
        self.variant = variant
        self.min_image_size = smallest_image(features)
        logits = classifier[-1]
        assert isinstance(logits, nn.Linear)
        initialise(self, classifier=logits, gain=1.0)

        number = count(1)
        self.caffe_layers = {
            f"{'conv' if isinstance(layer, nn.Conv2d) else 'fc'}{next(number)}": path
            for path, layer in self.named_modules()
            if isinstance(layer, nn.Conv2d | nn.Linear)
        }
        """Caffe's name of each layer with weights (conv1 to conv5, fc6 to fc8), and the module path it has here."""

    def forward(self, images: Tensor) -> Tensor:
        check_image_size(images, self.min_image_size, f"this AlexNet ({self.variant})")
        pooled = self.avgpool(self.features(images))
        logits: Tensor = self.classifier(pooled.flatten(start_dim=1))
        return logits


def alexnet(*, num_classes: int = 1000, dropout: float = 0.5) -> AlexNet:
    """The paper's layout: 60,965,224 parameters with 1000 classes. Native images 227x227, the smallest 39x39.

    conv2, 4 and 5 see half of the channels each (groups = 2); local response normalisation before the first two
    pools (Krizhevsky et al. 2012, sections 3.3 to 3.5). Its constants are those of Caffe's published bvlc_alexnet,
    the baseline of the SqueezeNet paper's table 2: alpha = 1e-4 over the mean of 5 channels, beta = 0.75, k = 1.
    (Caffe's CaffeNet has the same parameters but pools before it normalises.) `dropout` comes after fc6 and fc7.

    Raises ValueError for a dropout that is no probability below 1.
    """
    features = nn.Sequential(
        *_convolution(3, 96, kernel_size=11, stride=4),
        _local_response_norm(),
        _max_pool(ceil_mode=True),
        *_convolution(96, 256, kernel_size=5, padding=2, groups=2),
        _local_response_norm(),
        _max_pool(ceil_mode=True),
        *_convolution(256, 384, kernel_size=3, padding=1),
        *_convolution(384, 384, kernel_size=3, padding=1, groups=2),
        *_convolution(384, 256, kernel_size=3, padding=1, groups=2),
        _max_pool(ceil_mode=True),
    )
    classifier = nn.Sequential(
        nn.Linear(256 * POOLED * POOLED, 4096),
        nn.ReLU(inplace=True),
        _dropout(dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        _dropout(dropout),
        nn.Linear(4096, num_classes),
    )
    return AlexNet(features, classifier, variant="paper layout (grouped convolutions, LRN)")


def alexnet_torchvision(*, num_classes: int = 1000, dropout: float = 0.5) -> AlexNet:
    """torchvision's layout: 61,100,840 parameters with 1000 classes. Native images 224x224, the smallest 63x63.

    No groups, no normalisation, fewer filters in front; parameters have torchvision's names. `dropout` comes before
    fc6 and fc7. Raises ValueError for a dropout that is no probability below 1.
    """
    features = nn.Sequential(
        *_convolution(3, 64, kernel_size=11, stride=4, padding=2),
        _max_pool(ceil_mode=False),
        *_convolution(64, 192, kernel_size=5, padding=2),
        _max_pool(ceil_mode=False),
        *_convolution(192, 384, kernel_size=3, padding=1),
        *_convolution(384, 256, kernel_size=3, padding=1),
        *_convolution(256, 256, kernel_size=3, padding=1),
        _max_pool(ceil_mode=False),
    )
    classifier = nn.Sequential(
        _dropout(dropout),
        nn.Linear(256 * POOLED * POOLED, 4096),
        nn.ReLU(inplace=True),
        _dropout(dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Linear(4096, num_classes),
    )
    return AlexNet(features, classifier, variant="torchvision layout (no groups, no LRN)")


def _convolution(
    in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, padding: int = 0, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups)
    return convolution, nn.ReLU(inplace=True)


def _local_response_norm() -> nn.Module:
    return nn.LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=1.0)


def _max_pool(*, ceil_mode: bool) -> nn.Module:
    return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=ceil_mode)


def _dropout(probability: float) -> nn.Module:
    if not 0 <= probability < 1:
        raise ValueError(f"dropout is a probability below 1, got {probability}")
    return nn.Dropout(probability)
