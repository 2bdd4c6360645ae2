"""Where Prometheus finds a rank: an HTTP endpoint, a list of all of them there, an entry in a folder of targets, and a
text file at the end."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, MetricsHandler, generate_latest

from dtrain.files import write_whole
from dtrain.meter.nic import is_loopback, own_address_towards
from dtrain.observe import targets as discovery
from dtrain.observe.prometheus import RunCollector
from dtrain.server import BoundedServer

EVERYWHERE = ("", "0.0.0.0", "::")
SCRAPE_SECONDS = 5.0
"""How long a scrape may take in all."""

_MAX_CONNECTIONS = 16


class _Handler(MetricsHandler):
    """Answers with the metrics of this rank, and with where all ranks are."""

    ranks: discovery.Targets

    def do_GET(self) -> None:  # noqa: N802 (http.server's)
        """The list at its path, the metrics at any other."""
        if urlsplit(self.path).path != discovery.PATH:
            super().do_GET()
            return
        status, text = self.ranks.answer(self.headers.get(discovery.INTERVAL_HEADER))
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status == 200 else "text/plain; charset=utf-8")
        self.end_headers()
        self.wfile.write(text.encode())


@contextmanager
def serving(host: str, port: int, registry: CollectorRegistry, ranks: discovery.Targets) -> Iterator[None]:
    """Answer in threads of their own, while the with statement lasts; its end waits for no client.

    Raises ValueError, naming the cure, where it cannot listen there.
    """
    try:
        server = BoundedServer(
            (host, port),
            type("Handler", (_Handler,), {"registry": registry, "ranks": ranks}),
            max_connections=_MAX_CONNECTIONS,
            request_seconds=SCRAPE_SECONDS,
        )
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"the metrics of this rank cannot be served on {host}:{port} ({reason}): choose another "
            "observe.prometheus.port (the first rank's; each further one of this host has the next) or .host"
        ) from None
    thread = threading.Thread(target=server.serve_forever, name="dtrain-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def warn_if_public(host: str) -> None:
    """Say so where others than this machine can read the metrics."""
    if not is_loopback(host):
        print(f"dtrain: warning: whoever reaches {host} can read this run's metrics", file=sys.stderr, flush=True)


def reached_at(host: str, master: str | None) -> str:
    """Where other hosts reach what listens on `host`; "" where they do not.

    Of one that listens at every address it is the one from which packets go to `master`, the host where ranks meet;
    where that is this host alone, or nobody knows it, the host's name.
    """
    if host not in EVERYWHERE:
        return host
    try:
        own = own_address_towards(master) if master else ""
    except OSError:  # the name of no host, or one of IPv6 alone
        own = ""
    return own if own and not is_loopback(own) else socket.gethostname()


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Endpoint:
    """The metrics of one rank. From its beginning it listens; once `show` was called it has something to say.

    A context manager: its end writes the last figures and stops listening. Where the run was made
    `is_complete`, Prometheus, if it asked this rank where all ranks are, first hears that there is none any more.

    Args:
        listen: host and port to listen on, or None.
        targets: a folder that Prometheus watches (`file_sd_configs`), where this rank is named while it runs. One that
            is killed stays named, so that an alert says that it is gone; the next one on this port replaces it.
        textfile: a folder for node_exporter's textfile collector, where the last figures are written at the end, since
            a short run may end between two scrapes.

    Raises ValueError, naming the cure, for an address or a folder that cannot be used.
    """

    def __init__(
        self,
        listen: tuple[str, int] | None,
        targets: Path | None,
        textfile: Path | None,
        *,
        master: str | None = None,
    ) -> None:
        self._targets, self._textfile = targets, textfile
        self._registry = CollectorRegistry(auto_describe=False)
        self._ranks = discovery.Targets()
        self._stack = ExitStack()
        self.is_complete = False
        self.address: str | None = None
        self._named = ""  # in the folder, as on hosts that share one names are known
        for folder in (targets, textfile):
            if folder is not None:
                _check_folder(folder)
        if listen is not None:
            host, port = listen
            self.address, self._named = (_joined(reached_at(host, towards), port) for towards in (master, None))
            self._stack.enter_context(serving(*listen, self._registry, self._ranks))
            self._stack.callback(self._say_that_none_is_left)

    def show(self, metrics: RunCollector, addresses: Sequence[str] = ()) -> None:
        """From now on these metrics are what Prometheus sees; `addresses`, by rank, are where all ranks are."""
        self._registry.register(metrics)
        if addresses:
            self._ranks.show(metrics.run, addresses)
        if self.address is not None and self._targets is not None:
            self._announce(self._targets, self._named, metrics)
        if self._textfile is not None:
            path = self._textfile / f"dtrain-{metrics.run}-rank{metrics.rank}.prom"
            self._stack.callback(self._write, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def _say_that_none_is_left(self) -> None:
        if self.is_complete:
            time.sleep(self._ranks.withdraw())

    def _announce(self, folder: Path, address: str, metrics: RunCollector) -> None:
        target = {"targets": [address], "labels": {"run": metrics.run, "rank": str(metrics.rank)}}
        path = folder / f"{socket.gethostname()}-{address.rpartition(':')[2]}.json"
        with _warning(f"{path} was not written"):
            write_whole(path, json.dumps([target]) + "\n")
        self._stack.callback(self._withdraw, path)

    def _withdraw(self, path: Path) -> None:
        with _warning(f"{path} was not removed"):
            path.unlink(missing_ok=True)

    def _write(self, path: Path) -> None:
        with _warning(f"{path} was not written"):
            write_whole(path, generate_latest(self._registry))


@contextmanager
def _warning(what: str) -> Iterator[None]:
    """Once ranks have met, a disk that is full or gone is said and fails no run."""
    try:
        yield
    except OSError as error:
        print(f"dtrain: warning: {what}: {error.strerror}", file=sys.stderr, flush=True)


def _check_folder(folder: Path) -> None:
    """Make it where it is not there, and see that files can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"nothing can be written into the folder {folder} ({error.strerror}): choose another"
        ) from None
