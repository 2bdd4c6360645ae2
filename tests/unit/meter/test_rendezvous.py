"""Joining the job's store: whatever is in the way is named in time, and torch itself says nothing of it."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import torch.distributed as dist

from dtrain.meter import rendezvous
from dtrain.meter.rendezvous import AddressError, RendezvousError, join_store, read_place

SECONDS = 1.0
HOST = re.escape(socket.gethostname())


def environ(port: int, rank: int = 1, **others: str) -> dict[str, str]:
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2", **others}


@pytest.fixture
def port() -> int:
    """One at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        found: int = listener.getsockname()[1]
        return found


@pytest.fixture
def listen() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Starts a server that does this with each connection; its port."""
    listeners: list[socket.socket] = []

    def start(serve: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                listeners.append(connection)
                serve(connection)

        threading.Thread(target=run, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What is said of an attempt to join that fails, in time and with nothing beside it."""

    def of(
        port: int, rank: int = 1, error: type[Exception] = RendezvousError, seconds: float = SECONDS, **more: str
    ) -> str:
        begun = time.monotonic()
        with pytest.raises(error) as caught:
            join_store(environ(port, rank, **more), seconds)
        assert time.monotonic() - begun < seconds + 5
        assert capfd.readouterr() == ("", "")
        said = str(caught.value)
        assert "\n" not in said
        address = f"{re.escape(more.get('MASTER_ADDR', '127.0.0.1'))}:{port}"
        assert re.match(rf"rank {rank} on host {HOST} cannot join the job at {address}: ", said)
        return said

    return of


def test_an_address_that_is_no_host_s_name(refused: Callable[..., str], port: int) -> None:
    said = refused(port, error=AddressError, MASTER_ADDR="no-such-host.invalid")
    assert "after 1 s MASTER_ADDR=no-such-host.invalid is not resolved" in said


def test_an_address_that_is_not_resolved_in_time(
    refused: Callable[..., str], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "knock", lambda *args: time.sleep(3))
    assert "its name is not resolved: look at this host's DNS" in refused(port, seconds=0.2)


def test_nobody_listens(refused: Callable[..., str], port: int) -> None:
    assert "after 1 s nothing listens there: start rank 0" in refused(port)


def test_an_http_server_listens(refused: Callable[..., str], listen: Callable[..., int]) -> None:
    port = listen(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    begun = time.monotonic()
    assert "no store of torch's (it answers 'HTTP'): choose a free MASTER_PORT" in refused(port, seconds=30)
    assert time.monotonic() - begun < 10  # that will not change


def test_somebody_listens_and_says_nothing(refused: Callable[..., str], listen: Callable[..., int]) -> None:
    assert "(it accepts connections and says nothing)" in refused(listen(lambda connection: None))


def test_somebody_listens_and_hangs_up(refused: Callable[..., str], listen: Callable[..., int]) -> None:
    assert "(it closes connections at once)" in refused(listen(lambda c: c.shutdown(socket.SHUT_RDWR)))


def test_rank_0_finds_its_port_taken(refused: Callable[..., str], listen: Callable[..., int]) -> None:
    port = listen(lambda connection: None)
    assert f"port {port} is taken by another program of this host: choose another MASTER_PORT" in refused(port, rank=0)


def test_rank_0_finds_its_port_taken_by_another_job(refused: Callable[..., str]) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    said = refused(store.port, rank=0)
    assert "taken by the store of another job, perhaps an earlier one that has not ended: end it, or" in said


def test_the_store_of_an_earlier_job_is_told_by_who_is_in_it(
    refused: Callable[..., str], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = [join_store(environ(port, rank), 10.0) for rank in (0, 1)]
    assert "of a job of 2 ranks, and this one has 4: end what runs there" in refused(port, WORLD_SIZE="4", seconds=10)
    monkeypatch.setattr(rendezvous, "_THIS_PROCESS", "another")
    said = refused(port, seconds=10)
    assert re.search(rf"has a rank 1 already \(on host {HOST}, process \d+\): it is of an earlier job, or RANK=1", said)
    assert len(ranks) == 2


def test_ranks_meet_whoever_comes_first_and_as_often_as_they_like(port: int) -> None:
    found: list[dist.Store] = []
    second = threading.Thread(target=lambda: found.append(join_store(environ(port, 1), 20.0)))
    second.start()
    time.sleep(0.3)
    first = join_store(environ(port, 0), 20.0)
    second.join()
    first.set("word", "said")
    assert found[0].get("word") == b"said"
    assert join_store(environ(port, 0), 20.0).get("word") == b"said"
    torch_s_own, _, _ = next(dist.rendezvous(f"tcp://127.0.0.1:{port}?rank=0&world_size=1"))
    assert torch_s_own.check([])


def test_with_an_agent_nobody_of_the_job_keeps_the_store() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = environ(store.port, 0, TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="2")
    join_store(agent, 10.0).set("word", "said")
    assert store.get("dtrain/2/word") == b"said"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": ""}, "MASTER_PORT= is no port"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http is no port"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536 is no port: set it to a free one of rank 0's host"),
    ],
)
def test_variables_that_make_no_sense_are_the_user_s_mistake(variables: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        read_place({**environ(1), **variables})
