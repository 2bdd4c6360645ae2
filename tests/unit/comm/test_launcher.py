import pytest

from dtrain.comm import Launch, detect_launch

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
HOROVODRUN = {"HOROVOD_RANK": "3", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_SIZE": "2"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "3", "MPI_LOCALRANKID": "1", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize(
    ("environ", "launcher"),
    [(TORCHRUN, "torchrun"), (HOROVODRUN, "horovodrun"), (OPENMPI, "mpirun"), (MPICH, "mpirun")],
    ids=["torchrun", "horovodrun", "openmpi", "mpich"],
)
def test_a_launcher_is_known_by_its_variables(environ: dict[str, str], launcher: str) -> None:
    assert detect_launch({"PATH": "/bin", **environ}) == Launch(launcher, 3, 1, 4, 2)


def test_no_launcher_is_one_worker() -> None:
    assert detect_launch({"PATH": "/bin"}) == Launch("none", 0, 0, 1, 1)


def test_a_leftover_variable_alone_is_no_launcher() -> None:
    assert detect_launch({"LOCAL_RANK": "0", "RANK": "1"}).launcher == "none"


def test_horovodrun_wins_over_the_mpirun_that_it_runs_on() -> None:
    assert detect_launch({**OPENMPI, **HOROVODRUN}).launcher == "horovodrun"


def test_without_local_variables_all_ranks_are_on_this_host() -> None:
    assert detect_launch({"RANK": "1", "WORLD_SIZE": "2"}) == Launch("torchrun", 1, 0, 2, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"RANK": "4"},
        {"RANK": "-1"},
        {"LOCAL_RANK": "2"},
        {"WORLD_SIZE": "0"},
    ],
)
def test_variables_that_contradict_themselves_are_refused_by_name(wrong: dict[str, str]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"contradict.*{name}={value}.*unset or correct"):
        detect_launch({**TORCHRUN, **wrong})


def test_variables_that_are_not_numbers_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"not numbers.*WORLD_SIZE=two"):
        detect_launch({**TORCHRUN, "WORLD_SIZE": "two"})
