"""Reading run directories: what is wrong with one is said once, with the file and the cure."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from test_report_example_runs import PROMISED, summary_of, write_run

from dtrain.report import load_runs


def rewrite(directory: Path, **changes: Any) -> None:
    path = directory / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def message_of(*directories: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_runs(directories)
    return str(caught.value)


def test_a_run_keeps_what_its_summary_says(tmp_path: Path) -> None:
    (run,) = load_runs([write_run(tmp_path / "a", nic_bytes_per_step=5_200_000, world_size=3)])
    assert (run.model, run.world_size, run.nic_bytes_per_step) == ("squeezenet1_1", 3, 5_200_000)
    assert run.wire_bytes_per_step == pytest.approx(4_941_984 * 4 / 3)
    assert run.wire_bytes_by_phase_and_purpose["eval/metrics"] == 96
    assert len(run.training) == 36
    assert [point.step for point in run.evaluation] == [30, 60, 90, 120, 150, 180]


def test_runs_come_in_the_order_given(tmp_path: Path) -> None:
    directories = [write_run(tmp_path / name) for name in ("c", "a", "b")]
    assert [run.label for run in load_runs(directories)] == ["c", "a", "b"]


def test_unknown_keys_and_kinds_are_ignored(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "a", from_the_future={"x": [1]})
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "checkpoint", "file": "x"}\n\n')
    (run,) = load_runs([directory])
    assert len(run.training) == 36


@pytest.mark.parametrize("key", [*PROMISED.split(), "schema", "data", "num_classes"])
def test_a_missing_required_key_is_named_with_its_file(tmp_path: Path, key: str) -> None:
    directory = write_run(tmp_path / "a")
    summary = summary_of("a")
    del summary[key]
    (directory / "summary.json").write_text(json.dumps(summary))
    if key == "versions":  # empty where absent: nothing is computed from it
        assert load_runs([directory])[0].versions == {}
        return
    message = message_of(directory)
    assert f"{directory}/summary.json" in message
    assert repr(key) in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("world_size", 0),
        ("world_size", "2"),
        ("num_parameters", 1.5),
        ("num_steps", True),
        ("complete", "yes"),
        ("model", None),
        ("accuracy", "high"),
        ("wire_bytes_per_step", -1),
        ("wire_bytes_per_step", math.nan),
        ("step_seconds_median", math.inf),
        ("versions", ["torch"]),
        ("wire_bytes_by_phase_and_purpose", {"train/gradient": "many"}),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_file(tmp_path: Path, key: str, value: object) -> None:
    directory = write_run(tmp_path / "a")
    rewrite(directory, **{key: value})
    message = message_of(directory)
    assert f"{directory}/summary.json" in message
    assert "must be" in message
    assert "train again" in message


def test_another_schema_is_refused_before_anything_is_misread(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "a")
    (directory / "summary.json").write_text('{"schema": 2}')
    assert "schema 2 and this dtrain reads schema 1" in message_of(directory)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00", "[" * 100_000])
def test_a_broken_summary_is_an_error_with_a_cure(tmp_path: Path, text: str) -> None:
    directory = write_run(tmp_path / "a")
    (directory / "summary.json").write_text(text)
    message = message_of(directory)
    assert f"{directory}/summary.json" in message
    assert "leave this run out" in message


def test_a_directory_without_summary_is_an_error_with_a_cure(tmp_path: Path) -> None:
    assert "has no summary.json: give a run directory" in message_of(tmp_path)
    assert "is not a directory: give a run directory" in message_of(tmp_path / "report.html")
    assert "no run given" in message_of()


def test_a_directory_of_runs_is_answered_with_the_runs_in_it(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    assert f"give {runs[0]} {runs[1]}" in message_of(tmp_path)


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "a")
    assert "more than once" in message_of(directory, tmp_path / "." / "a")


def test_runs_of_one_name_get_labels_that_tell_them_apart(tmp_path: Path) -> None:
    same = [write_run(tmp_path / place / "x", run="same") for place in ("monday", "tuesday")]
    runs = load_runs([*same, write_run(tmp_path / "other")])
    assert [run.label for run in runs] == ["same [monday/x]", "same [tuesday/x]", "other"]
    assert [run.run for run in runs] == ["same", "same", "other"]


def test_labels_are_unique_even_where_a_name_imitates_a_label(tmp_path: Path) -> None:
    same = [write_run(tmp_path / place, run="same") for place in ("a", "b")]
    runs = load_runs([*same, write_run(tmp_path / "c", run="same [a]")])
    assert len({run.label for run in runs}) == 3


def test_every_measurement_may_be_null(tmp_path: Path) -> None:
    measured = [key for key, value in summary_of("a").items() if isinstance(value, float)]
    more = ("payload_bytes_per_step", "wire_bytes_per_step", "init_wire_bytes", "total_wire_bytes_all_ranks")
    directory = write_run(tmp_path / "a")
    rewrite(directory, **dict.fromkeys([*measured, *more]))
    (run,) = load_runs([directory])
    assert run.wire_bytes_per_step is None
    assert run.compute_and_other_seconds_median is None


def test_a_diverged_loss_is_read_and_other_measurements_must_be_finite(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "a", loss=math.nan)
    assert math.isnan(load_runs([directory])[0].loss or 0)
    rewrite(directory, accuracy=math.nan)
    assert "'accuracy' must be" in message_of(directory)


def test_names_cannot_move_a_cursor_or_break_xml(tmp_path: Path) -> None:
    (run,) = load_runs([write_run(tmp_path / "a", run="a\x1b[2J\x00\n\ud800\u202eb")])
    assert run.label == "a\ufffd[2J\ufffd\ufffd\ufffd\ufffdb"


def test_an_incomplete_run_says_so_in_its_name(tmp_path: Path) -> None:
    complete, cut = load_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", complete=False)])
    assert (complete.name, cut.name) == ("a", "b (incomplete)")


def test_compute_is_the_step_without_its_wait_and_never_negative(tmp_path: Path) -> None:
    times = {"step_seconds_median": 1.0, "codec_seconds_median": 0.3}
    usual = write_run(tmp_path / "a", exposed_comm_seconds_median=0.25, **times)
    odd = write_run(tmp_path / "b", exposed_comm_seconds_median=1.5, **times)
    assert [run.compute_and_other_seconds_median for run in load_runs([usual, odd])] == [0.75, 0.0]


def test_a_missing_metrics_file_means_no_curves(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "a")
    (directory / "metrics.jsonl").unlink()
    (run,) = load_runs([directory])
    assert (run.training, run.evaluation) == ((), ())


def test_a_last_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "a", complete=False)
    metrics = directory / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"kind": "train", "st')
    assert len(load_runs([directory])[0].training) == 36


@pytest.mark.parametrize(
    "line", ["{", "3", '{"kind": "train"}', '{"kind": "eval", "step": -1, "wire_bytes": 0, "loss": 1, "accuracy": 1}']
)
def test_a_broken_line_before_the_last_is_named(tmp_path: Path, line: str) -> None:
    directory = write_run(tmp_path / "a")
    metrics = directory / "metrics.jsonl"
    metrics.write_text(f"{line}\n{metrics.read_text()}")
    assert f"{metrics}:1" in message_of(directory)


@pytest.mark.parametrize("file", ["summary.json", "metrics.jsonl", "model.dtz"])
def test_a_file_of_a_run_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, file: str) -> None:
    directory = write_run(tmp_path / "a")
    (directory / file).unlink(missing_ok=True)
    os.mkfifo(directory / file)
    message = message_of(directory)
    assert "is a named pipe" in message or "has no summary.json" in message


@pytest.mark.parametrize("key", ["loss", "accuracy", "wire_bytes_per_step", "num_steps", "seed"])
@pytest.mark.parametrize("digits", ["1" + "0" * 400, "-1" + "0" * 400, "1e999"])
def test_a_figure_that_no_float_holds_is_refused(tmp_path: Path, key: str, digits: str) -> None:
    directory = write_run(tmp_path / "a")
    path = directory / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "HERE"}).replace('"HERE"', digits))
    if key == "loss" and digits == "1e999":  # as a run that diverged has
        assert load_runs([directory])[0].loss == math.inf
    else:
        assert str(path) in message_of(directory)


def test_metrics_that_are_no_run_s_are_refused_before_they_are_read_whole(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "a")
    with (directory / "metrics.jsonl").open("wb") as file:
        file.truncate(1 << 40)
    assert "has longer lines" in message_of(directory)
    with (directory / "summary.json").open("wb") as file:
        file.truncate(1 << 40)
    assert "has more than 4,194,304 bytes" in message_of(directory)
