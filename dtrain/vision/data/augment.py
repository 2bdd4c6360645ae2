"""Random crops and flips of a whole batch, decided by each image's position in the epoch and by nothing else.

The decision for an image is a function of (seed, epoch, position in the epoch's order). The rank is implied by the
position, so the number of prefetch workers, the batch size and the world size do not change what an image looks
like, and a run that resumes in the middle of an epoch continues bit for bit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtrain.vision.data.random_bits import Stream, random_bits


@dataclass(frozen=True)
class Augment:
    """Pad with black and crop back at a random offset, then mirror half of the images."""

    flip: bool  # mirror left-right with probability 1/2; wrong for digits and text
    crop_padding: int  # pixels added on every side before the random crop; 0 means no crop

    def __call__(
        self, images: NDArray[np.uint8], *, seed: int, epoch: int, positions: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """A new uint8 batch (N, C, H, W); `positions` (N,) are the images' places in the epoch's order."""
        bits = random_bits(Stream.AUGMENT, seed, epoch, positions=positions)
        offsets = np.uint64(2 * self.crop_padding + 1)
        # Bit 0 mirrors, bits 1..31 and 32..63 move; the modulo's bias is below 2**-20 for any sane padding.
        top = ((bits >> np.uint64(1)) & np.uint64(0x7FFFFFFF)) % offsets
        left = (bits >> np.uint64(32)) % offsets
        images = _crop(images, self.crop_padding, top.astype(np.int64), left.astype(np.int64))
        if self.flip:
            mirrored = (bits & np.uint64(1)).astype(np.bool_)
            images[mirrored] = images[mirrored, :, :, ::-1]
        return images


def crop_padding(image_size: int) -> int:
    """An eighth of the image: 4 pixels at 32, as He et al. (arXiv 1512.03385, section 4.2) use on CIFAR-10."""
    return image_size // 8


def _crop(
    images: NDArray[np.uint8], padding: int, top: NDArray[np.int64], left: NDArray[np.int64]
) -> NDArray[np.uint8]:
    num_images, channels, height, width = images.shape
    padded = np.zeros((num_images, channels, height + 2 * padding, width + 2 * padding), np.uint8)
    padded[:, :, padding : padding + height, padding : padding + width] = images
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    return np.ascontiguousarray(windows[np.arange(num_images), :, top, left])
