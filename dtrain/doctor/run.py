"""All checks of this host; and, with its ranks, those of what lies between them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dtrain.comm import Launch, detect_launch, open_communicator
from dtrain.doctor import backends, host, link, reachability
from dtrain.doctor.check import Check, Severity

_TIMEOUT_SECONDS = 120.0


def examine(launch: Launch, environ: Mapping[str, str], folder: Path) -> list[Check]:
    """What can be told without starting anything. `folder` is where runs go."""
    checks = [
        host.versions(),
        *host.codecs(),
        backends.gloo(),
        backends.nccl(),
        backends.mpi_stack(),
        backends.horovod(),
        reachability.interfaces(),
        reachability.gloo_interface(environ),
        reachability.names(),
    ]
    if launch.launcher == "none":  # else the port is held by this job itself
        checks.append(reachability.rendezvous_port(environ))
    checks += [host.threads(environ, launch.local_world_size), host.clock(), host.disk(folder), host.shared_memory()]
    return checks


def examine_network(launch: Launch, own: Sequence[Check]) -> list[Check]:
    """What the ranks of this launch measure together; with no launcher, this process and one more on this host.

    The same on every rank. What `examine` objected to on other hosts is in it; `own` is what it said on this one.
    """
    try:
        with _ranks(launch) as joined:
            return _measure(joined, own)
    except (RuntimeError, OSError, ValueError) as error:  # torch's are RuntimeErrors, of several lines
        finding = f"they do not find each other: {str(error).partition(chr(10))[0]}"
        cure = "start the same command on every host, and see above what interfaces and names are like"
        return [Check("ranks", Severity.ERROR, finding, cure)]


def second_rank() -> None:
    """The other of two ranks that `examine_network` starts by itself."""
    _measure(detect_launch(os.environ), ())


def _measure(launch: Launch, own: Sequence[Check]) -> list[Check]:
    backend = "mpi" if launch.launcher == "mpirun" else "gloo"
    with open_communicator(backend, launch, None, timeout_seconds=_TIMEOUT_SECONDS) as communicator:
        objections = [check for check in own if check.severity in (Severity.WARNING, Severity.ERROR)]
        everyone = link.gather_objections(communicator, socket.gethostname(), objections)
        names = [host for host, _ in everyone]
        checks = [
            link.hosts(names),
            link.latency(communicator),
            link.bandwidth(communicator),
            link.clock_skew(communicator),
        ]
    first_of_host = [rank for rank, name in enumerate(names) if name not in names[:rank]]
    for rank in first_of_host[1:]:
        checks += everyone[rank][1]
    return checks


@contextmanager
def _ranks(launch: Launch) -> Iterator[Launch]:
    """This launch; where there is none, one of two ranks, the other being another process of this program."""
    if launch.launcher != "none":
        yield launch
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    before = dict(os.environ)
    os.environ.update(job, RANK="0", LOCAL_RANK="0")
    other = subprocess.Popen(
        [sys.executable, "-c", "from dtrain.doctor.run import second_rank; second_rank()"],
        env={**before, **job, "RANK": "1", "LOCAL_RANK": "1"},
        stderr=subprocess.DEVNULL,  # what goes wrong is said here
    )
    try:
        yield Launch("torchrun", 0, 0, 2, 2)
        other.wait(_TIMEOUT_SECONDS)
    finally:
        other.kill()
        other.wait()
        os.environ.clear()
        os.environ.update(before)
