"""What `dtrain top` makes of run directories and of metrics."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from dtrain.exchange import Op
from dtrain.meter.ledger import Activity, Ledger, Purpose, Times
from dtrain.observe import endpoint as observed
from dtrain.observe import follow, scrape
from dtrain.observe.figures import TrainFigures
from dtrain.observe.follow import run_now
from dtrain.observe.frame import Frame, RankNow, RunNow
from dtrain.observe.jsonl import LedgerFile
from dtrain.observe.process import _started, this_process
from dtrain.observe.prometheus import RunCollector, RunFacts
from dtrain.observe.scrape import Endpoint, addresses_by_rank, check_url, runs_now
from dtrain.observe.top import Sources, drawing

FACTS = {
    "run": "mine",
    "model": "squeezenet1_1",
    "data": "digits",
    "backend": "gloo",
    "compressor": "int4",
    "world_size": 2,
    "batch_size_per_rank": 8,
    "num_parameters": 1000,
    "grad_bytes": 4000,
    "versions": {"dtrain": "0.1.0", "torch": "2.13.0"},
}
TRAIN = TrainFigures(10, 0, 2.5, 0.25, 0.1, 100.0, 1.0, 0.5, 0.1, 0.1, 0.02, 0.03, 4e6)


def step(ledger: Ledger, number: int, seconds: float = 0.5, exposed: float = 0.1, sent: float = 1000.0) -> None:
    with ledger.scope(activity=Activity.TRAIN, purpose=Purpose.GRADIENT):
        ledger.record(Op.ALL_REDUCE, int(sent), sent, world_size=2, group="g").complete()
        ledger.close(number, Times(seconds, 0.0, exposed))


def run_directory(path: Path, steps: int = 30, *, complete: bool = False, slow_rank: int | None = None) -> Path:
    """Of two ranks."""
    summary = {**FACTS, "saving_vs_fp32": 7.5, "total_wire_bytes_all_ranks": 8e6, "complete": complete}
    (path / "ledger").mkdir(parents=True)
    (path / "summary.json").write_text(json.dumps(summary))
    launch = {"world_size": 2, "local_world_size": 2}
    (path / "environment.json").write_text(json.dumps({"host": "node0", "launch": launch}))
    line = {"kind": "train", "loss": 2.5, "accuracy": 0.25, "images_per_second": 100.0}
    (path / "metrics.jsonl").write_text(json.dumps({**line, "total_wire_bytes_all_ranks": 4e6}) + "\n")
    for rank in range(2):
        file = LedgerFile(path / "ledger" / f"rank{rank}.jsonl")
        ledger = Ledger(file)
        for number in range(steps):
            step(ledger, number, exposed=0.0 if rank == slow_rank else 0.3)
        file.close()
    return path


def text(frame: Frame, height: int | None = None) -> str:
    out = StringIO()
    Console(file=out, width=80).print(drawing(frame, height))
    return out.getvalue()


def test_a_run_directory_shows_its_ranks(tmp_path: Path) -> None:
    run = run_now(run_directory(tmp_path / "run"))
    assert (run.name, run.model, run.world_size, run.loss, run.wire_bytes) == ("mine", "squeezenet1_1", 2, 2.5, 4e6)
    first, second = run.ranks
    assert (first.rank, first.host, first.doing, first.steps) == (0, "node0", "train", 30)
    assert first.step_seconds == pytest.approx(0.5)
    assert first.exposed_share == pytest.approx(0.6)
    assert first.wire_bytes_per_second == pytest.approx(2000.0)
    assert second.rank == 1
    assert not first.is_stalled


def test_means_are_of_the_last_steps_and_come_from_the_end_of_a_long_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_directory(tmp_path / "run", steps=400)
    file = path / "ledger" / "rank0.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    slow = lines[-1].replace(b'"step": 0.5', b'"step": 0.9')
    file.write_bytes(b"damaged\n" + b"".join(lines[:-20]) + 20 * slow + lines[-1][:40])  # the last is being written
    monkeypatch.setattr(follow, "_TAIL_BYTES", 100)
    read = []
    whole = follow._lines
    monkeypatch.setattr(follow, "_lines", lambda path, length: read.append(length) or whole(path, length))
    rank = run_now(path).ranks[0]
    assert rank.step_seconds == pytest.approx(0.9)
    assert rank.steps == 400
    assert max(read) < len(file.read_bytes())


def test_a_run_that_has_ended_says_so_and_is_not_stalled(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run", complete=True)
    os.utime(path / "ledger" / "rank0.jsonl", (0, 0))
    run = run_now(path)
    assert run.wire_bytes == 8e6
    assert [rank.doing for rank in run.ranks] == ["ended", "ended"]
    assert "stalled" not in text(Frame([run]))


def test_a_run_whose_process_was_killed_is_gone_whatever_it_did(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run")
    environment = path / "environment.json"
    program = subprocess.Popen(["sleep", "60"])
    process = {**this_process(), "pid": program.pid, "started": _started(program.pid)}
    environment.write_text(json.dumps({"process": process}))
    assert [rank.doing for rank in run_now(path).ranks] == ["train", "train"]
    program.kill()
    program.wait()
    assert [rank.doing for rank in run_now(path).ranks] == ["gone", "gone"]
    assert "gone" in text(Frame([run_now(path)]))
    environment.write_text(json.dumps({"process": {**process, "host": "elsewhere"}}))  # who knows
    assert [rank.doing for rank in run_now(path).ranks] == ["train", "train"]


def test_a_rank_without_a_new_step_is_stalled(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run")
    past = time.time() - 45
    os.utime(path / "ledger" / "rank1.jsonl", (past, past))
    run = run_now(path)
    assert [rank.is_stalled for rank in run.ranks] == [False, True]
    assert "stalled 45 s" in text(Frame([run]))


def test_slow_steps_are_waited_for_longer() -> None:
    slow = RankNow(0, "x", doing="train", step_seconds=20.0, idle_seconds=100.0)
    assert not slow.is_stalled
    assert RankNow(0, "x", doing="train", step_seconds=9.0, idle_seconds=100.0).is_stalled
    assert not RankNow(0, "x", doing="eval", step_seconds=9.0, idle_seconds=100.0).is_stalled


def test_a_rank_that_others_wait_for_is_a_straggler(tmp_path: Path) -> None:
    run = run_now(run_directory(tmp_path / "run", slow_rank=1))
    assert run.stragglers == [1]
    assert "straggler" in text(Frame([run]))
    assert run_now(run_directory(tmp_path / "even")).stragglers == []


def test_a_run_that_is_not_there_any_more_is_a_row(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run")
    sources = Sources([str(path)])
    (path / "summary.json").unlink()
    frame = sources.frame()
    assert frame.has_errors
    assert "no answer" in text(frame)
    (path / "summary.json").write_text("[1]")
    assert "summary.json is not the JSON of a run" in str(sources.frame().runs[0].ranks[0].error)


@pytest.mark.parametrize("junk", ["", "\n\n", "[]\n", "{}\n", "[" * 5000 + "\n", '{"step": 1, "times": 3}\n'])
def test_a_ledger_that_is_damaged_is_a_rank_without_steps(tmp_path: Path, junk: str) -> None:
    path = run_directory(tmp_path / "run")
    (path / "ledger" / "rank1.jsonl").write_text(junk)
    assert run_now(path).ranks[1].steps is None


@pytest.mark.parametrize("times", ['{"step": "x", "exposed_comm": 0}', '{"step": 1e999, "exposed_comm": 0}', "{}"])
def test_steps_with_figures_that_are_none_are_left_out(tmp_path: Path, times: str) -> None:
    path = run_directory(tmp_path / "run")
    with (path / "ledger" / "rank1.jsonl").open("a") as file:
        file.write(f'{{"step": 99, "times": {times}, "entries": []}}\n')
    assert run_now(path).ranks[1].steps == 30


# Metrics


def page(rank: int, steps: int, *, seconds: float = 0.5, sent: float = 500.0) -> str:
    """What a real rank says after so many steps."""
    ledger = Ledger()
    collector = RunCollector(RunFacts(FACTS, rank, f"node{rank}", None), ledger)
    ledger.sinks.append(collector.on_record)
    ledger.activity = Activity.TRAIN
    for number in range(steps):
        step(ledger, number, seconds=seconds, sent=sent)
    if rank == 0 and steps:
        collector.on_train(TRAIN)
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    """One that asks nobody."""
    monkeypatch.setattr(Endpoint, "_ask", lambda self: None)
    return Endpoint("http://127.0.0.1:9400", 1.0)


def test_metrics_show_a_run_and_its_ranks(endpoint: Endpoint) -> None:
    endpoint.take(page(1, 10), time.time())
    endpoint.take(page(0, 10), time.time())
    (run,) = runs_now([endpoint])
    assert (run.name, run.model, run.backend, run.compressor) == ("mine", "squeezenet1_1", "gloo", "int4")
    assert (run.world_size, run.loss, run.images_per_second, run.wire_bytes) == (2, 2.5, 100.0, 10_000.0)
    assert run.saving_vs_fp32 == pytest.approx(4000 / 500)
    assert run.straggler_wait_seconds == pytest.approx(0.03)
    first, second = run.ranks
    assert (first.rank, first.host, first.doing, first.steps) == (0, "node0", "train", 10)
    assert (first.step_seconds, first.exposed_share) == (pytest.approx(0.5), pytest.approx(0.2))
    assert first.wire_bytes_per_second == pytest.approx(1000.0)
    assert first.idle_seconds is not None
    assert first.idle_seconds < 60
    assert (second.rank, second.host) == (1, "node1")


def test_means_of_metrics_are_of_what_is_new_since_earlier_scrapes(endpoint: Endpoint) -> None:
    endpoint.take(page(0, 10, seconds=0.5), 0.0)
    (run,) = runs_now([endpoint])
    assert run.ranks[0].step_seconds == pytest.approx(0.5)
    grown = page(0, 20, seconds=0.7)  # as if the first ten had taken 0.5 s and the others 0.9
    endpoint.take(grown, 2.0)
    assert runs_now([endpoint])[0].ranks[0].step_seconds == pytest.approx(0.9)
    for moment in range(3, 20):  # no step any more
        endpoint.take(grown, float(moment))
    assert runs_now([endpoint])[0].ranks[0].step_seconds == pytest.approx(0.7)


def test_a_run_that_started_again_has_means_of_its_own(endpoint: Endpoint) -> None:
    endpoint.take(page(0, 50), 0.0)
    endpoint.take(page(0, 5), 2.0)
    rank = runs_now([endpoint])[0].ranks[0]
    assert rank.steps == 5
    assert rank.step_seconds is None or rank.step_seconds > 0


def test_a_rank_that_has_taken_no_step_yet_is_there(endpoint: Endpoint) -> None:
    endpoint.take(page(0, 0), 0.0)
    (run,) = runs_now([endpoint])
    assert (run.ranks[0].steps, run.ranks[0].step_seconds) == (0, None)
    assert "train" in text(Frame([run]))


@pytest.mark.parametrize("url", ["http://", "ftp://host/", "http://host:99999", "http://host:x", "file:///etc/passwd"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="give the address of a rank's metrics, such as"):
        check_url(url)


def test_what_is_neither_run_nor_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run: give a run directory, or the address"):
        Sources([str(tmp_path)])


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """A server that sends this to whoever connects, or nothing at all and keeps the connection."""
    server = socket.create_server(("127.0.0.1", 0))
    held = []

    def serve() -> None:
        try:
            while True:
                connection, _ = server.accept()
                if answer is None:
                    held.append(connection)
                    continue
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)
        except OSError:
            return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()
    for connection in held:
        connection.close()


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.0 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (None, "does not answer within 0.3 s"),
        (answer(b"", "404 Not Found"), "does not answer: answers 404"),
        (answer(b"<html>{{{"), "answers something else than Prometheus' text format"),
        (b"SSH-2.0-OpenSSH\r\n", "answers something else"),
        (answer(b"x" * 2000), "answers more than metrics of a run"),
        (answer(b""), "has no metrics of a run yet"),
        (answer(b"up 1\n"), "has no metrics of a run yet"),
    ],
)
def test_an_address_that_does_not_answer_is_a_row_that_says_so(
    monkeypatch: pytest.MonkeyPatch, sent: bytes | None, reason: str
) -> None:
    monkeypatch.setattr(scrape, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(scrape, "_MAX_BYTES", 1000)
    with answering(sent) as url, closing(Sources([url])) as sources:
        sources.await_answers()
        frame = sources.frame()
    assert frame.has_errors
    assert f"{url}: " in text(frame)
    assert reason in text(frame)


def test_a_password_is_sent_and_not_shown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with closing(Sources([f"http://me:p%40ss@{address}"])) as sources:
            connection, _ = server.accept()
            with connection:
                request = connection.recv(4096).decode()
                connection.sendall(answer(b"", "401 Unauthorized"))
            sources.await_answers()
            frame = sources.frame()
    assert f"\r\nAuthorization: Basic {b64encode(b'me:p@ss').decode()}\r\n" in request
    assert text(frame).strip() == f"http://***@{address}: does not answer: answers 401"
    assert frame.as_json()["silent"][0]["source"] == f"http://***@{address}"
    with pytest.raises(ValueError, match=r"^http://\*\*\*@node0: give the address"):
        Sources(["http://me:p/w@node0"])


@contextmanager
def served(rank: int, others: list[str]) -> Iterator[str]:
    """A rank's own endpoint, that says where all ranks are."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    collector = RunCollector(RunFacts(FACTS, rank, f"node{rank}", None), Ledger())
    with observed.Endpoint(("127.0.0.1", port), None, None) as endpoint:
        endpoint.show(collector, [f"127.0.0.1:{port}", *others])
        yield f"127.0.0.1:{port}"


def test_one_address_shows_all_ranks_that_it_names_and_no_others() -> None:
    with served(1, []) as second, served(0, [second]) as first:
        with closing(Sources([f"http://{first}"])) as sources:
            sources.await_answers()
            (run,) = sources.frame().runs
            assert [(rank.rank, rank.source) for rank in run.ranks] == [
                (0, f"http://{first}"),
                (1, f"http://{second}/metrics"),
            ]
            sources._given[0].others = frozenset()  # as where a worker has left
            assert [rank.rank for rank in sources.frame().runs[0].ranks] == [0]
        with closing(Sources([f"http://{first}/metrics"])) as sources:
            sources.await_answers()
            assert [rank.rank for rank in sources.frame().runs[0].ranks] == [0], "a path is that of one rank alone"


@pytest.mark.parametrize(
    "told",
    ["", "[", "{}1", "[1]", '[{"targets": ["a:1"]}]', '[{"targets": ["x@a:1"], "labels": {"run": "", "rank": 0}}]'],
)
def test_what_is_no_list_of_ranks_names_nobody(told: str) -> None:
    with pytest.raises(ValueError, match="no list of ranks"):
        addresses_by_rank(told)


def test_no_address_is_asked_after_close() -> None:
    def asking() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "dtrain-scrape"]

    with answering(answer(b"")) as url, closing(Sources([url])) as sources:
        sources.await_answers()
        threads = asking()
    assert threads
    for thread in threads:
        thread.join(5.0)
    assert not asking()


def test_one_that_answered_before_keeps_its_row(endpoint: Endpoint) -> None:
    endpoint.take(page(0, 10), 0.0)
    endpoint._error = "does not answer: Connection refused"
    (run,) = runs_now([endpoint])
    frame = Frame([run])
    assert frame.has_errors
    assert "no answer" in text(frame)
    assert " 10 " in text(frame)


# What is drawn


def many(count: int, **of_last: Any) -> RunNow:
    ranks = [RankNow(rank, "x", "a-host-with-a-long-name", "train", 1_234_567, 0.5, 0.1, 1e9) for rank in range(count)]
    ranks[-1] = RankNow(count - 1, "x", **of_last)
    return RunNow(
        "a run " * 30, ranks, model="m" * 90, loss=1e9, images_per_second=1e9, wire_bytes=1e18, world_size=count
    )


def test_it_fits_80_columns_and_the_height_that_there_is() -> None:
    frame = Frame(
        [many(64, error="gone"), many(64, error="gone")], [RankNow(None, "http://" + "x" * 100, error="gone")]
    )
    lines = text(frame, 24).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    assert sum(" more" in line for line in lines) == 2
    assert sum("no answer" in line for line in lines) == 2  # what is wrong is shown before what is well


def test_names_do_not_steer_the_terminal() -> None:
    evil = "\x1b[2J\x07\u202e[red]"
    rank = RankNow(0, evil, evil, evil, 1)
    drawn = text(Frame([RunNow(evil, [rank], model=evil)], [RankNow(None, evil, error=evil)]))
    assert not {"\x1b", "\x07", "\u202e"} & set(drawn)
    assert "[red]" in drawn


def test_a_frame_is_plain_json(tmp_path: Path) -> None:
    frame = Frame([run_now(run_directory(tmp_path / "run", slow_rank=1))], [RankNow(None, "http://x", error="gone")])
    data = json.loads(json.dumps(frame.as_json(), allow_nan=False))
    assert data["silent"] == [{"source": "http://x", "error": "gone"}]
    assert [rank["is_straggler"] for rank in data["runs"][0]["ranks"]] == [False, True]
    assert data["runs"][0]["ranks"][0]["wire_bytes_per_second"] == pytest.approx(2000.0)
