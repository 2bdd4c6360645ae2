"""Every alert fires in a real Prometheus, for the cause that it is there for, and goes when the cause does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from programs import under_torchrun
from watching import (
    METRICS,
    Place,
    Prometheus,
    a_place_of_its_own,
    ended_afterwards,
    needs_prometheus,
    pids_of_ranks,
    prometheus,
    start_training,
    until,
)

pytestmark = [*needs_prometheus, pytest.mark.alone]

RANKS = 3
PACE = {"5s": "1s", "15s": "1s", "1m": "8s"}
SETTINGS = [
    "compressor=top_k",
    "compressor.start_after=1000000",  # it never begins to compress
    "batch_size=4",
    "num_steps=1000000",
    "eval_every_epochs=0",
    "run_dir=run",
    "observe.progress=false",
    "log_every=5",
]
TRAINING = under_torchrun(RANKS, "-m", "dtrain.train", *SETTINGS)
NOISE = """
import socket, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    for _ in range(20):
        sender.sendto(bytes(60_000), ("127.0.0.1", 9))
    time.sleep(0.02)
"""


@dataclass
class Job:
    """Training under watch."""

    place: Place
    asked: Prometheus
    folder: Path
    training: subprocess.Popen[str]

    def fires(self, alert: str, seconds: float = 60) -> list[dict[str, str]]:
        """The labels of an alert, once it does."""

        def found() -> list[dict[str, str]]:
            return [fired["labels"] for fired in self.asked.firing().get(alert, [])]

        labels: list[dict[str, str]] = until(found, seconds, f"{alert} fires")
        return labels

    def is_over(self, *alerts: str) -> None:
        until(lambda: not set(alerts) & set(self.asked.firing()), 90, f"{alerts} are over")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("alerts")
    with (
        a_place_of_its_own() as place,
        prometheus(place, folder, PACE) as asked,
        ended_afterwards(start_training(place, folder, TRAINING)) as training,
    ):

        def is_under_way() -> bool:
            assert training.poll() is None, training.communicate()[0]
            return bool(asked.query("sum by (run) (dtrain_steps_total) > 100"))

        until(is_under_way, 120, "a hundred steps")
        yield Job(place, asked, folder, training)


def test_compression_that_is_off_and_nothing_else_while_all_is_well(job: Job) -> None:
    assert [labels["run"] for labels in job.fires("DtrainCompressionLost")] == ["run"]
    assert set(job.asked.firing()) == {"DtrainCompressionLost"}


def test_other_traffic_on_the_interface(job: Job) -> None:
    noise = subprocess.Popen(job.place.inside(sys.executable, "-c", NOISE))
    try:
        assert [labels["run"] for labels in job.fires("DtrainBytesDrift")] == ["run"]
    finally:
        noise.kill()
        noise.wait()
    job.is_over("DtrainBytesDrift")


def test_a_network_that_has_become_slow(job: Job) -> None:
    job.place.run(
        "tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "300mbit", "burst", "256kb", "latency", "50ms"
    )
    try:
        assert [labels["run"] for labels in job.fires("DtrainLowBandwidth")] == ["run"]
    finally:
        job.place.run("tc", "qdisc", "del", "dev", "lo", "root")
    job.is_over("DtrainLowBandwidth")


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """A process that gets a fifth of its time."""
    done = threading.Event()

    def slow() -> None:
        while not done.is_set():
            os.kill(pid, signal.SIGSTOP)
            done.wait(0.4)
            os.kill(pid, signal.SIGCONT)
            done.wait(0.1)

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)


def test_a_rank_that_is_slower_than_the_others(job: Job) -> None:
    with slowed(pids_of_ranks(job.folder)[2]):
        assert [labels["rank"] for labels in job.fires("DtrainStraggler", 90)] == ["2"]
    job.is_over("DtrainStraggler", "DtrainTargetDown", "DtrainRankMissing")


def test_a_rank_that_is_stopped(job: Job) -> None:
    pid = pids_of_ranks(job.folder)[1]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert [labels["rank"] for labels in job.fires("DtrainTargetDown")] == ["1"]
        assert [labels["run"] for labels in job.fires("DtrainRankMissing")] == ["run"]
        assert [labels["run"] for labels in job.fires("DtrainStalled")] == ["run"]
    finally:
        os.kill(pid, signal.SIGCONT)
    job.is_over("DtrainTargetDown", "DtrainRankMissing", "DtrainStalled")


def test_a_rank_that_is_killed_stays_named(job: Job) -> None:
    os.kill(pids_of_ranks(job.folder)[1], signal.SIGKILL)
    assert job.training.wait(90) != 0
    # torchrun ended the others likewise, and any of the three may be seen to be down first
    until(lambda: "1" in [labels["rank"] for labels in job.fires("DtrainTargetDown")], 30, "rank 1 is named")


def test_every_alert_is_among_these() -> None:
    groups = yaml.safe_load((METRICS / "rules" / "alerts.yml").read_text())["groups"]
    source = Path(__file__).read_text()
    assert [
        rule["alert"] for group in groups for rule in group["rules"] if f'fires("{rule["alert"]}"' not in source
    ] == []
