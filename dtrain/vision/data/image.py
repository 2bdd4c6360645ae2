"""From a file to pixels, and from one size to another: the only place where Pillow is used."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dtrain.files import open_file


def read_image(path: Path, image_size: int, shorter_side: int) -> NDArray[np.uint8]:
    """Decode an image file to RGB, uint8 (3, image_size, image_size).

    The shorter side is scaled to `shorter_side` (bilinear, antialiased) and the central square of `image_size` pixels
    is kept; an image whose shorter side has that length already is only cropped. Greyscale, palette and CMYK become
    RGB, transparency is dropped, 16-bit greyscale keeps its upper 8 bits, EXIF orientation is not applied.
    Raises ValueError that names the file if it cannot be read.
    """
    try:
        with open_file(path) as file, Image.open(file) as image:
            pixels = np.asarray(_resize_and_crop(_to_rgb(image), image_size, shorter_side))
    except Exception as error:  # decoders raise anything for a broken file: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"cannot read {path} as an image ({error}); replace or remove the file") from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resize_batch(images: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """Resize square images, uint8 (N, C, H, H) with C = 1 or 3, to (N, C, image_size, image_size), bilinear."""
    num_images, channels, height, width = images.shape
    assert height == width and channels in (1, 3), f"square images of 1 or 3 channels expected, not {images.shape}"
    if height == image_size:
        return images
    resized = np.empty((num_images, channels, image_size, image_size), np.uint8)
    for i, image in enumerate(images):
        source = Image.fromarray(image[0] if channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        pixels = np.asarray(source.resize((image_size, image_size), Image.Resampling.BILINEAR))
        resized[i] = pixels.reshape(image_size, image_size, channels).transpose(2, 0, 1)
    return resized


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I;16"):  # Pillow would clip every value above 255 to white
        upper_bytes = (np.asarray(image) >> 8).astype(np.uint8)
        return Image.fromarray(upper_bytes).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed range; convert the file to 8 bits per channel")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _resize_and_crop(image: Image.Image, image_size: int, shorter_side: int) -> Image.Image:
    # Crop and scale in one call: scaling first would blow a 1 x 10,000 image up before most of it is thrown away.
    width, height = image.size
    side = min(width, height) * image_size / shorter_side
    left, top = (width - side) / 2, (height - side) / 2
    if side == image_size:
        left, top = math.floor(left), math.floor(top)
        return image.crop((left, top, left + image_size, top + image_size))
    box = (left, top, left + side, top + side)
    return image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)
