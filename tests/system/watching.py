"""Training and a real Prometheus beside it, in a network namespace where loopback carries nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import REPOSITORY, environment

METRICS = REPOSITORY / "metrics"
PORT, EXPORTER_PORT = 9090, 9400

MISSING = [tool for tool in ("unshare", "nsenter", "ip", "tc", "prometheus", "promtool") if shutil.which(tool) is None]
needs_prometheus = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(
        bool(MISSING), reason=f"{', '.join(MISSING)} not found: install util-linux, iproute2 and prometheus"
    ),
    pytest.mark.timeout(600),
]

ASK = """
import json, sys, urllib.request
print(json.dumps([urllib.request.urlopen(url, timeout=20).read().decode() for url in sys.argv[1:]]))
"""


Series = list[tuple[dict[str, str], float]]
"""Labels and value of each."""


@dataclass(frozen=True)
class Place:
    """A network namespace with loopback alone, by the process that keeps it open."""

    pid: int

    def inside(self, *command: str) -> list[str]:
        """A command line that runs there."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *command]

    def run(self, *command: str) -> str:
        """Run a program there to its end."""
        done = subprocess.run(self.inside(*command), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def get(self, *urls: str) -> list[str]:
        """What HTTP servers there answer."""
        answers: list[str] = json.loads(self.run(sys.executable, "-S", "-c", ASK, *urls))
        return answers


@contextmanager
def a_place_of_its_own() -> Iterator[Place]:
    script = "ip link set lo up; echo up; exec sleep 1000000"
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "up\n"
    try:
        yield Place(holder.pid)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


class Prometheus:
    """A Prometheus with the project's own configuration and rules, at a faster pace."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def ask(self, *paths: str) -> list[Any]:
        """Its HTTP API; the `data` of each answer."""
        answers = [
            json.loads(text) for text in self._place.get(*(f"http://127.0.0.1:{PORT}/api/v1/{p}" for p in paths))
        ]
        assert all(answer["status"] == "success" for answer in answers), answers
        return [answer["data"] for answer in answers]

    def query_all(self, expressions: Iterable[str]) -> list[Series]:
        """Each of them, now."""
        data = self.ask(*("query?" + urllib.parse.urlencode({"query": expression}) for expression in expressions))
        return [[(item["metric"], float(item["value"][1])) for item in answer["result"]] for answer in data]

    def query(self, expression: str) -> Series:
        """One, now."""
        (series,) = self.query_all([expression])
        return series

    def firing(self) -> dict[str, list[dict[str, Any]]]:
        """Alerts that fire now, by name."""
        found: dict[str, list[dict[str, Any]]] = {}
        for alert in self.ask("alerts")[0]["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert)
        return found


def faster(text: str, durations: Mapping[str, str]) -> str:
    """A configuration or rules with other durations."""
    for old, new in durations.items():
        text = re.sub(rf"(?<=[\[ ]){old}(?=[\]\n])", new, text)
    return text


def asking(text: str, host: str) -> str:
    """The shipped configuration with what is said there of several hosts in force, and without the folder."""
    before, _, after = text.partition("    file_sd_configs:\n")
    block = after[after.index("    # http_sd_configs:\n") :].replace("    # ", "    ")
    return before + block.replace("node0", host)


@contextmanager
def prometheus(
    place: Place, folder: Path, durations: Mapping[str, str], *, asks: str | None = None
) -> Iterator[Prometheus]:
    """Run one that watches `folder`/targets, with every duration of the shipped files that is named replaced.

    `asks`: the host that it asks where ranks are, in place of that folder.
    """
    for name in ("prometheus.yml", "rules/recording.yml", "rules/alerts.yml"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        text = (METRICS / name).read_text()
        target.write_text(faster(asking(text, asks) if asks and name == "prometheus.yml" else text, durations))
    (folder / "targets").mkdir()
    log = (folder / "prometheus.log").open("w")
    options = ["--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{PORT}", "--storage.tsdb.path=data"]
    process = subprocess.Popen(place.inside("prometheus", *options), cwd=folder, stdout=log, stderr=log)
    asked = Prometheus(place)
    try:
        until(lambda: "ready" in (folder / "prometheus.log").read_text().lower(), 30, "Prometheus is ready")
        yield asked
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.close()


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The condition's value once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


def start_training(place: Place, folder: Path, command: Sequence[str]) -> subprocess.Popen[str]:
    """A training run there, watched by the Prometheus of that folder."""
    watched = ["observe.prometheus.enabled=true", "observe.prometheus.targets=targets"]
    return subprocess.Popen(
        place.inside(*command, *watched),
        cwd=folder,
        env=environment({"GLOO_SOCKET_IFNAME": "lo"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@contextmanager
def ended_afterwards(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Kill a process and its group when the with statement ends, if it still runs."""
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def pids_of_ranks(folder: Path) -> dict[int, int]:
    """Rank to process of the training that runs in a folder."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            here = (process / "cwd").resolve() == folder.resolve()
        except OSError:  # ended meanwhile
            continue
        rank = next((int(v[5:]) for v in variables if v.startswith(b"RANK=")), None)
        if here and rank is not None:
            found[rank] = int(process.name)
    return found


def recording_rules() -> list[str]:
    """Names of all recording rules."""
    groups = yaml.safe_load((METRICS / "rules" / "recording.yml").read_text())["groups"]
    return [rule["record"] for group in groups for rule in group["rules"]]


OF_A_PLAN_OR_ELASTIC = "job: "
"""Panels of this dashboard have data only with compressor=auto, or where workers come and go."""


def panel_queries() -> dict[str, str]:
    """The expression of every target of every panel, with its variables filled in, by where it is."""
    filled = {"$__rate_interval": "10s", "$__range": "5m", "$__interval": "1s", "$run": ".*", "$rank": ".*"}
    filled["$loss"] = "100"
    queries = {}
    for path in sorted((METRICS / "grafana" / "dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                expression = target["expr"]
                for variable, value in filled.items():
                    expression = expression.replace(variable, value)
                queries[f"{path.stem}: {panel['title']} ({target['refId']})"] = expression
    return queries
