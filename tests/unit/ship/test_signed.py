"""Signed offers: a receiver with a public key takes what its owner published, and nothing older than it has had."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from shippable import NEW, NEWER, OLD, lying, offering, published, refused, whole
from stand_in import stand_in

from dtrain import ship
from dtrain.cli import main
from dtrain.server import BoundedServer
from dtrain.ship import target as files
from dtrain.ship.keys import SIGNATURE, Check, Sign
from dtrain.ship.offer import Blob, Offer

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the keys a and b, and the files of both in their public halves."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("a", "b"):
        assert ship.make_keys(folder / name) == folder / f"{name}.pub"
    return folder


@pytest.fixture
def sign(keys: Path) -> Sign:
    return ship.read_signing_key(keys / "a")


@pytest.fixture
def check(keys: Path) -> Check:
    return ship.read_public_key(keys / "a.pub")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there" / "r.dtz"


def captured(url: str) -> Answer:
    """A publisher's offer to everybody, as somebody on the way sees it."""
    connection = http.client.HTTPConnection(*ship.check_url(url), timeout=60)
    connection.request("GET", "/")
    answer = connection.getresponse()
    signature = answer.getheader(SIGNATURE)
    body = answer.read()
    connection.close()
    assert signature is not None
    return 200, {SIGNATURE: signature}, body


def replayed(offer: Answer, data: bytes) -> Callable[[str, str], Answer]:
    return lambda path, asked: whole(data) if path.startswith("/files/") else offer


def test_what_is_signed_comes_as_ever(tmp_path: Path, target: Path, sign: Sign, check: Check) -> None:
    source = tmp_path / "m.dtz"
    with published(source, sign=sign) as url:
        assert ship.receive(url, target, check=check).kind == "file"
        source.write_bytes(NEW)
        assert ship.receive(url, target, check=check).kind == "difference"
        assert ship.receive(url, target, check=check).kind == "nothing new"
        target.unlink()
        assert ship.receive(url, target, check=check).kind == "file"
        source.write_bytes(OLD)  # a publisher may go back
        assert ship.receive(url, target, check=check).sha256 == Blob.of(OLD).sha256
    with published(source, NEW, sign=sign) as url:  # and start again
        assert ship.receive(url, target, check=check).sha256 == Blob.of(NEW).sha256
    with published(source, OLD, sign=sign) as url:  # a receiver without a key takes it too
        assert ship.receive(url, target).sha256 == Blob.of(OLD).sha256
    assert sorted(path.name for path in target.parent.iterdir()) == ["r.dtz", "r.dtz.version"]


def test_what_is_not_signed_by_that_key_is_refused(
    tmp_path: Path, target: Path, keys: Path, sign: Sign, check: Check
) -> None:
    with published(tmp_path / "m.dtz", NEW) as url:
        refused(url, target, "is not signed: have it run with --key", check=check)
    with published(tmp_path / "m.dtz", NEW, sign=ship.read_signing_key(keys / "b")) as url:
        refused(url, target, r"is not signed by the key of .*a\.pub", check=check)
    with published(tmp_path / "m.dtz", NEW, sign=sign) as url:
        _, headers, body = captured(url)
    forged = body.replace(Blob.of(NEW).sha256.encode(), Blob.of(NEWER).sha256.encode())
    assert forged != body
    for offer, signature in ((forged, headers[SIGNATURE]), (body, "é"), (body, "0" * 128), (body, " " * 128)):
        with lying(replayed((200, {SIGNATURE: signature}, offer), NEWER)) as url:
            refused(url, target, "is not signed by the key of", check=check)
    unversioned = Offer(".dtz", Blob.of(NEW), None).to_json()
    with lying(replayed((200, {SIGNATURE: sign(unversioned)}, unversioned), NEW)) as url:
        refused(url, target, "has no version", check=check)


def test_an_old_offer_that_is_sent_again_is_refused(tmp_path: Path, target: Path, sign: Sign, check: Check) -> None:
    source = tmp_path / "m.dtz"
    with published(source, OLD, sign=sign) as url:
        old = captured(url)
        source.write_bytes(NEW)
        ship.receive(url, target, check=check)
        new = captured(url)
    for held in (NEW, None):  # also where the file is gone
        if held is None:
            target.unlink()
        with lying(replayed(old, OLD)) as url, pytest.raises(ValueError, match="an old offer is sent again"):
            ship.receive(url, target, check=check)
        assert (target.read_bytes() if target.exists() else None) == held
    with lying(replayed(new, NEW)) as url:
        assert ship.receive(url, target, check=check).kind == "file"


def test_a_version_that_was_accepted_but_could_not_be_written_can_still_come(
    tmp_path: Path, target: Path, sign: Sign, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "m.dtz"
    with published(source, OLD, sign=sign) as url:
        with monkeypatch.context() as patch:
            patch.setattr(files, "replace", lambda *arguments: (_ for _ in ()).throw(OSError("full")))
            with pytest.raises(OSError, match="full"):
                ship.receive(url, target, check=check)
        assert not target.exists()
        assert ship.receive(url, target, check=check).kind == "file"


def test_keys_are_their_owner_s_alone_and_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key"
    before = os.umask(0)
    try:
        assert main(["ship", "keygen", str(key)]) == 0
    finally:
        os.umask(before)
    public = tmp_path / "key.pub"
    assert [path.stat().st_mode & 0o777 for path in (key, public)] == [0o600, 0o600]
    texts = key.read_bytes(), public.read_bytes()
    assert main(["ship", "keygen", str(key)]) == 2
    key.unlink()
    assert main(["ship", "keygen", str(key)]) == 2  # its public half is there
    assert not key.exists()
    assert capsys.readouterr().err.count("is never replaced: give another name") == 2
    assert public.read_bytes() == texts[1]
    key.symlink_to(tmp_path / "elsewhere")
    assert main(["ship", "keygen", str(key)]) == 2
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_is_no_key_is_named(tmp_path: Path, keys: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 10_000)
    for path in (keys / "a.pub", tmp_path / "x"):
        with pytest.raises(ValueError, match="give a private key"):
            ship.read_signing_key(path)
    for path in (keys / "a", tmp_path / "x"):
        with pytest.raises(ValueError, match="give a public key"):
            ship.read_public_key(path)
    with pytest.raises(OSError, match="no file at"):
        ship.read_public_key(tmp_path / "none")


def test_the_command_checks_and_goes_on(
    tmp_path: Path, target: Path, keys: Path, sign: Sign, capsys: pytest.CaptureFixture[str]
) -> None:
    """A forger's round is a line, and the next round brings what is signed."""
    source = tmp_path / "m.dtz"
    arguments = ["-o", str(target), "--public-key", str(keys / "a.pub")]
    rounds: list[int] = []

    def forging(offer: bytes) -> str:
        rounds.append(1)
        if len(rounds) == 4:
            raise AssertionError("enough")
        return "0" * 128 if len(rounds) < 3 else sign(offer)

    with published(source, sign=forging) as url, pytest.MonkeyPatch.context() as patch:

        def sleep(seconds: float) -> None:
            if len(rounds) >= 3:
                raise KeyboardInterrupt

        patch.setattr("dtrain.cli.ship.time", stand_in(time, sleep=sleep))
        assert main(["ship", "receive", url, *arguments, "--every", "5", "--json"]) == 130
        said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "is not signed by the key of" in said.err
    assert json.loads(said.out)["sha256"] == Blob.of(OLD).sha256


@pytest.mark.parametrize("signed", [False, True])
def test_a_publisher_says_once_that_offers_are_not_signed(
    tmp_path: Path, keys: Path, signed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.dtz").write_bytes(OLD)
    monkeypatch.setattr(BoundedServer, "serve_forever", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = ["ship", "publish", str(tmp_path / "m.dtz"), "--port", "0"]
    assert main([*arguments, *(["--key", str(keys / "a")] if signed else [])]) == 130
    said = capsys.readouterr()
    assert said.out.startswith("http://127.0.0.1:")
    assert said.err.count("offers are not signed") == (not signed)
    assert main([*arguments, "--key", str(keys / "a.pub")]) == 2


class Panic(BaseException):
    """As what panics in Rust raises."""


@pytest.mark.parametrize("error", [KeyError("name\x1b[2J"), MemoryError(), RecursionError("deep"), Panic("at")])
def test_however_a_decoder_fails_it_is_a_refusal(
    target: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(data: bytes) -> None:
        raise error

    monkeypatch.setattr("dtrain.ship.receiver.from_bytes", decode)
    with lying(offering(NEW, lambda asked: whole(NEW))) as url:
        refused(url, target, rf"what the publisher sent cannot be used \({type(error).__name__}: [^\x1b]*\)$")
