"""How many bytes one rank must send for a collective, by the algorithm that its backend runs.

`wire_bytes` is counted at the rank that sends, so that summing over ranks counts every byte once. The same collective
costs differently from backend to backend, hence a table for each. NCCL and MPI choose an algorithm at run time, so for
them the figures are nominal: those of the bandwidth-optimal ring (Patarasuk and Yuan, 2009), as in nccl-tests.
Transport framing (TCP and IP headers, gloo's own per-message header) is not included: `nic_bytes` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from dtrain.exchange import Op

Cost = Callable[[float, int, bool], float]
"""(payload_bytes, world_size, is_root) -> bytes that this rank sends. `is_root` is False where there is no root."""


def _ring_all_reduce(size: float, n: int, root: bool) -> float:
    return 2 * size * (n - 1) / n


def _all_but_own_share(size: float, n: int, root: bool) -> float:
    return size * (n - 1) / n


def _to_every_other(size: float, n: int, root: bool) -> float:
    return size * (n - 1)


def _from_root_to_all(size: float, n: int, root: bool) -> float:
    return size * (n - 1) if root else 0.0


def _to_root(size: float, n: int, root: bool) -> float:
    return 0.0 if root else size


def _all(size: float, n: int, root: bool) -> float:
    return size


def _nothing(size: float, n: int, root: bool) -> float:
    return 0.0


def _gloo_reduce(size: float, n: int, root: bool) -> float:
    """A ring reduce-scatter, after which every rank but the root sends its share to the root."""
    return size * (n - 1) / n + (0.0 if root else size / n)


NOMINAL: Mapping[Op, Cost] = MappingProxyType(
    {
        Op.ALL_REDUCE: _ring_all_reduce,
        Op.ALL_GATHER: _to_every_other,
        Op.ALL_TO_ALL: _all_but_own_share,
        Op.REDUCE_SCATTER: _all_but_own_share,
        Op.BROADCAST: _from_root_to_all,
        Op.REDUCE: _to_root,
        Op.GATHER: _to_root,
        Op.SCATTER: _all_but_own_share,
        Op.SEND: _all,
        Op.RECV: _nothing,
        Op.BARRIER: _nothing,
    }
)

GLOO: Mapping[Op, Cost] = MappingProxyType(
    {
        **NOMINAL,
        Op.REDUCE_SCATTER: _ring_all_reduce,  # gloo runs a whole all_reduce and keeps a share
        Op.REDUCE: _gloo_reduce,
    }
)

_NOBODY_HANDS_OVER = (Op.RECV, Op.BARRIER)
_ONLY_THE_ROOT_HANDS_OVER = (Op.BROADCAST, Op.SCATTER)


def hands_over(op: Op, *, is_root: bool) -> bool:
    """Whether a rank hands anything to a collective: what is broadcast or scattered is the root's alone."""
    return op not in _NOBODY_HANDS_OVER and (is_root or op not in _ONLY_THE_ROOT_HANDS_OVER)


TABLES: Mapping[str, Mapping[Op, Cost]] = MappingProxyType({"gloo": GLOO})


def wire_bytes(backend: str, op: Op, payload_bytes: float, world_size: int, *, is_root: bool = False) -> float:
    """Bytes that one rank sends for a collective.

    Args:
        backend: "gloo" for what gloo does; any other name ("nccl", "mpi", "horovod") gives the nominal ring.
        payload_bytes: what this rank hands over: its input, 0 where it `hands_over` nothing; a
            scatter's is the whole list.
        world_size: ranks in the group that communicates, not in the job.
        is_root: whether this rank is the root of a rooted operation.
    """
    if world_size == 1:
        return 0.0
    return TABLES.get(backend, NOMINAL)[op](payload_bytes, world_size, is_root)


_SPARSE_METADATA_BYTES = 72
"""gloo's description of a sparse tensor: nine int64."""


def sparse_all_reduce_wire_bytes(backend: str, payload_bytes: float, world_size: int) -> float:
    """Bytes that one rank sends for an all_reduce of a sparse tensor of so many bytes, indices and values.

    gloo gathers everybody's indices and values, which every rank adds up. Duplicates it adds up before, so of a tensor
    that is not coalesced it sends less than this.
    """
    if backend != "gloo" or world_size == 1:
        return wire_bytes(backend, Op.ALL_REDUCE, payload_bytes, world_size)
    return (payload_bytes + _SPARSE_METADATA_BYTES) * (world_size - 1)


_NCCL_TESTS: Mapping[Op, Cost] = MappingProxyType(
    {**NOMINAL, Op.BROADCAST: _all, Op.REDUCE: _all, Op.GATHER: _to_every_other}
)


def bus_bytes(op: Op, payload_bytes: float, world_size: int) -> float:
    """What nccl-tests divide by the seconds of a collective for its bus bandwidth (their PERFORMANCE.md).

    It makes operations comparable with each other and with the speed of a link, whatever algorithm ran. 0 where this
    rank hands nothing over: such a rank cannot tell.
    """
    return _NCCL_TESTS[op](payload_bytes, world_size, True)
