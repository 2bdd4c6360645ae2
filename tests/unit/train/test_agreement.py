from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from threads import ThreadCommunicator, run_ranks
from torch import nn

from dtrain.meter.ledger import Ledger
from dtrain.train.agreement import DivergedError, check_replicas, check_settings

CPU = torch.device("cpu")
SETTINGS = {"optimizer.learning_rate": 0.01, "seed": 0, "compressor.name": "int8"}
MODEL = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def settings_of(*ranks: dict[str, Any]) -> None:
    run_ranks(len(ranks), lambda c: check_settings({**SETTINGS, **ranks[c.rank]}, c, Ledger(), CPU))


def test_ranks_with_the_same_settings_go_on() -> None:
    settings_of({}, {}, {})


def test_a_setting_that_differs_is_named_with_its_values_and_ranks() -> None:
    with pytest.raises(ValueError, match=r"optimizer.learning_rate is 0.01 on ranks 0, 2 and 0.1 on rank 1"):
        settings_of({}, {"optimizer.learning_rate": 0.1}, {})


def test_all_that_differs_is_named_also_what_a_rank_lacks() -> None:
    with pytest.raises(ValueError) as refused:
        settings_of({}, {"seed": 3, "compressor.density": 0.1})
    assert "seed is 0 on rank 0 and 3 on rank 1" in str(refused.value)
    assert "compressor.density is not set on rank 0 and 0.1 on rank 1" in str(refused.value)


def replicas(*changes: str | None, sign: float = 1.0) -> None:
    def body(communicator: ThreadCommunicator) -> None:
        model = copy.deepcopy(MODEL)
        changed = changes[communicator.rank]
        if changed is not None:
            with torch.no_grad():
                dict(model.named_parameters())[changed].view(-1)[1].mul_(1 + 2**-20)
        check_replicas(model, 7, communicator, Ledger(), CPU)

    run_ranks(len(changes), body)


def test_equal_replicas_go_on() -> None:
    replicas(None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((None, "1.weight"), "by step 7: rank 1 has parameters that rank 0 has not, 1.weight first"),
        (("0.bias", None, None), "rank 0 has parameters that rank 1 has not, 0.bias first"),
        ((None, "0.weight", "0.weight", None, None), "ranks 1, 2 have parameters that rank 0 has not, 0.weight first"),
    ],
)
def test_the_ranks_that_differ_from_most_are_named_by_one_last_place(
    changes: tuple[str | None, ...], said: str
) -> None:
    with pytest.raises(DivergedError, match=said):
        replicas(*changes)
