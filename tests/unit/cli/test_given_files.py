"""Whatever file a command is given: what is no regular file is refused in one line, and nothing waits for it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtrain.cli import main

JOB = ["--params", "1M", "--compute", "1s"]
KINDS = ("named pipe", "folder", "socket", "device")
COMMANDS = {
    "evaluate": ["evaluate", "FILE.safetensors"],
    "pack": ["pack", "FILE.safetensors", "-o", "OUT.dtz"],
    "pack npz": ["pack", "FILE.npz", "-o", "OUT.dtz"],
    "pack net": ["pack", "FILE.net", "-o", "OUT.dtz"],
    "unpack": ["unpack", "FILE.dtz", "-o", "OUT.safetensors"],
    "inspect": ["inspect", "FILE.dtz"],
    "plan of a trace": ["plan", "--nodes", "2", "--link", "1gbit", "FILE.json"],
    "plan over a link": ["plan", "--nodes", "2", "--link", "FILE.json", *JOB],
    "plan by a calibration": ["plan", "--nodes", "2", "--link", "1gbit", *JOB, "--calibration", "FILE.json"],
    "publish": ["ship", "publish", "FILE.dtz"],
    "publish with a key": ["ship", "publish", "OUT.dtz", "--key", "FILE.pem"],
    "publish with a certificate": ["ship", "publish", "x.dtz", "--certificate", "FILE.pem", "--private-key", "x.pem"],
    "receive": ["ship", "receive", "http://127.0.0.1:9", "-o", "FILE.dtz"],
    "receive with a key": ["ship", "receive", "http://127.0.0.1:9", "-o", "OUT.dtz", "--public-key", "FILE.pem"],
    "receive with an authority": ["ship", "receive", "https://127.0.0.1:9", "-o", "OUT.dtz", "--ca", "FILE.pem"],
    "trace": ["trace", "FILE.json"],
}


@pytest.fixture(autouse=True)
def _nothing_waits() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise AssertionError("it waits for the file")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(kind: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, kind: str
) -> None:
    if (command, kind) == ("trace", "folder"):
        pytest.skip("a folder of dumps")
    monkeypatch.chdir(tmp_path)
    (name,) = [part for part in COMMANDS[command] if part.startswith("FILE")]
    put(kind, tmp_path / name)
    assert main(COMMANDS[command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dtrain: error: ")
    assert f"{name} is a {kind}: give a file" in line


@pytest.mark.parametrize("file", ["metrics.jsonl", "environment.json", "ledger/rank0.jsonl"])
def test_nor_does_the_view_of_runs_wait_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    (tmp_path / "summary.json").write_text('{"run": "x"}')
    (tmp_path / "ledger").mkdir()
    put("named pipe", tmp_path / file)
    assert main(["top", "--once", "--json", str(tmp_path)]) in (0, 1)
    assert "is a named pipe" in capsys.readouterr().out
