"""Presets: stages by name, and which of them a name stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from dtrain.arguments import check_name
from dtrain.pack.low_rank import LowRank
from dtrain.pack.prune import Prune, Sparse
from dtrain.pack.share import Distinct, KMeans
from dtrain.pack.stage import Stage
from dtrain.pack.uniform import Uniform

STAGES: Mapping[str, type[Stage]] = MappingProxyType(
    {stage.name: stage for stage in (Distinct, KMeans, LowRank, Prune, Sparse, Uniform)}
)

_EXACT = (Distinct(), Sparse())

PRESETS: Mapping[str, Sequence[Stage]] = MappingProxyType(
    {
        "lossless": _EXACT,
        "deep_compression_8bit": (Prune(0.33), KMeans(8), *_EXACT),
        "deep_compression_6bit": (Prune(0.33), KMeans(6), *_EXACT),
        "svd": (LowRank(0.95), *_EXACT),
        "pruned": (Prune(0.33), *_EXACT),
        "smallest": (Uniform(0.23), *_EXACT),
    }
)
"""What `dtrain pack --preset` takes. All but lossless change the weights: measure what that costs."""


def stages(preset: str) -> Sequence[Stage]:
    """The stages of a preset. Raises ValueError for a name that is none."""
    check_name("preset ", preset, PRESETS)
    return PRESETS[preset]
