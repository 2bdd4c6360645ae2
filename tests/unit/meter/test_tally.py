"""Adding collectives up, and putting ranks' sums together."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from dtrain.exchange import Op
from dtrain.meter.job_traffic import JobTraffic, RankFigures, own_figures, read_figures
from dtrain.meter.ledger import MAX_GROUPS, Activity, Entry, Group, Ledger, Purpose, StepRecord
from dtrain.meter.nic import Counters
from dtrain.meter.tally import FURTHER_GROUPS, Kind, Sum, Tally, from_json
from dtrain.meter.wire import bus_bytes

WORLD = Group("default_pg", (0, 1, 2, 3))


def entry(start: float, seconds: float | None, payload: int = 1000, op: Op = Op.ALL_REDUCE) -> Entry:
    return Entry(op, Activity.INIT, Purpose.UNKNOWN, payload, 1.5 * payload, 4, "0", start, seconds)


def tally(*entries: Entry) -> Tally:
    ledger = Ledger()
    ledger.groups["0"] = WORLD
    result = Tally(ledger)
    for one in entries:
        result(StepRecord(None, (one,), None))
    return result


def test_collectives_of_one_kind_are_added_up_and_others_kept_apart() -> None:
    sums = tally(entry(0, 1.0), entry(1, 1.0, 600), entry(2, None, 2000), entry(3, 1.0, 0, Op.BARRIER)).sums

    def kind(op: Op, size: int) -> Kind:
        return Kind(op, Activity.INIT, Purpose.UNKNOWN, WORLD, size)

    assert sums == {
        kind(Op.ALL_REDUCE, 512): Sum(2, 2, 1600, 2400.0, 2400.0, 2.0),
        kind(Op.ALL_REDUCE, 1024): Sum(1, 0, 2000, 3000.0, 0.0, 0.0),
        kind(Op.BARRIER, 0): Sum(1, 1, 0, 0.0, 0.0, 0.0),
    }


@pytest.mark.parametrize(("payload", "size"), [(1, 1), (2, 2), (3, 2), (1023, 512), (1024, 1024), (1025, 1024)])
def test_a_size_is_the_power_of_two_at_or_below_the_payload(payload: int, size: int) -> None:
    assert [kind.size for kind in tally(entry(0, 1.0, payload)).sums] == [size]


def test_time_under_way_is_that_of_the_union() -> None:
    overlapping = [entry(0.0, 2.0), entry(1.0, 2.0), entry(1.5, 0.5), entry(10.0, None), entry(20.0, 1.0)]
    assert tally(*overlapping).under_way_seconds == pytest.approx(4.0)


def test_sums_survive_the_store() -> None:
    before = tally(entry(0, 1.0), entry(1, None, 5))
    assert from_json(json.loads(json.dumps(before.as_json()))) == before.sums
    figures = read_figures(own_figures(2, "node1", 5.0, before, Counters(1, 2)))
    assert figures == RankFigures(2, "node1", 5.0, 1.0, before.sums, Counters(1, 2), {})


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (Op.ALL_REDUCE, 2 * 1000 * 3 / 4),
        (Op.ALL_GATHER, 3000),  # nccl-tests: (n-1)/n of the gathered size
        (Op.REDUCE_SCATTER, 750),
        (Op.ALL_TO_ALL, 750),
        (Op.BROADCAST, 1000),
        (Op.REDUCE, 1000),
        (Op.GATHER, 3000),
        (Op.SCATTER, 750),
        (Op.SEND, 1000),
        (Op.BARRIER, 0),
    ],
)
def test_bus_bytes_are_those_of_nccl_tests(op: Op, expected: float) -> None:
    assert bus_bytes(op, 1000, 4) == expected


def test_a_ledger_that_closes_by_itself_stays_small_and_loses_nothing() -> None:
    records: list[StepRecord] = []
    ledger = Ledger(records.append, close_every=10)
    for number in range(95):
        ledger.record(Op.ALL_REDUCE, number, 0.0, world_size=2, group="0")
        assert len(ledger._pending) < 10
    ledger.close()
    assert [e.payload_bytes for record in records for e in record.entries] == list(range(95))


def test_what_may_be_under_way_is_not_closed_before_its_time_is_known() -> None:
    records: list[StepRecord] = []
    ledger = Ledger(records.append, close_every=4)
    pending = [ledger.record(Op.ALL_REDUCE, 1, 0.0, world_size=2, group="0") for _ in range(4)]
    for one in pending[2:]:
        one.complete()
    ledger.close()
    assert [e.seconds is None for record in records for e in record.entries] == [True, True, False, False]


def test_a_report_without_all_ranks_says_so_and_shows_the_others() -> None:
    figures = [RankFigures(rank, f"node{rank}", 5.0, 1.0, tally(entry(0, 1.0)).sums, None, {}) for rank in (0, 2)]
    report = JobTraffic(["x.py"], 4, figures, None)
    assert report.missing_ranks == [1, 3]
    assert report.as_json()["total_wire_bytes_all_ranks"] == 3000.0
    assert report.as_json()["operations"][0]["bus_bytes_per_second"] == 1500.0
    assert report.as_json()["nic"] == []


def shown(report: JobTraffic) -> str:
    """What a person reads, in one line."""
    console = Console(file=StringIO(), width=200)
    with console.capture() as capture:
        console.print(report.tables())
    return " ".join(capture.get().split())


def test_calls_that_could_not_be_counted_are_in_the_report() -> None:
    before = tally(entry(0, 1.0))
    before._ledger.note_uncounted(Op.ALL_REDUCE, "why")
    before._ledger.note_uncounted(Op.ALL_REDUCE, "why")
    before._ledger.note_uncounted(Op.BROADCAST, "why")
    figures = [read_figures(own_figures(rank, "node", 5.0, before, None)) for rank in range(4)]
    report = JobTraffic(["x.py"], 4, figures, None)
    assert report.as_json()["uncounted_calls_all_ranks"] == 12
    assert report.as_json()["uncounted"] == [{"op": "all_reduce", "calls": 8}, {"op": "broadcast", "calls": 4}]
    assert "INCOMPLETE: without 8 calls of all_reduce, 4 calls of broadcast that could not be counted" in shown(report)


def test_a_complete_report_does_not_say_that_it_is_not() -> None:
    figures = [RankFigures(rank, "node", 5.0, 1.0, tally(entry(0, 1.0)).sums, None, {}) for rank in range(4)]
    report = JobTraffic(["x.py"], 4, figures, None)
    assert report.as_json()["uncounted_calls_all_ranks"] == report.as_json()["unmetered_ranks"] == 0
    assert report.as_json()["uncounted"] == []
    assert "INCOMPLETE" not in shown(report)
    assert "install()" not in shown(report)


def test_ranks_of_groups_that_are_not_metered_are_counted_and_it_says_how_to_meter_them() -> None:
    """As under mp.spawn, or Lightning's launcher, where only the process that was started reports."""
    report = JobTraffic(["x.py"], 1, [RankFigures(0, "node", 5.0, 1.0, tally(entry(0, 1.0)).sums, None, {})], None)
    assert report.as_json()["unmetered_ranks"] == 3
    assert "1 rank sent 1.50 KB in 1 collectives without 3 ranks of its groups." in shown(report)
    assert "call dtrain.meter.install() in each instead" in shown(report)


def test_a_report_of_nothing_says_what_is_not_seen() -> None:
    report = JobTraffic(["x.py"], 1, [RankFigures(0, "node", 5.0, 1.0, {}, None, {})], None)
    assert "call dtrain.meter.install() in each instead" in shown(report)
    assert "group._get_backend(...)" in shown(report)


def test_top_talkers_come_first_and_hosts_count_once() -> None:
    def rank(number: int, *entries: Entry) -> RankFigures:
        return RankFigures(number, "node0", 5.0, 1.0, tally(*entries).sums, Counters(10 + number, 20), {})

    report = JobTraffic(
        ["x.py"], 2, [rank(0, entry(0, 1.0, 10)), rank(1, entry(0, 1.0), entry(1, 1.0, op=Op.SEND))], "lo"
    )
    assert list(report.by(lambda kind: kind.op)) == [Op.ALL_REDUCE, Op.SEND]
    assert report._rank_table().columns[0]._cells == ["1", "0"]
    assert report.hosts == {"node0": Counters(10, 20)}


def test_a_program_that_makes_groups_for_ever_has_no_more_sums_than_it_has_to() -> None:
    ledger = Ledger(close_every=10)
    seen = Tally(ledger)
    ledger.sinks.append(seen)
    for number in range(3 * MAX_GROUPS):
        ledger.note_group(str(number), Group(str(number), (0, 1)))
        ledger.record(Op.ALL_REDUCE, 8, 8.0, world_size=2, group=str(number))
    ledger.close()
    assert len(ledger.groups) == MAX_GROUPS
    assert len(seen.sums) == MAX_GROUPS + 1
    assert sum(total.collectives for total in seen.sums.values()) == 3 * MAX_GROUPS
    assert {kind.group: total for kind, total in seen.sums.items()}[FURTHER_GROUPS].collectives == 2 * MAX_GROUPS
    assert from_json(json.loads(json.dumps(seen.as_json()))) == seen.sums
