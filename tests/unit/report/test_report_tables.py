"""The paper's tables: its figures and ours side by side, never blended, and no size or byte that nobody counted."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from test_report_example_runs import ALEXNET, SQUEEZENET, write_run

from dtrain.pack import Model, Tensor, pack, to_bytes
from dtrain.report import Finding, Verdict, claims, claims_data, claims_table, load_runs, units, write_report
from dtrain.report.squeezenet.architecture import complexity
from dtrain.report.squeezenet.tables import SPACE
from dtrain.report.squeezenet.verdicts import Row
from dtrain.vision.models import build

PAPERS = SQUEEZENET | {"model": "squeezenet1_0", "num_parameters": 1_248_424}


def finding(key: str, *directories: Path) -> Finding:
    (judged,) = (one for one in claims(load_runs(directories)) if one.claim.key == key)
    return judged.finding


def row(found: Finding, what: str) -> Row:
    (one,) = (one for one in found.rows if one.what == what)
    return one


def packed_into(directory: Path, preset: str, name: str = "model.dtz") -> int:
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.1, (64, 6)) @ rng.normal(0, 1, (6, 288)) + rng.normal(0, 0.01, (64, 288))  # nearly rank 6
    model = Model({"fc.weight": Tensor.of(weight.astype("<f4"))}, {})
    data = to_bytes(pack(model, preset))
    (directory / name).write_bytes(data)
    return len(data)


def run_with(tmp_path: Path, name: str, fields: dict[str, Any], preset: str | None = None) -> Path:
    directory = write_run(tmp_path / name, **fields)
    if preset is not None:
        packed_into(directory, preset)
    return directory


# counting


def test_parameters_are_those_of_the_networks() -> None:
    assert complexity("alexnet").num_parameters == 60_965_224
    assert complexity("squeezenet1_0").num_parameters == 1_248_424
    assert complexity("squeezenet1_0", bypass="complex").num_parameters == 1_589_672
    one = build("squeezenet1_1", num_classes=1000)
    assert complexity("squeezenet1_1").num_bytes == sum(4 * parameter.numel() for parameter in one.parameters())


def test_multiply_adds_and_activations_are_those_counted_by_hand() -> None:
    whole = complexity("alexnet", image_size=227)
    fully_connected = 256 * 36 * 4096 + 4096 * 4096 + 4096 * 1000
    convolutions = 55**2 * 96 * 363 + 27**2 * 256 * 1200 + 13**2 * (384 * 2304 + 384 * 1728 + 256 * 1728)
    assert whole.multiply_adds == fully_connected + convolutions
    assert whole.activation_bytes == 4 * 2 * 55 * 55 * 96  # of the first normalisation
    assert complexity("squeezenet1_0").activation_bytes == 4 * 96 * (109**2 + 54**2)  # of the first pool


# table 2


def test_plain_sizes_are_counted_and_the_rest_is_not_measured(tmp_path: Path) -> None:
    found = finding("table_2", write_run(tmp_path / "a", **ALEXNET))
    assert found.verdict is Verdict.NOT_MEASURED
    assert [one.verdict.value for one in found.rows] == ["holds", *["not measured"] * 3, "holds", *["not measured"] * 2]
    assert "60,965,224 parameters, 243.86 MB (232.56 MiB)" in row(found, "AlexNet").ours
    assert "1,248,424 parameters, 4.99 MB (4.76 MiB)" in row(found, "SqueezeNet").ours
    six = row(found, "SqueezeNet, 6 bits, 33% kept")
    assert (six.ours, six.paper) == ("not measured", "0.47 MB (510x), 57.5% / 80.3%")
    assert all("ImageNet accuracy" in one.not_measured for one in found.rows)
    assert "Missing: packed models of AlexNet, SVD; AlexNet, pruned" in found.measured


@pytest.mark.parametrize(
    ("fields", "preset", "what"),
    [
        (ALEXNET, "svd", "AlexNet, SVD"),
        (ALEXNET, "pruned", "AlexNet, pruned"),
        (ALEXNET, "deep_compression_8bit", "AlexNet, Deep Compression"),
        (PAPERS, "deep_compression_8bit", "SqueezeNet, 8 bits, 33% kept"),
        (PAPERS, "deep_compression_6bit", "SqueezeNet, 6 bits, 33% kept"),
    ],
)
def test_a_packed_model_fills_the_row_that_it_belongs_to(
    tmp_path: Path, fields: dict[str, Any], preset: str, what: str
) -> None:
    directory = run_with(tmp_path, "run", fields)
    before = [one.ours for one in finding("table_2", directory).rows]
    size = packed_into(directory, preset)
    found = finding("table_2", directory)
    filled = row(found, what)
    assert filled.ours.startswith(f"{size:,} B: ")
    assert filled.ours.endswith("(run/model.dtz)")
    assert filled.verdict is Verdict.HOLDS
    assert "size" not in filled.not_measured
    assert sum(one != other.ours for one, other in zip(before, found.rows, strict=True)) == 1
    assert [run.label for run in found.runs] == ["run"]


@pytest.mark.parametrize("preset", ["lossless", "smallest"])
def test_a_packed_model_of_another_kind_fills_none(tmp_path: Path, preset: str) -> None:
    directory = run_with(tmp_path, "run", PAPERS, preset)
    assert all(one.verdict is Verdict.NOT_MEASURED for one in finding("table_2", directory).rows if "," in one.what)


def test_a_model_shared_in_training_and_packed_without_loss_is_known_by_its_codebooks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.choice(np.linspace(-1, 1, 60), (60, 200)) * (rng.uniform(size=(60, 200)) < 0.33)
    directory = write_run(tmp_path / "run", **PAPERS)
    model = Model({"conv.weight": Tensor.of(weights.astype("<f4"))}, {})
    (directory / "model.dtz").write_bytes(to_bytes(pack(model, "lossless")))
    ours = row(finding("table_2", directory), "SqueezeNet, 6 bits, 33% kept").ours
    assert f"{units.percent(np.count_nonzero(weights) / weights.size)} of weights kept, shared in 6 bits" in ours


def test_a_packed_model_larger_than_the_papers_does_not_hold(tmp_path: Path) -> None:
    directory = run_with(tmp_path, "run", PAPERS)
    weights = np.random.default_rng(0).normal(0, 1, (1500, 1200)).astype("<f4")
    model = Model({"weight": Tensor.of(weights)}, {})
    (directory / "large.dtz").write_bytes(to_bytes(pack(model, "deep_compression_6bit")))
    found = finding("table_2", directory)
    assert row(found, "SqueezeNet, 6 bits, 33% kept").numbers["bytes"] > 475_000
    assert found.verdict is Verdict.DOES_NOT_HOLD


def test_ten_class_heads_fill_no_row(tmp_path: Path) -> None:
    directory = run_with(tmp_path, "run", PAPERS | {"num_classes": 10}, "deep_compression_6bit")
    assert row(finding("table_2", directory), "SqueezeNet, 6 bits, 33% kept").verdict is Verdict.NOT_MEASURED


def test_the_headline_of_510_stays_unmeasured_and_tells_the_size(tmp_path: Path) -> None:
    directory = run_with(tmp_path, "run", PAPERS, "deep_compression_6bit")
    found = finding("deep_compression", directory)
    assert found.verdict is Verdict.NOT_MEASURED
    assert "run/model.dtz" in found.measured
    assert "Missing: the ImageNet accuracy of that file." in found.measured


def test_a_damaged_packed_model_is_named(tmp_path: Path) -> None:
    directory = run_with(tmp_path, "run", PAPERS, "lossless")
    (directory / "model.dtz").write_bytes(b"\x93DTZ")
    with pytest.raises(ValueError, match=r"model\.dtz: truncated; pack the model again"):
        load_runs([directory])


# table 3, the design space, the line


def test_complex_bypass_is_not_the_papers_size(tmp_path: Path) -> None:
    found = finding("table_3", write_run(tmp_path / "a"))
    assert [one.verdict.value for one in found.rows] == ["holds", "holds", "does not hold"]
    assert found.verdict is Verdict.DOES_NOT_HOLD
    assert "1,589,672 parameters, 6.36 MB (6.06 MiB)" in found.rows[2].ours


def test_sizes_of_the_design_space_are_as_printed(tmp_path: Path) -> None:
    found = finding("design_space", write_run(tmp_path / "a"))
    assert found.verdict is Verdict.HOLDS
    printed = [one for one in found.rows if one.paper != "not printed"]
    assert len(printed) == 6
    assert all(one.verdict is Verdict.HOLDS for one in printed)
    assert all(one.verdict is None for one in found.rows if one not in printed)
    assert all("bytes per step" in one.not_measured for one in found.rows)


def runs_of_the_space(tmp_path: Path, how_many: int) -> list[Path]:
    return [
        write_run(
            tmp_path / f"run{index}",
            model="squeezenet",
            variant=what,
            num_parameters=complexity("squeezenet", **options).num_parameters,
        )
        for index, (what, options, *_) in enumerate(SPACE[:how_many])
    ]


def test_bytes_of_a_run_stand_beside_the_network_that_it_trained(tmp_path: Path) -> None:
    found = finding("design_space", *runs_of_the_space(tmp_path, 2))
    assert "a rank of 2 sends 4,993,696 B a step" in row(found, "SR 0.125").ours
    assert row(found, "SR 0.125").not_measured == "ImageNet accuracy"
    assert "bytes per step" in row(found, "SR 0.5").not_measured
    assert [run.label for run in found.runs] == ["run0", "run1"]


def test_bytes_over_many_networks_are_a_line_or_not(tmp_path: Path) -> None:
    directories = runs_of_the_space(tmp_path, 5)
    found = finding("communication_is_a_line", *directories)
    assert found.verdict is Verdict.HOLDS
    assert "5 networks from 1,248,424 to 6,2" in found.measured
    assert "a rank sends 4 B a parameter" in found.measured
    assert len(found.numbers) == 5
    more = write_run(tmp_path / "more", model="alexnet", num_parameters=60_965_224, wire_bytes_per_step=4 * 60_965_900)
    assert finding("communication_is_a_line", *directories, more).verdict is Verdict.DOES_NOT_HOLD


def test_two_networks_are_no_line(tmp_path: Path) -> None:
    found = finding("communication_is_a_line", *runs_of_the_space(tmp_path, 2))
    assert found.verdict is Verdict.NOT_MEASURED
    assert "there are 2" in found.measured


def test_runs_at_other_world_sizes_are_other_lines(tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", model="squeezenet", num_parameters=999_999, world_size=4)
    assert finding("communication_is_a_line", *runs_of_the_space(tmp_path, 2), other).verdict is Verdict.NOT_MEASURED


# one figure each


def test_less_compute_is_counted_at_the_papers_image_size_and_told_at_caffes(tmp_path: Path) -> None:
    found = finding("less_compute", write_run(tmp_path / "a"))
    assert found.verdict is Verdict.HOLDS
    assert found.numbers["ratio at 224"] == pytest.approx(847_596_576 / 349_151_936)
    assert found.numbers["ratio at 227"] == pytest.approx(2.2214, abs=1e-4)
    assert "2.43x less" in found.measured
    assert "2.22x less" in found.measured


def test_an_fpga_holds_squeezenets_weights_and_not_alexnets(tmp_path: Path) -> None:
    found = finding("fits_an_fpga", write_run(tmp_path / "a"))
    assert found.verdict is Verdict.HOLDS
    assert [one.paper for one in found.rows] == ["does not fit", "fits", "fits"]
    assert "whole fp32 activations do not fit beside them" in found.measured


# how it is shown


@pytest.mark.parametrize("width", [60, 140])
def test_every_row_is_in_the_table_at_any_width(tmp_path: Path, width: int) -> None:
    judged = claims(load_runs([run_with(tmp_path, "[red]run", PAPERS, "deep_compression_6bit")]))
    file = io.StringIO()
    Console(file=file, width=width).print(claims_table(judged))
    text = " ".join(file.getvalue().split())
    for shown in ("SqueezeNet, 6 bits", "0.47 MB (510x)", "1,248,424 parameters"):
        assert shown in text
    assert all(len(line) <= width for line in file.getvalue().splitlines())


def test_rows_are_in_the_data_and_on_the_page(tmp_path: Path) -> None:
    runs = load_runs([run_with(tmp_path, "run", PAPERS, "deep_compression_6bit")])
    data = json.loads(json.dumps(claims_data(claims(runs)), allow_nan=False))
    rows = {one["claim"]: one["rows"] for one in data["claims"]}
    assert rows["fewer_parameters"] == []
    assert [set(one) for one in rows["table_2"]] == [{"what", "paper", "ours", "not_measured", "verdict"}] * 7
    page = write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('<table class="rows">') == 4
    assert "SqueezeNet, 6 bits, 33% kept" in page
