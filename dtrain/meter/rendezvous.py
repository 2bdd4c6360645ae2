"""Joining the store of the launcher's rendezvous, in the time that is given; what is in the way is said in one line.

torch's own client does not keep to its time-out: it tries twice, and waits for ever for whoever accepts a connection
and says nothing. And it writes stack traces. So it is asked only once somebody who speaks as it does has answered, and
rank 0 binds its port before torch does.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

CONNECT_SECONDS = 5.0
"""For one attempt at one of a name's addresses; there may be others."""
RETRY_SECONDS = 0.2

_VALIDATE, _MAGIC, _PING = 0, 0x3C85F7CE, 13
"""The first words of torch's client, since 2.4, which a store answers with the number that follows them."""
_AGENT = "TORCHELASTIC_USE_AGENT_STORE"
_THIS_PROCESS = secrets.token_hex(4)
_served: set[int] = set()
"""The ports of stores that this process keeps, which torch shares among all who ask for them."""


class RendezvousError(RuntimeError):
    """The job's store cannot be reached, or is that of another job."""


class AddressError(ValueError):
    """MASTER_ADDR is the name of no host."""


class Place(NamedTuple):
    """Where a job meets, and who asks. `serves`: this rank keeps the store, since no agent of torchrun does."""

    host: str
    port: int
    rank: int
    world_size: int
    serves: bool

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def read_place(environ: Mapping[str, str]) -> Place:
    """What a launcher has set. Raises ValueError for a variable that is missing or makes no sense."""
    host, port = environ.get("MASTER_ADDR", "").strip(), environ.get("MASTER_PORT", "")
    if not host:
        raise ValueError("MASTER_ADDR is not set: set it to the host of rank 0, or start with torchrun")
    if not port.strip().isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"MASTER_PORT={port} is no port: set it to a free one of rank 0's host, from 1 to 65535")
    rank, world_size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    serves = rank == 0 and environ.get(_AGENT) != "True"
    return Place(host, int(port), rank, world_size, serves)


def join_store(environ: Mapping[str, str], timeout_seconds: float, start: str | None = None) -> Store:
    """The store of this job's rendezvous, under a prefix of ours; rank 0 without an agent of torchrun keeps it.

    It is a connection of its own, and lasts whatever the program does with its process groups. `start`: what
    `roll_call.name_start` called this start of the ranks, so that nothing is read which one before it wrote.

    Raises RendezvousError, in time, that names the address, this rank and what is in the way; AddressError where the
    address is the name of no host; ValueError for another variable that makes no sense.
    """
    place = read_place(environ)
    joining = _Joining(place, timeout_seconds, has_agent=environ.get(_AGENT) == "True")
    joining.start()
    joining.join(timeout_seconds + 0.5)  # who resolves names, or a store that stops answering, knows no time-out
    if joining.store is not None:
        return PrefixStore(f"dtrain/{start or environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", joining.store)
    joining.given_up = True
    raise joining.error or _error(place, joining.fault, timeout_seconds)


def _error(place: Place, fault: str, waited_seconds: float | None = None) -> RendezvousError:
    waited = "" if waited_seconds is None else f"after {waited_seconds:g} s "
    who = f"rank {place.rank} on host {socket.gethostname()}"
    return RendezvousError(f"{who} cannot join the job at {place}: {waited}{fault}")


class _Joining(threading.Thread):
    """`fault` is what has been in the way so far."""

    def __init__(self, place: Place, timeout_seconds: float, *, has_agent: bool) -> None:
        super().__init__(name="dtrain-rendezvous", daemon=True)
        self._place, self._timeout_seconds, self._has_agent = place, timeout_seconds, has_agent
        self._deadline = time.monotonic() + timeout_seconds
        self.fault = "its name is not resolved: look at this host's DNS, or set MASTER_ADDR to an address"
        self.given_up = False
        self.store: Store | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.store = self._join()
        except (RendezvousError, ValueError) as error:
            self.error = error
        except (RuntimeError, OSError) as error:  # torch's are of several lines
            self.error = _error(self._place, (str(error).splitlines() or [type(error).__name__])[0])

    def _join(self) -> Store:
        place, timeout = self._place, timedelta(seconds=self._timeout_seconds)
        kept = _keep_store(place, timeout) if place.serves else None
        while not self._answers():
            time.sleep(RETRY_SECONDS)
        if self.given_up:
            raise _error(place, self.fault)
        store = kept or TCPStore(place.host, place.port, place.world_size, False, timeout, wait_for_workers=False)
        if not self._has_agent:
            _claim(store, place)
        return store

    def _answers(self) -> bool:
        """Whether a store does; raises once time is up."""
        place = self._place
        try:
            knock(place.host, place.port, self._deadline)
        except socket.gaierror as error:
            is_unknown = error.errno == socket.EAI_NONAME
            cure = "set it to the name or address of rank 0's host"
            self.fault = f"MASTER_ADDR={place.host} is not resolved ({error.strerror}): {cure}"
            if self._is_over() and is_unknown:
                raise AddressError(str(_error(place, self.fault, self._timeout_seconds))) from None
        except NoStoreError as error:
            self.fault = f"what listens there is no store of torch's (it {error}): choose a free MASTER_PORT"
            if error.is_sure:
                raise _error(place, self.fault) from None
        except ConnectionRefusedError:
            self.fault = "nothing listens there: start rank 0, or correct MASTER_ADDR and MASTER_PORT"
        except OSError as error:
            what = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
            self.fault = f"{what}: see that the host of MASTER_ADDR is up, and that MASTER_PORT is open to this one"
        else:
            return True
        if self._is_over():
            raise _error(place, self.fault, self._timeout_seconds)
        return False

    def _is_over(self) -> bool:
        return time.monotonic() + RETRY_SECONDS >= self._deadline


class NoStoreError(ConnectionError):
    """Something listens that is no store of torch's, or not yet. Its text is what it does instead."""

    is_sure = False


def knock(host: str, port: int, deadline: float) -> None:
    """See that a store of torch's answers at this address; `deadline` is of time.monotonic().

    Raises OSError: NoStoreError where something else does.
    """
    nonce = struct.pack("=I", secrets.randbits(32))
    with socket.create_connection((host, port), max(0.1, min(CONNECT_SECONDS, deadline - time.monotonic()))) as client:
        if client.getsockname() == client.getpeername():  # nobody listens, and this port of ours is the same by chance
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        client.sendall(struct.pack("=BIB", _VALIDATE, _MAGIC, _PING) + nonce)
        answer = b""
        while len(answer) < len(nonce):
            client.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                part = client.recv(len(nonce) - len(answer))
            except TimeoutError:
                raise NoStoreError("accepts connections and says nothing") from None
            if not part:
                raise NoStoreError("closes connections at once")
            answer += part
    if answer != nonce:
        error = NoStoreError(f"answers {answer.decode('ascii', 'backslashreplace')!r}")
        error.is_sure = True
        raise error


def _keep_store(place: Place, timeout: timedelta) -> Store:
    """Rank 0's. The port is bound here, since torch says on many lines that it cannot."""
    listener = None
    if place.port not in _served and not dist.is_initialized():
        try:
            family = socket.AF_INET6 if (both := socket.has_dualstack_ipv6()) else socket.AF_INET
            listener = socket.create_server(("", place.port), family=family, backlog=2048, dualstack_ipv6=both)
        except OSError as error:
            raise _error(place, _why_not_bound(place.port, error)) from None
    _served.add(place.port)
    return TCPStore(
        "127.0.0.1",
        place.port,
        place.world_size,
        True,
        timeout,
        wait_for_workers=False,
        multi_tenant=True,  # a program of the same process that meets by itself shares it
        master_listen_fd=None if listener is None else listener.detach(),
    )


def _why_not_bound(port: int, error: OSError) -> str:
    if error.errno != errno.EADDRINUSE:
        return f"port {port} cannot be listened at ({error.strerror}): choose another MASTER_PORT, above 1023"
    try:
        knock("127.0.0.1", port, time.monotonic() + 1.0)
    except OSError:
        return f"port {port} is taken by another program of this host: choose another MASTER_PORT"
    return (
        f"port {port} is taken by the store of another job, perhaps an earlier one that has not ended: end it, or "
        "choose another MASTER_PORT"
    )


def _claim(store: Store, place: Place) -> None:
    """See that it is of this job, as far as can be told: of as many ranks, and with nobody else in this one's place."""
    job = PrefixStore("dtrain/job", store)
    mine = f"host {socket.gethostname()}, process {os.getpid()} ({_THIS_PROCESS})"
    size = job.compare_set("world_size", "", str(place.world_size)).decode()
    holder = job.compare_set(f"rank/{place.rank}", "", mine).decode()
    cure = "end what runs there, or choose another MASTER_PORT"
    if size != str(place.world_size):
        raise _error(place, f"the store there is of a job of {size} ranks, and this one has {place.world_size}: {cure}")
    if holder != mine:
        raise _error(
            place,
            f"the store there has a rank {place.rank} already (on {holder.rpartition(' (')[0]}): it is of an earlier "
            f"job, or RANK={place.rank} was given twice: {cure}",
        )
