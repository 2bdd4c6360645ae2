"""The HTML report: complete, inert, self-contained, and the same bytes for the same runs."""

import importlib.resources
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_report_example_runs import ALEXNET, write_demo, write_run

from dtrain.report import load_runs, write_report
from dtrain.report.squeezenet.paper import CLAIMS
from dtrain.report.svg import VARIABLES

EVIL = "<script>alert(1)</script>\"'&{{ 7*7 }} $\\frac{x_1}$"


class Page(HTMLParser):
    """The elements of a page as a browser would find them, with their text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    def charts(self) -> list[str | None]:
        return [svg["aria-label"] for svg in self.tags("svg") if "aria-label" in svg]


def html_of(tmp_path: Path, *directories: Path) -> str:
    return write_report(load_runs(directories), tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_the_headline_comes_first_with_its_number(tmp_path: Path) -> None:
    html = html_of(tmp_path, *write_demo(tmp_path))
    verdict = "<strong>49.3x</strong> fewer bytes per step than AlexNet, and ends at 98.3%, AlexNet at 96.9%</h1>"
    assert f"<h1>SqueezeNet exchanges {verdict}" in html
    assert "fp16 would halve both" in html
    assert html.index("<h1>") < html.index("<h2")


def test_a_chart_of_accuracy_against_bytes_stands_between_the_verdict_and_the_claims(tmp_path: Path) -> None:
    html = html_of(tmp_path, *write_demo(tmp_path))
    assert html.index("<h1>") < html.index('id="accuracy-wire-bytes-figure') < html.index('<h2 id="claims">')
    assert Page(html).charts()[0] == "Accuracy against wire bytes sent by rank 0, training and test set."


def test_runs_of_different_length_have_their_steps_beside_every_accuracy(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "alexnet", **ALEXNET, num_steps=45, accuracy=0.1),
        write_run(tmp_path / "fp32"),
        write_run(tmp_path / "int4", compressor="int4", saving_vs_fp32=7.9, saving_vs_fp16=3.95, num_steps=90),
    ]
    html = html_of(tmp_path, *runs)
    assert "and ends at 98.3% after 90 steps, fp32 at 98.3% after 180 steps</h1>" in html
    assert "AlexNet, and ends at 98.3% after 180 steps, AlexNet at 10.0% after 45 steps." in html
    for result in ("10.0% after 45 steps", "98.3% after 180 steps", "98.3% after 90 steps"):
        assert f'<span class="result">{result}</span>' in html
    assert "runs of different length" in html
    assert "runs of different length" not in html_of(tmp_path / "alike", *write_demo(tmp_path / "alike"))


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({}, "<h1>squeezenet1_1 sends <strong>4.94 MB</strong> per step and rank</h1>"),
        (
            {"compressor": "top_k", "saving_vs_fp32": 520.0, "saving_vs_fp16": 260.0, "accuracy": 0.96},
            "<h1>top_k sends <strong>520.0x</strong> fewer bytes than fp32 and 260.0x fewer than fp16, and ends at "
            "96.0%; fp32&#39;s accuracy is not here</h1>",
        ),
        (
            {"compressor": "top_k", "saving_vs_fp32": 520.0, "saving_vs_fp16": 260.0, "accuracy": None},
            "<h1>top_k sent 520.0x fewer bytes than fp32 and 260.0x fewer than fp16, at an accuracy not measured</h1>",
        ),
        ({"world_size": 1}, "<h1>A single worker exchanges <strong>nothing</strong></h1>"),
        ({"wire_bytes_per_step": None, "num_steps": 0}, "<h1>No step was finished</h1>"),
    ],
)
def test_the_headline_claims_no_more_than_the_runs_show(tmp_path: Path, changes: dict[str, Any], title: str) -> None:
    assert title in html_of(tmp_path, write_run(tmp_path / "a", **changes))


@pytest.mark.parametrize(
    ("accuracies", "title"),
    [
        (
            (0.965, 0.449),
            "<h1>int4 sends <strong>7.90x</strong> fewer bytes than fp32 and 3.95x fewer than fp16, and ends at 96.5%, "
            "fp32 at 97.0%</h1>",
        ),
        (
            (0.90, 0.449),
            "<h1>top_k cost <strong>52.1 points</strong> of accuracy (44.9%, fp32 97.0%), for 1,599x fewer bytes than "
            "fp32 and 799.5x fewer than fp16</h1>",
        ),
    ],
    ids=["one holds", "none does"],
)
def test_no_saving_is_praised_that_costs_accuracy(tmp_path: Path, accuracies: tuple[float, float], title: str) -> None:
    int4, top_k = accuracies
    runs = [
        write_run(tmp_path / "fp32", accuracy=0.97),
        write_run(tmp_path / "int4", compressor="int4", saving_vs_fp32=7.9, saving_vs_fp16=3.95, accuracy=int4),
        write_run(tmp_path / "top_k", compressor="top_k", saving_vs_fp32=1599.0, saving_vs_fp16=799.5, accuracy=top_k),
    ]
    assert title in html_of(tmp_path, *runs)


@pytest.mark.parametrize(
    ("saving", "says"), [(1.0, "and as many as fp16"), (0.8, "and more than fp16 (0.80x its saving)")]
)
def test_what_fp16_would_save_stands_beside_every_saving(tmp_path: Path, saving: float, says: str) -> None:
    run = write_run(tmp_path / "a", compressor="bf16", saving_vs_fp32=2.0 * saving, saving_vs_fp16=saving)
    assert f"fewer bytes than fp32 {says}" in html_of(tmp_path, run)


def test_a_saving_that_holds_goes_before_the_two_networks_which_are_told_below(tmp_path: Path) -> None:
    saving = {"compressor": "int4", "saving_vs_fp32": 7.9, "saving_vs_fp16": 3.95}
    html = html_of(tmp_path, *write_demo(tmp_path), write_run(tmp_path / "int4", **saving))
    assert "<h1>int4 sends" in html
    assert "SqueezeNet exchanges 49.3x fewer bytes per step than AlexNet, and ends at 98.3%, AlexNet at 96.9%." in html


def test_a_complete_pair_makes_the_headline_rather_than_an_incomplete_one(tmp_path: Path) -> None:
    cut = write_run(tmp_path / "cut", model="squeezenet1_0", num_parameters=1_248_424, complete=False)
    html = html_of(tmp_path, cut, *write_demo(tmp_path))
    assert "<strong>49.3x</strong>" in html


def test_the_demo_has_all_six_charts_and_every_claim_and_the_settings(tmp_path: Path) -> None:
    html = html_of(tmp_path, *write_demo(tmp_path))
    page = Page(html)
    assert len(page.charts()) == 6
    assert html.count('<p class="verdict ') == len(CLAIMS) == 13
    assert html.count("<figcaption>") == 7
    for word in ("grad", "payload", "wire", "nic"):
        assert f"<dt>{word}</dt>" in html
    assert html.count("<details>") == 2
    assert "eval/metrics" in html
    assert "2.13.0+cpu" in html


def test_no_string_of_a_run_is_markup_script_mathtext_or_template(tmp_path: Path) -> None:
    strings = ("model", "variant", "data", "backend", "compressor")
    changes: dict[str, Any] = {key: f"{key} {EVIL}" for key in strings}
    evil = write_run(
        tmp_path / "a",
        run=EVIL,
        versions={EVIL: EVIL},
        wire_bytes_by_phase_and_purpose={EVIL: 1},
        **changes,
    )
    html = html_of(tmp_path, evil, *write_demo(tmp_path))
    page = Page(html)
    assert page.tags("script") == []
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    text = "".join(page.text)
    assert text.count(EVIL) > 10
    assert "49 $" not in text
    bars = html[html.index('id="time-') :]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in bars[: bars.index("</svg>")]


def test_dollars_in_a_name_stay_dollars_in_a_chart(tmp_path: Path) -> None:
    html = html_of(tmp_path, write_run(tmp_path / "a", run="$x_1^2$ costs"))
    assert ">$x_1^2$ costs</text>" in html


def test_the_page_loads_nothing_and_says_so_to_the_browser(tmp_path: Path) -> None:
    html = html_of(tmp_path, *write_demo(tmp_path))
    page = Page(html)
    assert "default-src 'none'" in html
    for name in ("link", "img", "iframe", "object", "embed", "script", "base", "form"):
        assert page.tags(name) == []
    linked = [value for _, attributes in page.elements for key, value in attributes.items() if key.endswith("href")]
    assert all(str(value).startswith("#") for value in linked)
    assert "@import" not in html
    assert set(re.findall(r"url\(\s*(.)", html)) <= {"#"}


def test_ids_are_unique_and_references_find_them(tmp_path: Path) -> None:
    html = html_of(tmp_path, *write_demo(tmp_path))
    ids = [attributes["id"] for _, attributes in Page(html).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="|url\()#([^")]+)', html)
    assert references
    assert set(references) <= set(ids)


def test_every_colour_of_a_chart_follows_the_page_into_the_dark(tmp_path: Path) -> None:
    html = html_of(tmp_path, *write_demo(tmp_path))
    css = html[html.index("<style>") : html.index("</style>")]
    light, dark = css.split("prefers-color-scheme: dark")
    for colour, variable in VARIABLES.items():
        assert f"{variable}: {colour};" in light
        assert f"{variable}: #" in dark[: dark.index("* {")]
    charts = html[html.index("</style>") :]
    bare = set(re.findall(r"(?<!, )#[0-9a-f]{6}\b", charts))
    assert bare <= {"#14171c"}  # the text inside bars, whose colours are light in both


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    runs = load_runs(write_demo(tmp_path))
    first = write_report(runs, tmp_path / "1.html").read_bytes()
    assert write_report(runs, tmp_path / "2.html").read_bytes() == first


def test_the_same_runs_give_the_same_bytes_in_another_process_and_with_another_matplotlibrc(tmp_path: Path) -> None:
    directories = [str(path) for path in write_demo(tmp_path)]
    first = write_report(load_runs(directories), tmp_path / "1.html").read_bytes()
    (tmp_path / "matplotlibrc").write_text("axes.labelsize: 30\nsvg.fonttype: path\nxtick.direction: in\n")
    code = "import sys; from dtrain.report import *; write_report(load_runs(sys.argv[2:]), sys.argv[1])"
    again = tmp_path / "2.html"
    environment = {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "PYTHONPATH": str(Path.cwd())}
    subprocess.run([sys.executable, "-c", code, str(again), *directories], check=True, env=environment)
    assert again.read_bytes() == first


def test_a_report_leaves_nothing_global_behind_in_matplotlib(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "a")
    code = """if True:
        import sys, matplotlib
        from dtrain.report import load_runs, write_report
        matplotlib.rcParams["font.size"] = 17
        settings = [key for key in matplotlib.rcParams if key != "backend"]  # to look at it would choose one
        before = [matplotlib.rcParams[key] for key in settings]
        write_report(load_runs([sys.argv[1]]), sys.argv[2])
        assert [matplotlib.rcParams[key] for key in settings] == before
        assert "matplotlib.pyplot" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code, str(directory), str(tmp_path / "report.html")], check=True)


def test_a_lone_rank_is_named_where_a_logarithm_cannot_show_it(tmp_path: Path) -> None:
    html = html_of(tmp_path, *write_demo(tmp_path), write_run(tmp_path / "alone", world_size=1))
    assert html.count("Not drawn (sent no gradient bytes): alone.") == 1
    assert html.count("Not drawn (no gradient bytes to draw against): alone.") == 2


def test_a_chart_with_nothing_to_show_says_so(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "alone", world_size=1, step_seconds_median=None)
    (directory / "metrics.jsonl").unlink()
    html = html_of(tmp_path, directory)
    assert Page(html).charts() == []
    assert html.count("Nothing to draw") == 6


def test_curves_leave_out_what_is_not_finite(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "a", loss=math.nan)
    line = '{"kind": "train", "step": 200, "wire_bytes": 9e8, "loss": NaN, "accuracy": null}\n'
    line += '{"kind": "train", "step": 210, "wire_bytes": 9e8, "loss": Infinity, "accuracy": null}\n'
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(line)
    assert "not finite" in html_of(tmp_path, directory)


def test_a_run_that_only_ever_diverged_is_named_as_not_drawn(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "bad")
    (directory / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 1, "wire_bytes": 9, "loss": NaN, "accuracy": 0.5}\n'
    )
    html = html_of(tmp_path, directory, *write_demo(tmp_path))
    assert html.count("Not drawn (nothing logged): bad.") == 1


def test_an_incomplete_run_is_marked_in_every_place_where_it_stands(tmp_path: Path) -> None:
    html = html_of(tmp_path, write_run(tmp_path / "cut", **ALEXNET, complete=False), write_run(tmp_path / "whole"))
    assert "Not every run is complete." in html
    marked = html.count('cut <span class="incomplete">incomplete</span>')
    assert marked == 8  # bars at the top, five legends, table head, settings
    assert ">cut (incomplete)</text>" in html  # the bars of the step's time
    assert "Runs: cut (incomplete), whole" in html
    assert ">whole (incomplete)" not in html


def test_twelve_runs_are_told_apart_by_colour_and_marker(tmp_path: Path) -> None:
    html = html_of(tmp_path, *(write_run(tmp_path / f"run{index}", num_steps=30) for index in range(12)))
    swatches = re.findall(r'<svg class="swatch".*?</svg> run(\d+)', html)
    looks = dict(re.findall(r'<svg class="swatch"[^>]*>(.*?)</svg> (run\d+)', html))
    assert len(set(swatches)) == 12
    assert len(looks) == 12


def test_a_name_in_a_script_that_our_font_lacks_is_drawn_by_the_browser(tmp_path: Path) -> None:
    html = html_of(tmp_path, write_run(tmp_path / "a", run="训练 κόσμος 🚂"))
    bars = html[html.index('id="time-') :]
    assert "训练 κόσμος 🚂" in bars[: bars.index("</svg>")]


def test_a_very_long_name_is_shortened_in_the_chart_and_whole_in_the_table(tmp_path: Path) -> None:
    name = "long" * 40
    html = html_of(tmp_path, write_run(tmp_path / "a", run=name, complete=False))
    assert f">{name[:29]}… (incomplete)</text>" in html
    assert html.count(name) > 5


def test_template_and_style_are_in_the_package() -> None:
    files = {file.name for file in importlib.resources.files("dtrain.report").iterdir()}
    assert {"report.html", "report.css"} <= files


def test_reading_and_comparing_do_not_import_matplotlib() -> None:
    code = "import sys, dtrain.report; sys.exit('matplotlib' in sys.modules or 'jinja2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_phases_of_a_run_are_in_its_details(tmp_path: Path) -> None:
    figures = {"steps": 90, "payload_bytes_per_step": 968384, "wire_bytes_per_step": 968384.5, "accuracy": 0.5}
    phases = [
        {"name": "prune", "exchanged_values": 242096, **figures},
        {"name": EVIL, "exchanged_values": 3564, **dict.fromkeys(figures), "steps": 0},
    ]
    page = Page(html_of(tmp_path, write_run(tmp_path / "run", phases=phases, packed_bytes=231903)))
    text = " ".join(" ".join(page.text).split())
    assert "prune 90 242,096 968,384 B 968,384.5 B 50.00%" in text
    assert EVIL in text
    assert "231,903 B" in text
