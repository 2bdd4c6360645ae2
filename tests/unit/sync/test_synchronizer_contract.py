"""The contract of every synchroniser with every compressor (synchronizer_contract.py), with threads for ranks."""

from __future__ import annotations

import pytest
from synchronizer_cells import CELLS, Cell
from synchronizer_contract import check_a_round_of_one_step_is_every_step, check_cell
from threads import run_ranks


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_contract(cell: Cell) -> None:
    run_ranks(3, lambda communicator: check_cell(cell, communicator))


def test_a_round_of_one_step_is_every_step() -> None:
    run_ranks(2, check_a_round_of_one_step_is_every_step)
