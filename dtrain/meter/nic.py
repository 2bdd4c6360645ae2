"""What the kernel says was sent: the interface counters of this process's network namespace.

Read from /proc/self/net/dev, which always shows the namespace of the reader; /sys/class/net shows the one that /sys was
mounted in.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from fcntl import ioctl
from pathlib import Path
from typing import NamedTuple

LOOPBACK = "lo"
CLUSTER_INTERFACE = "DTRAIN_CLUSTER_INTERFACE"
"""The environment variable by which `dtrain cluster` tells a node's programs which interface is theirs alone."""
_SIOCGIFADDR = 0x8915
_ANY_PORT = 9


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


def addresses() -> dict[str, str | None]:
    """The IPv4 address of every interface, None where it has none."""
    found: dict[str, str | None] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name in read_counters():
            try:
                answer = ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(answer[20:24])
            except OSError:
                found[name] = None
    return found


def own_address_towards(host: str) -> str:
    """The IPv4 address of this host from which packets go to that one, by the kernel's routes; nothing is sent.

    Raises OSError where the name is not resolved or no route leads there.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, _ANY_PORT))
        return str(probe.getsockname()[0])


def interface_towards(host: str) -> str:
    """The interface of this host through which packets go to that one. Raises OSError where none does."""
    own = own_address_towards(host)
    if ipaddress.ip_address(own).is_loopback:  # all of 127.0.0.0/8 is on it
        return LOOPBACK
    for name, address in addresses().items():
        if address == own:
            return name
    raise OSError(f"no interface has {own}, from which packets go to {host}")


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
