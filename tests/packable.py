"""Models to pack: what tests of packing and of shipping share."""

from __future__ import annotations

import numpy as np

from dtrain.pack import Model, Tensor


def small_model() -> Model:
    rng = np.random.default_rng(0)
    dense = rng.normal(0, 0.1, (16, 8, 3, 3)).astype("<f4")
    sparse = dense.reshape(8, 144) * (rng.uniform(size=(8, 144)) < 0.3)
    return Model(
        {
            "conv.weight": Tensor.of(dense),
            "conv.bias": Tensor.of(dense[0, 0, 0]),
            "shared": Tensor.of(rng.choice(np.array([-0.5, 0, 0.25], "<f4"), (20, 30))),
            "sparse": Tensor.of(sparse.astype("<f4")),
            "steps": Tensor.of(np.array(7, "<i8")),
            "nothing": Tensor.of(np.zeros((0, 3), "<f2")),
        },
        {"dtrain": '{"format": "x"}', "Ü": "ß"},
    )


def trained(seed: int, moved: float) -> Model:
    """A network's weights, and the same after some more steps."""
    rng = np.random.default_rng(0)
    tensors = {
        "conv.weight": rng.normal(0, 0.05, (48, 32, 3, 3)),
        "fc.weight": rng.normal(0, 0.05, (60, 300)),
        "fc.bias": rng.normal(0, 0.1, (60,)),
    }
    more = np.random.default_rng(seed)
    return Model(
        {name: Tensor.of((w + moved * more.normal(0, 0.05, w.shape)).astype("<f4")) for name, w in tensors.items()}, {}
    )
