"""Gradient compressors, one file each, and the combinators that wrap them; found by name in `COMPRESSORS`."""

from __future__ import annotations

from dtrain.compressors.none import NoCompression
from dtrain.compressors.policies.cast import Cast
from dtrain.compressors.policies.error_feedback import ErrorFeedback
from dtrain.compressors.policies.masked import Masked
from dtrain.compressors.policies.only import Only
from dtrain.compressors.policies.shared import Shared
from dtrain.compressors.policies.warmup import Warmup
from dtrain.compressors.registry import COMPRESSORS, build, check_for_updates, keeps_momentum, sends_few

__all__ = [
    "COMPRESSORS",
    "Cast",
    "ErrorFeedback",
    "Masked",
    "NoCompression",
    "Only",
    "Shared",
    "Warmup",
    "build",
    "check_for_updates",
    "keeps_momentum",
    "sends_few",
]
