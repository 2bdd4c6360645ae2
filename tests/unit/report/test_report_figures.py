"""Figures as files: every chart of the report, twice, the same bytes for the same runs."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from test_report_example_runs import write_demo, write_run

from dtrain.cli import main
from dtrain.report import load_runs, write_figures

NAMES = {"accuracy-wire-bytes", "loss-wire-bytes", "bytes", "time", "accuracy-step", "loss-step"}


def test_each_chart_is_an_svg_and_a_png_with_the_runs_in_its_legend(tmp_path: Path) -> None:
    paths = write_figures(load_runs(write_demo(tmp_path)), tmp_path / "deep" / "figures")
    assert {path.name for path in paths} == {f"{name}.{suffix}" for name in NAMES for suffix in ("svg", "png")}
    drawn = next(path for path in paths if path.name == "accuracy-step.svg")
    words = {element.text for element in ElementTree.parse(drawn).iter("{http://www.w3.org/2000/svg}text")}
    assert {"alexnet", "squeezenet1_1", "step", "accuracy"} <= words
    with Image.open(drawn.with_suffix(".png")) as image:
        assert image.width > 800
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_the_same_runs_give_the_same_figures(tmp_path: Path) -> None:
    runs = load_runs([write_run(tmp_path / "a")])
    first = [path.read_bytes() for path in write_figures(runs, tmp_path / "1")]
    assert [path.read_bytes() for path in write_figures(runs, tmp_path / "2")] == first


def test_a_report_writes_figures_beside_itself_and_ends_with_its_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(path) for path in write_demo(tmp_path)]
    assert main(["report", *runs, "-o", str(tmp_path / "r.html"), "--figures", str(tmp_path / "figures")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"report in {tmp_path / 'r.html'}"
    assert lines[1] == f"12 figures in {tmp_path / 'figures'}"
    verdict = "SqueezeNet exchanges 49.3x fewer bytes per step than AlexNet, and ends at 98.3%, AlexNet at 96.9%."
    assert lines[2:] == [verdict]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    run = write_run(tmp_path / "a")
    assert main(["report", str(run), "--figures", str(tmp_path / "file")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
