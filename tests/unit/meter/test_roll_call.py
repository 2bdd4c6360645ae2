"""The roll call over a store of this process: each rank's part is an object here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist

from dtrain.meter import roll_call
from dtrain.meter.rendezvous import RendezvousError
from dtrain.meter.roll_call import RollCall, await_keys, job_store

Join = Callable[..., RollCall]


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch) -> Iterator[Join]:
    """Joins a rank of a job of three, all on one host."""
    monkeypatch.setattr(roll_call, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(roll_call, "ANSWER_SECONDS", 2.0)
    monkeypatch.setattr("socket.gethostname", lambda: "node0")
    store, joined = dist.HashStore(), []

    def of(rank: int, is_idle: Callable[[], bool | None] = lambda: None) -> RollCall:
        joined.append(RollCall(store, rank, 3, is_idle))
        return joined[-1]

    yield of
    for each in joined:
        each.leave()


def test_nobody_is_missing_where_all_answer_or_left(join: Join) -> None:
    caller, _, third = join(0), join(1, lambda: False), join(2)
    third.leave()
    begun = time.monotonic()
    assert caller.call() == ""
    assert time.monotonic() - begun < 1.9


def test_who_does_not_answer_is_named_with_its_host(join: Join) -> None:
    caller, silent, _ = join(0), join(1), join(2)
    silent._over.set()
    silent._thread.join()
    assert caller.call() == "rank 1 on host node0 does not answer"


def test_who_never_came_is_named_without_one(join: Join) -> None:
    caller, _ = join(0), join(2)
    assert caller.call() == "rank 1 never started"


def test_who_answers_but_is_in_no_collective_is_named_too(join: Join) -> None:
    caller, _, _ = join(0), join(1, lambda: True), join(2, lambda: False)
    assert caller.call() == "rank 1 on host node0 is alive but in no collective"


def test_who_failed_itself_is_not_missing(join: Join) -> None:
    first, second, _ = join(0, lambda: True), join(1, lambda: True), join(2)
    assert first.call() == "rank 1 on host node0 is alive but in no collective"
    assert second.call() == ""


def test_one_rank_speaks_for_a_host(join: Join) -> None:
    assert [join(rank).is_first_of_host() for rank in range(3)] == [True, False, False]


def test_waiting_for_all_names_the_late_ones(join: Join) -> None:
    first = join(0)
    with pytest.raises(RendezvousError, match=r"rank 0 .* waited 0\.1 s .* for rank 1, 2 to start"):
        first.await_all(0.1)
    join(1), join(2)
    first.await_all(0.1)


def test_a_store_that_is_gone_is_said(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(dist.Store):
        pass

    caller = join(0)
    monkeypatch.setattr(caller, "_store", Gone())
    assert "the job's store at" in caller.call()
    assert caller.is_first_of_host()


def test_keys_that_come_late_are_waited_for() -> None:
    store = dist.HashStore()
    store.set("a", "")
    assert await_keys(store, ["a", "b"], 0.0) == ["b"]
    assert await_keys(store, ["a"], 0.0) == []


@pytest.mark.parametrize("environ", [{}, {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}])
def test_a_single_process_has_no_store(environ: dict[str, str]) -> None:
    assert job_store(environ) is None


def test_who_keeps_the_store_leaves_last_where_all_is_well(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call, "LEAVE_SECONDS", 2.0)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    keeper, second, third = join(0), join(1), join(2)
    second.leave(all_is_well=True)
    begun = time.monotonic()
    keeper.leave(all_is_well=True)  # until time is up, since the third stays
    assert time.monotonic() - begun > 1.9
    third.leave(all_is_well=True)
    begun = time.monotonic()
    keeper.leave(all_is_well=True)
    assert time.monotonic() - begun < 1.9
