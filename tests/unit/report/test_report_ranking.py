"""The ranking: what one would choose comes first, and the best is marked where accuracies say that it is."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_report_example_runs import ALEXNET, write_demo, write_run

from dtrain.report import Ranked, as_csv, as_latex, as_markdown, load_ranked, ranked_data, ranked_table


def write_meter(path: Path, **changes: Any) -> Path:
    """What `python -m dtrain.meter --json` writes, as far as a comparison needs it."""
    purposes = [{"purpose": "gradient", "wire_bytes": 900.0}, {"purpose": "unknown", "wire_bytes": 100.0}]
    told = {"command": ["/home/me/train.py", "--epochs", "3"], "world_size": 2, "steps": 10, "purposes": purposes}
    totals = {"total_wire_bytes_all_ranks": 1000.0, "total_collectives_all_ranks": 40}
    path.write_text(json.dumps({**told, **totals, **changes}))
    return path


def sweep(tmp_path: Path) -> tuple[Ranked, ...]:
    """fp32, two that hold its accuracy within a point, and one that does not and sends least."""
    saving: dict[str, tuple[float, float]] = {"fp16": (2, 0.98), "int4": (7.9, 0.975), "one_bit": (31, 0.4)}
    runs = [write_run(tmp_path / "none", accuracy=0.98)]
    for name, (ratio, accuracy) in saving.items():
        total = {"total_wire_bytes_all_ranks": 1e9 / ratio, "saving_vs_fp32": ratio, "saving_vs_fp16": ratio / 2}
        runs.append(write_run(tmp_path / name, compressor=name, accuracy=accuracy, **total))
    return load_ranked(runs)


def printed(ranked: tuple[Ranked, ...], width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(ranked_table(ranked))
    return file.getvalue()


def test_the_fewest_bytes_that_cost_no_accuracy_come_first_and_are_the_best(tmp_path: Path) -> None:
    ranked = sweep(tmp_path)
    assert [one.label for one in ranked] == ["int4", "fp16", "none", "one_bit"]
    assert [one.is_best for one in ranked] == [True, False, False, False]


def test_no_run_is_the_best_alone_or_without_an_accuracy(tmp_path: Path) -> None:
    alone = load_ranked([write_run(tmp_path / "a")])
    unknown = load_ranked([write_run(tmp_path / "b", accuracy=None), write_run(tmp_path / "c", accuracy=None)])
    assert not any(one.is_best for one in (*alone, *unknown))
    assert "None is marked as the best" in as_markdown(unknown)


def test_each_data_set_has_a_best_of_its_own(tmp_path: Path) -> None:
    digits = [write_run(tmp_path / name) for name in ("a", "b")]
    cifar = [write_run(tmp_path / name, data="cifar10", accuracy=0.6) for name in ("c", "d")]
    assert [one.is_best for one in load_ranked([*cifar, *digits])] == [True, False, True, False]


def test_a_row_has_the_saving_and_its_accuracy_in_eighty_columns(tmp_path: Path) -> None:
    text = printed(sweep(tmp_path), 80)
    assert all(len(line) <= 80 for line in text.splitlines())
    (best,) = (line for line in text.splitlines() if line.startswith("* "))
    assert best.split() == ["*", "int4", "4.94", "MB", "127", "MB", "7.90x", "3.95x", "97.5%", "180", "206", "ms"]
    assert "the fewest bytes within 1 point of the highest accuracy" in " ".join(text.split())


def test_a_narrow_terminal_has_runs_as_columns(tmp_path: Path) -> None:
    text = printed(load_ranked(write_demo(tmp_path)), 50)
    assert "against fp16" in text
    assert all(len(line) <= 50 for line in text.splitlines())


def test_csv_has_exact_figures_and_a_line_for_each_run_whatever_its_name(tmp_path: Path) -> None:
    odd = write_run(tmp_path / "odd", run='a,b "c"', **ALEXNET, accuracy=None)
    rows = list(csv.DictReader(io.StringIO(as_csv(load_ranked([odd, write_run(tmp_path / "plain")])))))
    assert [row["label"] for row in rows] == ["plain", 'a,b "c"']
    assert rows[1]["wire_bytes_per_step"] == "243860896"
    assert rows[1]["accuracy"] == ""
    assert rows[0]["best"] == "True"


def test_markdown_and_latex_have_the_best_in_bold_and_names_as_text(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", run="100%_a|b"), write_run(tmp_path / "b", accuracy=0.5)]
    markdown, latex = as_markdown(load_ranked(runs)), as_latex(load_ranked(runs))
    assert r"| **100%\_a\|b** | **4.94 MB** |" in markdown
    assert {line.count(" | ") for line in markdown.splitlines() if line.startswith("| ")} == {7}
    assert r"\textbf{100\%\_a|b} & \textbf{4.94 MB}" in latex
    assert latex.count(r"\\") == 3  # the head and two rows
    assert latex.startswith("% ")
    assert latex.endswith("\\end{tabular}\n")


def test_a_metered_program_stands_beside_runs_with_what_it_knows(tmp_path: Path) -> None:
    files = [write_meter(tmp_path / "b.json"), write_meter(tmp_path / "a.json", steps=None)]
    ranked = load_ranked([*files, write_run(tmp_path / "run")])
    assert [one.label for one in ranked] == ["run", "a.json: train.py --epochs 3", "b.json: train.py --epochs 3"]
    table = as_markdown(ranked)
    assert r"| b.json: train.py --epochs 3 | 45 B | 1.00 KB | - | - | - | 10 | - |" in table
    assert r"| a.json: train.py --epochs 3 | - | 1.00 KB | - | - | - | - | - |" in table
    data = json.loads(json.dumps(ranked_data(ranked), allow_nan=False))
    assert data["runs"][0]["best"] is False
    assert data["metered"][1]["wire_bytes_per_step"] == 45.0
    assert len(list(csv.DictReader(io.StringIO(as_csv(ranked))))) == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{}", "is not what `python -m dtrain.meter --json FILE` writes"),
        ("nonsense", "is not valid JSON"),
    ],
)
def test_another_file_is_refused_by_name(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match=r"other\.json") as caught:
        load_ranked([tmp_path / "other.json"])
    assert says in str(caught.value)


def test_a_broken_figure_of_the_meter_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="world_size"):
        load_ranked([write_meter(tmp_path / "m.json", world_size=0)])


def test_a_file_given_twice_is_a_mistake(tmp_path: Path) -> None:
    path = write_meter(tmp_path / "m.json")
    with pytest.raises(ValueError, match="more than once"):
        load_ranked([path, path])
