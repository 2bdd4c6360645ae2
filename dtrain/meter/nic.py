"""What the kernel says was sent: the interface counters of this process's network namespace.

Read from /proc/self/net/dev, which always shows the namespace of the reader; /sys/class/net shows the one that /sys was
mounted in.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import NamedTuple

LOOPBACK = "lo"
CLUSTER_INTERFACE = "DTRAIN_CLUSTER_INTERFACE"
"""The environment variable by which `dtrain cluster` tells a node's programs which interface is theirs alone."""


class Counters(NamedTuple):
    """Bytes since the interface came up, link-layer headers included."""

    received_bytes: int
    transmitted_bytes: int


def read_counters(path: str = "/proc/self/net/dev") -> dict[str, Counters]:
    """The counters of every interface by name; empty where the kernel has no such file."""
    try:
        lines = Path(path).read_text().splitlines()[2:]
    except FileNotFoundError:
        return {}
    counters = {}
    for line in lines:
        name, _, fields = line.partition(":")
        values = fields.split()
        counters[name.strip()] = Counters(int(values[0]), int(values[8]))
    return counters


def isolated_interface(world_size: int, local_world_size: int) -> str | None:
    """The interface that carries this job's traffic and nothing else, if the namespace shows which one that is.

    In a node of `dtrain cluster` it is the node's. With all ranks on one host and no interface but loopback (a fresh
    network namespace) it is loopback. Anywhere else only a person can know: None.
    """
    interface = os.environ.get(CLUSTER_INTERFACE)
    if interface in read_counters():
        return interface
    if world_size == local_world_size and set(read_counters()) == {LOOPBACK}:
        return LOOPBACK
    return None


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
