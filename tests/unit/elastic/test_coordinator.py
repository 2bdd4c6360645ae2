"""Who trains together, decided over a store of this process by a clock of the test's."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch.distributed as dist

from dtrain.comm.membership import EVENTS, LATEST, NOTHING, WAITING, tell
from dtrain.elastic.coordinator import LATE_SECONDS, SILENT_SECONDS, START_SECONDS, Coordinator


class Job:
    """A coordinator of two to four workers, and what it told."""

    def __init__(self) -> None:
        self.store, self.said, self.now = dist.HashStore(), list[str](), 0.0
        self.coordinator = Coordinator(self.store, 2, 4, self.said.append, lambda: self.now)

    def ready(self, **steps: int) -> None:
        for name, step in steps.items():
            tell(self.store, "ready", name=name, host="node0", step=step)
        self.coordinator.look()

    def gone(self, *names: str) -> None:
        for name in names:
            tell(self.store, "gone", name=name)
        self.coordinator.look()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.coordinator.look()

    @property
    def latest(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.store.get(LATEST))
        return content

    @property
    def members(self) -> list[str]:
        return [member["name"] for member in self.latest["members"]]

    @property
    def num_waiting(self) -> int:
        return int(self.store.get(WAITING))


@pytest.fixture
def job() -> Job:
    return Job()


@pytest.fixture
def training(job: Job) -> Job:
    """Four workers that train."""
    job.ready(a=NOTHING, b=NOTHING, c=NOTHING, d=NOTHING)
    assert job.latest["generation"] == 1
    return job


def test_the_first_group_waits_for_all_and_then_for_as_many_as_are_needed(job: Job) -> None:
    job.ready(a=NOTHING, b=NOTHING, c=NOTHING)
    job.wait(START_SECONDS - 1)
    assert job.members == []
    job.wait(1)
    assert job.members == ["a", "b", "c"]


def test_survivors_go_on_at_once_when_the_lost_one_is_known(training: Job) -> None:
    training.gone("b")
    assert training.latest["generation"] == 1, "they have not noticed yet"
    training.ready(a=7, c=7)
    assert training.latest["generation"] == 1, "d may come yet"
    training.ready(d=7)
    assert training.members == ["a", "c", "d"]
    assert training.said == ["3 workers go on from step 7 (1 lost)"]
    assert (training.latest["lost"], training.latest["joined"]) == (1, 0), "the first four came to nobody"
    training.ready(e=NOTHING)
    training.ready(a=9, c=9, d=9)
    assert training.members == ["a", "c", "d", "e"]
    assert (training.latest["lost"], training.latest["joined"]) == (1, 1)


def test_who_neither_asks_nor_is_known_to_be_gone_is_waited_for_a_little(training: Job) -> None:
    training.ready(a=7, b=7, c=7)
    training.wait(LATE_SECONDS - 1)
    assert training.latest["generation"] == 1
    training.wait(1)
    assert training.members == ["a", "b", "c"]


def test_rank_0_is_one_who_came_furthest(training: Job) -> None:
    training.gone("d")
    training.ready(a=7, b=8, c=8)
    assert training.members == ["b", "c", "a"]
    assert [member["step"] for member in training.latest["members"]] == [8, 8, 7]


def test_rank_0_writes_results_where_it_did_before(training: Job) -> None:
    training.gone("c")
    training.ready(d=7, b=7, a=7)
    assert training.members == ["a", "b", "d"]


def test_who_comes_waits_until_the_others_ask(training: Job) -> None:
    training.gone("d")
    training.ready(a=7, b=7, c=7)
    training.ready(e=NOTHING)
    training.wait(1000)
    assert training.latest["generation"] == 2
    assert training.num_waiting == 1
    training.ready(a=20, b=20, c=20)
    assert training.members == ["a", "b", "c", "e"]
    assert training.num_waiting == 0


def test_more_than_may_be_are_not_waited_for(training: Job) -> None:
    training.ready(e=NOTHING)
    assert training.num_waiting == 0


def test_too_few_wait_for_others(training: Job) -> None:
    training.gone("b", "c", "d")
    training.ready(a=7)
    training.wait(1000)
    assert training.latest["generation"] == 1
    assert training.said == ["waiting for 1 more workers: at least 2 are to train together"]
    training.ready(e=NOTHING)
    assert training.members == ["a", "e"]


def test_where_all_are_lost_those_that_come_begin_together(training: Job) -> None:
    training.gone("a", "b", "c", "d")
    training.ready(e=NOTHING, f=NOTHING, g=NOTHING)
    assert training.latest["generation"] == 1
    training.ready(h=NOTHING)
    assert training.members == ["e", "f", "g", "h"]


def test_it_is_complete_when_rank_0_is_and_no_group_is_formed_after_that(training: Job) -> None:
    tell(training.store, "done", name="b")
    training.coordinator.look()
    assert training.coordinator.is_ending
    assert not training.coordinator.is_complete
    assert training.coordinator.awaits_results
    training.ready(c=7)
    training.wait(1000)
    assert training.latest["generation"] == 1
    tell(training.store, "done", name="a")
    training.coordinator.look()
    assert training.coordinator.is_complete
    assert not training.coordinator.awaits_results


def test_no_results_come_of_a_rank_0_that_is_gone(training: Job) -> None:
    tell(training.store, "done", name="b")
    training.gone("a")
    assert training.coordinator.is_ending
    assert not training.coordinator.awaits_results
    assert not training.coordinator.is_complete


def test_who_is_lost_while_it_tells_keeps_nobody_waiting(job: Job) -> None:
    job.store.add(EVENTS, 1)  # and no event follows
    job.ready(a=NOTHING, b=NOTHING, c=NOTHING, d=NOTHING)
    assert job.latest["generation"] == 0
    job.wait(SILENT_SECONDS + 0.1)
    assert job.members == ["a", "b", "c", "d"]
