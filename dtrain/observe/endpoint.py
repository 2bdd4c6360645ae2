"""Where Prometheus finds a rank: an HTTP endpoint, an entry in a folder of targets, a text file at the end."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile

from dtrain.meter.nic import is_loopback
from dtrain.observe.prometheus import RunMetrics


@contextmanager
def serving(host: str, port: int, registry: CollectorRegistry) -> Iterator[None]:
    """Answer scrapes in threads of their own, while the with statement lasts.

    Raises ValueError, naming the cure, where it cannot listen there.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"the metrics of this rank cannot be served on {host}:{port} ({reason}): choose another "
            "observe.prometheus.port (the first rank's; each further one of this host has the next) or .host"
        ) from None
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
                _make(folder)
        if address is not None:
            self._stack.enter_context(serving(*address, self._registry))

    def show(self, metrics: RunMetrics) -> None:
        """From now on these metrics are what Prometheus sees."""
        self._registry.register(metrics)
        if self._address is not None and self._targets is not None:
            self._stack.callback(self._announce(self._targets, *self._address, metrics).unlink, missing_ok=True)
        if self._textfile is not None:
            path = self._textfile / f"dtrain-{metrics.run}-rank{metrics.rank}.prom"
            self._stack.callback(self._write, path)

    def close(self) -> None:
        """Write the last figures, and stop listening."""
        self._stack.close()

    def _announce(self, folder: Path, host: str, port: int, metrics: RunMetrics) -> Path:
        name = socket.gethostname()
        reached = host if is_loopback(host) else name
        path = folder / f"{name}-{port}.json"
        target = {"targets": [f"{reached}:{port}"], "labels": {"run": metrics.run, "rank": str(metrics.rank)}}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps([target]) + "\n", encoding="utf-8")
        partial.replace(path)
        return path

    def _write(self, path: Path) -> None:
        """A run that has come to its end is not failed by a full disk."""
        try:
            write_to_textfile(str(path), self._registry)
        except OSError as error:
            print(f"dtrain: warning: {path} was not written: {error.strerror}", file=sys.stderr, flush=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be made ({error.strerror}): choose another") from None
