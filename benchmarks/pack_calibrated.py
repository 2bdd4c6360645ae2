"""The published SqueezeNet 1.0, packed with images at hand: size against accuracy on images that it was not tuned with.

Images of ImageNet's classes at even positions calibrate, without their labels; those at odd positions are scored. The
intervals are of the difference to the uncompressed network on the same images: 95%, bootstrap over images.

    python benchmarks/pack_calibrated.py --data ../shared/data --hardware cpu2
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from harness import write_result
from pack_curve import calibrated, images, logits, network
from torch import Tensor

from dtrain.pack import from_bytes, read_npz, to_bytes, unpack

RESAMPLES = 10_000


def hits(scores: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    """Of each image, whether its class is the first, and whether it is among five."""
    best = scores.topk(5).indices == labels[:, None]
    return {"top-1": best[:, 0].numpy().astype(float), "top-5": best.any(1).numpy().astype(float)}


def difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """In points, with its interval."""
    gains = 100 * (ours - theirs)
    rng = np.random.default_rng(0)
    means = gains[rng.integers(0, len(gains), (RESAMPLES, len(gains)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{gains.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder of the published weights and images"
    )
    parser.add_argument("--images", type=int, default=128, help="how many calibrate, of 500")
    parser.add_argument("--steps", type=float, nargs="+", default=[0.222, 0.31], help="relative steps")
    parser.add_argument("--hardware", help="name of the result file's hardware; without it, none is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights = read_npz(options.data / "squeezenet_v1.0_fp32.npz")
    whole = network(weights)
    everything = list(images(options.data / "imagenet1000_warp256_q95.npz", 1000))
    even, odd = (everything[start::2] for start in (0, 1))
    chosen = np.linspace(0, len(even), options.images, endpoint=False).astype(int)
    tuning = torch.stack([even[index][0] for index in chosen])
    inputs, labels = [image for image, _ in odd], torch.tensor([label for _, label in odd])
    before = logits(whole, inputs)
    fp32 = hits(before, labels)
    top_1, top_5 = (f"{100 * fp32[k].mean():.1f}%" for k in ("top-1", "top-5"))
    rows = [f"| fp32 | {weights.num_bytes:,} | {top_1} | | {top_5} | | | |"]
    for step in options.steps:
        start = time.process_time()
        data = to_bytes(calibrated(weights, tuning, step, stand_in=False))
        seconds = time.process_time() - start
        after = logits(network(unpack(from_bytes(data))), inputs)
        ours = hits(after, labels)
        cells = [f"{100 * ours[k].mean():.1f}% | {difference(ours[k], fp32[k])}" for k in ("top-1", "top-5")]
        agree = (after.argmax(1) == before.argmax(1)).float().mean().item()
        rows.append(f"| step {step:g} | {len(data):,} | {' | '.join(cells)} | {agree:.1%} | {seconds:.0f} |")
        print(rows[-1], flush=True)
    header = (
        "| packed with | bytes | top-1 | points to fp32 | top-5 | points to fp32 | agreement | all of it, s |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    body = (
        f"{options.images} images calibrate, {len(odd)} others are scored; intervals: 95%, paired bootstrap of "
        f"{RESAMPLES:,}; seconds are of the processor, one thread.\n\n{header}" + "\n".join(rows)
    )
    print(body)
    if options.hardware:
        title = "SqueezeNet 1.0, packed with images to calibrate: size against accuracy"
        print(write_result("pack_calibrated", options.hardware, title, body))


if __name__ == "__main__":
    main()
