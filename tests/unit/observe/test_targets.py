"""Where all ranks are, as Prometheus asks any of them over HTTP."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPMessage
from urllib.error import HTTPError

import pytest
import torch
from stand_in import stand_in
from threads import run_ranks

from dtrain.comm import Launch
from dtrain.meter.ledger import Ledger
from dtrain.observe.endpoint import Endpoint, reached_at
from dtrain.observe.prometheus import RunCollector, RunFacts
from dtrain.observe.targets import INTERVAL_HEADER, Targets
from dtrain.train.config import Prometheus
from dtrain.train.observers import addresses_of_ranks

FACTS = {"run": "a run", "grad_bytes": 4000}


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        free: int = listener.getsockname()[1]
    yield free


def ask(port: int, interval: str | None = None) -> tuple[HTTPMessage, str]:
    headers = {INTERVAL_HEADER: interval} if interval is not None else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/targets", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers, answer.read().decode()


def metrics(rank: int = 0) -> RunCollector:
    return RunCollector(RunFacts(FACTS, rank, "node0", None), Ledger())


def test_every_rank_says_where_all_are_in_prometheus_own_json(port: int) -> None:
    with Endpoint(("127.0.0.1", port), None, None) as endpoint:
        endpoint.show(metrics(rank=1), ["10.0.0.1:9400", "[fd00::2]:9400"])
        headers, text = ask(port)
    assert headers["Content-Type"] == "application/json"
    assert json.loads(text) == [
        {"targets": ["10.0.0.1:9400"], "labels": {"run": "a run", "rank": "0"}},
        {"targets": ["[fd00::2]:9400"], "labels": {"run": "a run", "rank": "1"}},
    ]


@pytest.mark.parametrize(
    ("show", "why"),
    [
        (lambda _: None, "have not met yet"),
        (lambda endpoint: endpoint.show(metrics(), ["10.0.0.1:9400", ""]), "observe.prometheus.host=0.0.0.0"),
    ],
)
def test_a_list_that_is_not_known_is_none_that_prometheus_would_take(
    port: int, show: Callable[[Endpoint], None], why: str
) -> None:
    with Endpoint(("127.0.0.1", port), None, None) as endpoint:
        show(endpoint)
        with pytest.raises(HTTPError) as refused:
            ask(port)
        with refused.value as answer:
            assert (answer.code, why in answer.read().decode()) == (503, True)


def test_a_run_that_ends_well_stays_until_prometheus_has_heard_that_no_rank_is_left(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def sleep(seconds: float) -> None:
        assert seconds > 5.0, "by then Prometheus has asked again"
        said.append(ask(port, "5")[1])

    with Endpoint(("127.0.0.1", port), None, None) as endpoint:
        endpoint.show(metrics(), ["127.0.0.1:9400"])
        ask(port, "5")
        monkeypatch.setattr("dtrain.observe.endpoint.time", stand_in(time, sleep=sleep))
        endpoint.is_complete = True
    assert said == ["[]"]


def test_a_run_that_is_stopped_leaves_its_list_and_does_not_wait(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError

    with Endpoint(("127.0.0.1", port), None, None) as endpoint:
        endpoint.show(metrics(), ["127.0.0.1:9400"])
        ask(port, "5")
        monkeypatch.setattr("dtrain.observe.endpoint.time", stand_in(time, sleep=sleep))


@pytest.mark.parametrize("interval", [None, "60", "0", "-1", "nan", "inf", "often"])
def test_nobody_is_waited_for_who_does_not_ask_again_soon(interval: str | None) -> None:
    targets = Targets()
    targets.show("a run", ["127.0.0.1:9400"])
    targets.answer(interval)
    assert targets.withdraw() == 0.0


def test_somebody_who_stopped_asking_is_not_waited_for() -> None:
    targets = Targets()
    targets.show("a run", ["127.0.0.1:9400"])
    targets.answer("0.05")
    time.sleep(0.15)
    assert targets.withdraw() == 0.0


def test_one_that_listens_everywhere_is_reached_where_packets_leave_for_the_host_of_rank_0() -> None:
    name = socket.gethostname()
    assert reached_at("10.1.2.3", "10.0.0.1") == "10.1.2.3"
    assert reached_at("0.0.0.0", None) == name
    assert reached_at("0.0.0.0", "127.0.0.1") == name, "ranks that meet on loopback are reached there by nobody else"
    assert reached_at("", "no.such.host.invalid") == name


@pytest.mark.parametrize(("hosts", "told"), [(1, ["127.0.0.1:9400", "127.0.0.1:9401"]), (2, ["", ""])])
def test_ranks_tell_each_other_their_addresses_and_none_of_loopback_across_hosts(hosts: int, told: list[str]) -> None:
    settings = Prometheus(enabled=True)

    class Listening(Endpoint):
        def __init__(self, address: str) -> None:
            super().__init__(None, None, None)
            self.address = address

    ledgers = [Ledger(), Ledger()]
    found = run_ranks(
        2,
        lambda c: addresses_of_ranks(
            Listening(f"127.0.0.1:{9400 + c.rank}"),
            settings,
            Launch("torchrun", c.rank, 0, 2, 2 // hosts),
            c,
            ledgers[c.rank],
            torch.device("cpu"),
        ),
    )
    assert found == [told, told]
