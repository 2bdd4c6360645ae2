"""Plans of a model whose times are given: which way is fastest, what bounds it, and where it stops paying."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest
import torch

from dtrain.compressors.codecs.compiled import in_use
from dtrain.exchange import Op
from dtrain.plan.calibration import Calibration, Recording, calibrate, load, save, this_machine
from dtrain.plan.candidates import NONE, Candidate, candidates, parse, parse_all
from dtrain.plan.link import Link, parse_rate, parse_seconds, read_link
from dtrain.plan.planner import Job, plan, verdict
from dtrain.plan.program import Await, Lane, Signal, Start, Work
from dtrain.plan.scaling import Uncertain, scale, slowest
from dtrain.plan.subject import of_module, of_size, parse_count
from dtrain.plan.timeline import Host

STEP: Lane = (Work(0.1), Signal(("ready", 0)), Await(("finished", 0)))
MB = 10**6


def exchange(payload_bytes: int, codec: float) -> Lane:
    return (
        Await(("ready", 0)),
        Work(codec),
        Start(("collective", 0), Op.ALL_REDUCE, payload_bytes),
        Await(("collective", 0)),
        Signal(("finished", 0)),
    )


INT4 = Candidate("int4")
EXCHANGES = {"none": exchange(8 * MB, 0.0), "fp16": exchange(4 * MB, 0.0), "int4": exchange(MB, 0.02)}


def given() -> Calibration:
    recordings = {label: {2: Recording((lane,))} for label, lane in EXCHANGES.items()}
    return Calibration("given", this_machine(), (STEP,), recordings)


def job(rate: float, optimizer: str | None = "sgd") -> Job:
    return Job(2, Host(8), Link(rate, latency_seconds=0.0, share=1.0), optimizer=optimizer)


CHOSEN = parse_all(["int4"])


def test_over_a_slow_link_what_sends_least_is_first_and_bandwidth_bounds() -> None:
    planned = plan(given(), CHOSEN, job(8 * MB))
    assert [row.candidate.label for row in planned.rows] == ["int4", "fp16", "none"]
    assert planned.row(INT4).seconds == pytest.approx(0.1 + 0.02 + 1)
    assert planned.row(NONE).bound == "bandwidth"
    assert planned.row(INT4).to_fp16 == pytest.approx(1.12 / 4.1)
    assert verdict(planned).startswith("Use int4: a step takes 1,120 ms, 0.14 of fp32's 8,100 ms and 0.27 of fp16's")


def test_over_a_fast_link_nothing_is_to_be_changed() -> None:
    planned = plan(given(), CHOSEN, job(1e12))
    assert planned.best().candidate == NONE
    assert verdict(planned).startswith("Change nothing: a step takes 100 ms, bound by compute")


def test_the_break_even_is_where_the_codec_takes_what_the_bytes_save() -> None:
    # against fp16: 3 MB fewer for 20 ms
    pays = plan(given(), CHOSEN, job(1e9)).row(INT4).pays_below_bits_per_second
    assert pays == pytest.approx(8 * 3 * MB / 0.02, rel=0.02)
    assert plan(given(), CHOSEN, job(1e9)).row(NONE).pays_below_bits_per_second == 0.0


def test_what_is_not_known_to_train_is_shown_and_not_advised() -> None:
    unknown = plan(given(), CHOSEN, job(8 * MB, optimizer=None))
    assert unknown.row(INT4).known == "untried"
    assert unknown.best().candidate.label == "fp16"
    assert parse("one_bit").known("adamw", 2) == "fails"


def test_rounds_that_held_with_two_workers_are_not_advised_to_more() -> None:
    rounds, costly = parse("local int4 every=4"), parse("local rotated_signs every=4")
    assert (rounds.known("sgd", 2), rounds.known("sgd", 4)) == ("holds", "untried")
    assert (costly.known("sgd", 2), costly.known("sgd", 4)) == ("holds", "costs")
    assert parse("local int4 every=16").known("sgd", 4) == "fails"
    assert parse("int4").known("sgd", 4) == "holds"
    assert parse("local rotated_signs every=1").known("adamw", 2) == parse("int4").known("adamw", 2) == "holds"
    assert parse("local rotated_signs every=1").known("adamw", 4) != "holds"


def test_a_plan_among_a_number_of_workers_that_was_not_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="measured for 2 workers, not for 4"):
        plan(given(), CHOSEN, Job(4, Host(8), Link(1e9)))


def test_what_grows_with_the_workers_grows_on_and_what_does_not_stays() -> None:
    def lane(n: int) -> Lane:
        return exchange(MB, 0.01 * n)

    grows = {n: Recording((lane(n),)) for n in (2, 4, 8)}
    stays = {n: Recording((exchange(MB, seconds),)) for n, seconds in ((2, 0.010), (4, 0.011), (8, 0.012))}
    calibration = Calibration("given", this_machine(), (STEP,), {"int4": grows, "int8": stays})
    assert calibration.program("int4", 100, max).codec_seconds == pytest.approx(1.0)
    assert calibration.program("int8", 4096, max).codec_seconds == pytest.approx(0.011)


def test_scaling_is_the_plans_own_figure_and_stragglers_and_faults_come_on_top() -> None:
    calibration, where = given(), job(8 * MB)
    (point,) = scale(calibration, [INT4], where, [2])
    assert point.seconds == plan(calibration, CHOSEN, where).row(INT4).seconds
    assert point.efficiency == pytest.approx(0.1 / point.seconds)
    (late,) = scale(calibration, [INT4], where, [2], Uncertain(spread=0.1))
    assert late.seconds == pytest.approx(point.seconds + 0.1 * 0.1 * 0.564, rel=0.01)  # 1 / sqrt(pi)
    (faulty,) = scale(calibration, [INT4], where, [2], Uncertain(hours_between_faults=1.0))
    assert faulty.seconds == pytest.approx(point.seconds / (1 - 2 * 360 / 3600))
    assert slowest(4096) == pytest.approx(3.63, abs=0.05)


def test_candidates_are_those_that_hold_and_each_reads_as_it_is_written() -> None:
    for optimizer in ("sgd", "adamw", None):
        chosen = candidates(optimizer, 4)
        assert [parse(one.label) for one in chosen] == chosen
        assert {"none", "fp16", "int4"} <= {one.label for one in chosen}
    assert all(one.known("adamw", 2) in ("holds", "fails", "untried", "costs") for one in candidates("adamw", 2))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("zip", "compressor zip does not exist"),
        ("local", "compressor  does not exist"),
        ("int4 every=4", "write 'local int4 every=4'"),
        ("local int4 every=0", "whole number"),
        ("top_k density", "OPTION=VALUE"),
    ],
)
def test_a_method_that_is_none_is_refused_with_the_cure(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(text)


def test_rates_times_and_counts_are_numbers_with_units() -> None:
    assert (parse_rate("100mbit"), parse_rate("2.5Gbit")) == (1e8, 2.5e9)
    assert (parse_seconds("0.3ms"), parse_seconds("20us")) == (pytest.approx(3e-4), pytest.approx(2e-5))
    assert (parse_count("25.6M"), parse_count("1,000")) == (25_600_000, 1000)
    for wrong in ("fast", "100", "0mbit", "-1gbit", "1e9bit"):
        with pytest.raises(ValueError, match="write a number and its unit"):
            parse_rate(wrong)
    with pytest.raises(ValueError, match="--params many"):
        parse_count("many")


def test_a_calibration_is_kept_refused_where_it_does_not_fit_and_made_anew_for_another_codec(tmp_path: Path) -> None:
    subject = of_size(3_000_000, 0.01, "sgd")
    torch.manual_seed(0)
    calibration = calibrate(subject, CHOSEN, world_sizes=[2])
    path = tmp_path / "calibration.json"
    save(calibration, path)
    labels = [one.label for one in CHOSEN]
    assert load(path, subject.name, labels) == calibration
    with pytest.raises(ValueError, match="is of 3,000,000 parameters, not of another"):
        load(path, "another", labels)
    with pytest.raises(ValueError, match="has no int8"):
        load(path, subject.name, ["int8"])
    measured = path.read_text()
    path.write_text(measured.replace(f'"codec": "{in_use()}"', '"codec": "another"'))
    assert load(path, subject.name, labels) is None
    path.write_text(measured.replace('"cores": ', '"cores": 1'))
    with pytest.raises(ValueError, match="of another machine"):
        load(path, subject.name, labels)
    path.write_text("{")
    with pytest.raises(ValueError, match="no calibration"):
        load(path, subject.name, labels)


def test_a_model_of_a_size_has_it_and_takes_its_time() -> None:
    subject = of_size(25_600_000, 0.18, None)
    assert sum(parameter.numel() for parameter in subject.model.parameters()) == 25_600_000
    (lane,) = subject.measured_step()
    assert sum(one.seconds for one in lane if isinstance(one, Work)) == pytest.approx(0.18)
    assert len([one for one in lane if isinstance(one, Signal)]) > 3


def test_a_model_of_the_users_is_taken_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\n"
        "def make():\n"
        "    model = torch.nn.Linear(20, 3)\n"
        "    return model, lambda: model(torch.ones(4, 20)).square().mean()\n"
        "def wrong():\n"
        "    return 3\n"
    )
    subject = of_module(f"{path}:make", "adamw")
    assert isinstance(subject.optimizer, torch.optim.AdamW)
    assert subject.measured_step()
    for place, says in ((f"{path}:wrong", "must return"), (f"{path}:none", "has no none"), (f"{path}", "write file")):
        with pytest.raises(ValueError, match=says):
            of_module(place, None)
    with pytest.raises(FileNotFoundError, match="no file"):
        of_module("nowhere.py:make", None)


def test_a_link_is_a_rate_or_what_the_probe_wrote(tmp_path: Path) -> None:
    link = read_link("100mbit", "2ms")
    assert (link.bits_per_second, link.latency_seconds) == (1e8, 2e-3)
    assert Link(1e9).bytes_per_second == pytest.approx(1e9 / 8 * 0.936, rel=1e-3)
    path = tmp_path / "link.json"
    path.write_text('{"link": {"bits_per_second": 5e7, "latency_seconds": 0.001}}')
    assert read_link(str(path), None) == Link(5e7, 0.001)
    path.write_text('{"link": {"speed": 3}}')
    with pytest.raises(ValueError, match="measure again"):
        read_link(str(path), None)


def test_a_way_that_is_faster_over_every_link_pays_below_any() -> None:
    free = {**EXCHANGES, "int4": exchange(MB, 0.0)}
    recordings = {label: {2: Recording((lane,))} for label, lane in free.items()}
    calibration = Calibration("given", this_machine(), (STEP,), recordings)
    row = plan(calibration, CHOSEN, job(1e9)).row(INT4)
    assert row.pays_below_bits_per_second == inf
    assert row.as_json()["pays_below_bits_per_second"] is None
