"""Times that can be worked out by hand."""

from __future__ import annotations

import pytest

from dtrain.exchange import Op
from dtrain.plan.link import Link
from dtrain.plan.program import Await, Instruction, Program, Signal, Start, Work
from dtrain.plan.timeline import Host, run

MB = 10**6
PLAIN = Link(8 * MB, latency_seconds=0.0, share=1.0)
"""A megabyte a second."""
MANY = Host(cores=8)


def dense(*, forward: float, backward: float, after: float = 0.0, payload_bytes: int = MB) -> Program:
    """One bucket."""
    compute = (Work(forward + backward), Signal(("ready", 0)), Await(("finished", 0)), Work(after))
    exchange = (
        Await(("ready", 0)),
        Start(("collective", 0), Op.ALL_REDUCE, payload_bytes),
        Await(("collective", 0)),
        Signal(("finished", 0)),
    )
    return Program(compute, exchange)


def seconds(program: Program, link: Link = PLAIN, host: Host = MANY, *, n: int = 2) -> float:
    return run(program, link, host, backend="gloo", world_size=n).seconds


def test_a_step_is_its_work_and_then_its_bytes_at_the_rate_of_the_link() -> None:
    timeline = run(dense(forward=1, backward=2, after=0.5), PLAIN, MANY, backend="gloo", world_size=4)
    assert timeline.seconds == pytest.approx(1 + 2 + 1.5 + 0.5)  # 2 (n - 1) / n megabytes
    assert timeline.exposed_seconds == pytest.approx(1.5)
    assert [(span.what, span.start, span.end) for span in timeline.spans] == [
        ("compute", 0.0, 3.0),
        ("wire", 3.0, 4.5),
        ("compute", 4.5, 5.0),
    ]


def test_a_single_worker_sends_nothing() -> None:
    assert seconds(dense(forward=1, backward=2), n=1) == pytest.approx(3)


def test_a_ring_has_a_message_to_each_other_rank_twice() -> None:
    link = Link(1e15, latency_seconds=0.01)
    assert seconds(dense(forward=1, backward=0), link, n=4) == pytest.approx(1 + 6 * 0.01)
    nccl = run(dense(forward=1, backward=0), link, MANY, backend="nccl", world_size=1024)
    assert nccl.seconds == pytest.approx(1 + 20 * 0.01)  # by its trees


def two_buckets(codec: float) -> Program:
    compute = (
        Work(1),
        Signal(("ready", 0)),
        Work(2),
        Signal(("ready", 1)),
        Await(("finished", 0)),
    )
    exchange: list[Instruction] = []
    for i in range(2):
        exchange += [Await(("ready", i)), Work(codec), Start(("collective", i), Op.ALL_REDUCE, MB)]
    exchange += [Await(("collective", 0)), Await(("collective", 1)), Signal(("finished", 0))]
    return Program(compute, tuple(exchange))


def test_an_exchange_beside_backward_is_hidden() -> None:
    assert seconds(two_buckets(0.0)) == pytest.approx(3 + 1)  # the first is through before the second is ready


def test_collectives_under_way_together_share_the_link() -> None:
    slow = Link(4 * MB, latency_seconds=0.0, share=1.0)
    # two seconds each: the first is through when the second is ready
    assert seconds(two_buckets(0.0), slow) == pytest.approx(1 + 2 + 2)
    slower = Link(2 * MB, latency_seconds=0.0, share=1.0)
    assert seconds(two_buckets(0.0), slower) == pytest.approx(1 + 4 + 4)


def test_a_codec_beside_backward_takes_its_share_of_a_core() -> None:
    fast = Link(1e15, latency_seconds=0.0)
    assert seconds(two_buckets(1.0), fast, Host(cores=2)) == pytest.approx(3 + 1)
    # on one core the first codec's second comes on top of backward's
    assert seconds(two_buckets(1.0), fast, Host(cores=1)) == pytest.approx(1 + 2 + 1 + 1)
    assert seconds(two_buckets(1.0), fast, Host(cores=2, ranks=2)) == pytest.approx(5)


def test_the_network_takes_a_core_for_its_bytes() -> None:
    bound = Link(1e15, latency_seconds=0.0, core_seconds_per_byte=2e-6)
    assert seconds(dense(forward=1, backward=0), bound) == pytest.approx(1 + 2)
    assert seconds(dense(forward=1, backward=0), bound, Host(cores=0.5)) == pytest.approx(2 + 4)


def test_messages_are_slower_where_cores_are_busy() -> None:
    link = Link(1e15, latency_seconds=0.1, busy_latency_seconds=1.0)
    idle, busy = (seconds(two_buckets(0.0), link, Host(cores=cores)) for cores in (2, 0.5))
    assert idle == pytest.approx(3 + 0.2)
    assert busy == pytest.approx(2 + 4 + 0.2)  # the first goes on beside backward, the last on its own


def test_ranks_of_a_node_share_its_link_for_what_each_sends_to_all() -> None:
    program = Program((Await(("collective", 0)),), (Start(("collective", 0), Op.ALL_TO_ALL, MB),))
    alone = Link(8 * MB, latency_seconds=0.0, share=1.0)
    assert seconds(program, alone, n=4) == pytest.approx(0.75)
    shared = Link(8 * MB, latency_seconds=0.0, share=1.0, ranks=2)
    assert seconds(program, shared, n=4) == pytest.approx(2 * 0.5)  # two ranks, half of whose parts stay in the node
    assert seconds(dense(forward=1, backward=0), shared, n=2) == pytest.approx(1)  # a node by itself


def test_what_waits_for_what_never_happens_is_an_error() -> None:
    with pytest.raises(ValueError, match="never happens"):
        seconds(Program((Await(("finished", 0)),), ()))
