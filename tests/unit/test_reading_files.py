"""Files that somebody else may have made: their kind, their size, and what their JSON may hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dtrain.files import open_file, parse_json, read_file, read_json


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("x")
    assert read_file(tmp_path / "link", 3) == b"abc"
    with open_file(tmp_path / "x") as file:
        assert file.read(2) == b"ab"


def test_a_larger_file_than_asked_for_is_refused_and_no_more_than_that_is_read(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(1 << 40)  # of which the disk has nothing
    with pytest.raises(ValueError, match="has more than 1,000 bytes"):
        read_file(tmp_path / "x", 1000)
    with pytest.raises(ValueError, match="has more than 4,194,304 bytes"):
        read_json(tmp_path / "x")


def test_a_file_that_memory_does_not_hold_is_refused_in_words(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(ValueError, match="more than memory is free"):
        read_file(tmp_path / "x")


def test_no_file_is_said_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no file at {tmp_path}/x: check the path"):
        read_file(tmp_path / "x")


def test_a_pipe_that_takes_the_file_s_place_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"")
    real = os.open

    def replaced(at: Path, *rest: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return real(at, *rest)

    monkeypatch.setattr(os, "open", replaced)
    with pytest.raises(ValueError, match="is a named pipe"):
        open_file(path)


@pytest.mark.parametrize("text", ['{"a": [1, -2.5, 18446744073709551615, 1e308, true, null]}', "[]", '"x"'])
def test_json_is_what_it_says(text: str) -> None:
    import json

    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("1" + "0" * 400, "a number of 401 digits"),
        ("-" + "9" * 5000, "digits"),
        ("1e400", "1e400 is no number"),
        ("NaN", "NaN is no number"),
        ("-Infinity", "-Infinity is no number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("", "not JSON"),
        ("{", "not JSON"),
        (b"\xff", "no text in UTF-8"),
        ('"' + "x" * 10_000, "not JSON"),
    ],
)
def test_other_json_is_refused_in_a_short_line(text: str | bytes, part: str) -> None:
    with pytest.raises(ValueError, match=part) as refused:
        parse_json(text)
    assert len(str(refused.value)) < 200
    assert str(refused.value).isprintable()


def test_a_loss_may_be_no_number_where_it_is_said() -> None:
    assert parse_json("Infinity", not_finite=True) == float("inf")
    with pytest.raises(ValueError, match="401 digits"):
        parse_json("1" + "0" * 400, not_finite=True)
