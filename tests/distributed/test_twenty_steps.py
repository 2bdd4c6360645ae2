"""Training with every compressor sends the same bytes over every backend, and learns the same."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch.distributed as dist
from ranks import Here, on_ranks
from twenty_steps import assert_agree

from dtrain.comm import Communicator
from dtrain.comm.torch_dist import TorchCommunicator
from dtrain.meter import c10d
from dtrain.meter.ledger import Ledger


def assert_agrees_with_gloo(here: Here, communicator: Communicator, ledger: Ledger) -> None:
    here.join()
    assert dist.group.WORLD is not None
    with c10d.installed(Ledger()) as gloo_ledger:
        gloo = TorchCommunicator(dist.group.WORLD)
        assert_agree(communicator, ledger, gloo, gloo_ledger, "bf16")  # which neither of them sums


@pytest.mark.skipif(find_spec("mpi4py") is None, reason="mpi4py is not installed: pip install 'dtrain[mpi]'")
@on_ranks(2, 4, launcher="mpiexec")
def test_mpi_sends_what_gloo_sends_and_learns_what_gloo_learns(here: Here) -> None:
    from test_mpi import communicator

    ledger = Ledger()
    mpi = communicator(ledger)
    assert_agrees_with_gloo(here, mpi, ledger)
    mpi.close()


@pytest.mark.skipif(find_spec("horovod") is None, reason="Horovod is not installed: make horovod")
@on_ranks(2, 4, launcher="horovodrun")
def test_horovod_sends_what_gloo_sends_and_learns_what_gloo_learns(here: Here) -> None:
    from test_horovod import communicator

    ledger = Ledger()
    horovod = communicator(ledger)
    assert_agrees_with_gloo(here, horovod, ledger)
    horovod.close()
