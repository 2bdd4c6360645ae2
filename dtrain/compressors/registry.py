"""The compressors by name, under the policies that all share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from dtrain.arguments import check_name, check_options, converted
from dtrain.compressors.chunked_top_k import chunked_top_k
from dtrain.compressors.codecs import compiled
from dtrain.compressors.dgc import dgc
from dtrain.compressors.integers import int4, int8
from dtrain.compressors.none import NoCompression
from dtrain.compressors.one_bit import one_bit
from dtrain.compressors.policies.cast import Cast
from dtrain.compressors.policies.only import Only, at_least
from dtrain.compressors.policies.warmup import Warmup
from dtrain.compressors.power_sgd import power_sgd
from dtrain.compressors.random_k import random_k
from dtrain.compressors.rotated_signs import rotated_signs
from dtrain.compressors.ternary import ternary
from dtrain.compressors.top_k import top_k
from dtrain.exchange import Compressor


def _fp16() -> Compressor:
    return Cast(NoCompression(), torch.float16)


def _bf16() -> Compressor:
    return Cast(NoCompression(), torch.bfloat16)


COMPRESSORS: Mapping[str, Callable[..., Compressor]] = MappingProxyType(
    {
        "none": NoCompression,
        "fp16": _fp16,
        "bf16": _bf16,
        "int8": int8,
        "int4": int4,
        "ternary": ternary,
        "rotated_signs": rotated_signs,
        "one_bit": one_bit,
        "top_k": top_k,
        "chunked_top_k": chunked_top_k,
        "dgc": dgc,
        "random_k": random_k,
        "power_sgd": power_sgd,
    }
)


def keeps_momentum(name: str) -> bool:
    """Whether the compressor of that name has the momentum of SGD inside, so that the optimizer must not."""
    return name in COMPRESSORS and "momentum" in inspect.signature(COMPRESSORS[name]).parameters


def sends_few(name: str) -> bool:
    """Whether that compressor sends few elements whole and nothing of the others, in error feedback."""
    return name in ("top_k", "chunked_top_k", "dgc")


def check_for_updates(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for a compressor that keeps a momentum: updates have the optimizer's in them already."""
    if keeps_momentum(name) and options.get("momentum") != 0:
        raise ValueError(f"compressor {name} keeps the momentum of gradients: exchange updates with ternary")


def build(name: str, *, start_after: int = 0, exempt_below: int = 0, **options: Any) -> Compressor:
    """The compressor of that name, under the policies that all share.

    Args:
        name: a key of `COMPRESSORS`.
        start_after: steps at the start that are exchanged uncompressed.
        exempt_below: parameters of fewer elements than this (biases) are exchanged uncompressed, in one message apart.
        options: the compressor's own.

    Raises:
        ValueError: the name or an option does not exist, or a value is out of range; or DTRAIN_CODEC is not to be had.
    """
    compiled.check_variable()
    check_name("compressor ", name, COMPRESSORS)
    shared = {"start_after": start_after, "exempt_below": exempt_below}
    for option, value in shared.items():
        if converted(int, value, option) < 0:
            raise ValueError(f"{option}={value} must be 0 or more")
    compressor = COMPRESSORS[name](**check_options(f"compressor {name}", COMPRESSORS[name], options, also=shared))
    if exempt_below:
        compressor = Only(compressor, at_least(exempt_below))
    return Warmup(NoCompression(), compressor, start_after) if start_after else compressor
