"""Once a synchroniser is made, its first step compiles nothing."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import fresh_kernels
import pytest
import torch
from fresh_kernels import signatures
from torch import nn

from dtrain.comm.lockstep import lockstep
from dtrain.compressors import Only, build
from dtrain.compressors.codecs import compiled
from dtrain.exchange import Compressor
from dtrain.meter.ledger import Ledger
from dtrain.sync import ahead
from dtrain.sync.every_step import EveryStep

numba_kernels = pytest.importorskip(
    "dtrain.compressors.codecs.numba_kernels", reason="numba is not installed (the extra fast)"
)

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("int8", {}),
    "int8 stochastic": ("int8", {"rounding": "stochastic"}),
    "int4 after a step": ("int4", {"start_after": 1}),
    "one_bit": ("one_bit", {}),
    "ternary of large parameters": ("ternary", {"rounding": "nearest", "exempt_below": 1_000}),
    "ternary stochastic": ("ternary", {}),
    "top_k": ("top_k", {"density": 0.1}),
    "top_k split": ("top_k", {"exchange": "split", "value_bits": 16}),
    "dgc": ("dgc", {"density": 0.02}),
    "chunked_top_k": ("chunked_top_k", {}),
}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """As they are in a new process: none is compiled or loaded yet."""
    fresh = fresh_kernels.load()
    monkeypatch.setattr(compiled, "_numba_loops", lambda: fresh)
    monkeypatch.setattr(numba_kernels, "loops", fresh)
    monkeypatch.setattr(compiled, "_choice", compiled._Choice("numba"))
    monkeypatch.setattr(compiled, "_in_use", {})
    return fresh


def train(compressor: Compressor, kernels: ModuleType) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """What is ready before the first of some steps, and after the last."""
    model = nn.Linear(1500, 100)
    synchronizer = EveryStep(model, compressor, lockstep(1)[0], Ledger(), overlap=False)
    before = signatures(kernels)
    for step in range(2):
        torch.manual_seed(step)
        model(torch.randn(8, 1500)).square().mean().backward()
        synchronizer.before_step()
        synchronizer.after_step()
    synchronizer.close()
    return before, signatures(kernels)


@pytest.mark.parametrize("method", METHODS)
def test_a_first_step_compiles_nothing(method: str, kernels: ModuleType) -> None:
    name, options = METHODS[method]
    before, after = train(build(name, **options), kernels)
    assert after == before
    assert any(before.values())
    assert all(len(ready) <= 1 for ready in after.values()), "several for one kernel share an index of machine code"


def test_what_no_method_needs_is_not_compiled(kernels: ModuleType) -> None:
    before, after = train(build("int8"), kernels)
    assert before["correct_and_quantise"] and not before["pack_signs"] and not after["pack_signs"]


def test_of_parameters_that_go_apart_those_of_either_method_are_ready(kernels: ModuleType) -> None:
    ahead.compile_ahead(Only(build("int8"), lambda name, shape: False, build("one_bit")), torch.device("cpu"))
    ready = signatures(kernels)
    assert ready["correct_and_quantise"] and ready["pack_signs"]


def test_what_has_no_kernels_is_not_exchanged(monkeypatch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
    monkeypatch.setattr(ahead, "drive", lambda *arguments: pytest.fail("for nothing"))
    for name in ("none", "rotated_signs", "power_sgd"):
        ahead.compile_ahead(build(name), torch.device("cpu"))
    assert not any(signatures(kernels).values())


@pytest.mark.usefixtures("kernels")
def test_elsewhere_than_on_a_cpu_nothing_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "drive", lambda *arguments: pytest.fail("for kernels that are of no use there"))
    ahead.compile_ahead(build("int8"), torch.device("meta"))
