"""The smallest image that a network can take, and the error for smaller ones.

Networks for 227x227 images shrink them by strides and pooling without padding. Below some size a pooling window finds
nothing left, and torch's own error then speaks of a layer deep inside; users should hear about their images instead.
"""

from bisect import bisect_left

from torch import Tensor, nn


def smallest_image(features: nn.Sequential) -> int:
    """The smallest height (and width), in pixels, for which every layer of `features` has something to put out.

    Follows the direct children that are convolutions or max-pools; other children must keep the size.
    """
    shrinking = [layer for layer in features if isinstance(layer, nn.Conv2d | nn.MaxPool2d)]
    return bisect_left(range(1 << 62), True, key=lambda size: _survives(size, shrinking))


def check_image_size(images: Tensor, smallest: int, model: str) -> None:
    """Raise ValueError where `images` (..., height, width) are smaller than `smallest` pixels a side."""
    height, width = images.shape[-2:]
    if height < smallest or width < smallest:
        raise ValueError(
            f"images of {height}x{width} pixels are too small for {model}, which needs at least {smallest}x{smallest}: "
            f"enlarge them (for instance data.image_size={smallest})"
        )


def _survives(size: int, layers: list[nn.Conv2d | nn.MaxPool2d]) -> bool:
    if size < 1:
        return False
    for layer in layers:
        stride = _side(layer.stride)
        round_up = stride - 1 if isinstance(layer, nn.MaxPool2d) and layer.ceil_mode else 0
        padding = layer.padding
        assert not isinstance(padding, str)
        size = (size + 2 * _side(padding) - _side(layer.kernel_size) + round_up) // stride + 1
        if size < 1:
            return False
    return True


def _side(extent: int | tuple[int, ...]) -> int:
    return extent if isinstance(extent, int) else extent[0]
