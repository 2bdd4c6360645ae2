from __future__ import annotations

import json
import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dtrain.files import make_folder, move_into, whole_file, write_whole
from dtrain.observe.jsonl import JsonLines


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_bytes_and_text_are_there_when_it_returns_and_nothing_else_is(tmp_path: Path) -> None:
    write_whole(tmp_path / "bytes", b"\x00\xff")
    write_whole(tmp_path / "text", "größer\n")
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert (tmp_path / "text").read_text(encoding="utf-8") == "größer\n"
    assert names(tmp_path) == ["bytes", "text"]


def test_until_the_end_the_target_holds_what_it_held(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_whole(path, "old")
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_an_error_leaves_the_target_and_no_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_whole(path, "old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_disk_that_is_full_leaves_the_target_and_says_which_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    write_whole(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/model'$"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_file_then_name_then_folder_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "model", []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        seen.append((kind, os.fstat(descriptor).st_size if kind == "file" else 0, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_whole(path, b"12345")
    assert seen == [("file", 5, False), ("folder", 0, True)]


def test_each_new_folder_s_name_reaches_the_disk_from_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    make_folder(tmp_path / "run" / "checkpoints" / "step-1")
    assert synced == [tmp_path, tmp_path / "run", tmp_path / "run" / "checkpoints"]
    make_folder(tmp_path / "run")
    assert len(synced) == 3


def test_what_is_moved_is_there_whole_and_the_rest_stays(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    move_into(tmp_path / "earlier" / "1", [tmp_path / "a"])
    assert names(tmp_path) == ["b", "earlier"]
    assert (tmp_path / "earlier" / "1" / "a" / "file").read_text() == "a"


def test_an_error_while_it_is_written_has_the_path_too(tmp_path: Path) -> None:
    with limited_files(1000), pytest.raises(OSError, match=r"File too large: '.*/model'$"):
        write_whole(tmp_path / "model", b"0" * 100_000)
    assert names(tmp_path) == []


def test_a_line_that_does_not_go_in_leaves_those_before_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    with limited_files(100), pytest.raises(OSError, match=r"File too large: '.*/metrics.jsonl'$"):
        for step in range(100):
            lines.write({"step": step})
    lines.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(8))


@contextmanager
def limited_files(num_bytes: int) -> Iterator[None]:
    """As on a disk that is full: no file of this process grows beyond it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_link_in_the_place_of_the_partial_file_is_never_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda size: "guessed")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".model.guessed.partial").symlink_to(victim)
    with pytest.raises(FileExistsError, match="model"):
        write_whole(tmp_path / "model", "new")
    assert victim.read_text() == "precious"
    assert (tmp_path / ".model.guessed.partial").is_symlink()
    assert not (tmp_path / "model").exists()


def test_a_link_in_the_target_s_place_is_replaced_and_what_it_leads_to_is_kept(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "model"
    victim.write_text("precious")
    path.symlink_to(victim)
    write_whole(path, "new")
    assert victim.read_text() == "precious"
    assert path.read_text() == "new"
    assert not path.is_symlink()


def test_a_link_to_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    write_whole(tmp_path / "run" / "model", "new")
    assert (tmp_path / "disk" / "model").read_text() == "new"
    assert (tmp_path / "run").is_symlink()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "model", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == mode


def test_a_name_as_long_as_a_file_system_takes_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)
    write_whole(path, "new")
    assert path.read_text() == "new"


def test_a_folder_in_the_target_s_place_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(IsADirectoryError, match=r"model'$"):
        write_whole(tmp_path / "model", "new")
    assert names(tmp_path) == ["model"]


def test_a_missing_folder_is_named_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none/model'$"):
        write_whole(tmp_path / "none" / "model", "new")


def test_a_pipe_is_written_into_and_stays_one(tmp_path: Path) -> None:
    path, came = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: came.append(path.read_text()))
    reader.start()
    write_whole(path, "new")
    reader.join(10)
    assert came == ["new"]
    assert path.is_fifo()


def test_devices_stay_devices() -> None:
    write_whole(Path("/dev/null"), "new")
    assert Path("/dev/null").is_char_device()


def test_what_was_written_can_be_read_back_before_it_is_shown(tmp_path: Path) -> None:
    with whole_file(tmp_path / "model") as file:
        file.write(b"12345")
        file.seek(0)
        assert file.read() == b"12345"


def test_writers_at_once_leave_one_whole_version(tmp_path: Path) -> None:
    path = tmp_path / "model"
    contents = [bytes([k]) * 100_000 for k in range(8)]
    threads = [threading.Thread(target=write_whole, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["model"]
