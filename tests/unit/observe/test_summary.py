from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dtrain.exchange import Op
from dtrain.meter.ledger import Activity, Ledger, Purpose, Times
from dtrain.meter.nic import Counters
from dtrain.meter.wire import wire_bytes
from dtrain.observe import summary as module
from dtrain.observe.figures import EvalFigures, TrainFigures
from dtrain.observe.jsonl import LedgerFile, MetricsFile
from dtrain.observe.summary import NicWindow, Summary

PARAMETERS = 1000
FACTS = {
    "run": "one",
    "model": "squeezenet1_1",
    "num_parameters": PARAMETERS,
    "world_size": 4,
    "backend": "gloo",
    "compressor": "none",
    "batch_size_per_rank": 8,
    "grad_bytes": 4 * PARAMETERS,
    "seed": 0,
}
DENSE_WIRE = 4 * PARAMETERS * 2 * 3 / 4


def train_metrics(step: int, **more: Any) -> TrainFigures:
    values = {
        "epoch": 0, "loss": 1.0, "accuracy": 0.5, "learning_rate": 0.1, "images_per_second": 100.0, "wire_bytes": 0.0,
        "step_seconds": 1.0, "exposed_comm_seconds": 0.5, "codec_seconds": 0.25, "transfer_seconds": 0.125,
        "straggler_wait_seconds": 0.0625, "total_wire_bytes_all_ranks": 7.0 * step, **more,
    }  # fmt: skip
    return TrainFigures(step=step, **values)


def eval_metrics(step: int, accuracy: float) -> EvalFigures:
    return EvalFigures(step, 0, 1.0 - accuracy, accuracy, 100, 0.0)


class Run:
    """A ledger with a summary, and steps that exchange `bytes_per_element` per parameter."""

    def __init__(self, folder: Path, *, nic: NicWindow | None = None, **facts: Any) -> None:
        self.path = folder / "summary.json"
        self.ledger = Ledger()
        self.facts = {**FACTS, **facts}
        hosts = [f"node{rank}" for rank in range(self.facts["world_size"])]
        self.summary = Summary(self.path, self.facts, self.ledger, nic, hosts)

    def record(self, payload: int, activity: Activity, purpose: Purpose) -> None:
        n = self.facts["world_size"]
        with self.ledger.scope(activity=activity, purpose=purpose):
            self.ledger.record(
                Op.ALL_REDUCE, payload, wire_bytes("gloo", Op.ALL_REDUCE, payload, n), world_size=n, group="g"
            )

    def step(self, step: int, *, bytes_per_element: int = 4, seconds: float = 1.0) -> None:
        self.record(bytes_per_element * PARAMETERS, Activity.TRAIN, Purpose.GRADIENT)
        self.ledger.close(step, Times(seconds, seconds / 4, seconds / 2))

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())


def test_per_step_figures_cover_gradients_in_training_and_nothing_else(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.record(9000, Activity.INIT, Purpose.PARAMETERS)
    run.ledger.close()
    run.summary.start()
    for step in range(4):
        run.step(step)
    run.record(80, Activity.TRAIN, Purpose.METRICS)
    run.record(160, Activity.EVAL, Purpose.METRICS)
    run.ledger.close()
    content = run.summary.write(complete=True, total_wire_bytes_all_ranks=12345.0)
    assert content == run.read()
    assert content["num_steps"] == 4
    assert content["payload_bytes_per_step"] == 4 * PARAMETERS
    assert content["wire_bytes_per_step"] == DENSE_WIRE
    assert content["init_wire_bytes"] == 9000 * 1.5
    assert content["total_wire_bytes_all_ranks"] == 12345
    assert content["wire_bytes_by_phase_and_purpose"] == {
        "init/parameters": 13500,
        "train/gradient": 4 * DENSE_WIRE,
        "train/metrics": 120,
        "eval/metrics": 240,
    }
    assert content["complete"] is True
    assert {key: content[key] for key in FACTS} == FACTS


def test_bytes_that_are_whole_are_written_as_integers(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(0)
    run.summary.write()
    text = run.path.read_text()
    assert '"payload_bytes_per_step": 4000,' in text
    assert '"wire_bytes_per_step": 6000,' in text


def test_a_dense_run_saves_nothing_and_halves_nothing_of_fp16(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(0)
    content = run.summary.write()
    assert (content["saving_vs_fp32"], content["saving_vs_fp16"]) == (1.0, 0.5)


def test_savings_cover_the_whole_run_warm_up_included(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(0, bytes_per_element=4)
    for step in range(1, 4):
        run.step(step, bytes_per_element=2)
    content = run.summary.write()
    assert content["saving_vs_fp32"] == pytest.approx(16 / 10)
    assert content["saving_vs_fp16"] == pytest.approx(8 / 10)


def test_one_worker_saves_nothing_that_could_be_stated(tmp_path: Path) -> None:
    run = Run(tmp_path, world_size=1)
    run.step(0)
    content = run.summary.write()
    assert (content["saving_vs_fp32"], content["saving_vs_fp16"]) == (None, None)
    assert content["wire_bytes_per_step"] == 0
    assert content["payload_bytes_per_step"] == 4000


def test_before_the_first_step_it_is_valid_incomplete_and_claims_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.summary.start()
    content = run.read()
    assert content["complete"] is False
    assert content["num_steps"] == 0
    unknown = ("payload_bytes_per_step", "wire_bytes_per_step", "nic_bytes_per_step", "saving_vs_fp32", "accuracy")
    assert [content[key] for key in unknown] == [None] * len(unknown)


def test_without_the_meter_no_bytes_are_claimed_not_even_none(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(3):
        run.ledger.close(step, Times(1.0, 0.25, 0.5))
    content = run.summary.write(complete=True, total_wire_bytes_all_ranks=0.0)
    keys = ("payload_bytes_per_step", "wire_bytes_per_step", "init_wire_bytes", "total_wire_bytes_all_ranks")
    assert [content[key] for key in keys] == [None] * 4
    assert (content["saving_vs_fp32"], content["saving_vs_fp16"]) == (None, None)
    assert (content["num_steps"], content["step_seconds_median"]) == (3, 1.0)


def test_medians_accuracy_and_loss(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step, seconds in enumerate((1.0, 100.0, 2.0)):
        run.step(step, seconds=seconds)
    for step, (rate, transfer) in enumerate(((10.0, 1.0), (30.0, None), (20.0, 3.0))):
        run.summary.on_train(train_metrics(step, images_per_second=rate, transfer_seconds=transfer))
    run.summary.on_eval(eval_metrics(2, 0.25))
    run.summary.on_eval(eval_metrics(3, 0.75))
    content = run.read()
    assert content["step_seconds_median"] == 2.0
    assert content["exposed_comm_seconds_median"] == 1.0
    assert content["codec_seconds_median"] == 0.5
    assert content["images_per_second"] == 20.0
    assert content["transfer_seconds_median"] == 2.0
    assert (content["accuracy"], content["loss"]) == (0.75, 0.25)


def test_the_total_over_all_ranks_of_an_unfinished_run_is_the_last_one_known(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(0)
    assert run.summary.write()["total_wire_bytes_all_ranks"] == DENSE_WIRE
    run.summary.on_train(train_metrics(3))
    assert run.summary.write()["total_wire_bytes_all_ranks"] == 21


def test_ranks_that_others_waited_for_are_named_with_their_hosts_and_shares_worst_first(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.summary.write()["stragglers"] is None  # nothing is known yet
    for step in range(10):
        run.step(step)  # of a second each
    run.summary.on_train(train_metrics(5, wait_by_rank=(0.1, 0.0, 0.5, 2.0)))
    run.summary.on_train(train_metrics(10, wait_by_rank=(0.1, 0.0, 0.4, 0.9)))
    assert run.summary.write()["stragglers"] == [
        {"rank": 3, "host": "node3", "share_of_wait": pytest.approx(2.9 / 4.0), "share_of_step": pytest.approx(0.29)},
        {"rank": 2, "host": "node2", "share_of_wait": pytest.approx(0.9 / 4.0), "share_of_step": pytest.approx(0.09)},
    ]


def test_where_collectives_have_no_times_it_is_not_known_who_was_late(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(0)
    run.summary.on_train(train_metrics(1))
    assert run.summary.write()["stragglers"] is None


def test_the_interface_s_bytes_are_those_since_the_start_per_rank_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 1_000_000
    monkeypatch.setattr(module, "read_counters", lambda: {"lo": Counters(0, sent), "eth0": Counters(0, 5)})
    run = Run(tmp_path, nic=NicWindow("lo", local_world_size=4))
    run.summary.start()
    for step in range(5):
        sent += 4 * 6000
        run.step(step)
    run.summary.on_train(train_metrics(5))
    sent += 10**9  # saving the model, evaluating: not training
    assert run.summary.write()["nic_bytes_per_step"] == 6000.0


def test_without_an_isolated_interface_there_is_no_such_figure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(0)
    run.summary.on_train(train_metrics(1))
    assert run.summary.write()["nic_bytes_per_step"] is None


def test_no_unfinished_file_is_ever_seen(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.summary.start()
    before = run.path.read_text()
    run.summary._facts["broken"] = object()  # JSON cannot hold it: writing fails half-way
    with pytest.raises(TypeError):
        run.summary.write(complete=True)
    assert run.path.read_text() == before


def test_ledger_file_has_a_line_for_each_record_that_holds_anything(tmp_path: Path) -> None:
    run, file = Run(tmp_path), LedgerFile(tmp_path / "ledger" / "rank0.jsonl")
    run.ledger.sinks.append(file)
    run.step(0)
    run.ledger.close()
    run.record(8, Activity.EVAL, Purpose.METRICS)
    run.ledger.close()
    file.close()
    lines = [json.loads(line) for line in (tmp_path / "ledger" / "rank0.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, None]
    assert lines[0]["entries"][0]["payload_bytes"] == 4000
    assert lines[0]["times"]["step"] == 1.0
    assert lines[1]["entries"][0]["phase"] == "eval"


def test_metrics_file_tells_training_from_evaluation_line_by_line(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.on_train(train_metrics(10, loss=0.5))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1  # readable while the run goes on
    file.on_eval(eval_metrics(10, 0.75))
    file.close()
    train, evaluation = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (train["kind"], train["step"], train["loss"]) == ("train", 10, 0.5)
    assert (evaluation["kind"], evaluation["step"], evaluation["accuracy"]) == ("eval", 10, 0.75)


def test_each_phase_has_its_own_steps_and_bytes(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for name, size, steps in (("dense", 4, 3), ("nothing", 4, 0), ("prune", 1, 2)):
        run.summary.on_phase(name, size * PARAMETERS // 4)
        for step in range(steps):
            run.step(step, bytes_per_element=size)
        run.record(999, Activity.EVAL, Purpose.METRICS)
        run.summary.on_eval(eval_metrics(steps, steps / 4))
    run.summary.write()
    dense, nothing, prune = run.read()["phases"]
    assert dense == {
        "name": "dense",
        "steps": 3,
        "exchanged_values": PARAMETERS,
        "payload_bytes_per_step": 4 * PARAMETERS,
        "wire_bytes_per_step": DENSE_WIRE,
        "accuracy": 0.75,
    }
    assert (nothing["steps"], nothing["payload_bytes_per_step"], nothing["accuracy"]) == (0, None, 0.0)
    assert (prune["payload_bytes_per_step"], prune["wire_bytes_per_step"]) == (PARAMETERS, DENSE_WIRE / 4)
    lines = run.summary.phase_lines()
    assert (
        lines[0] == "phase dense: 3 steps, 1,000 values, 4,000 B handed over and 6,000 B sent a step, accuracy 75.00%"
    )
    assert lines[1] == "phase nothing: 0 steps, 1,000 values, accuracy 0.00%"


def test_a_run_without_phases_has_none(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(0)
    run.summary.write()
    assert (run.read()["phases"], run.read()["packed_bytes"], run.summary.phase_lines()) == ([], None, [])


def test_what_a_phase_exchanges_and_what_the_model_packs_to_come_by_calls(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.summary.on_phase("", PARAMETERS)  # a run without phases
    run.step(0)
    run.summary.on_packed(321)
    run.summary.write()
    assert (run.read()["phases"], run.read()["packed_bytes"]) == ([], 321)


def test_twenty_thousand_steps_leave_the_summary_no_larger_than_five_thousand(tmp_path: Path) -> None:
    sizes = {}
    for num_steps in (5_000, 20_000):
        run = Run(tmp_path)
        for step in range(num_steps):
            run.ledger.close(step, Times(1.0 + step, 0.25, 0.5))
            run.summary.on_train(train_metrics(step))
        sizes[num_steps] = sum(len(sample._kept) for sample in run.summary._samples.values())
        held = {name: len(value) for name, value in vars(run.summary).items() if hasattr(value, "__len__")}
        assert max(held.values()) < 20, held
        assert run.summary.write()["step_seconds_median"] == pytest.approx(num_steps / 2, rel=0.001)
        assert run.read()["num_steps"] == num_steps
    assert sizes[20_000] <= 6 * 4096
