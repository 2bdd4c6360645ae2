import pytest

from dtrain.exchange import Op
from dtrain.meter.wire import GLOO, NOMINAL, hands_over, wire_bytes

ROOTED = (Op.BROADCAST, Op.REDUCE, Op.GATHER, Op.SCATTER)
ONLY_ROOT_HANDS_OVER = (Op.BROADCAST, Op.SCATTER)


@pytest.mark.parametrize(
    ("backend", "op", "world_size", "root", "sent"),
    [
        # 1200 bytes handed over by this rank
        ("gloo", Op.ALL_REDUCE, 2, False, 1200.0),
        ("gloo", Op.ALL_REDUCE, 3, False, 1600.0),
        ("gloo", Op.ALL_REDUCE, 4, False, 1800.0),
        ("nccl", Op.ALL_REDUCE, 4, False, 1800.0),
        ("gloo", Op.ALL_GATHER, 4, False, 3600.0),
        ("gloo", Op.ALL_TO_ALL, 4, False, 900.0),
        ("gloo", Op.REDUCE_SCATTER, 4, False, 1800.0),  # FACTS: gloo costs twice the ring
        ("nccl", Op.REDUCE_SCATTER, 4, False, 900.0),
        ("gloo", Op.BROADCAST, 4, True, 3600.0),
        ("gloo", Op.BROADCAST, 4, False, 0.0),
        ("nccl", Op.REDUCE, 4, False, 1200.0),
        ("nccl", Op.REDUCE, 4, True, 0.0),
        ("gloo", Op.REDUCE, 4, False, 1200.0),
        ("gloo", Op.REDUCE, 4, True, 900.0),
        ("gloo", Op.GATHER, 4, False, 1200.0),
        ("gloo", Op.GATHER, 4, True, 0.0),
        ("gloo", Op.SCATTER, 4, True, 900.0),
        ("gloo", Op.SEND, 4, False, 1200.0),
        ("gloo", Op.RECV, 4, False, 0.0),
        ("gloo", Op.BARRIER, 4, False, 0.0),
        ("mpi", Op.ALL_REDUCE, 4, False, 1800.0),
        ("mpi", Op.ALL_GATHER, 4, False, 3600.0),
        ("mpi", Op.ALL_TO_ALL, 4, False, 900.0),
        ("mpi", Op.BROADCAST, 4, True, 3600.0),
        ("mpi", Op.BROADCAST, 4, False, 0.0),
    ],
)
def test_table(backend: str, op: Op, world_size: int, root: bool, sent: float) -> None:
    assert wire_bytes(backend, op, 1200, world_size, is_root=root) == sent


@pytest.mark.parametrize(
    ("backend", "op", "group_total"),
    [
        # what all ranks together must send, S the bytes of one full tensor, n ranks
        ("gloo", Op.ALL_REDUCE, lambda s, n: 2 * s * (n - 1)),
        ("gloo", Op.ALL_GATHER, lambda s, n: s * n * (n - 1)),
        ("gloo", Op.BROADCAST, lambda s, n: s * (n - 1)),
        ("gloo", Op.REDUCE, lambda s, n: s * (n - 1) * (1 + 1 / n)),
        ("gloo", Op.REDUCE_SCATTER, lambda s, n: 2 * s * (n - 1)),
        ("nccl", Op.REDUCE_SCATTER, lambda s, n: s * (n - 1)),
        ("nccl", Op.REDUCE, lambda s, n: s * (n - 1)),
        ("gloo", Op.GATHER, lambda s, n: s * (n - 1)),
        ("gloo", Op.SCATTER, lambda s, n: s * (n - 1) / n),
        ("gloo", Op.ALL_TO_ALL, lambda s, n: s * (n - 1)),
    ],
)
@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_the_sum_over_ranks_counts_every_byte_once(backend: str, op: Op, group_total, world_size: int) -> None:
    size = 2520
    total = 0.0
    for rank in range(world_size):
        root = op in ROOTED and rank == 0
        payload = 0 if op in ONLY_ROOT_HANDS_OVER and not root else size
        total += wire_bytes(backend, op, payload, world_size, is_root=root)
    assert total == pytest.approx(group_total(size, world_size), rel=1e-12)


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize("backend", ["gloo", "nccl", "mpi", "lockstep"])
def test_one_rank_sends_nothing(backend: str, op: Op) -> None:
    assert wire_bytes(backend, op, 1000, 1, is_root=op in ROOTED) == 0.0


def test_every_operation_is_in_every_table() -> None:
    assert set(NOMINAL) == set(GLOO) == set(Op)


def test_a_backend_without_a_table_is_nominal() -> None:
    assert wire_bytes("mpi", Op.REDUCE_SCATTER, 400, 4) == wire_bytes("lockstep", Op.REDUCE_SCATTER, 400, 4) == 300.0


def test_nothing_handed_over_is_nothing_sent() -> None:
    assert all(wire_bytes("gloo", op, 0, 4, is_root=True) == 0.0 for op in Op)


def test_only_the_root_hands_over_what_is_broadcast_or_scattered_and_nobody_what_is_received() -> None:
    everywhere = {op for op in Op if hands_over(op, is_root=False)}
    assert set(Op) - everywhere == {Op.BROADCAST, Op.SCATTER, Op.RECV, Op.BARRIER}
    assert {op for op in Op if hands_over(op, is_root=True)} - everywhere == {Op.BROADCAST, Op.SCATTER}
