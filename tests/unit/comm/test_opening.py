import sys

import pytest
import torch.distributed as dist

from dtrain.comm import BACKENDS, CollectiveError, Launch, open_communicator
from dtrain.comm.torch_dist import open_default

ALONE = Launch("none", 0, 0, 1, 1)


def under(launcher: str) -> Launch:
    return Launch(launcher, 1, 1, 2, 2)


OWN = {"gloo": ["torchrun"], "mpi": ["mpirun"], "horovod": ["horovodrun", "mpirun"]}
"""The launchers that a backend can join. Without a CUDA device nccl is refused before anybody asks for its launcher."""


def test_the_launchers_of_every_backend_are_known_here() -> None:
    assert {*OWN, "nccl"} == {*BACKENDS}


@pytest.mark.parametrize(
    ("backend", "launcher"),
    [(b, launcher) for b in OWN for launcher in ("torchrun", "mpirun", "horovodrun") if launcher not in OWN[b]],
)
def test_a_launcher_that_a_backend_cannot_join_is_refused_with_one_that_it_can(backend: str, launcher: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^{launcher} started these workers, and backend={backend} cannot join .*{OWN[backend][0]}"
    ):
        open_communicator(backend, under(launcher), None).__enter__()


@pytest.mark.parametrize(
    ("backend", "library", "cure"),
    [("mpi", "mpi4py", "mpiexec -n RANKS"), ("horovod", "horovod", "horovodrun -np RANKS")],
)
def test_a_backend_with_ranks_of_its_own_is_not_silently_one_worker(backend: str, library: str, cure: str) -> None:
    pytest.importorskip(library)
    with pytest.raises(ValueError, match=f"so it would train alone: write {cure}"):
        open_communicator(backend, ALONE, None).__enter__()


@pytest.mark.parametrize(("launcher", "backend"), [("mpirun", "mpi"), ("horovodrun", "horovod")])
def test_gloo_under_another_launcher_points_at_its_backend(launcher: str, backend: str) -> None:
    with pytest.raises(ValueError, match=f"start them with torchrun, or add backend={backend}"):
        open_communicator("gloo", under(launcher), None)


def test_without_mpi4py_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ValueError, match=r"backend=mpi needs mpi4py .*pip install 'dtrain\[mpi\]'"):
        open_communicator("mpi", ALONE, None).__enter__()


def test_without_horovod_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "horovod.torch", None)
    with pytest.raises(ValueError, match=r"backend=horovod needs Horovod .*: run make horovod"):
        open_communicator("horovod", ALONE, None).__enter__()


def test_a_start_that_failed_leaves_names_of_groups_as_they_are_for_ranks_that_come_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else those who have tried before wait for ever for those who have not: groups find each other by their names."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in {**place, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CollectiveError, match="cannot open gloo"):
        open_default("gloo", Launch("torchrun", 0, 0, 2, 2), timeout_seconds=0.5)  # nobody else comes
    communicator = open_default("gloo", Launch("none", 0, 0, 1, 1))
    try:
        assert dist.group.WORLD is not None and dist.group.WORLD.group_name == "0"
    finally:
        communicator.close()
