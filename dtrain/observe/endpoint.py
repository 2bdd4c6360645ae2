"""Where Prometheus finds a rank: an HTTP endpoint, an entry in a folder of targets, a text file at the end."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from prometheus_client import CollectorRegistry, MetricsHandler, generate_latest

from dtrain.files import write_whole
from dtrain.meter.nic import is_loopback
from dtrain.observe.prometheus import RunCollector
from dtrain.server import BoundedServer

EVERYWHERE = ("", "0.0.0.0", "::")
SCRAPE_SECONDS = 5.0
"""How long a scrape may take in all."""

_MAX_CONNECTIONS = 16


@contextmanager
def serving(host: str, port: int, registry: CollectorRegistry) -> Iterator[None]:
    """Answer scrapes in threads of their own, while the with statement lasts; its end waits for no client.

    Raises ValueError, naming the cure, where it cannot listen there.
    """
    try:
        server = BoundedServer(
            (host, port),
            MetricsHandler.factory(registry),
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


class Endpoint:
    """The metrics of one rank. From its beginning it listens; once `show` was called it has something to say.

    Args:
        address: host and port to listen on, or None.
        targets: a folder that Prometheus watches (`file_sd_configs`), where this rank is named while it runs. One that
            is killed stays named, so that an alert says that it is gone; the next one on this port replaces it.
        textfile: a folder for node_exporter's textfile collector, where the last figures are written at the end, since
            a short run may end between two scrapes.

    Raises ValueError, naming the cure, for an address or a folder that cannot be used.
    """

    def __init__(self, address: tuple[str, int] | None, targets: Path | None, textfile: Path | None) -> None:
        self._address, self._targets, self._textfile = address, targets, textfile
        self._registry = CollectorRegistry(auto_describe=False)
        self._stack = ExitStack()
        for folder in (targets, textfile):
            if folder is not None:
                _check_folder(folder)
        if address is not None:
            self._stack.enter_context(serving(*address, self._registry))

    def show(self, metrics: RunCollector) -> None:
        """From now on these metrics are what Prometheus sees."""
        self._registry.register(metrics)
        if self._address is not None and self._targets is not None:
            self._announce(self._targets, *self._address, metrics)
        if self._textfile is not None:
            path = self._textfile / f"dtrain-{metrics.run}-rank{metrics.rank}.prom"
            self._stack.callback(self._write, path)

    def close(self) -> None:
        """Write the last figures, and stop listening."""
        self._stack.close()

    def _announce(self, folder: Path, host: str, port: int, metrics: RunCollector) -> None:
        reached = socket.gethostname() if host in EVERYWHERE else host
        address = f"[{reached}]:{port}" if ":" in reached else f"{reached}:{port}"
        target = {"targets": [address], "labels": {"run": metrics.run, "rank": str(metrics.rank)}}
        path = folder / f"{socket.gethostname()}-{port}.json"
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
