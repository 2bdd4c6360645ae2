"""`dtrain top` beside a real run, and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import dtrain_command, environment, run, start, train_command

SETTINGS = ("experiment=digits", "num_epochs=null", "run_dir=run", "batch_size=8", "log_every=1")
PORT = 9467


@pytest.fixture(scope="module")
def ended_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("top")
    run(train_command(*SETTINGS, "num_steps=6", ranks=2), folder).expect(0)
    return folder


def test_a_run_s_directory_shows_what_its_summary_says(ended_run: Path) -> None:
    shown = run(dtrain_command("top", "run", "--json"), ended_run).expect(0).json
    summary = json.loads((ended_run / "run" / "summary.json").read_text())
    (found,) = shown["runs"]
    assert found["complete"]
    assert found["wire_bytes"] == summary["total_wire_bytes_all_ranks"]
    assert [rank["steps"] for rank in found["ranks"]] == [6, 6]
    assert found["ranks"][0]["wire_bytes_per_step"] == pytest.approx(summary["wire_bytes_per_step"], rel=0.001)
    once = run(dtrain_command("top", "run", "--once"), ended_run).expect(0)
    assert "squeezenet1_1 on digits - 2 ranks" in once.stdout
    assert once.stdout.count("ended") == 2


def test_an_address_that_does_not_answer_is_a_row_and_exit_code_1(ended_run: Path) -> None:
    ended = run(dtrain_command("top", "http://127.0.0.1:9", "run", "--once"), ended_run).expect(1)
    assert "http://127.0.0.1:9: does not answer: Connection refused" in ended.stdout
    assert "squeezenet1_1" in ended.stdout
    assert ended.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["run"], "dtrain top fills a terminal, and there is none: add --once or --json"),
        (["nowhere", "--once"], "nowhere is no run: give a run directory, or the address of a rank's metrics"),
        (["http://:1", "--json"], "http://:1: give the address of a rank's metrics, such as http://127.0.0.1:9400"),
    ],
)
def test_a_mistake_is_a_line(ended_run: Path, arguments: list[str], part: str) -> None:
    ended = run(dtrain_command("top", *arguments), ended_run).expect(2)
    (line,) = ended.stderr.splitlines()
    assert line.startswith("dtrain: error: ")
    assert part in line


def test_the_metrics_of_a_run_that_goes_on_show_both_ranks(tmp_path: Path) -> None:
    prometheus = ("observe.prometheus.enabled=true", f"observe.prometheus.port={PORT}")
    training = start(train_command(*SETTINGS, *prometheus, "num_steps=100000", ranks=2), tmp_path)
    try:
        urls = [f"http://127.0.0.1:{PORT + rank}" for rank in range(2)]
        deadline = time.monotonic() + 150
        while True:
            shown = run(dtrain_command("top", *urls, "--json"), tmp_path).json
            if not shown["silent"] and all((rank["steps"] or 0) > 2 for rank in shown["runs"][0]["ranks"]):
                break
            assert training.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        if training.poll() is None:
            os.killpg(training.pid, signal.SIGKILL)
        training.communicate()
    (found,) = shown["runs"]
    assert found["name"] == "run"
    assert [(rank["rank"], rank["doing"]) for rank in found["ranks"]] == [(0, "train"), (1, "train")]
    assert found["ranks"][1]["wire_bytes_per_step"] > 4_900_000
    assert 0 <= found["ranks"][0]["exposed_share"] < 1


def test_in_a_terminal_it_goes_on_until_ctrl_c_and_leaves_it_as_it_was(ended_run: Path) -> None:
    ours, theirs = pty.openpty()
    env = environment({"TERM": "xterm", "COLUMNS": "80", "LINES": "24"})
    process = subprocess.Popen(
        [sys.executable, "-m", "dtrain.cli", "top", "run"],
        cwd=ended_run,
        env=env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        said = b""
        while said.count(b"squeezenet1_1") < 2:  # drawn, and drawn again
            said += os.read(ours, 65536)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        said += os.read(ours, 65536)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert said.count(b"\x1b[?1049h") == said.count(b"\x1b[?1049l") == 1
    assert b"Traceback" not in said
