"""Size against agreement of the published SqueezeNet 1.0, packed with no retraining and no data, at several steps.

By the preset `smallest` as it is, which knows the weights alone, and calibrated with dead leaves, made images.

Agreement is the fraction of images whose top-1 class is that of the uncompressed model; the images are one of each of
ImageNet's classes, probably from its training set, so their accuracies compare only with each other. NNCodec's (MPEG-7
part 17, version 2.1.3) were measured on the same weights and images.

    python benchmarks/pack_curve.py --data ../shared/data --hardware cpu2
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import write_result
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from dtrain.pack import PRESETS, Container, Model, OnGrid, from_bytes, pack, read_npz, to_bytes, unpack
from dtrain.pack import Tensor as Packed
from dtrain.pack.uniform import Uniform
from dtrain.slim.calibrate import calibrate, dead_leaves
from dtrain.vision import models

LEAVES = 64
NNCODEC = {-32: (756_684, 0.932), -28: (606_509, 0.865), -26: (524_327, 0.841), -24: (467_158, 0.765)}
"""qp -> bytes, agreement."""

_MEAN_BGR = torch.tensor([104.0, 117.0, 123.0])
_CROP = 227


def images(path: Path, count: int) -> Iterator[tuple[Tensor, int]]:
    """Every (1000 / count)-th image as the published weights want it, (3, 227, 227), and its class."""
    with np.load(path, allow_pickle=False) as file:
        blob, offset, label = file["blob"], file["offset"], file["label"]
    for index in np.linspace(0, len(label), count, endpoint=False).astype(int):
        with Image.open(io.BytesIO(blob[offset[index] : offset[index + 1]].tobytes())) as image:
            rgb = np.asarray(image.convert("RGB"), np.float32)
        top, left = ((size - _CROP) // 2 for size in rgb.shape[:2])
        crop = rgb[top : top + _CROP, left : left + _CROP].transpose(2, 0, 1)
        yield prepared(crop[None])[0], int(label[index])


def prepared(images: NDArray[Any]) -> Tensor:
    """RGB images (N, 3, H, W), from 0 to 255, as the published weights want them."""
    return torch.from_numpy(images[:, ::-1].astype(np.float32)) - _MEAN_BGR[:, None, None]


def network(weights: Model) -> models.SqueezeNet:
    """SqueezeNet 1.0 with Caffe-named weights."""
    model = models.build("squeezenet1_0", num_classes=1000, **models.PUBLISHED["caffe"]["squeezenet1_0"])
    assert isinstance(model, models.SqueezeNet)
    state = {
        f"{ours}.{parameter}": torch.from_numpy(weights.tensors[f"{caffe}|{kind}"].floats.copy())
        for caffe, ours in model.caffe_layers.items()
        for kind, parameter in (("w", "weight"), ("b", "bias"))
    }
    model.load_state_dict(state)
    model.eval()
    return model


def logits(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(torch.stack(inputs[start : start + 10])) for start in range(0, len(inputs), 10)])


def by_tensor(weights: Model, relative_step: float) -> Container:
    """Each tensor by itself, as the preset `smallest` does."""
    return pack(weights, (Uniform(relative_step), *PRESETS["lossless"]))


def calibrated(weights: Model, images: Tensor, relative_step: float, *, stand_in: bool) -> Container:
    """As `dtrain pack --preset smallest --calibrate` does."""
    model = network(weights)
    names = {
        f"{caffe}|{kind[0]}": f"{ours}.{kind}"
        for caffe, ours in model.caffe_layers.items()
        for kind in ("weight", "bias")
    }
    found = calibrate(model, images, relative_step, stand_in=stand_in)
    values = {name: Packed.of(found.values[names[name]]) for name in weights.tensors}
    steps = {name: found.steps[names[name]] for name in weights.tensors}
    return pack(Model(values, weights.metadata), (OnGrid(steps), *PRESETS["lossless"]))


def row(name: str, packed: Callable[[], Container], inputs: Sequence[Tensor], labels: Tensor, top: Tensor) -> str:
    """A table row: bytes, top-1, top-5, agreement with `top`, seconds of processor to pack and to unpack."""
    start = time.process_time()
    data = to_bytes(packed())
    done = time.process_time()
    unpacked = unpack(from_bytes(data))
    end = time.process_time()
    scores = logits(network(unpacked), inputs)
    top_1, agree = ((scores.argmax(1) == other).float().mean().item() for other in (labels, top))
    top_5 = (scores.topk(5).indices == labels[:, None]).any(1).float().mean().item()
    print(f"{name}: {len(data):,} bytes, agreement {agree:.1%}", flush=True)
    cells = (f"{len(data):,}", f"{top_1:.1%}", f"{top_5:.1%}", f"{agree:.1%}", f"{done - start:.1f}")
    return f"| {name} | {' | '.join(cells)} | {end - done:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder of the published weights and images"
    )
    parser.add_argument("--images", type=int, default=1000, help="how many of the 1000")
    parser.add_argument("--steps", type=float, nargs="+", default=[0.061, 0.118, 0.174, 0.226], help="relative steps")
    parser.add_argument("--by-tensor", type=float, nargs="*", default=[0.23], help="the same, without dead leaves")
    parser.add_argument("--hardware", help="name of the result file's hardware; without it, none is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights = read_npz(options.data / "squeezenet_v1.0_fp32.npz")
    inputs, classes = zip(*images(options.data / "imagenet1000_warp256_q95.npz", options.images), strict=True)
    labels, top = torch.tensor(classes), logits(network(weights), inputs).argmax(1)
    leaves = prepared(dead_leaves(LEAVES, _CROP))
    rows = []
    for step in options.steps:
        rows.append(
            row(
                f"dead leaves, step {step:g}",
                partial(calibrated, weights, leaves, step, stand_in=True),
                inputs,
                labels,
                top,
            )
        )
    for step in options.by_tensor:
        rows.append(row(f"by tensor, step {step:g}", partial(by_tensor, weights, step), inputs, labels, top))
    rows += [f"| NNCodec qp {qp} | {size:,} | | | {agree:.1%} | | |" for qp, (size, agree) in NNCODEC.items()]
    header = "| packed by | bytes | top-1 | top-5 | agreement | pack, s | unpack, s |\n|---|---|---|---|---|---|---|\n"
    body = f"{options.images} images; seconds are of the processor, one thread.\n\n{header}" + "\n".join(rows)
    print(body)
    if options.hardware:
        title = "SqueezeNet 1.0, packed without retraining: size against agreement"
        print(write_result("pack_curve", options.hardware, title, body))


if __name__ == "__main__":
    main()
