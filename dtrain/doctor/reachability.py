"""Checks of how other hosts would reach this one: interfaces, names, the rendezvous port."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from dtrain.doctor.check import Check, Severity
from dtrain.meter.nic import LOOPBACK, addresses

RENDEZVOUS_PORT = 29500


def interfaces() -> Check:
    """What there is."""
    found = addresses()
    finding = ", ".join(f"{name} {address or '(no address)'}" for name, address in found.items())
    if not any(address for name, address in found.items() if name != LOOPBACK):
        return Check("interfaces", Severity.NOTE, f"{finding}: no other host can reach this one")
    return Check("interfaces", Severity.OK, finding)


def gloo_interface(environ: Mapping[str, str]) -> Check:
    """Where gloo would listen: on $GLOO_SOCKET_IFNAME, else on the address of the host's name, else on loopback."""
    found, wanted = addresses(), environ.get("GLOO_SOCKET_IFNAME")
    if wanted is not None:
        if found.get(wanted) is None:
            state = "has no address" if wanted in found else "does not exist here"
            cure = f"choose one of {', '.join(name for name, address in found.items() if address)}, or unset it"
            return Check("gloo's interface", Severity.ERROR, f"GLOO_SOCKET_IFNAME={wanted} {state}", cure)
        return Check("gloo's interface", Severity.OK, f"{wanted} {found[wanted]}, by GLOO_SOCKET_IFNAME")
    address = _resolve(socket.gethostname())
    name = LOOPBACK if address is None or address.startswith("127.") else None
    name = name or next((name for name, own in found.items() if own == address), LOOPBACK)
    if name == LOOPBACK:
        cure = "with several hosts, set GLOO_SOCKET_IFNAME on each (dtrain launch -H does, or --interface)"
        return Check("gloo's interface", Severity.NOTE, f"{LOOPBACK}, by the host's name: good on one host only", cure)
    return Check("gloo's interface", Severity.OK, f"{name} {address}, by the host's name")


def names() -> Check:
    """Whether the host's name leads to an address that others can use, and back."""
    host = socket.gethostname()
    address = _resolve(host)
    if address is None:
        cure = f"add a line with this host's address and {host} to /etc/hosts, or to DNS"
        return Check("names", Severity.ERROR, f"the host's name, {host}, does not resolve", cure)
    if address.startswith("127."):
        cure = f"with several hosts, give {host} its network address in /etc/hosts, or set GLOO_SOCKET_IFNAME"
        return Check("names", Severity.WARNING, f"{host} is {address}, which only this host can reach", cure)
    if address not in addresses().values():
        cure = f"correct the line of {host} in /etc/hosts, or DNS"
        return Check("names", Severity.ERROR, f"{host} is {address}, which no interface here has", cure)
    try:
        back = socket.gethostbyaddr(address)[0]
    except OSError:
        cure = f"add `{address} {host}` to /etc/hosts: programs that ask for the name wait for DNS"
        return Check("names", Severity.NOTE, f"{host} is {address}, which has no name", cure)
    return Check("names", Severity.OK, f"{host} is {address}, which is {back}")


def rendezvous_port(environ: Mapping[str, str]) -> Check:
    """Whether rank 0 could listen where torchrun's rendezvous is by default."""
    text = environ.get("MASTER_PORT", str(RENDEZVOUS_PORT))
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        return Check("port", Severity.ERROR, f"MASTER_PORT={text} is not a port", "correct it, or unset it")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(text)))
            probe.listen()
        except OSError as error:
            cure = "end what holds it (`ss -ltnp`), or choose another (dtrain launch --master HOST:PORT)"
            return Check("port", Severity.WARNING, f"{text}, for the rendezvous: {error.strerror}", cure)
    return Check("port", Severity.OK, f"{text}, for the rendezvous, is free")


def _resolve(name: str) -> str | None:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return None
