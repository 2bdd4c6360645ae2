"""Training with every compressor sends the same bytes over every backend, and learns the same."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from ranks import Here, on_ranks
from twenty_steps import assert_agree

from dtrain.comm.mpi import MpiCommunicator
from dtrain.comm.torch_dist import TorchCommunicator
from dtrain.meter import c10d
from dtrain.meter.ledger import Ledger

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'dtrain[mpi]'")


@on_ranks(2, 4, launcher="mpiexec")
def test_mpi_sends_what_gloo_sends_and_learns_what_gloo_learns(here: Here) -> None:
    from mpi4py import MPI

    here.join()
    assert dist.group.WORLD is not None
    ledger = Ledger()
    mpi = MpiCommunicator(MPI.COMM_WORLD.Dup(), ledger)
    with c10d.installed(Ledger()) as gloo_ledger:
        assert_agree(mpi, ledger, TorchCommunicator(dist.group.WORLD), gloo_ledger, "bf16")  # which MPI does not sum
    mpi.close()
