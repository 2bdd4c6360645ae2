"""What a rank shows to Prometheus."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from dtrain.exchange import Op
from dtrain.meter.ledger import Activity, Ledger, Purpose, Times
from dtrain.meter.nic import read_counters
from dtrain.observe.endpoint import Endpoint, warn_if_public
from dtrain.observe.figures import EvalFigures, PlanFigures, TrainFigures
from dtrain.observe.prometheus import Changes, RunCollector, RunFacts

FACTS = {
    "run": "a run",
    "model": "squeezenet1_1",
    "data": "digits",
    "backend": "gloo",
    "compressor": "top_k",
    "world_size": 4,
    "batch_size_per_rank": 8,
    "num_parameters": 1000,
    "grad_bytes": 4000,
    "versions": {"dtrain": "0.1.0", "torch": "2.13.0"},
}
TRAIN = TrainFigures(
    step=10,
    epoch=0,
    loss=2.5,
    accuracy=0.25,
    learning_rate=0.1,
    images_per_second=100.0,
    wire_bytes=1.0,
    step_seconds=0.5,
    exposed_comm_seconds=0.1,
    codec_seconds=0.1,
    transfer_seconds=0.02,
    straggler_wait_seconds=0.03,
    total_wire_bytes_all_ranks=4.0,
)


def watched(ledger: Ledger, *, rank: int = 0, interface: str | None = None, **facts: Any) -> RunCollector:
    metrics = RunCollector(RunFacts({**FACTS, **facts}, rank, "node0", interface, restarts=2), ledger)
    ledger.sinks.append(metrics.on_record)
    return metrics


def step(ledger: Ledger, number: int, *, buckets: int = 1) -> None:
    with ledger.scope(activity=Activity.TRAIN, purpose=Purpose.GRADIENT):
        for _ in range(buckets):
            ledger.record(Op.ALL_GATHER, 100, 300.0, world_size=4, group="g").complete()
        ledger.close(number, Times(step=0.3, codec=0.05, exposed_comm=0.1))


def samples(metrics: RunCollector) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """By name and labels, without run and rank."""
    found = {}
    for family in metrics.collect():
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k not in ("run", "rank")))
            assert (sample.name, labels) not in found
            found[sample.name, labels] = float(sample.value)
    return found


GRADIENT = (("compressor", "top_k"), ("op", "all_gather"), ("phase", "train"), ("purpose", "gradient"))


def test_counters_are_the_ledger_s() -> None:
    ledger = Ledger()
    metrics = watched(ledger)
    for number in range(3):
        step(ledger, number, buckets=2)
    found = samples(metrics)
    assert found["dtrain_payload_bytes_total", GRADIENT] == 600
    assert found["dtrain_wire_bytes_total", GRADIENT] == 1800
    assert found["dtrain_collectives_total", GRADIENT] == 6
    assert found["dtrain_steps_total", ()] == 3
    assert found["dtrain_step_seconds_sum", ()] == pytest.approx(0.9)
    assert found["dtrain_step_seconds_bucket", (("le", "0.5"),)] == 3
    assert found["dtrain_step_seconds_bucket", (("le", "0.2"),)] == 0
    assert found["dtrain_codec_seconds_total", ()] == pytest.approx(0.15)
    assert found["dtrain_exposed_comm_seconds_total", ()] == pytest.approx(0.3)
    assert found["dtrain_collective_seconds_count", (("op", "all_gather"),)] == 6


def test_the_bytes_of_a_step_come_with_the_step() -> None:
    ledger = Ledger()
    metrics = watched(ledger)
    step(ledger, 0)
    with ledger.scope(activity=Activity.TRAIN, purpose=Purpose.GRADIENT):
        ledger.record(Op.ALL_GATHER, 100, 300.0, world_size=4, group="g")
    found = samples(metrics)
    assert (found["dtrain_wire_bytes_total", GRADIENT], found["dtrain_steps_total", ()]) == (300, 1)


def test_dense_bytes_are_those_of_an_all_reduce_of_all_gradients() -> None:
    ledger = Ledger()
    metrics = watched(ledger)
    step(ledger, 0)
    step(ledger, 1)
    dense = {labels: value for (name, labels), value in samples(metrics).items() if name == "dtrain_dense_bytes_total"}
    assert list(dense.values()) == [2 * 2 * 4000 * 3 / 4]


def test_nothing_is_said_of_dense_bytes_where_nothing_is_counted() -> None:
    metrics = watched(Ledger())
    assert not [name for name, _ in samples(metrics) if name == "dtrain_dense_bytes_total"]


def test_series_do_not_grow_with_steps_or_buckets() -> None:
    few, many = Ledger(), Ledger()
    short, long = watched(few), watched(many)
    step(few, 0)
    for number in range(200):
        step(many, number, buckets=50)
    assert samples(short).keys() == samples(long).keys()
    assert len(samples(long)) < 100


def test_every_series_names_its_run_and_rank() -> None:
    ledger = Ledger()
    metrics = watched(ledger, rank=3)
    step(ledger, 0)
    for family in metrics.collect():
        for sample in family.samples:
            assert (sample.labels["run"], sample.labels["rank"]) == ("a run", "3")


def test_rank_0_speaks_for_all_and_others_for_themselves() -> None:
    ledger = Ledger()
    metrics = watched(ledger)
    for number in range(10):
        step(ledger, number)
    metrics.on_train(TRAIN)
    metrics.on_eval(EvalFigures(10, 0, 1.5, 0.5, 100, 1.0))
    metrics.on_phase("", 900)
    metrics.on_packed(500)
    found = samples(metrics)
    assert found["dtrain_loss", (("split", "train"),)] == 2.5
    assert found["dtrain_loss", (("split", "test"),)] == 1.5
    assert found["dtrain_accuracy_ratio", (("split", "test"),)] == 0.5
    assert found["dtrain_images_per_second", ()] == 100
    assert found["dtrain_transfer_seconds_total", ()] == pytest.approx(0.2)
    assert found["dtrain_straggler_wait_seconds_total", ()] == pytest.approx(0.3)
    assert found["dtrain_model_bytes", (("form", "fp32"),)] == 4000
    assert found["dtrain_model_bytes", (("form", "exchanged"),)] == 3600
    assert found["dtrain_model_bytes", (("form", "packed"),)] == 500
    others = {name for name, _ in samples(watched(Ledger(), rank=1))}
    assert not others & {"dtrain_loss", "dtrain_model_parameters", "dtrain_images_per_second"}


def test_times_of_several_intervals_add_up_of_this_process_alone() -> None:
    ledger = Ledger()
    metrics = watched(ledger)
    for number in range(15):
        step(ledger, 10_000 + number)  # a run that was resumed
        if number in (9, 14):
            metrics.on_train(replace(TRAIN, step=10_001 + number))
    assert samples(metrics)["dtrain_transfer_seconds_total", ()] == pytest.approx(15 * 0.02)


def test_a_time_that_is_not_known_is_not_said_to_be_none() -> None:
    ledger = Ledger()
    metrics = watched(ledger)
    step(ledger, 0)
    metrics.on_train(replace(TRAIN, transfer_seconds=None, straggler_wait_seconds=None))
    assert not {"dtrain_transfer_seconds_total", "dtrain_straggler_wait_seconds_total"} & {
        n for n, _ in samples(metrics)
    }


def test_one_rank_alone_and_one_that_counts_nothing_have_metrics_too() -> None:
    alone = watched(Ledger(), world_size=1)
    alone.on_train(TRAIN)
    found = samples(alone)
    assert found["dtrain_world_size", ()] == 1
    assert not [name for name, _ in found if name.endswith("_bytes_total")]


def test_a_folder_s_name_that_is_no_text_is_made_one(port: int) -> None:
    metrics = watched(Ledger(), run="run\udcff")
    with Endpoint(("127.0.0.1", port), None, None) as endpoint:
        endpoint.show(metrics)
        assert 'run="run?"' in scrape(port)


def test_the_phase_is_the_ledger_s() -> None:
    ledger = Ledger()
    metrics = watched(ledger)
    with ledger.scope(activity=Activity.EVAL):
        found = samples(metrics)
    assert found["dtrain_phase", (("phase", "eval"),)] == 1
    assert sum(value for (name, _), value in found.items() if name == "dtrain_phase") == 1


def test_restarts_are_the_launcher_s() -> None:
    assert samples(watched(Ledger()))["dtrain_restarts_total", ()] == 2


def test_a_plan_s_choice_and_what_it_predicts_are_rank_0_s_and_the_last_one_s() -> None:
    metrics = watched(Ledger())
    assert not [name for name, _ in samples(metrics) if name.startswith("dtrain_plan")]
    metrics.on_plan(PlanFigures("local ternary every=4", {}))
    assert samples(metrics)["dtrain_plan_info", (("method", "local ternary every=4"),)] == 1
    metrics.on_plan(PlanFigures("int4", {"chosen": 0.1, "dense": 0.3, "fp16": 0.2}))
    found = {key: value for key, value in samples(metrics).items() if key[0].startswith("dtrain_plan")}
    assert found == {
        ("dtrain_plan_info", (("method", "int4"),)): 1.0,
        ("dtrain_plan_step_seconds", (("exchange", "chosen"),)): 0.1,
        ("dtrain_plan_step_seconds", (("exchange", "dense"),)): 0.3,
        ("dtrain_plan_step_seconds", (("exchange", "fp16"),)): 0.2,
    }


def test_workers_that_come_and_go_are_counted_by_rank_0_where_they_do() -> None:
    names = ("dtrain_groups_total", "dtrain_workers_lost_total", "dtrain_workers_joined_total")

    def counted(rank: int, changes: Changes | None) -> list[float]:
        found = samples(RunCollector(RunFacts(FACTS, rank, "node0", None, changes=changes), Ledger()))
        return [found[name, ()] for name in names if (name, ()) in found]

    assert counted(0, Changes(groups=3, lost=1, joined=2)) == [3, 1, 2]
    assert counted(1, Changes(groups=3, lost=1, joined=2)) == []
    assert counted(0, None) == []


def test_kernel_counters_are_of_the_interface_that_is_the_job_s_alone() -> None:
    before = read_counters()["lo"].transmitted_bytes
    found = samples(watched(Ledger(), interface="lo"))
    assert found["dtrain_nic_transmit_bytes_total", (("device", "lo"),)] >= before
    assert not [name for name, _ in samples(watched(Ledger())) if name.startswith("dtrain_nic")]


# where it is found


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        free: int = listener.getsockname()[1]
    yield free


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def test_a_scrape_is_what_the_run_says_in_prometheus_own_format(port: int) -> None:
    ledger = Ledger()
    with Endpoint(("127.0.0.1", port), None, None) as endpoint:
        assert scrape(port) == ""
        endpoint.show(watched(ledger))
        step(ledger, 0)
        families = {family.name for family in text_string_to_metric_families(scrape(port))}
    assert {"dtrain_wire_bytes", "dtrain_step_seconds", "dtrain_run_info", "dtrain_world_size"} <= families
    with pytest.raises(OSError, match="refused"):
        scrape(port)


def test_somebody_who_says_nothing_keeps_neither_others_nor_the_end_of_the_run_waiting(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dtrain.observe.endpoint.SCRAPE_SECONDS", 300.0)
    with socket.socket() as first, socket.socket() as second:
        start = time.monotonic()
        with Endpoint(("127.0.0.1", port), None, None) as endpoint:
            endpoint.show(watched(Ledger()))
            first.connect(("127.0.0.1", port))
            second.connect(("127.0.0.1", port))
            second.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
            assert "dtrain_world_size" in scrape(port)
        assert time.monotonic() - start < 60


def test_a_scrape_that_drips_is_cut(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtrain.observe.endpoint.SCRAPE_SECONDS", 0.3)
    with (
        Endpoint(("127.0.0.1", port), None, None),
        socket.create_connection(("127.0.0.1", port)) as client,
        pytest.raises(OSError),
    ):
        for _ in range(600):
            client.sendall(b"x")
            time.sleep(0.1)


def test_a_port_in_use_is_one_line_with_the_cure(port: int) -> None:
    with (
        Endpoint(("127.0.0.1", port), None, None),
        pytest.raises(ValueError, match=rf"{port} .*in use.*choose another\s+observe.prometheus.port"),
    ):
        Endpoint(("127.0.0.1", port), None, None)


def test_a_rank_is_named_while_it_runs_and_whole_or_not_at_all(port: int, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "targets"
    with Endpoint(("127.0.0.1", port), folder, None) as endpoint:
        assert list(folder.iterdir()) == []
        endpoint.show(watched(Ledger(), rank=2))
        (path,) = folder.iterdir()
        assert path.name == f"{socket.gethostname()}-{port}.json"
        assert json.loads(path.read_text()) == [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"run": "a run", "rank": "2"}}
        ]
    assert list(folder.iterdir()) == []


def test_the_last_figures_are_left_in_a_text_file(tmp_path: Path) -> None:
    ledger = Ledger()
    with Endpoint(None, None, tmp_path) as endpoint:
        endpoint.show(watched(ledger))
        step(ledger, 0)
        assert list(tmp_path.iterdir()) == []
    (path,) = tmp_path.iterdir()
    assert path.name == "dtrain-a run-rank0.prom"
    assert 'dtrain_steps_total{rank="0",run="a run"} 1.0' in path.read_text()


def test_a_text_file_that_cannot_be_written_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Endpoint(None, None, tmp_path / "folder") as endpoint:
        endpoint.show(watched(Ledger()))
        (tmp_path / "folder").rmdir()
    assert "was not written: No such file or directory" in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_refused_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"nothing can be written into the folder .*: choose another"):
        Endpoint(None, None, tmp_path / "file")


@pytest.mark.parametrize(
    ("host", "address"), [("0.0.0.0", socket.gethostname()), ("::1", "[::1]"), ("127.0.0.1", "127.0.0.1")]
)
def test_a_rank_is_named_by_the_address_that_it_listens_on(port: int, tmp_path: Path, host: str, address: str) -> None:
    with Endpoint((host, port), tmp_path, None) as endpoint:
        endpoint.show(watched(Ledger()))
        (path,) = tmp_path.iterdir()
        assert json.loads(path.read_text())[0]["targets"] == [f"{address}:{port}"]


def test_a_folder_of_targets_that_is_gone_fails_no_run(
    port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Endpoint(("127.0.0.1", port), tmp_path / "targets", None) as endpoint:
        (tmp_path / "targets").rmdir()
        endpoint.show(watched(Ledger()))
    assert "was not written: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_a_warning_where_others_can_read_it(host: str, warned: bool, capsys: pytest.CaptureFixture[str]) -> None:
    warn_if_public(host)
    assert ("can read this run's metrics" in capsys.readouterr().err) is warned


def test_a_scrape_sees_no_half_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is under way a step waits until its families are made."""
    ledger = Ledger()
    metrics = watched(ledger)
    training = threading.Thread(target=step, args=(ledger, 0))
    made = metrics._times

    def times() -> Iterator[Metric]:
        training.start()
        training.join(0.3)
        return made()

    monkeypatch.setattr(metrics, "_times", times)
    (count,) = (family for family in metrics.collect() if family.name == "dtrain_steps")
    training.join(10)
    assert count.samples[0].value == 0
    monkeypatch.undo()
    assert samples(metrics)["dtrain_steps_total", ()] == 1
