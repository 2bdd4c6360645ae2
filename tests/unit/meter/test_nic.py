import socket
from pathlib import Path

import pytest

from dtrain.meter import nic
from dtrain.meter.nic import (
    Counters,
    addresses,
    interface_towards,
    is_loopback,
    isolated_interface,
    own_address_towards,
    read_counters,
)

PROC_NET_DEV = """\
Inter-|   Receive                                              |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes  packets errs drop fifo colls carrier compressed
    lo: 1234567    8901    0    0    0     0          0         0 7654321   8901    0    0    0     0       0          0
enp0s31f6:99 1 0 0 0 0 0 0 18446744073709551615 2 0 0 0 0 0 0
 wlan0:       0       0    0    0    0     0          0         0       0      0    0    0    0     0       0          0
"""


def test_columns_are_those_of_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "dev"
    path.write_text(PROC_NET_DEV)
    assert read_counters(str(path)) == {
        "lo": Counters(received_bytes=1234567, transmitted_bytes=7654321),
        "enp0s31f6": Counters(99, 2**64 - 1),
        "wlan0": Counters(0, 0),
    }


def test_a_kernel_without_the_file_has_no_counters(tmp_path: Path) -> None:
    assert read_counters(str(tmp_path / "none")) == {}


@pytest.mark.skipif(not Path("/proc/self/net/dev").exists(), reason="/proc/self/net/dev is Linux's")
def test_loopback_counts_what_is_sent_to_oneself() -> None:
    before = read_counters()["lo"].transmitted_bytes
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
        receiver.bind(("127.0.0.1", 0))
        sender.sendto(bytes(20_000), receiver.getsockname())
        receiver.recv(20_000)
    assert read_counters()["lo"].transmitted_bytes - before >= 20_000


@pytest.mark.parametrize(
    ("interfaces", "world_size", "local_world_size", "expected"),
    [
        (["lo"], 2, 2, "lo"),
        (["lo"], 1, 1, "lo"),
        (["lo"], 4, 2, None),
        (["lo", "eth0"], 2, 2, None),
        (["eth0"], 2, 2, None),
        ([], 2, 2, None),
    ],
)
def test_only_loopback_alone_with_all_ranks_on_this_host_is_isolated(
    monkeypatch: pytest.MonkeyPatch,
    interfaces: list[str],
    world_size: int,
    local_world_size: int,
    expected: str | None,
) -> None:
    monkeypatch.setattr(nic, "read_counters", lambda: dict.fromkeys(interfaces, Counters(0, 0)))
    assert isolated_interface(world_size, local_world_size) == expected


def test_a_node_of_a_cluster_is_told_which_interface_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nic, "read_counters", lambda: dict.fromkeys(["lo", "eth0"], Counters(0, 0)))
    monkeypatch.setenv(nic.CLUSTER_INTERFACE, "eth0")
    assert isolated_interface(4, 1) == "eth0"
    monkeypatch.setenv(nic.CLUSTER_INTERFACE, "eth9")  # inherited by something that runs elsewhere
    assert isolated_interface(4, 1) is None


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_what_listens_beyond_this_machine_is_told_apart(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_the_interface_towards_a_host_is_the_one_whose_address_packets_go_from() -> None:
    assert interface_towards("127.0.0.1") == interface_towards("localhost") == "lo"
    for name, address in addresses().items():
        if address is not None and name != "lo":
            assert own_address_towards(address) == address
            assert interface_towards(address) == name
    with pytest.raises(OSError):
        interface_towards("no-such-host.invalid")
