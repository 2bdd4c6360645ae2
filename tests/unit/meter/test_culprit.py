"""`dtrain trace`: the rank at fault, from dumps that are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dtrain.cli import main
from dtrain.meter.culprit import find_culprit, read_dumps


def collective(
    number: int, *, ended: bool = True, op: str = "all_reduce", group: str = "0", **more: Any
) -> dict[str, Any]:
    return {
        "group": group,
        "number": number,
        "op": op,
        "phase": "train",
        "purpose": "gradient",
        "payload_bytes": 100 * number,
        "world_size": 3,
        "started": 1000.0 + number,
        "ended": ended,
        "seconds": 0.5 if ended else None,
        **more,
    }


@pytest.fixture
def dump(tmp_path: Path) -> Any:
    """Writes a rank's dump; the path."""

    def write(rank: int, *collectives: dict[str, Any], **more: Any) -> Path:
        path = tmp_path / f"collectives-rank{rank}.json"
        content = {"schema": 1, "rank": rank, "world_size": 3, "host": f"node{rank}", "time": 1.0, "error": None}
        path.write_text(json.dumps({**content, "groups": {}, "collectives": list(collectives), **more}))
        return path

    return write


def up_to(number: int, *, ended: bool) -> list[dict[str, Any]]:
    return [collective(n) for n in range(1, number)] + [collective(number, ended=ended)]


def test_the_rank_that_is_behind_is_named(dump: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump(0, *up_to(5, ended=False))
    dump(1, *up_to(4, ended=True))
    dump(2, *up_to(5, ended=False))
    assert main(["trace", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (
        "rank 1 on host node1 is behind: never started all_reduce 5 of 500 B (gradient), in which ranks 0, 2 waited; "
        "the last that all had finished is all_reduce 4 of 400 B (gradient)\n"
    )
    assert main(["trace", "--json", *map(str, sorted(tmp_path.iterdir()))]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ranks"] == [1]
    assert (found["last_finished"]["number"], found["first_missed"]["payload_bytes"]) == (4, 500)


def test_a_rank_that_never_started_one_is_behind_too(dump: Any) -> None:
    paths = [dump(0, collective(1, ended=False)), dump(1), dump(2, collective(1, ended=False))]
    found = find_culprit(read_dumps(paths))
    assert found.ranks == (1,)
    assert found.sentence.endswith("none that all had finished is known")


def test_a_rank_without_a_dump_died(dump: Any) -> None:
    found = find_culprit(read_dumps([dump(0, *up_to(5, ended=False)), dump(2, *up_to(5, ended=False))]))
    assert found.sentence.startswith("rank 1 left no dump, and so died or was cut off; the last that others started is")
    assert found.last_finished is not None
    assert found.last_finished.number == 4


def test_ranks_that_do_different_things_are_told_apart(dump: Any) -> None:
    paths = [dump(0, *up_to(3, ended=False)), dump(1, collective(1), collective(2), collective(3, op="all_gather"))]
    found = find_culprit(read_dumps([*paths, dump(2, *up_to(3, ended=False))]))
    assert found.ranks == (0, 1)
    assert (
        "rank 0 on host node0 started all_reduce 3 of 300 B (gradient), rank 1 on host node1 all_gather"
        in found.sentence
    )


def test_all_in_the_same_collective_is_the_network(dump: Any) -> None:
    found = find_culprit(read_dumps([dump(rank, *up_to(3, ended=False)) for rank in range(3)]))
    assert found.ranks == ()
    assert found.sentence.startswith("no rank is behind: the last that others started is all_reduce 3")


def test_who_is_not_of_a_group_is_not_behind_in_it(dump: Any) -> None:
    """And of two groups, the one that was first to wait tells."""
    own = [collective(1, group="1"), collective(2, group="1", started=5000.0)]
    groups = {"0": [0, 1, 2], "1": [0, 1]}
    paths = [
        dump(0, *up_to(3, ended=False), *own, groups=groups),
        dump(1, *up_to(3, ended=False), *own[:1], groups=groups),
        dump(2, *up_to(2, ended=True), groups={"0": [0, 1, 2]}),
    ]
    assert find_culprit(read_dumps(paths)).ranks == (2,)


def test_what_was_forgotten_is_not_made_up(dump: Any) -> None:
    ahead = [collective(n) for n in range(300, 400)]
    found = find_culprit(read_dumps([dump(0, *ahead), dump(1, *up_to(3, ended=True)), dump(2, *ahead)]))
    assert (found.ranks, found.first_missed) == ((1,), None)
    assert "is behind: started 3 collectives where ranks 0, 2 started up to 399; none that all had" in found.sentence


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, '{"schema": 2}', '{"schema": 1, "rank": "one"}', '{"schema": 1, "collectives": 3}'],
)
def test_what_is_no_dump_is_a_mistake(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    assert main(["trace", str(path)]) == 2
    assert "file.json is no dump of a rank's last collectives" in capsys.readouterr().err


def test_a_folder_without_dumps_and_dumps_of_two_runs_are_mistakes(dump: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no collectives-rank"):
        read_dumps([tmp_path])
    path = dump(0)
    with pytest.raises(ValueError, match="of different runs"):
        read_dumps([path, path])


def test_a_dump_changes_no_terminal(dump: Any) -> None:
    (one,) = read_dumps([dump(0, host="node\x1b[31m0")])
    assert one.host == "node[31m0"


def of_torch(number: int, *, retired: bool = True, group: tuple[str, str] = ("0", "default_pg"), **more: Any) -> Any:
    """An entry of torch's flight recorder, as torch 2.13 writes it of gloo."""
    return {
        "collective_seq_id": number,
        "input_dtypes": ["Float"],
        "input_sizes": [[5, 5 * number]],
        "is_p2p": False,
        "process_group": list(group),
        "profiling_name": "gloo:all_reduce",
        "retired": retired,
        "state": "scheduled",
        "time_created_ns": 10**9 * number,
        **more,
    }


def recorded(*entries: Any, ranks: str = "[]") -> dict[str, Any]:
    return {"entries": list(entries), "pg_config": {"1": {"desc": "", "ranks": ranks}}, "version": "2.10"}


def test_torch_s_flight_recorder_tells_who_is_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rank, last in enumerate((3, 2, 3)):
        entries = [of_torch(n, retired=n < 3) for n in range(1, last + 1)]
        (tmp_path / f"trace_rank_{rank}.json").write_text(json.dumps(recorded(*entries)))
    assert main(["trace", *map(str, tmp_path.iterdir())]) == 0
    assert capsys.readouterr().out == (
        "rank 1 is behind: never started all_reduce 3 of 300 B (unknown), in which ranks 0, 2 waited; "
        "the last that all had finished is all_reduce 2 of 200 B (unknown)\n"
    )


def test_it_does_where_nothing_was_metered_and_a_failure_is_no_end(dump: Any) -> None:
    all_of_them = [of_torch(n) for n in range(1, 4)]  # gloo's say of one that failed that it is over
    failed = recorded(*all_of_them)
    paths = [dump(rank, flight_recorder=failed, error="it failed") for rank in range(3)]
    found = find_culprit(read_dumps(paths))
    assert found.sentence.startswith("no rank is behind: the last that others started is all_reduce 3")
    assert found.last_finished is not None
    assert found.last_finished.number == 2
    dump(1, flight_recorder=recorded(*all_of_them[:2]))
    behind = find_culprit(read_dumps(paths))
    assert behind.sentence.startswith("rank 1 on host node1 is behind: never started all_reduce 3")
    assert behind.last_finished is not None
    assert behind.last_finished.number == 2


@pytest.mark.parametrize("ranks", ["[0, 1]", "[]"])
def test_who_is_not_of_a_group_of_torch_s_is_not_behind_in_it(dump: Any, ranks: str) -> None:
    own = of_torch(1, group=("1", "undefined"))
    paths = [dump(rank, flight_recorder=recorded(of_torch(1), own, ranks=ranks)) for rank in (0, 1)]
    paths.append(dump(2, flight_recorder=recorded(of_torch(1), ranks=ranks)))
    assert find_culprit(read_dumps(paths)).ranks == ()


def test_a_group_that_was_made_anew_by_its_old_name_counts_from_1_again(dump: Any) -> None:
    before = [of_torch(n, pg_id=11) for n in (1, 2, 3)]
    (one,) = read_dumps([dump(0, flight_recorder=recorded(*before, of_torch(1, pg_id=13)))])
    assert one.last_of("0") == 1


def test_sends_and_receives_are_left_out_since_they_are_numbered_by_pair(dump: Any) -> None:
    paths = [dump(0, flight_recorder=recorded(of_torch(1), of_torch(7, is_p2p=True)))]
    (one,) = read_dumps(paths)
    assert one.last_of("0") == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"input_dtypes": ["Pickle"]},
        {"input_sizes": [[2**62, 2**62]]},
        {"input_sizes": [[-1]]},
        {"input_sizes": []},
        {"collective_seq_id": "1"},
        {"process_group": []},
        {"profiling_name": None},
        {"time_created_ns": []},
    ],
)
def test_what_torch_would_not_write_is_a_mistake(
    tmp_path: Path, changed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace_rank_0.json"
    path.write_text(json.dumps(recorded(of_torch(1, **changed))))
    assert main(["trace", str(path)]) == 2
    assert "is no dump of a rank's last collectives" in capsys.readouterr().err


def test_a_pickle_is_not_opened_and_a_name_without_a_rank_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nccl_trace_rank_0").write_bytes(b"\x80\x02}q\x00.")
    assert main(["trace", str(tmp_path / "nccl_trace_rank_0")]) == 2
    assert "is a pickle, which dtrain does not open: have torch write JSON" in capsys.readouterr().err
    (tmp_path / "trace.json").write_text(json.dumps(recorded(of_torch(1))))
    assert main(["trace", str(tmp_path / "trace.json")]) == 2
    assert "has to end with the rank" in capsys.readouterr().err
