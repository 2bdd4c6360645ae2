"""The contract of every synchroniser with every compressor (synchronizer_contract.py), on gloo, MPI and Horovod."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from ranks import Here, on_ranks
from synchronizer_cells import CELLS
from synchronizer_contract import check_a_round_of_one_step_is_every_step, check_cell, trained_weights
from test_polled import BOTH, communicator

from dtrain.comm import Communicator
from dtrain.comm.polled import TITLES
from dtrain.comm.torch_dist import TorchCommunicator


def gloo() -> TorchCommunicator:
    assert dist.group.WORLD is not None
    return TorchCommunicator(dist.group.WORLD)


@on_ranks(2)
def test_contract_on_gloo(here: Here) -> None:
    for cell in CELLS:
        check_cell(cell, gloo())
    check_a_round_of_one_step_is_every_step(gloo())


@on_ranks(2, launcher=BOTH)
def test_contract_with_gloo_s_weights_bit_for_bit(here: Here) -> None:
    """After each step of every cell: a sum of two has one order."""
    comm: Communicator = communicator(here)
    here.join()
    for cell in CELLS:
        if cell.compressor == "bf16":
            with pytest.raises(ValueError, match=f"{TITLES[comm.backend]} does not sum bfloat16"):
                check_cell(cell, comm)
            continue
        assert torch.equal(check_cell(cell, comm), trained_weights(cell, gloo())), f"{cell}: not as on gloo"
    check_a_round_of_one_step_is_every_step(comm)
    comm.close()
