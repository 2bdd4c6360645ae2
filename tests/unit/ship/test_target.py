"""The received file, with many receivers at once and with what others put in their way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dtrain.ship import target as files

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


RECEIVER = """
import sys; from pathlib import Path; from dtrain.ship import target as files
target, number = Path(sys.argv[1]), 0
while True:
    try:
        with files.alone(target) as partial:
            files.replace(target, partial, b"abc"[number % 3:][:1] * 50_000)
    except ValueError:
        pass
    number += 1
"""


def test_receivers_of_one_file_that_are_killed_leave_it_whole(target: Path) -> None:
    rng = random.Random(0)
    command = [sys.executable, "-c", RECEIVER, str(target)]
    receivers = [subprocess.Popen(command) for _ in range(2)]
    before = target.stat().st_mtime_ns
    deadline = time.monotonic() + 60
    while target.stat().st_mtime_ns == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for receiver in receivers:
        time.sleep(rng.uniform(0.05, 0.2))
        assert target.read_bytes() in WHOLE
        os.kill(receiver.pid, signal.SIGKILL)
        assert receiver.wait() == -signal.SIGKILL
        assert target.read_bytes() in WHOLE
    assert write(target, max(WHOLE))
    assert target.read_bytes() == max(WHOLE)


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
