"""The page of a plan: the verdict first, inert, self-contained, and the same bytes for the same data."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dtrain.report import write_plan

EVIL = "<script>alert(1)</script>\"'&{{ 7*7 }} $x$"


def row(label: str, compressor: str, seconds: float, **changes: Any) -> dict[str, Any]:
    return {
        "candidate": {"label": label, "compressor": compressor, "options": {}, "exchanged": "gradient", "every": 1},
        "seconds": seconds,
        "low": 0.9 * seconds,
        "high": 1.1 * seconds,
        "exposed_seconds": 0.1,
        "codec_seconds": 0.0042,
        "sent_bytes": 1.5e6,
        "bound": "bandwidth",
        "to_none": 0.4,
        "to_fp16": 0.75,
        "pays_below_bits_per_second": 2e9,
        "known": "holds",
        "evidence": [],
        "total": None,
        **changes,
    }


def data(**changes: Any) -> dict[str, Any]:
    link = {"bits_per_second": 1e9, "latency_seconds": 1e-4, "busy_latency_seconds": None, "share": 0.936}
    rates = [10**e for e in range(6, 12)]
    return {
        "subject": "a model",
        "verdict": "Use int4: a step takes 405 ms, 0.25 of fp32's 1,608 ms. Exchanged less often, local takes 88 ms.",
        "best": "int4",
        "job": {
            "world_size": 8,
            "backend": "gloo",
            "optimizer": "adamw",
            "host": {"cores": 2.0, "ranks": 1},
            "link": {
                **link,
                "core_seconds_per_byte": 1e-9,
                "core_seconds_per_message": 0.0,
                "concurrent": 2,
                "ranks": 1,
            },
        },
        "whole_run": None,
        "rows": [
            row("one_bit", "one_bit", 0.3, known="fails", evidence=["cost 70.0 points on digits (n=2)"]),
            row("int4", "int4", 0.4, evidence=["cost 0.3% of loss on gpt (n=8)"]),
            row("none", "none", 1.608),
        ],
        "curves": {
            "bits_per_second": rates,
            "methods": [
                {"label": "none", "seconds": [1e9 / rate for rate in rates]},
                {"label": "int4", "seconds": [2e8 / rate + 0.2 for rate in rates]},
            ],
        },
        "timelines": [
            {
                "label": "none",
                "seconds": 1.608,
                "steps": 1,
                "drawn_seconds": 1.608,
                "compute": [[0, 0.2]],
                "codec": [],
                "wire": [[0.1, 1.6]],
            },
            {
                "label": "local",
                "seconds": 0.1,
                "steps": 4,
                "drawn_seconds": 0.4,
                "compute": [[0, 0.2]],
                "codec": [[0.2, 0.3]],
                "wire": [],
            },
        ],
        "machine": {"processor": "x86_64", "cores": 2, "threads": 1, "torch": "2.13.0"},
        **changes,
    }


class Elements(HTMLParser):
    """As a browser would find them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def html_of(tmp_path: Path, **changes: Any) -> str:
    return write_plan(data(**changes), tmp_path / "out" / "plan.html").read_text(encoding="utf-8")


def test_the_verdict_comes_first_and_what_follows_it_is_smaller(tmp_path: Path) -> None:
    html = html_of(tmp_path).replace("\xa0", " ")
    assert "<h1>Use int4: a step takes 405 ms, 0.25 of fp32&#39;s 1,608 ms</h1>" in html
    assert '<p class="detail">Exchanged less often, local takes 88 ms.</p>' in html
    assert html.index("<h1>") < html.index("<h2")


def test_the_chart_has_a_legend_of_what_it_draws_and_names_what_it_does_not(tmp_path: Path) -> None:
    html = html_of(tmp_path)
    legend = html[html.index('<ul class="legend">') : html.index("</ul>")]
    assert re.findall(r"</svg> (\S+)</li>", legend) == ["none", "int4"]
    assert re.search(r"Not drawn.*: one_bit\.", html)


def test_the_planned_link_is_named_in_the_chart(tmp_path: Path) -> None:
    html = html_of(tmp_path)
    chart = html[html.index('id="link-') :]
    assert ">1 Gbit/s</text>" in chart[: chart.index("</svg>")]


def test_the_timeline_names_each_step_with_its_length_and_says_what_is_drawn_of_a_round(tmp_path: Path) -> None:
    html = html_of(tmp_path)
    chart = html[html.index('id="timeline-') :]
    assert {">none</text>", ">1,608 ms</text>", ">local</text>", ">400 ms</text>"} <= set(
        re.findall(r">[^<>]+</text>", chart[: chart.index("</svg>")])
    )
    assert "local exchanges once in 4 steps: the last of them is drawn, and in the mean a step takes 100 ms." in html


def test_the_table_has_quartiles_the_break_even_and_what_is_known_with_its_evidence(tmp_path: Path) -> None:
    html = html_of(tmp_path)
    assert '<td class="number">360 to 440</td>' in html
    assert '<td class="number">2.00 Gbit/s</td>' in html
    assert '<td class="number">4.20</td>' in html
    assert '<td class="word does-not-hold">fails</td>' in html
    assert '<td class="evidence">cost 70.0 points on digits (n=2)</td>' in html
    assert html.count('<tr class="best">') == 1


@pytest.mark.parametrize(("rate", "said"), [(None, "any link"), (0.0, "never")])
def test_a_method_pays_over_any_link_or_over_none(tmp_path: Path, rate: float | None, said: str) -> None:
    rows = [row("int4", "int4", 0.4, pays_below_bits_per_second=rate), row("none", "none", 1.6)]
    assert f'<td class="number">{said}</td>' in html_of(tmp_path, rows=rows)


@pytest.mark.parametrize("price", [None, 2.5])
def test_the_whole_run_is_a_table_of_its_own_with_costs_where_there_is_a_price(
    tmp_path: Path, price: float | None
) -> None:
    total = {"hours": 12.34, "gigabytes": 5678.9, "cost": price and 246.8}
    rows = [row("int4", "int4", 0.4, total=total), row("none", "none", 1.6, total=total)]
    html = html_of(tmp_path, rows=rows, whole_run={"num_steps": 100_000, "price": price})
    assert "The whole run, 100,000 steps" in html
    assert html.count('<td class="number">5,679</td>') == 2
    assert html.count('<td class="number">246.80</td>') == (2 if price else 0)
    assert ("A node costs 2.5 an hour" in html) == bool(price)


def test_no_string_is_markup_script_mathtext_or_template(tmp_path: Path) -> None:
    rows = [row(EVIL, "int4", 0.4, evidence=[EVIL], bound=EVIL), row("none", "none", 1.6)]
    told = data()
    told["curves"]["methods"][1]["label"] = told["timelines"][1]["label"] = EVIL
    told["machine"]["processor"] = EVIL
    html = write_plan({**told, "rows": rows, "subject": EVIL, "verdict": EVIL}, tmp_path / "p.html").read_text()
    page = Elements(html)
    assert not [tag for tag, _ in page.found if tag == "script"]
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert page.text.count(EVIL) >= 6
    assert "49 $" not in page.text


def test_the_page_loads_nothing_and_says_so_to_the_browser(tmp_path: Path) -> None:
    html = html_of(tmp_path)
    page = Elements(html)
    assert "default-src 'none'" in html
    assert not [t for t, _ in page.found if t in ("link", "img", "iframe", "object", "embed", "script", "base", "form")]
    assert set(re.findall(r"url\(\s*(.)", html)) <= {"#"}
    linked = [str(value) for _, attributes in page.found for key, value in attributes.items() if key.endswith("href")]
    assert all(value.startswith("#") for value in linked)


def test_ids_are_unique_and_every_colour_follows_the_page_into_the_dark(tmp_path: Path) -> None:
    html = html_of(tmp_path)
    ids = [attributes["id"] for _, attributes in Elements(html).found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not re.findall(r"(?<!, )#[0-9a-f]{6}\b", html[html.index("</style>") :])


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    assert html_of(tmp_path) == html_of(tmp_path)
