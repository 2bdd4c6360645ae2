"""A publisher and its receivers, in threads: a receiver's file is a whole version, whatever happens on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packable import small_model, trained
from shippable import NEW, NEWER, OLD, lying, offering, published, refused, serving, whole
from stand_in import stand_in

from dtrain import ship
from dtrain.cli import main
from dtrain.meter.ledger import Activity, Ledger, Purpose
from dtrain.pack import make_difference, pack, to_bytes, write_safetensors
from dtrain.ship import client as asking
from dtrain.ship import target as replacing
from dtrain.ship.offer import Blob, Offer


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_PAUSE_SECONDS", 0.01)


def test_a_file_comes_whole_and_then_as_a_difference_and_then_not_at_all(tmp_path: Path) -> None:
    source, target = tmp_path / "m.dtz", tmp_path / "r.dtz"
    sent: list[ship.Sent] = []
    with published(source, on_sent=sent.append) as url:
        first = ship.receive(url, target)
        assert (first.kind, first.transferred_bytes, first.num_bytes) == ("file", len(OLD), len(OLD))
        assert target.read_bytes() == OLD
        source.write_bytes(NEW)
        second = ship.receive(url, target)
        assert second.kind == "difference"
        assert second.transferred_bytes == len(make_difference(OLD, NEW)) < 0.5 * len(NEW)
        assert second.sha256 == hashlib.sha256(NEW).hexdigest()
        assert target.read_bytes() == NEW
        third = ship.receive(url, target)
        assert (third.kind, third.transferred_bytes) == ("nothing new", 0)
    assert [(one.kind, one.num_bytes, one.whole) for one in sent] == [
        ("file", len(OLD), True),
        ("difference", second.transferred_bytes, True),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.dtz", "r.dtz"]


def test_a_version_that_the_publisher_does_not_know_gets_the_file(tmp_path: Path) -> None:
    target = tmp_path / "r.dtz"
    for held in (NEWER, b"damaged"):
        target.write_bytes(held)
        with published(tmp_path / "m.dtz") as url:
            assert ship.receive(url, target).kind == "file"
        assert target.read_bytes() == OLD


def test_earlier_versions_can_be_given(tmp_path: Path) -> None:
    base, source, target = (tmp_path / f"{name}.dtz" for name in ("base", "m", "r"))
    for path, data in ((base, OLD), (source, NEW), (target, OLD)):
        path.write_bytes(data)
    with serving(ship.open_server(ship.Publisher(source, [base]), host="127.0.0.1", port=0)) as url:
        assert ship.receive(url, target).kind == "difference"
    assert target.read_bytes() == NEW
    with pytest.raises(ValueError, match="give 3 at most"):
        ship.Publisher(source, [base] * 4)


def test_a_difference_no_smaller_than_the_file_is_not_sent(tmp_path: Path) -> None:
    other = to_bytes(pack(small_model(), "lossless"))
    target = tmp_path / "r.dtz"
    with published(tmp_path / "m.dtz", NEW) as url:
        ship.receive(url, target)
        (tmp_path / "m.dtz").write_bytes(other)
        assert ship.receive(url, target).kind == "file"
    assert target.read_bytes() == other


def test_many_receivers_at_once_all_get_it(tmp_path: Path) -> None:
    targets = [tmp_path / f"r{index}.dtz" for index in range(12)]
    with published(tmp_path / "m.dtz") as url:
        for data in (OLD, NEW):
            (tmp_path / "m.dtz").write_bytes(data)
            threads = [threading.Thread(target=ship.receive, args=(url, target)) for target in targets]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert all(target.read_bytes() == data for target in targets)


def test_safetensors_are_sent_as_they_are(tmp_path: Path) -> None:
    source, target = tmp_path / "m.safetensors", tmp_path / "r.safetensors"
    write_safetensors(trained(1, 0.0), source)
    with published(source, source.read_bytes()) as url:
        assert ship.receive(url, target).transferred_bytes == source.stat().st_size
        write_safetensors(trained(2, 0.1), source)
        assert ship.receive(url, target).kind == "file"
        assert target.read_bytes() == source.read_bytes()
        with pytest.raises(ValueError, match=r"serves a \.safetensors file, so the name must end in that"):
            ship.receive(url, tmp_path / "r.dtz")


def test_a_file_that_is_no_model_is_not_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "m.dtz", tmp_path / "r.dtz"
    with published(source) as url:
        source.write_bytes(OLD[:-1])
        assert ship.receive(url, target).num_bytes == len(OLD)
        assert "truncated or altered" in capsys.readouterr().err
        source.unlink()
        assert ship.receive(url, target).kind == "nothing new"
    with pytest.raises(FileNotFoundError, match="no file at"):
        ship.Publisher(source)
    source.write_bytes(b"x")
    with pytest.raises(ValueError, match="not a packed model; give a whole"):
        ship.Publisher(source)
    with pytest.raises(ValueError, match=r"give a \.dtz or \.safetensors file"):
        ship.Publisher(tmp_path / "m.pth")


def test_bytes_and_time_are_in_both_ledgers_as_export(tmp_path: Path) -> None:
    at_sender, at_receiver = Ledger(), Ledger()
    at_sender.activity = at_receiver.activity = Activity.EXPORT
    with published(tmp_path / "m.dtz", ledger=at_sender) as url:
        ship.receive(url, tmp_path / "r.dtz", ledger=at_receiver)
    sent = at_sender.total(activity=Activity.EXPORT, purpose=Purpose.PARAMETERS)
    received = at_receiver.total(activity=Activity.EXPORT, purpose=Purpose.PARAMETERS)
    assert (sent.payload_bytes, sent.wire_bytes) == (len(OLD), len(OLD))
    assert (received.payload_bytes, received.wire_bytes) == (len(OLD), 0)  # counted once, where it is sent


# what goes wrong


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there" / "r.dtz"


@pytest.mark.parametrize(
    "url", ["", "x", "ftp://a", "http://", "http://a:b", "http://a:99999", "http://a/b", "http://[::1"]
)
def test_an_address_that_is_none_is_refused(url: str, target: Path) -> None:
    target.write_bytes(OLD)
    with pytest.raises(ValueError, match="give a publisher's address"):
        ship.receive(url, target)


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match=r"^http://\*\*\*@edge:8470: a publisher asks for no user and no password"):
        ship.check_url("http://me:secret@edge:8470")


def test_nobody_there(target: Path) -> None:
    with serving(HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)) as url:
        pass
    refused(url, target, "no publisher answers at")


@pytest.mark.parametrize(
    "answer",
    [(404, {}, b""), (200, {}, b"<html>"), (200, {}, b"[]"), (200, {}, b"[" * 4000), (200, {}, b"{" + b" " * 9999)],
    ids=["404", "html", "list", "nested", "long"],
)
def test_what_is_no_publisher_is_named_so(target: Path, answer: tuple[int, dict[str, str], bytes]) -> None:
    with lying(lambda path, asked: answer) as url:
        refused(url, target, "is no `dtrain ship publish`")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"schema": 2}, "speaks version 2"),
        ({"suffix": ".exe"}, "no kind of file"),
        ({"sha256": "../../etc/passwd"}, "no digest and size"),
        ({"num_bytes": "1"}, "no digest and size"),
        ({"num_bytes": True}, "no digest and size"),
        ({"num_bytes": 0}, "an empty file"),
        ({"num_bytes": 1 << 60}, "and --max-bytes is 268,435,456"),
        ({"difference": []}, "no digest and size"),
    ],
)
def test_an_offer_that_is_none_is_refused(target: Path, changes: dict[str, Any], part: str) -> None:
    offer = json.dumps({**json.loads(Offer(".dtz", Blob.of(NEW), None).to_json()), **changes}).encode()
    with lying(lambda path, asked: (200, {}, offer)) as url:
        refused(url, target, part)


def test_altered_bytes_are_refused(target: Path) -> None:
    altered = NEW[:500] + bytes([NEW[500] ^ 1]) + NEW[501:]
    with lying(offering(NEW, lambda asked: whole(altered))) as url:
        refused(url, target, "altered on the way")


def test_more_or_fewer_bytes_than_offered_are_refused_before_they_are_read(target: Path) -> None:
    for data in (NEW + b"\0", NEW[:-1]):
        with lying(offering(NEW, lambda asked, data=data: whole(data))) as url:  # type: ignore[misc]
            refused(url, target, f"sends {len(data)} bytes where {len(NEW)} were offered")
    with lying(offering(NEW, lambda asked: (200, {}, NEW))) as url:
        refused(url, target, "sends None bytes")


def test_a_body_that_always_breaks_off_is_given_up(target: Path) -> None:
    cut = (200, {"Content-Length": str(len(NEW))}, NEW[:1000])
    with lying(offering(NEW, lambda asked: cut if not asked else (503, {}, b""))) as url:
        refused(url, target, "answers 503")
    with lying(offering(NEW, lambda asked: cut)) as url:  # begins again each time
        refused(url, target, "broke off 4 times, after 1,000 of")


def test_a_body_that_breaks_off_is_gone_on_with(target: Path) -> None:
    asked_for = []

    def answer(asked: str) -> tuple[int, dict[str, str], bytes]:
        asked_for.append(asked)
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        left = NEW[first:]
        return (206 if asked else 200), {"Content-Length": str(len(left))}, left[:3000]

    with lying(offering(NEW, answer)) as url:
        assert ship.receive(url, target).transferred_bytes == len(NEW)
    assert target.read_bytes() == NEW
    assert asked_for == ["", *(f"bytes={first}-" for first in range(3000, len(NEW), 3000))]


def test_the_publisher_goes_on_where_a_receiver_asks_it_to(tmp_path: Path, target: Path) -> None:
    blob, body = Blob.of(OLD), bytearray(OLD[:700])
    with published(tmp_path / "m.dtz") as url:
        asking.Source(url)._fetch_rest(blob, body, None, time.monotonic() + 60)
    assert body == OLD


def test_a_difference_from_another_file_is_refused(target: Path) -> None:
    way = make_difference(NEWER, NEW)
    with lying(offering(NEW, lambda asked: whole(way), way)) as url:
        refused(url, target, "the publisher sent a difference from")


def test_a_difference_to_another_file_is_refused(target: Path) -> None:
    way = make_difference(OLD, NEWER)
    with lying(offering(NEW, lambda asked: whole(way), way)) as url:
        refused(url, target, "leads to another file than it offered")


def test_what_is_no_model_is_refused_even_with_the_right_digest(target: Path) -> None:
    with lying(offering(b"no model", lambda asked: whole(b"no model"))) as url:
        refused(url, target, "is no whole model: not a packed model")


def test_a_version_that_is_gone_is_named_so(target: Path) -> None:
    with lying(offering(NEW, lambda asked: (404, {}, b""))) as url:
        refused(url, target, "gone on to another version")


def test_a_full_disk_is_named_and_the_old_version_stays(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with published(tmp_path / "m.dtz", NEW) as url:
        with monkeypatch.context() as patch:
            disk = stand_in(shutil, disk_usage=lambda path: type("Usage", (), {"free": 10}))
            patch.setattr(replacing, "shutil", disk)
            refused(url, target, "10 bytes free, and the new version takes")

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(replacing, "os", stand_in(os, fsync=full))
        refused(url, target, r"cannot write .*r.dtz \(No space left on device\); it is as it was")


def test_two_receivers_of_one_file_do_not_mix(tmp_path: Path, target: Path) -> None:
    inside = threading.Event()
    leave = threading.Event()

    def answer(asked: str) -> tuple[int, dict[str, str], bytes]:
        inside.set()
        assert leave.wait(60)
        return whole(NEW)

    with lying(offering(NEW, answer)) as url:
        first = threading.Thread(target=ship.receive, args=(url, target))
        first.start()
        assert inside.wait(60)
        with pytest.raises(ValueError, match="another receiver is writing"):
            ship.receive(url, target)
        leave.set()
        first.join()
    assert target.read_bytes() == NEW


def test_what_a_killed_receiver_leaves_is_no_hindrance(tmp_path: Path, target: Path) -> None:
    target.with_name("r.dtz.partial").write_bytes(NEW * 3)
    with published(tmp_path / "m.dtz") as url:
        ship.receive(url, target)
    assert target.read_bytes() == OLD
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_the_publisher_answers_nothing_else(tmp_path: Path) -> None:
    import http.client

    with published(tmp_path / "m.dtz") as url:
        host, port = ship.check_url(url)
        for path in ("/etc/passwd", "/files/../m.dtz", "/files/" + "0" * 64, "/?have=1", "/?have=" + "0" * 63):
            connection = http.client.HTTPConnection(host, port, timeout=60)
            connection.request("GET", path)
            assert connection.getresponse().status == 404
            connection.close()


def test_an_address_in_use_is_named(tmp_path: Path) -> None:
    with published(tmp_path / "m.dtz") as url, pytest.raises(ValueError, match="give another --host or --port"):
        ship.open_server(ship.Publisher(tmp_path / "m.dtz"), host="127.0.0.1", port=ship.check_url(url)[1])


# the command


def test_the_command_receives_and_says_what_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "r.dtz"
    with published(tmp_path / "m.dtz") as url:
        arguments = ["ship", "receive", url, "-o", str(target), "--ledger", str(tmp_path / "ledger.jsonl")]
        assert main([*arguments, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["kind"], said["transferred_bytes"]) == ("file", len(OLD))
        assert main(arguments) == 0
        assert "is the newest already" in capsys.readouterr().out
        assert main(["ship", "receive", "http://", "-o", str(target)]) == 2
        assert main(["ship", "receive", url, "-o", str(target), "--max-bytes", "9"]) == 2
        assert capsys.readouterr().err.count("dtrain: error: ") == 2


def test_the_ledger_file_has_the_transfer(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with published(tmp_path / "m.dtz") as url:
        assert main(["ship", "receive", url, "-o", str(tmp_path / "r.dtz"), "--ledger", str(path)]) == 0
    (record,) = map(json.loads, path.read_text().splitlines())
    assert {entry["phase"] for entry in record["entries"]} == {"export"}
    assert sum(entry["payload_bytes"] for entry in record["entries"]) == len(OLD)
    assert all(np.isfinite(entry["seconds"]) for entry in record["entries"])


def test_what_keeps_a_receiver_waiting_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ship.Received("file", "0" * 64, 1, 1, 0.0, 0.0)
    outcomes = iter([OSError("away"), OSError("away"), OSError("broken"), here, OSError("broken"), KeyboardInterrupt()])

    def receive(*arguments: Any, **options: Any) -> ship.Received:
        outcome = next(outcomes)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(ship, "receive", receive)
    assert main(["ship", "receive", "http://127.0.0.1:1", "-o", str(tmp_path / "m.dtz"), "--every", "0"]) == 130
    *lines, unchecked, last = capsys.readouterr().err.splitlines()
    assert "give --public-key" in unchecked
    assert [*lines, last] == [f"dtrain: warning: {said}" for said in ("away", "broken", "broken")]


class Panic(BaseException):
    """What a library in Rust raises is no Exception."""


def test_a_publisher_serves_on_however_a_new_version_fails_to_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dtrain.ship import publisher

    path = tmp_path / "m.dtz"
    with published(path) as url:
        for number, error in enumerate((Panic("a\nb"), RecursionError(), KeyError("x"), MemoryError())):

            def fail(*_: object, error: BaseException = error) -> None:
                raise error

            monkeypatch.setattr(publisher, "from_bytes", fail)
            path.write_bytes(NEW + bytes(number))
            target = tmp_path / f"r{number}.dtz"
            assert ship.receive(url, target).sha256 == Blob.of(OLD).sha256
    assert capsys.readouterr().err.count("; still serving") == 4


def test_nor_does_a_difference_that_cannot_be_made_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dtrain.ship import publisher

    def fail(*_: object) -> None:
        raise Panic

    monkeypatch.setattr(publisher, "make_difference", fail)
    path, target = tmp_path / "m.dtz", tmp_path / "r.dtz"
    with published(path) as url:
        ship.receive(url, target)
        path.write_bytes(NEW)
        assert ship.receive(url, target).kind == "file"
    assert target.read_bytes() == NEW
