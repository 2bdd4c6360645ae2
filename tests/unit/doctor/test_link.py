from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from threads import ThreadCommunicator, run_ranks

from dtrain.comm import all_gather, communicator
from dtrain.doctor import Check, Severity, link

OBJECTION = Check("disk", Severity.WARNING, "it is full", "free some")


def hears(told: bytes) -> list[tuple[str, list[Check]]]:
    """What rank 0 makes of it that rank 1 tells these bytes."""

    def body(joined: ThreadCommunicator) -> Any:
        if joined.rank == 0:
            return link.gather_objections(joined, "here", [OBJECTION])
        return communicator.all_gather_bytes(joined, told)

    return run_ranks(2, body)[0]  # type: ignore[no-any-return]


def told(**changes: Any) -> bytes:
    one = {"name": "clock", "severity": "error", "finding": "it is late", "cure": "set it", **changes}
    return json.dumps({"host": "there", "objections": [one]}).encode()


def test_every_rank_hears_what_was_found_on_the_other_hosts() -> None:
    found = Check("clock", Severity.ERROR, "it is late", "set it", host="there")
    assert hears(told()) == [
        ("here", [Check("disk", Severity.WARNING, "it is full", "free some", "here")]),
        ("there", [found]),
    ]


def test_what_would_steer_a_terminal_is_not_shown() -> None:
    assert hears(told(finding="\x1b[2Jgone"))[1][1][0].finding == "?[2Jgone"


@pytest.mark.parametrize(
    "damaged",
    [
        b"{",
        b"[]",
        b"\xff",
        b"[" * 5000,
        json.dumps({"host": "there"}).encode(),
        json.dumps({"host": "there", "objections": 1}).encode(),
        told(severity="loud"),
    ],
)
def test_words_that_came_damaged_are_an_error_that_names_the_rank(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="what rank 1 found on its host came damaged"):
        hears(damaged)


@pytest.mark.parametrize("length", [-1, 1 << 40])
def test_a_length_that_cannot_be_is_refused_before_anything_is_made_of_it(length: int) -> None:
    def body(joined: ThreadCommunicator) -> None:
        if joined.rank == 0:
            communicator.all_gather_bytes(joined, b"{}")
        all_gather(joined, torch.tensor([length]))

    with pytest.raises(ValueError, match="what ranks say is damaged, or not ours"):
        run_ranks(2, body)
