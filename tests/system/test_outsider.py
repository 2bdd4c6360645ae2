"""One line in somebody's DDP program (outsider.py): the same accuracy for fewer bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import REPOSITORY, on_ranks, run

pytestmark = pytest.mark.timeout(600)

Outsider = Callable[..., Any]


@pytest.fixture(scope="module")
def outsider(tmp_path_factory: pytest.TempPathFactory) -> Outsider:
    """What the program prints, on two ranks."""
    folder = tmp_path_factory.mktemp("outsider")

    def train(*arguments: str) -> Any:
        program = str(REPOSITORY / "tests" / "system" / "outsider.py")
        return run(on_ranks(2, program, *arguments), Path(folder)).expect().json

    return train


@pytest.fixture(scope="module")
def stock(outsider: Outsider) -> Any:
    """Without compression."""
    result = outsider("stock")
    assert result["accuracy"] > 97
    return result


@pytest.mark.parametrize(
    ("arguments", "saving"),
    [
        (("fp16",), 1.8),
        (("int8",), 3.0),
        (("int4",), 5.0),
        (("ternary",), 10.0),
        (("one_bit",), 15.0),
        (("top_k", "density=0.01"), 20.0),
        (("power_sgd", "power_sgd_rank=2"), 4.0),
        (("dgc", "density=0.01", "momentum=0"), 20.0),
        (("random_k", "density=0.1"), 5.0),
    ],
)
def test_it_trains_as_well_with_fewer_bytes(
    outsider: Outsider, stock: Any, arguments: tuple[str, ...], saving: float
) -> None:
    result = outsider(*arguments)
    assert result["steps"] == stock["steps"]
    assert result["accuracy"] >= stock["accuracy"] - 1.0
    assert stock["bytes"] / result["bytes"] >= saving, stock["bytes"] / result["bytes"]
