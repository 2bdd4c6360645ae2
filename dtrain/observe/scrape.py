"""Ranks as their metrics show them, asked over HTTP as Prometheus does."""

from __future__ import annotations

import http.client
import threading
import time
from base64 import b64encode
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from urllib.parse import SplitResult, unquote, urlsplit

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from dtrain.files import parse_json
from dtrain.meter.command_line import url_without_secrets
from dtrain.observe.frame import RankNow, RunNow
from dtrain.observe.targets import PATH

TIMEOUT_SECONDS = 2.0
_MAX_BYTES = 1 << 22
_MAX_RANKS = 10_000
_MAX_FOLLOWED = 256
"""Each is asked by a thread of its own."""
_WINDOW = 6
"""Scrapes that rates are taken over."""

Key = tuple[str, str]
"""Run and rank, as their labels."""


@dataclass
class _Scraped:
    """What one rank said at one moment: facts by label, and values by name, those with a label more added up."""

    at: float
    values: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    doing: str | None = None

    def get(self, name: str) -> float | None:
        return self.values.get(name)


def check_url(url: str) -> None:
    """Raises ValueError for what is no address of metrics."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(
            f"{url_without_secrets(url)}: give the address of a rank's metrics, such as http://127.0.0.1:9400"
        )


class Endpoint:
    """One address, asked again and again by a thread of its own: one that does not answer holds up nothing else.

    `shown` is the address as it may stand on a screen. `others` are addresses of further ranks of its run, which an
    address without a path is asked for as Prometheus asks (targets.py); none of them has its user and password.
    """

    def __init__(self, url: str, every: float) -> None:
        check_url(url)
        self._url, self.shown = url, url_without_secrets(url)
        self.asked = threading.Event()
        self._every = every
        self._history: dict[Key, deque[_Scraped]] = {}
        self._error: str | None = None
        self.others: frozenset[str] = frozenset()
        self._speaking: frozenset[Key] = frozenset()
        self._closed = threading.Event()
        threading.Thread(target=self._ask, name="dtrain-scrape", daemon=True).start()

    def _ask(self) -> None:
        while not self._closed.is_set():
            try:
                self.take(fetch(self._url), time.time())
                self._follow()
            except Exception as error:  # whatever answers there may be no endpoint at all
                self._error = _reason(error)
            self.asked.set()
            self._closed.wait(self._every)

    def _follow(self) -> None:
        parts = urlsplit(self._url)
        if parts.path not in ("", "/"):
            return
        with suppress(OSError, http.client.HTTPException, ValueError):  # no rank of ours, or it has not met others
            listed = addresses_by_rank(fetch(f"{parts.scheme}://{parts.netloc}{PATH}"))
            others = [address for key, address in listed.items() if key not in self._speaking]
            self.others = frozenset(f"{parts.scheme}://{address}/metrics" for address in others[:_MAX_FOLLOWED])

    def close(self) -> None:
        """Ask no more, from the answer that is awaited now on."""
        self._closed.set()

    def take(self, text: str, now: float) -> None:
        """Take in a page. Raises ValueError for one that is not in Prometheus' text format."""
        ranks = _by_rank(text_string_to_metric_families(text), now)
        self._speaking = frozenset(ranks)
        for key, scraped in ranks.items():
            if key not in self._history and len(self._history) == _MAX_RANKS:
                raise ValueError(f"more than {_MAX_RANKS:,} ranks")
            self._history.setdefault(key, deque(maxlen=_WINDOW)).append(scraped)
        self._error = None

    def ranks(self) -> list[tuple[Key, RankNow, _Scraped]]:
        """What was said last, by each rank that speaks there."""
        now, found = time.time(), []
        for key, history in list(self._history.items()):
            rank = _rank_now(key[1], self.shown, list(history), now)
            found.append((key, replace(rank, error=self._error), history[-1]))
        return found

    @property
    def silence(self) -> RankNow | None:
        """That nothing is known of it, and why."""
        if self._history:
            return None
        return RankNow(None, self.shown, error=self._error or "has no metrics of a run yet")


def addresses_by_rank(text: str) -> dict[Key, str]:
    """What a rank answers at /targets. Raises ValueError for anything else."""
    found: dict[Key, str] = {}
    try:
        for entry in parse_json(text.encode()):
            (address,), labels = entry["targets"], entry["labels"]
            check_url(f"http://{address}/")
            if "/" in address or "@" in address:
                raise ValueError
            found[str(labels["run"]), str(labels["rank"])] = address
    except (TypeError, KeyError, ValueError):
        raise ValueError("what is answered there is no list of ranks") from None
    return found


def fetch(url: str) -> str:
    """The page there; a user and password in the address are sent (Basic).

    Redirects and proxies are not followed. Raises OSError or http.client.HTTPException.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=TIMEOUT_SECONDS)
    try:
        path = parts.path if parts.path not in ("", "/") else "/metrics"
        connection.request("GET", path, headers=_authorization(parts))
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise OSError(f"answers {response.status}")
        text = response.read(_MAX_BYTES + 1)
    finally:
        connection.close()
    if len(text) > _MAX_BYTES:
        raise OSError("answers more than metrics of a run")
    return text.decode("utf-8", errors="replace")


def _authorization(parts: SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {b64encode(words.encode()).decode()}"}


def runs_now(endpoints: Iterable[Endpoint]) -> list[RunNow]:
    """What the ranks at these addresses say, by run."""
    ranks: dict[str, dict[str, tuple[RankNow, _Scraped]]] = {}
    for endpoint in endpoints:
        for (run, rank), now, scraped in endpoint.ranks():
            ranks.setdefault(run, {})[rank] = (now, scraped)
    return [_run_now(run, sorted(of.values(), key=lambda pair: pair[0].rank or 0)) for run, of in ranks.items()]


def _run_now(name: str, ranks: list[tuple[RankNow, _Scraped]]) -> RunNow:
    facts = next((scraped.facts for _, scraped in ranks if scraped.facts), {})
    told = {name: value for _, scraped in reversed(ranks) for name, value in scraped.values.items()}
    sums = {
        name: sum(scraped.values.get(name, 0.0) for _, scraped in ranks)
        for name in ("dtrain_dense_bytes_total", "gradient_bytes")
    }
    steps = told.get("dtrain_steps_total")
    waits = {name: told.get(f"dtrain_{name}_total") for name in ("transfer_seconds", "straggler_wait_seconds")}
    gradient = sums["gradient_bytes"]
    return RunNow(
        name=name,
        ranks=[now for now, _ in ranks],
        model=facts.get("model"),
        data=facts.get("data"),
        backend=facts.get("backend"),
        compressor=facts.get("compressor"),
        world_size=_as_int(told.get("dtrain_world_size")),
        loss=told.get("train_loss"),
        accuracy=told.get("test_accuracy", told.get("train_accuracy")),
        images_per_second=told.get("dtrain_images_per_second"),
        wire_bytes=sum(now.wire_bytes or 0.0 for now, _ in ranks),
        saving_vs_fp32=sums["dtrain_dense_bytes_total"] / gradient if gradient else None,
        transfer_seconds=_per_step(waits["transfer_seconds"], steps),
        straggler_wait_seconds=_per_step(waits["straggler_wait_seconds"], steps),
    )


def _by_rank(families: Iterable[Metric], now: float) -> dict[Key, _Scraped]:
    found: dict[Key, _Scraped] = {}
    for family in families:
        for sample in family.samples:
            labels = sample.labels
            if not sample.name.startswith("dtrain_") or "run" not in labels or "rank" not in labels:
                continue
            scraped = found.setdefault((labels["run"], labels["rank"]), _Scraped(now))
            if sample.name == "dtrain_run_info":
                scraped.facts = labels
            elif sample.name == "dtrain_phase":
                scraped.doing = labels.get("phase") if sample.value else scraped.doing
            elif sample.name in ("dtrain_loss", "dtrain_accuracy_ratio"):
                kind = "loss" if sample.name == "dtrain_loss" else "accuracy"
                scraped.values[f"{labels.get('split')}_{kind}"] = sample.value
            elif not sample.name.endswith("_bucket"):
                scraped.values[sample.name] = scraped.values.get(sample.name, 0.0) + sample.value
                if sample.name == "dtrain_wire_bytes_total" and _is_of_steps(labels):
                    scraped.values["gradient_bytes"] = scraped.values.get("gradient_bytes", 0.0) + sample.value
    return found


def _is_of_steps(labels: dict[str, str]) -> bool:
    return labels.get("phase") == "train" and labels.get("purpose") == "gradient"


def _rank_now(label: str, source: str, history: list[_Scraped], now: float) -> RankNow:
    """Means over the last scrapes, or over all steps where none ended meanwhile."""
    last = history[-1]
    steps = last.get("dtrain_steps_total")
    first = next((scraped for scraped in history if scraped.get("dtrain_steps_total") != steps), None)

    def mean(name: str) -> float | None:
        value = last.get(name)
        if value is None or not steps:
            return None
        before = first.values.get(name, 0.0) if first is not None else 0.0
        steps_before = first.values.get("dtrain_steps_total", 0.0) if first is not None else 0.0
        return (value - before) / (steps - steps_before) if steps > steps_before else None

    ended = last.get("dtrain_last_step_timestamp_seconds")
    return RankNow(
        rank=int(label) if label.isdecimal() and len(label) < 10 else None,
        source=source,
        host=last.facts.get("host"),
        doing=last.doing,
        steps=_as_int(steps),
        step_seconds=mean("dtrain_step_seconds_sum"),
        exposed_seconds=mean("dtrain_exposed_comm_seconds_total"),
        wire_bytes_per_step=mean("gradient_bytes"),
        wire_bytes=last.get("dtrain_wire_bytes_total"),
        idle_seconds=None if ended is None else max(0.0, now - ended),
    )


def _per_step(seconds: float | None, steps: float | None) -> float | None:
    return None if seconds is None or not steps else seconds / steps


def _as_int(value: float | None) -> int | None:
    return None if value is None or not abs(value) < 1e15 else int(value)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"does not answer within {TIMEOUT_SECONDS:g} s"
    if isinstance(error, OSError):
        return f"does not answer: {error.strerror or error}"
    return "answers something else than Prometheus' text format"
