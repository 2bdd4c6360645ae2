"""Record every collective of torch.distributed, DDP's own included, at the lowest seam there is.

torch sends each collective of each process group, whether called from Python, from DDP's reducer in C++ or from a
functional collective, through a dispatcher operator of the `c10d` library. `install` registers one kernel for each of
these operators at the dispatch key `BackendSelect`, just above the backends: it records the call, hands it on as it is,
and notes when it completed. Nothing is wrapped or replaced, so groups, their names, `get_backend()` and teardown are as
they were, and results are bitwise the same. (docs/adr/0001-meter-at-the-dispatcher.md)

Whatever goes wrong in counting, the program gets what it would get without: a call that cannot be counted is handed on
all the same, and the ledger says that it is missing.
"""

from __future__ import annotations

import atexit
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch._C._dynamo import eval_frame

from dtrain.exchange import Op
from dtrain.meter.clock import clock_for
from dtrain.meter.ledger import Group, Ledger, Pending
from dtrain.meter.payload import first_tensor, num_bytes
from dtrain.meter.purpose import purpose_of
from dtrain.meter.wire import hands_over, sparse_all_reduce_wire_bytes, wire_bytes


class _Call(NamedTuple):
    """How to read one operator's arguments: where the group is, what is handed over, and who is the root.

    `device` is an argument that always holds a tensor (a scatter's inputs are empty but at its root).
    """

    op: Op
    group: int
    sent: int
    root: int | None = None
    device: int = 0


_CALLS = {
    "allreduce_": _Call(Op.ALL_REDUCE, group=1, sent=0),
    "allreduce_coalesced_": _Call(Op.ALL_REDUCE, group=1, sent=0),
    "allgather_": _Call(Op.ALL_GATHER, group=2, sent=1),
    "_allgather_base_": _Call(Op.ALL_GATHER, group=2, sent=1),
    "allgather_coalesced_": _Call(Op.ALL_GATHER, group=2, sent=1),
    "allgather_into_tensor_coalesced_": _Call(Op.ALL_GATHER, group=2, sent=1),
    "reduce_scatter_": _Call(Op.REDUCE_SCATTER, group=2, sent=1),
    "_reduce_scatter_base_": _Call(Op.REDUCE_SCATTER, group=2, sent=1),
    "reduce_scatter_tensor_coalesced_": _Call(Op.REDUCE_SCATTER, group=2, sent=1),
    "alltoall_": _Call(Op.ALL_TO_ALL, group=2, sent=1),
    "alltoall_base_": _Call(Op.ALL_TO_ALL, group=2, sent=1),
    "broadcast_": _Call(Op.BROADCAST, group=1, sent=0, root=2),
    "reduce_": _Call(Op.REDUCE, group=1, sent=0, root=3),
    "gather_": _Call(Op.GATHER, group=2, sent=1, root=3, device=1),
    "scatter_": _Call(Op.SCATTER, group=2, sent=1, root=3),
    "send": _Call(Op.SEND, group=1, sent=0),
    "recv_": _Call(Op.RECV, group=1, sent=0),
    "recv_any_source_": _Call(Op.RECV, group=1, sent=0),
    "barrier": _Call(Op.BARRIER, group=1, sent=0),
    "monitored_barrier_": _Call(Op.BARRIER, group=1, sent=0),
}


def _sent_to_others(name: str, args: tuple[Any, ...], rank: int) -> float | None:
    """The exact bytes meant for other ranks, for an all_to_all whose parts differ in size; None where they do not."""
    if name == "alltoall_":
        return float(num_bytes(args[1]) - num_bytes(args[1][rank]))
    if name == "alltoall_base_" and args[4]:
        tensor, splits = args[1], args[4]
        row_bytes = num_bytes(tensor) // max(1, tensor.shape[0])
        return float(row_bytes * (sum(splits) - splits[rank]))
    return None


def _note_group(ledger: Ledger, group: dist.ProcessGroup, name: str) -> None:
    try:
        ranks = tuple(dist.get_process_group_ranks(group))
    except KeyError:  # a group that torch is still making
        return
    description = group.group_desc
    ledger.note_group(name, Group(name if description == "undefined" else description, ranks))


def _record(ledger: Ledger, name: str, call: _Call, args: tuple[Any, ...]) -> Pending | None:
    """The entry of a call that is about to be handed on; None for one that can send nothing."""
    tensor = first_tensor(args[call.device])
    if tensor is None or tensor.is_meta:  # torch refuses the first; of the second, a fake tensor too, there are no data
        return None
    group = dist.ProcessGroup.unbox(args[call.group])
    rank, world_size, group_name = group.rank(), group.size(), group.group_name
    known = ledger.groups.get(group_name)
    if known is None or len(known.ranks) != world_size:  # names start anew when the default group does
        _note_group(ledger, group, group_name)
    is_root = call.root is not None and args[call.root] == rank
    payload = num_bytes(args[call.sent]) if hands_over(call.op, is_root=is_root) else 0
    wire = _sent_to_others(name, args, rank)
    if wire is None:
        backend = group._get_backend(tensor.device).name()
        if call.op is Op.ALL_REDUCE and tensor.layout is torch.sparse_coo:
            wire = sparse_all_reduce_wire_bytes(backend, payload, world_size)
        else:
            wire = wire_bytes(backend, call.op, payload, world_size, is_root=is_root)
    return ledger.record(
        call.op,
        payload,
        wire,
        world_size=world_size,
        group=group_name,
        purpose=ledger.purpose or purpose_of(call.op, tensor),
        clock=clock_for(tensor.device),
        dtype=_name(tensor.dtype),
    )


@cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _OnCompletion:
    """Called by the backend's own thread when the work completes, and dropped by it a moment later."""

    __slots__ = ("__weakref__", "_pending")

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        _under_way.add(self)

    def __call__(self, future: torch.futures.Future[Any]) -> None:
        try:
            future.value()  # under a microsecond, and the only way to ask
        except Exception:
            self._pending.has_failed = True
        self._pending.complete()


_under_way: weakref.WeakSet[_OnCompletion] = weakref.WeakSet()


def is_idle() -> bool | None:
    """Whether no collective of this process is under way; None where that cannot be told.

    A program that sends point to point may be in a receive: that has no future, and is not seen to be under way.
    """
    ledger = installed_ledger()
    if ledger is None or any(key.op in (Op.SEND, Op.RECV) for key in list(ledger.totals)):
        return None
    return not len(_under_way)


@atexit.register
def await_completions(timeout_seconds: float = 5.0) -> None:
    """Until no thread of a backend has a call into Python before it: one made as the interpreter exits is an abort.

    Then, too, every collective that has ended has its time. A program may end without waiting for all that it started.
    Work that never completes is not waited for beyond the time-out: its thread sleeps.
    """
    deadline = time.monotonic() + timeout_seconds
    while len(_under_way) and time.monotonic() < deadline:
        time.sleep(0.001)


def _complete_with(pending: Pending, result: Any) -> None:
    """Note the time when the work completes. Point-to-point work has no future, and so no time.

    On CUDA the callback runs with a stream current that has waited for the work.
    """
    work = result[1] if isinstance(result, tuple) else result
    if work is None:
        pending.complete()
        return
    try:
        future = dist.Work.unbox(work).get_future()
        future.add_done_callback(_OnCompletion(pending))
    except Exception:  # RuntimeError from gloo; a backend written in Python may have any other
        return


def _kernel(ledger: Ledger, name: str, call: _Call) -> Callable[..., Any]:
    operator = getattr(torch.ops.c10d, name).default
    here = torch._C.DispatchKey.BackendSelect

    def record_and_hand_on(keys: Any, *args: Any, **kwargs: Any) -> Any:
        pending, fault = None, ""
        try:
            pending = _record(ledger, name, call, args)
        except Exception as error:  # a text, since the error itself would keep the tensors alive
            fault = f"{type(error).__name__}: {error}"
        try:
            result = operator.redispatch(keys.remove(here), *args, **kwargs)  # lets go of the GIL meanwhile
        except BaseException:  # refused, and nothing was sent
            if pending is not None:
                ledger.withdraw(pending)
            raise
        if fault:
            ledger.note_uncounted(call.op, fault)
        if pending is not None:
            _complete_with(pending, result)
        return result

    keep_dynamo_out(record_and_hand_on.__code__)
    return record_and_hand_on


def keep_dynamo_out(code: CodeType) -> None:
    """Let Dynamo compile neither functions of this code nor what they call: it would take the kernel for the user's.

    As `torch.compiler.disable` does, which imports torch._dynamo (a second) and is wrapped around each call.
    """
    skip = eval_frame._FrameAction.SKIP
    eval_frame.set_code_exec_strategy(code, eval_frame._FrameExecStrategy(skip, skip))


_installed: dict[torch.library.Library, Ledger] = {}
_shared: set[torch.library.Library] = set()
"""Those of which a program gets the ledger."""


def install(ledger: Ledger, *, is_shared: bool = False) -> Callable[[], None]:
    """Record every collective of this process in `ledger`, from now until the returned function is called.

    `is_shared`: a program that would install one of its own is to be given this one.
    Raises RuntimeError if a ledger is installed already: a byte must be counted once.
    """
    if _installed:
        raise RuntimeError("a ledger is installed already; remove it first (a byte must be counted once)")
    library = torch.library.Library("c10d", "IMPL")
    for name, call in _CALLS.items():
        library.impl(name, _kernel(ledger, name, call), "BackendSelect", with_keyset=True)
    _installed[library] = ledger
    if is_shared:
        _shared.add(library)

    def remove() -> None:
        if _installed.pop(library, None) is not None:
            library._destroy()

    return remove


def stop() -> None:
    """Record nothing more, for good and at no cost to the program, which may be in a collective on another thread.

    So the kernels are not removed, since one of them may be running; others are put over them by which the dispatcher
    passes as if there were none.
    """
    for library in list(_installed):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*may also be overridden")
            for name in _CALLS:
                library.impl(name, torch.library.fallthrough_kernel, "BackendSelect", allow_override=True)
        del _installed[library]
        _stopped.append(library)


_stopped: list[torch.library.Library] = []
"""Kept, since a library that is collected takes its kernels with it."""


def installed_ledger() -> Ledger | None:
    """The ledger that records this process's collectives, if there is one."""
    return next(iter(_installed.values()), None)


def shared_ledger() -> Ledger | None:
    """The one that records, if it is to be shared."""
    return next((ledger for library, ledger in _installed.items() if library in _shared), None)


@contextmanager
def installed(ledger: Ledger) -> Iterator[Ledger]:
    """`install` for the length of a with statement."""
    remove = install(ledger)
    try:
        yield ledger
    finally:
        remove()
