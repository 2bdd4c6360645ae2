from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.cluster.agent_log import AgentLog

AGENT = "E1129 09:24:42.737000 25845 /lib/torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 2)"
TRACEBACK = (
    "Traceback (most recent call last):",
    '  File "torchrun", line 8, in <module>',
    "ChildFailedError: ",
    "====",
)


def shown(log: AgentLog, node: str, *lines: str) -> list[str]:
    return [line for line in lines if log.shows(node, line)]


def test_what_torchrun_says_of_an_explained_failure_goes_into_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    log, said = AgentLog(), "dtrain: error: modle is not a setting"
    assert shown(log, "node0", "step 1", said, AGENT, *TRACEBACK) == ["step 1", said]
    assert shown(log, "node1", "step 1", AGENT, *TRACEBACK) == ["step 1"]
    assert log.explanation == said
    path = log.write()
    assert path is not None
    assert path.parent == tmp_path
    assert path.read_text().count("[node1] ") == 5


def test_a_failure_that_nobody_explained_is_shown_whole() -> None:
    log = AgentLog()
    assert shown(log, "node0", AGENT, *TRACEBACK) == [AGENT, *TRACEBACK]
    assert (log.explanation, log.write()) == (None, None)


def test_a_later_explanation_is_shown_all_the_same() -> None:
    log = AgentLog()
    later = "dtrain: error: rank 1: no such file"
    assert shown(log, "node0", "dtrain: error: first", AGENT, later, "====") == ["dtrain: error: first", later]
