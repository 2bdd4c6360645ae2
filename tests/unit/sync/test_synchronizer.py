"""Every synchroniser is one: the loop, phases and checkpoints know nothing but the protocol."""

from __future__ import annotations

import inspect

import pytest

from dtrain.sync.ddp import DdpSynchronizer
from dtrain.sync.every_step import EveryStep
from dtrain.sync.horovod import HorovodSynchronizer
from dtrain.sync.local import Local
from dtrain.sync.synchronizer import Synchronizer

METHODS = [name for name, _ in inspect.getmembers(Synchronizer, inspect.isfunction) if not name.startswith("_")]


def test_the_protocol_is_what_it_was() -> None:
    assert METHODS == [
        "after_step",
        "align",
        "before_step",
        "close",
        "discard",
        "load_state_dict",
        "no_sync",
        "state_dict",
    ]


@pytest.mark.parametrize("kind", [EveryStep, DdpSynchronizer, HorovodSynchronizer, Local])
@pytest.mark.parametrize("name", METHODS)
def test_every_synchroniser_has_its_methods_with_its_parameters(kind: type, name: str) -> None:
    expected, own = (inspect.signature(getattr(owner, name)) for owner in (Synchronizer, kind))
    assert [(p.name, p.kind) for p in own.parameters.values()] == [
        (p.name, p.kind) for p in expected.parameters.values()
    ]
