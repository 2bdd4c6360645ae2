"""The received file, with many receivers at once and with what others put in their way."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from stat import S_ISDIR

import pytest
from shippable import NEW, NEWER, OLD, published

from dtrain import ship
from dtrain.files import write_whole
from dtrain.ship import target as files

KILLS = 500 if os.environ.get("DTRAIN_FULL") == "1" else 20

WHOLE = {bytes([letter]) * 50_000 for letter in b"abc"}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    path = tmp_path / "there" / "r.dtz"
    path.write_bytes(min(WHOLE))
    return path


def partial_of(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def write(target: Path, data: bytes) -> bool:
    """Whether it was this one's turn."""
    try:
        with files.alone(target) as partial:
            files.replace(target, partial, data)
    except ValueError:
        return False
    return True


def test_what_another_renamed_into_place_meanwhile_is_not_emptied(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, the holder before makes that very file the live one."""
    lock, others = files.fcntl.flock, [b"b" * 50_000, b"c" * 50_000]
    opened: list[int] = []

    def late(descriptor: int, operation: int) -> None:
        opened.append(descriptor)
        if others:
            data = others.pop()
            partial_of(target).write_bytes(data)
            partial_of(target).replace(target)
        lock(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with files.alone(target) as partial:
        assert target.read_bytes() == b"b" * 50_000
        assert partial.fileno() == opened[-1]
        partial.truncate(0)
        assert target.read_bytes() == b"b" * 50_000
    assert len(opened) == 3
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_file_of_the_next_receiver_is_not_removed(target: Path) -> None:
    with files.alone(target) as partial:
        files.replace(target, partial, b"x")
        partial_of(target).write_bytes(b"of the next one")
    assert partial_of(target).read_bytes() == b"of the next one"
    assert target.read_bytes() == b"x"


def test_with_many_receivers_at_once_every_look_finds_a_whole_version(target: Path) -> None:
    end = time.monotonic() + 1.0
    written = [0] * 4

    def receive(number: int) -> None:
        while time.monotonic() < end:
            written[number] += write(target, sorted(WHOLE)[written[number] % 3])

    threads = [threading.Thread(target=receive, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    looks = set()
    while time.monotonic() < end:
        looks.add(target.read_bytes())
    for thread in threads:
        thread.join()
    assert looks <= WHOLE
    assert sum(written) > 1
    assert [path.name for path in target.parent.iterdir()] == [target.name]


RECEIVERS = """
import os, signal, sys; from pathlib import Path; from dtrain import ship
url, target = sys.argv[1], Path(sys.argv[2])
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that are killed
for _ in sys.stdin:  # a new one for each line
    if (child := os.fork()):
        print(child, flush=True)
        continue
    while True:
        try:
            ship.receive(url, target)
        except (ValueError, OSError):  # the other one's turn
            pass
"""


def test_receivers_of_one_file_that_are_killed_leave_it_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two at a time, over HTTP, while versions change; somebody looks at the file all the time."""
    rng, model, target = random.Random(0), tmp_path / "m.dtz", tmp_path / "r.dtz"
    versions = [OLD, NEW, NEWER]
    target.write_bytes(OLD)
    looks: Counter[bytes] = Counter()
    over = threading.Event()
    cut_short = 0

    def change() -> None:
        number = 0
        while not over.wait(0.005):
            number += 1
            write_whole(model, versions[number % 3])

    def look() -> None:
        while not over.wait(0.0005):
            looks[target.read_bytes()] += 1

    with published(model) as url:
        command = [sys.executable, "-c", RECEIVERS, url, str(target)]
        starter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert starter.stdin is not None and starter.stdout is not None
        threads = [threading.Thread(target=change), threading.Thread(target=look)]
        for thread in threads:
            thread.start()
        receivers: list[int] = []
        for _ in range(KILLS):
            while len(receivers) < 2:
                print(file=starter.stdin, flush=True)
                receivers.append(int(starter.stdout.readline()))
            time.sleep(rng.uniform(0.0, 0.1))
            os.kill(receivers.pop(0), signal.SIGKILL)
            cut_short += partial_of(target).exists()
        over.set()
        for thread in threads:
            thread.join()
        starter.stdin.close()
        os.kill(receivers.pop(), signal.SIGKILL)
        assert starter.wait(60) == 0
        starter.stdout.close()
        ship.receive(url, target)  # what the killed left is in nobody's way
        assert target.read_bytes() == model.read_bytes()
    assert set(looks) <= set(versions)
    assert len(looks) > 1 or KILLS < 100  # versions did change
    with capsys.disabled() if KILLS > 100 else nullcontext():
        print(f"\n{KILLS} kills, {cut_short} with a partial file there; {sum(looks.values()):,} looks, all whole")


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder", "hard link"])
def test_nothing_but_a_file_of_its_own_is_written_into(target: Path, tmp_path: Path, kind: str) -> None:
    other, path = tmp_path / "other", partial_of(target)
    if kind != "dangling link":
        other.write_bytes(b"precious")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "hard link":
        os.link(other, path)
    else:
        path.symlink_to(other)
    with pytest.raises((ValueError, OSError), match="remove it"), files.alone(target):
        pass
    assert other.exists() is (kind != "dangling link")
    assert not other.exists() or other.read_bytes() == b"precious"
    assert os.path.lexists(path)
    assert target.read_bytes() in WHOLE


@pytest.mark.parametrize("text", ["", "{}", "[]", "x", '{"version": -1, "sha256": "0"}', "[" * 200])
def test_a_damaged_record_of_the_last_version_is_named(target: Path, text: str) -> None:
    assert files.read_accepted(target) is None
    files.write_accepted(target, files.Accepted(7, "0" * 64))
    assert files.read_accepted(target) == files.Accepted(7, "0" * 64)
    target.with_name("r.dtz.version").write_text(text)
    with pytest.raises(ValueError, match=r"damaged, .* remove it"):
        files.read_accepted(target)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_a_folder_is_no_error(
    target: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.fsync

    def refuse_folders(opened: int) -> None:
        if S_ISDIR(os.fstat(opened).st_mode):
            raise OSError(code, os.strerror(code))
        real(opened)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    assert write(target, max(WHOLE))
    assert target.read_bytes() == max(WHOLE)
