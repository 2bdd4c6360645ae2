"""Kernels are compiled, or loaded, before the first step: for a worker that does so in a step all the others wait."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dtrain.comm.lockstep import lockstep
from dtrain.compressors import Cast, ErrorFeedback, Masked, Only, Shared, Warmup
from dtrain.compressors.chunked_top_k import ChunkedTopK
from dtrain.compressors.codecs import compiled, selection
from dtrain.compressors.codecs.blocks import Blocks
from dtrain.compressors.dgc import Dgc
from dtrain.compressors.top_k import TopK
from dtrain.compressors.two_phase import TwoPhase
from dtrain.exchange import Bucket, Compressor, Context, Layout
from dtrain.sync.drive import drive


def compile_ahead(compressor: Compressor, device: torch.device) -> None:
    """Have all kernels ready with which the methods inside `compressor` encode what lies on `device`.

    Each method exchanges some values with nobody. Seconds where the machine code is not kept yet, else milliseconds;
    nothing where numba does not encode.
    """
    if device.type != "cpu" or compiled.in_use("cpu") != "numba":
        return
    numel = 2 * selection.SAMPLED_FROM  # enough for every kernel to be of use
    layout = Layout(("",), ((numel,),))
    for method in _methods(compressor):
        for wanted in (False, True):  # error feedback has a kernel of its own where nobody wants the contribution
            values = torch.arange(1, numel + 1, dtype=torch.float32, device=device)
            bucket = Bucket(values, layout)
            exchange = method.exchange(bucket, method.init(bucket), Context(0, 1, 0, wants_contribution=wanted))
            exchanged = drive(exchange, lockstep(1)[0])
            if wanted:
                exchanged.contribution.subtract_from(values)


def _methods(compressor: Compressor) -> Iterator[Compressor]:
    """Those of ours with kernels, to which policies hand buckets on, if only in some steps or of some parameters."""
    match compressor:
        case Warmup(first=first, then=then):
            yield from _methods(first)
            yield from _methods(then)
        case Only(inner=inner, others=others):
            yield from _methods(inner)
            yield from _methods(others)
        case Cast(inner=inner) | Masked(inner=inner) | Shared(inner=inner):
            yield from _methods(inner)
        case ErrorFeedback(inner=inner):
            if any(True for _ in _methods(inner)):
                yield compressor
        case TwoPhase(codec=Blocks()) | TopK() | ChunkedTopK() | Dgc():
            yield compressor
