"""docker/compose.yaml on a real engine: four workers that train, what watches them, and where their model goes.

Grafana is not started: its image cannot be had on every machine. What its panels ask of Prometheus is asked here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from programs import REPOSITORY, Ended, run
from watching import OF_A_PLAN_OR_ELASTIC, panel_queries, until

pytestmark = pytest.mark.timeout(1200)  # of the first test, which builds the images

COMPOSE = ["docker", "compose", "--file", str(REPOSITORY / "docker" / "compose.yaml"), "--profile", "shaped"]
WORKERS = [f"worker{k}" for k in range(4)]
SHAPERS = [f"shaper{k}" for k in range(4)]
LIMIT = 10_000_000  # low, so that computing, on however busy a machine, is the lesser part of a step
PROMETHEUS = """
FROM python:3.11-slim-bookworm AS fetched
WORKDIR /fetched
RUN apt-get update -qq && apt-get download -qq prometheus && dpkg -x prometheus_*.deb .
FROM python:3.11-slim-bookworm
COPY --from=fetched /fetched/usr/bin/prometheus /fetched/usr/bin/promtool /bin/
RUN install -d -o nobody /prometheus
USER nobody
ENTRYPOINT ["/bin/prometheus"]
"""
RIGHTS = """
id -u
sed -n 's/^[^ ]* \\/ [^ ]* \\(r[ow]\\),.*/\\1/p' /proc/mounts
grep -E '^(CapPrm|CapEff|CapBnd|NoNewPrivs):' /proc/1/status
grep -c '^[^[:space:]]*[[:space:]]00000000[[:space:]]' /proc/net/route || true
"""


@dataclass(frozen=True)
class Project:
    """One project of Compose. Its volumes and containers go with it."""

    folder: Path
    environ: dict[str, str]

    def compose(self, *arguments: str, timeout: float = 120.0, **settings: str) -> Ended:
        return run([*COMPOSE, *arguments], self.folder, timeout=timeout, env={**self.environ, **settings})

    def exec(self, service: str, *command: str) -> str:
        return self.compose("exec", "-T", service, *command).expect(0).stdout

    def exit_codes(self, services: list[str], timeout: float) -> list[int]:
        """How they ended; waits for it."""
        names = self.compose("ps", "--all", "--quiet", *services).expect(0).stdout.split()
        ended = run(["docker", "wait", *names], self.folder, timeout=timeout, env=self.environ).expect(0)
        return [int(code) for code in ended.stdout.split()]

    def ask(self, expression: str, **parameters: str) -> list[dict[str, Any]]:
        """What Prometheus answers."""
        address = self.compose("port", "prometheus", "9090").expect(0).stdout.strip()
        url = f"http://{address}/api/v1/query?" + urllib.parse.urlencode({"query": expression, **parameters})
        with urllib.request.urlopen(url, timeout=10) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return result

    def by_rank(self, expression: str) -> dict[str, float]:
        """The values now."""
        return {row["metric"]["rank"]: float(row["value"][1]) for row in self.ask(expression)}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("compose")
    try:
        for command in (["docker", "compose", "version"], ["docker", "info"]):
            run(command, folder, timeout=60, env=dict(os.environ)).expect(0)
    except (FileNotFoundError, AssertionError) as error:
        pytest.skip(f"no Docker Engine with Compose answers: start one, or set DOCKER_HOST ({error})")
    environ = {**os.environ, "COMPOSE_PROJECT_NAME": f"dtrain-test-{os.getpid()}", "PROMETHEUS_PORT": "0"}
    if "PROMETHEUS_IMAGE" not in environ:
        environ["PROMETHEUS_IMAGE"] = "dtrain-test/prometheus"
        build = ["docker", "build", "--quiet", "--tag", environ["PROMETHEUS_IMAGE"], "-"]
        subprocess.run(build, input=PROMETHEUS, text=True, check=True, capture_output=True, timeout=300)
    started = Project(folder, environ)
    started.compose("build", "worker0", "shaper0", timeout=1000).expect(0)
    yield started
    started.compose("down", "--volumes", "--timeout", "1").expect(0)


@dataclass(frozen=True)
class Trained:
    """What came of a run of 200 steps."""

    rights: str
    exit_codes: list[int]
    summary: dict[str, Any]
    steps_seen: dict[str, list[float]]
    empty_panels: list[str]
    digests: list[str]


@pytest.fixture(scope="module")
def trained(project: Project) -> Trained:
    settings = "num_steps=200 batch_size=4 log_every=10"
    services = [*WORKERS, "prometheus", "publisher", "edge"]
    project.compose("up", "--detach", "--no-build", *services, DTRAIN_SETTINGS=settings).expect(0)
    rights = project.exec("worker0", "sh", "-c", RIGHTS)
    exit_codes = project.exit_codes(WORKERS, 300)
    arrived = ["exec", "-T", "edge", "test", "-s", "/models/model.dtz"]
    until(lambda: project.compose(*arrived).code == 0, 60, "the model is at the edge")
    project.exec("edge", "dtrain", "unpack", "/models/model.dtz", "-o", "/tmp/model.safetensors")
    digests = [
        project.exec("publisher", "sha256sum", "/models/model.dtz"),
        project.exec("edge", "sha256sum", "/models/model.dtz"),
        project.exec("publisher", "sha256sum", "/runs/demo/model.safetensors"),
        project.exec("edge", "sha256sum", "/tmp/model.safetensors"),
    ]
    seen = {row["metric"]["rank"]: row["values"] for row in project.ask("dtrain_steps_total[5m]")}
    all_train = str(min((values[-1][0] for values in seen.values()), default=0))
    return Trained(
        rights,
        exit_codes,
        json.loads(project.exec("publisher", "cat", "/runs/demo/summary.json")),
        {rank: [float(steps) for _, steps in values] for rank, values in seen.items()},
        [
            where
            for where, expression in panel_queries().items()
            if OF_A_PLAN_OR_ELASTIC not in where and not project.ask(expression, time=all_train)
        ],
        [digest.split()[0] for digest in digests],
    )


@pytest.mark.parametrize(
    ("profile", "services"),
    [
        ("shaped", {"shaper0", "shaper1", "shaper2", "shaper3"}),
        ("mpi", {"mpi"}),
        ("horovod", {"horovod"}),
        ("elastic", {"elastic0", "elastic1", "elastic2"}),
    ],
)
def test_a_profile_adds_its_services_and_none_has_a_right_that_it_does_not_need(
    tmp_path: Path, profile: str, services: set[str]
) -> None:
    """Without an engine."""

    def configured(*options: str) -> dict[str, dict[str, Any]]:
        command = ["docker", "compose", "--file", str(REPOSITORY / "docker" / "compose.yaml"), *options]
        try:
            ended = run([*command, "config", "--format", "json"], tmp_path, timeout=60, env=dict(os.environ))
        except FileNotFoundError:
            pytest.skip("docker not found: install it with Compose v2")
        if "unknown" in ended.stderr:
            pytest.skip("docker has no Compose: install Compose v2")
        found: dict[str, dict[str, Any]] = ended.expect(0).json["services"]
        return found

    added = configured("--profile", profile)
    assert added.keys() - configured().keys() == services
    for name in services:
        service = added[name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service.get("cap_add", []) == (["NET_ADMIN"] if name in SHAPERS else [])
        assert not service.get("ports")
        script = REPOSITORY / (service["command"] or ["docker/shaper.sh"])[0].removeprefix("/opt/dtrain/")
        assert os.access(script, os.X_OK)


def test_the_image_is_small(project: Project) -> None:
    inspect = ["docker", "image", "inspect", "--format", "{{.Size}}", "dtrain:torch"]
    size = int(run(inspect, project.folder, env=project.environ).expect(0).stdout)
    assert size <= 1_300_000_000, size


def test_only_prometheus_and_grafana_are_published_and_only_here(project: Project) -> None:
    config = json.loads(project.compose("config", "--format", "json").expect(0).stdout)
    published = {name: s["ports"] for name, s in config["services"].items() if s.get("ports")}
    assert published.keys() == {"prometheus", "grafana"}
    assert {port["host_ip"] for ports in published.values() for port in ports} == {"127.0.0.1"}
    assert {name for name, network in config["networks"].items() if not network.get("internal")} == {"front"}


def test_no_service_has_a_password_or_a_right_that_it_does_not_need(project: Project) -> None:
    config = json.loads(project.compose("config", "--format", "json").expect(0).stdout)
    for name, service in config["services"].items():
        assert not [key for key in service.get("environment", {}) if re.search("PASSWORD|SECRET_KEY|TOKEN", key)]
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("cap_add", []) == (["NET_ADMIN"] if name in SHAPERS else []), name


def test_a_worker_has_no_rights_and_no_way_out(trained: Trained) -> None:
    user, root, *status, default_routes = trained.rights.split("\n")[:-1]
    assert user == "10001"
    assert root == "ro"
    assert [line.split() for line in status] == [
        ["CapPrm:", "0" * 16],
        ["CapEff:", "0" * 16],
        ["CapBnd:", "0" * 16],
        ["NoNewPrivs:", "1"],
    ]
    assert default_routes == "0"


def test_training_ends_well_on_all_workers(trained: Trained) -> None:
    assert trained.exit_codes == [0, 0, 0, 0]
    assert trained.summary["complete"]
    assert (trained.summary["world_size"], trained.summary["num_steps"]) == (4, 200)


def test_prometheus_sees_all_four_ranks(trained: Trained) -> None:
    assert trained.steps_seen.keys() == {"0", "1", "2", "3"}
    assert all(steps[-1] > 100 for steps in trained.steps_seen.values())


def test_every_panel_shows_something(trained: Trained) -> None:
    assert trained.empty_panels == []


def test_the_training_interface_carries_what_the_ledger_counts(trained: Trained) -> None:
    assert 1.0 <= trained.summary["nic_bytes_per_step"] / trained.summary["wire_bytes_per_step"] <= 1.07


def test_the_edge_holds_the_trained_model_bit_for_bit(trained: Trained) -> None:
    published, received, saved, unpacked = trained.digests
    assert received == published
    assert unpacked == saved


@dataclass(frozen=True)
class Shaped:
    """Four workers in the middle of a long run, over links of LIMIT bits per second."""

    rates: dict[str, float]
    health: list[str]
    shaped_bytes: int
    transmitted_bytes: tuple[int, int]
    """Before and after `shaped_bytes` was read."""


@pytest.fixture(scope="module")
def shaped(project: Project, trained: Trained) -> Shaped:
    # a container that is killed takes its network with it: the others hear nothing, and wait for the time-out
    training = "num_steps=100000 batch_size=1 log_every=1 backend.timeout_seconds=15"
    settings = {"DTRAIN_SETTINGS": training, "SHAPED_RATE": f"{LIMIT // 10**6}mbit"}
    project.compose("up", "--detach", "--no-build", *WORKERS, *SHAPERS, **settings).expect(0)
    assert project.exit_codes(SHAPERS, 60) == [0, 0, 0, 0]
    under_way = "dtrain_steps_total >= 2 and dtrain_steps_total offset 16s >= 1"
    until(lambda: len(project.by_rank(under_way)) == 4, 300, "16 seconds of training on all ranks")
    rates = project.by_rank("8 * rate(dtrain_nic_transmit_bytes_total[16s])")
    names = project.compose("ps", "--quiet", *WORKERS).expect(0).stdout.split()
    health = ["docker", "inspect", "--format", "{{.State.Health.Status}}", *names]
    counters = "cat /proc/net/dev; tc -s qdisc show; cat /proc/net/dev"
    looked = project.compose("run", "--rm", "-T", "shaper0", "sh", "-c", counters, **settings).expect(0).stdout
    kind = re.search(r"qdisc tbf .* dev (\w+) .*\n Sent (\d+) bytes", looked)
    assert kind is not None, looked
    lines = [line.split() for line in looked.splitlines()]
    before, after = (int(line[9]) for line in lines if line and line[0] == f"{kind[1]}:")
    return Shaped(
        rates,
        run(health, project.folder, env=project.environ).expect(0).stdout.split(),
        int(kind[2]),
        (before, after),
    )


def test_a_shaped_worker_sends_at_the_limit(shaped: Shaped) -> None:
    assert shaped.rates.keys() == {"0", "1", "2", "3"}
    for rank, rate in shaped.rates.items():
        assert 0.7 < rate / LIMIT < 1.05, (rank, rate)  # below it by what computing takes; without it: above 100


def test_the_limit_is_there_before_anything_is_exchanged(shaped: Shaped) -> None:
    """What the interface sent has passed the limit: not so the weights, 8.7 MB of rank 0, if it came later."""
    before, after = shaped.transmitted_bytes
    assert before - 200_000 < shaped.shaped_bytes < after + 200_000


def test_a_worker_that_trains_is_healthy(shaped: Shaped) -> None:
    assert shaped.health == ["healthy"] * 4


def test_a_worker_that_is_killed_ends_the_others_within_a_minute_by_name(project: Project, shaped: Shaped) -> None:
    project.compose("kill", "worker3").expect(0)
    begun = time.monotonic()
    codes = project.exit_codes(WORKERS[:3], 120)
    assert time.monotonic() - begun < 60
    assert 0 not in codes
    logs = project.compose("logs", "--no-log-prefix", *WORKERS[:3]).expect(0).stdout
    assert set(re.findall(r"dtrain: error: rank (.*) does not answer", logs)) == {"3 on host worker3"}, logs


# without the workers above


@pytest.mark.skipif(not os.environ.get("DTRAIN_FULL"), reason="takes minutes: DTRAIN_FULL=1 runs it")
@pytest.mark.parametrize("backend", ["mpi", "horovod"])
def test_ranks_of_mpi_and_of_horovod_train_in_a_container(project: Project, backend: str) -> None:
    project.compose("down", "--timeout", "1", timeout=60).expect(0)
    settings = {"DTRAIN_SETTINGS": "num_steps=20 batch_size=4"}
    project.compose("build", backend, timeout=1000).expect(0)
    project.compose("up", "--detach", "--no-build", backend, **settings).expect(0)
    logs = project.compose("logs", backend).stdout
    assert project.exit_codes([backend], 200) == [0], logs
    read = ["run", "--rm", "-T", "--entrypoint", "cat", "publisher", f"/runs/{backend}/summary.json"]
    summary = json.loads(project.compose(*read).expect(0).stdout)
    assert (summary["backend"], summary["world_size"], summary["num_steps"]) == (backend, 4, 20)


@pytest.mark.skipif(not os.environ.get("DTRAIN_FULL"), reason="takes minutes: DTRAIN_FULL=1 runs it")
def test_a_host_of_an_elastic_job_is_killed_and_comes_back(project: Project) -> None:
    project.compose("down", "--timeout", "1", timeout=60).expect(0)
    hosts = ["elastic0", "elastic1", "elastic2"]
    settings = {"DTRAIN_SETTINGS": "num_steps=100000 batch_size=1 log_every=5", "ELASTIC_KILL_SECONDS": "45"}
    project.compose("up", "--detach", "--no-build", *hosts, "prometheus", **settings).expect(0)
    until(lambda: project.by_rank("dtrain_workers_lost_total >= 1"), 200, "the others go on without it")
    again = "dtrain_workers_joined_total >= 1 and dtrain_world_size == 3"
    until(lambda: project.by_rank(again), 200, "it is back")
    project.compose("stop", "--timeout", "30", *hosts, timeout=120).expect(0)
