"""What a rank remembers of its last collectives, and writes down when one fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dtrain.exchange import Op
from dtrain.meter import recent
from dtrain.meter.ledger import Group, Ledger, Pending, Purpose


def record(ledger: Ledger, group: str = "0", op: Op = Op.ALL_REDUCE) -> Pending:
    with ledger.scope(purpose=Purpose.GRADIENT):
        return ledger.record(op, 4096, 4096.0, world_size=2, group=group)


def test_collectives_are_numbered_by_group_and_closing_does_not_forget_them() -> None:
    ledger = Ledger()
    numbers = [record(ledger, group).number for group in ("0", "1", "0")]
    ledger.close()
    numbers.append(record(ledger).number)
    assert numbers == [1, 1, 2, 3]


def test_one_that_is_taken_back_leaves_its_number_to_the_next() -> None:
    ledger = Ledger()
    ledger.withdraw(record(ledger))
    assert record(ledger).number == 1


def test_what_this_rank_did_last_is_said() -> None:
    ledger = Ledger()
    assert ledger.recent.say_last() == ""
    pending = record(ledger)
    assert ledger.recent.say_last() == "it started all_reduce 1 of 4,096 B (gradient) 0 s ago"
    pending.complete()
    assert ledger.recent.say_last().endswith(" 0 s ago, and finished it")


def test_one_that_failed_has_not_ended() -> None:
    pending = record(Ledger())
    pending.has_failed = True
    pending.complete()
    assert pending.end() == (False, None)


def test_where_nothing_was_metered_the_dump_is_of_torch_s_recorder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "last_of_torch", lambda kept: {"kept": kept})
    ledger = Ledger()
    ledger.recent.folder = tmp_path
    path = ledger.recent.dump(ledger, 0, 2)
    assert path is not None
    assert json.loads(path.read_text())["flight_recorder"] == {"kept": recent.KEPT}
    record(ledger)
    ledger.recent.dump(ledger, 0, 2)
    assert json.loads(path.read_text())["flight_recorder"] is None


def test_the_dump_holds_the_last_ones(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.note_group("0", Group("default_pg", (0, 1)))
    for _ in range(recent.KEPT + 10):
        record(ledger).complete()
    record(ledger, op=Op.ALL_GATHER)
    assert ledger.recent.dump(ledger, 1, 2) is None  # nobody has said where to
    ledger.recent.folder, ledger.recent.error = tmp_path, "it failed"
    path = ledger.recent.dump(ledger, 1, 2)
    assert path == tmp_path / "collectives-rank1.json"
    data = json.loads(path.read_text())
    assert (data["rank"], data["error"], data["groups"]) == (1, "it failed", {"0": [0, 1]})
    last = data["collectives"]
    assert [one["number"] for one in last] == list(range(12, recent.KEPT + 12))
    assert (last[-1]["op"], last[-1]["ended"], last[-1]["seconds"]) == ("all_gather", False, None)
    assert last[-2]["ended"]
    assert abs(last[-1]["started"] - data["time"]) < 60


def test_a_folder_that_is_gone_hides_no_error(tmp_path: Path, caplog: object) -> None:
    ledger = Ledger()
    ledger.recent.folder = tmp_path / "gone"
    assert ledger.recent.dump(ledger, 0, 2) is None
    assert re.search("last collectives of rank 0 are not written", str(getattr(caplog, "text", "")))


def test_a_program_may_make_new_groups_for_ever() -> None:
    ledger = Ledger()
    for group in range(recent.MAX_GROUPS + 100):
        record(ledger, str(group))
    assert len(ledger.recent._numbers) <= recent.MAX_GROUPS
