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
