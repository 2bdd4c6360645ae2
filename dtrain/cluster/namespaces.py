"""Nodes as network namespaces, each with one interface, joined by a bridge in a namespace of its own.

A namespace here is an open file. The kernel removes it, with its interfaces, once nobody holds it open and no program
runs in it; so nothing is left behind however this process ends. In the host's own namespace no interface is made, and
the host's firewall has no say in the traffic.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute, NetlinkError, netns
from pyroute2.ethtool.ioctl import EthtoolError, IoctlEthtool

from dtrain.meter.nic import Counters, read_counters
from dtrain.plan.link import parse_rate

INTERFACE = "eth0"
MAX_NODES = 250
MIN_RATE, MAX_RATE = 10**5, 3 * 10**10
_CLONE_NEWNET = 0x40000000
# tbf lets this much through at full speed after a pause; with less, a busy machine misses its turns.
_MIN_BURST_BYTES = 32 * 1024
_BURST_SECONDS = 0.002
_QUEUE_SECONDS = 0.2
_CONGESTION_CONTROL = "reno"

T = TypeVar("T")


def rate_of_link(text: str) -> int:
    """Bits per second that a link can be shaped to, as `100mbit` or `1gbit`. Raises ValueError for anything else."""
    try:
        rate = round(parse_rate(text))
    except ValueError:
        rate = 0
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"--rate {text} must be a number and its unit, from 100kbit to 30gbit, such as 100mbit")
    return rate


@dataclass(frozen=True)
class Node:
    """One machine of the cluster: its address, and as open files its namespace and the bridge's."""

    index: int
    address: str
    namespace: int
    bridge: int

    @property
    def name(self) -> str:
        """Its host name, and that of its port on the bridge."""
        return f"node{self.index}"

    def counters(self) -> Counters:
        """What its interface has carried since it came up."""
        return _inside(self.namespace, lambda: read_counters("/proc/thread-self/net/dev")[INTERFACE])

    def shape(self, rate: int) -> None:
        """Give its link this rate, in bits per second each way, from now on."""
        _inside(self.namespace, _shape, INTERFACE, rate)
        _inside(self.bridge, _shape, self.name, rate)


@contextmanager
def network(num_nodes: int, rate: int | None) -> Iterator[list[Node]]:
    """That many nodes that reach each other through `INTERFACE`, at `rate` bits per second each way (None: unshaped).

    Raises ValueError where this user, kernel or container cannot have them.
    """
    if not 1 <= num_nodes <= MAX_NODES:
        raise ValueError(f"--nodes {num_nodes} must be from 1 to {MAX_NODES}")
    if os.geteuid() != 0:
        raise ValueError("a cluster needs root, for network namespaces: run it as root")
    opened: list[int] = []
    try:
        with _refusals():
            for _ in range(num_nodes + 1):
                opened.append(_new_namespace())
            bridge, *namespaces = opened
            _inside(bridge, _make_bridge)
            nodes = [Node(i, f"10.0.0.{i + 1}", namespace, bridge) for i, namespace in enumerate(namespaces)]
            for node in nodes:
                _inside(node.namespace, _make_node, node)
                _inside(bridge, _plug_in, node)
                if rate is not None:
                    node.shape(rate)
        yield nodes
    finally:
        for namespace in opened:
            os.close(namespace)


@contextmanager
def _refusals() -> Iterator[None]:
    """What the kernel refuses, as one line that says what it must offer."""
    try:
        yield
    except (NetlinkError, EthtoolError, OSError) as error:
        raise ValueError(
            f"this machine refuses what a cluster is made of ({error}): it takes a kernel with network namespaces, "
            "veth, bridge and sch_tbf, and in a container --privileged"
        ) from error


def _new_namespace() -> int:
    """A new network namespace. The thread that enters it ends; the file that is open on it keeps it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def leave() -> int:
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _on_a_thread(leave)


def _inside(namespace: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call the function in a namespace; this thread stays where it is."""

    def enter() -> T:
        netns.setns(namespace)
        return function(*arguments)

    return _on_a_thread(enter)


def _on_a_thread(function: Callable[[], T]) -> T:
    """Call the function in a thread that then ends. Signals wait meanwhile: no lock inside may be left half-way."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(function).result()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _make_bridge() -> None:
    with IPRoute() as route:
        route.link("add", ifname="bridge", kind="bridge")
        route.link("set", index=_index(route, "bridge"), state="up")


def _make_node(node: Node) -> None:
    """The node's ends of its cable and of loopback.

    Congestion control is the same on every host, and the one that fills these links best (docs/log.md).
    """
    Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(_CONGESTION_CONTROL)
    with IPRoute() as route:
        peer = {"ifname": node.name, "net_ns_fd": node.bridge}
        route.link("add", ifname=INTERFACE, kind="veth", peer=peer)
        route.addr("add", index=_index(route, INTERFACE), address=node.address, prefixlen=24)
        route.link("set", index=_index(route, "lo"), state="up")
        _bring_up(route, INTERFACE)


def _plug_in(node: Node) -> None:
    """The bridge's end of the node's cable."""
    with IPRoute() as route:
        route.link("set", index=_index(route, node.name), master=_index(route, "bridge"))
        _bring_up(route, node.name)


def _bring_up(route: Any, interface: str) -> None:
    _turn_offloads_off(interface)
    route.link("set", index=_index(route, interface), state="up")


def _shape(interface: str, rate: int) -> None:
    bytes_per_second = rate // 8
    burst = max(_MIN_BURST_BYTES, round(_BURST_SECONDS * bytes_per_second))
    limit = burst + round(_QUEUE_SECONDS * bytes_per_second)
    with IPRoute() as route:
        shaped = {"rate": f"{rate}bit", "burst": burst, "limit": limit}
        route.tc("replace", "tbf", index=_index(route, interface), **shaped)


def _turn_offloads_off(interface: str) -> None:
    """With them on, packets of 64 KiB cross the link, and the counters miss the headers that a real one would carry."""
    ethtool = IoctlEthtool(interface)
    try:
        features = ethtool.get_features()
        for name, active, available, *_ in features:
            if active and available and ("segmentation" in name or name in ("tx-gso-list", "rx-gro")):
                features[name] = False
        ethtool.set_features(features)
    finally:
        ethtool.close()


def _index(route: Any, interface: str) -> int:
    (index,) = route.link_lookup(ifname=interface)
    return int(index)
