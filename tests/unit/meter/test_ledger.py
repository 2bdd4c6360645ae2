import json
import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest

from dtrain.exchange import Op
from dtrain.meter.ledger import Activity, Key, Ledger, Purpose, StepRecord, Times, Total


def record(ledger: Ledger, payload: int = 100, wire: float = 150.0, op: Op = Op.ALL_REDUCE, **more):
    return ledger.record(op, payload, wire, world_size=4, group="default", **more)


def test_a_record_holds_what_came_since_the_last_one_and_nothing_else() -> None:
    ledger = Ledger()
    record(ledger, 1)
    record(ledger, 2)
    first = ledger.close(step=0)
    record(ledger, 3)
    second = ledger.close(step=1)
    assert [e.payload_bytes for e in first.entries] == [1, 2]
    assert [e.payload_bytes for e in second.entries] == [3]
    assert (first.step, second.step) == (0, 1)
    assert ledger.close().entries == ()


def test_an_entry_says_what_happened() -> None:
    ledger = Ledger()
    with ledger.scope(activity=Activity.TRAIN, purpose=Purpose.GRADIENT):
        record(ledger, 100, 150.0).complete()
    (entry,) = ledger.close().entries
    assert (entry.op, entry.activity, entry.purpose) == (Op.ALL_REDUCE, Activity.TRAIN, Purpose.GRADIENT)
    assert (entry.payload_bytes, entry.wire_bytes, entry.world_size, entry.group) == (100, 150.0, 4, "default")
    assert entry.seconds is not None
    assert entry.seconds >= 0


def test_records_and_entries_cannot_be_changed() -> None:
    ledger = Ledger()
    record(ledger)
    closed = ledger.close(0)
    with pytest.raises(FrozenInstanceError):
        closed.step = 5  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        closed.entries[0].payload_bytes = 5  # type: ignore[misc]
    assert isinstance(closed.entries, tuple)


def test_a_collective_that_is_not_known_to_have_completed_has_no_time() -> None:
    ledger = Ledger()
    record(ledger)
    assert ledger.close().entries[0].seconds is None


def test_a_collective_is_timed_by_the_clock_it_was_given() -> None:
    class Clock:
        now = 0.0

        def mark(self) -> float:
            return self.now

        def seconds(self, start: float, end: float) -> float:
            return end - start

    ledger, clock = Ledger(), Clock()
    pending = record(ledger, clock=clock)
    clock.now = 2.5
    pending.complete()
    clock.now = 9.0
    assert ledger.close().entries[0].seconds == 2.5


def test_every_sink_gets_every_record_in_order() -> None:
    one, two = [], []
    ledger = Ledger(one.append)
    ledger.sinks.append(two.append)
    records = [ledger.close(step) for step in range(3)]
    assert one == two == records


def test_totals_are_split_by_operation_phase_and_purpose_and_outlive_closing() -> None:
    ledger = Ledger()
    with ledger.scope(activity=Activity.TRAIN, purpose=Purpose.GRADIENT):
        record(ledger, 10, 15.0)
        ledger.close()
        record(ledger, 20, 30.0)
    with ledger.scope(activity=Activity.TRAIN, purpose=Purpose.METRICS):
        record(ledger, 1, 2.0, Op.ALL_GATHER)
    record(ledger, 5, 7.0, Op.BROADCAST)
    assert ledger.totals == {
        Key(Op.ALL_REDUCE, Activity.TRAIN, Purpose.GRADIENT): Total(2, 30, 45.0),
        Key(Op.ALL_GATHER, Activity.TRAIN, Purpose.METRICS): Total(1, 1, 2.0),
        Key(Op.BROADCAST, Activity.INIT, Purpose.UNKNOWN): Total(1, 5, 7.0),
    }
    assert ledger.total() == Total(4, 36, 54.0)
    assert ledger.total(activity=Activity.TRAIN) == Total(3, 31, 47.0)
    assert ledger.total(purpose=Purpose.GRADIENT) == Total(2, 30, 45.0)
    assert ledger.total(activity=Activity.INIT, purpose=Purpose.GRADIENT) == Total()


def test_a_scope_inside_a_scope_changes_only_what_it_states_and_ends_where_it_ends() -> None:
    ledger = Ledger()

    def now() -> tuple[Activity, Purpose | None]:
        return ledger.activity, ledger.purpose

    assert now() == (Activity.INIT, None)
    with ledger.scope(activity=Activity.TRAIN):
        assert now() == (Activity.TRAIN, None)
        with ledger.scope(purpose=Purpose.METRICS):
            assert now() == (Activity.TRAIN, Purpose.METRICS)
            with ledger.scope(activity=Activity.EVAL):
                assert now() == (Activity.EVAL, Purpose.METRICS)
            assert now() == (Activity.TRAIN, Purpose.METRICS)
        assert now() == (Activity.TRAIN, None)
    assert now() == (Activity.INIT, None)


def test_a_scope_ends_with_an_exception_too() -> None:
    ledger = Ledger()
    with pytest.raises(KeyError), ledger.scope(activity=Activity.EVAL, purpose=Purpose.METRICS):
        raise KeyError
    assert (ledger.activity, ledger.purpose) == (Activity.INIT, None)


def test_what_a_scope_states_wins_over_what_the_caller_supposes() -> None:
    ledger = Ledger()
    record(ledger, purpose=Purpose.GRADIENT)
    with ledger.scope(purpose=Purpose.CONTROL):
        record(ledger, purpose=Purpose.GRADIENT)
    assert [e.purpose for e in ledger.close().entries] == [Purpose.GRADIENT, Purpose.CONTROL]


def in_a_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_the_phase_is_the_process_s_and_the_purpose_the_thread_s() -> None:
    ledger = Ledger()
    with ledger.scope(activity=Activity.TRAIN, purpose=Purpose.METRICS):
        in_a_thread(lambda: record(ledger))
    (entry,) = ledger.close().entries
    assert (entry.activity, entry.purpose) == (Activity.TRAIN, Purpose.UNKNOWN)


def test_what_keeps_replicas_together_is_training_s_whatever_the_process_does_meanwhile() -> None:
    ledger = Ledger()

    def exchange() -> None:
        with ledger.exchange():
            record(ledger)
            with ledger.scope(purpose=Purpose.CONTROL):
                record(ledger)
        record(ledger)

    with ledger.scope(activity=Activity.CHECKPOINT, purpose=Purpose.CONTROL):
        in_a_thread(exchange)
        assert ledger.activity == Activity.CHECKPOINT
        exchange()
    assert [(e.activity, e.purpose) for e in ledger.close().entries] == [
        (Activity.TRAIN, Purpose.GRADIENT),
        (Activity.TRAIN, Purpose.CONTROL),
        (Activity.CHECKPOINT, Purpose.UNKNOWN),
        (Activity.TRAIN, Purpose.GRADIENT),
        (Activity.TRAIN, Purpose.CONTROL),
        (Activity.CHECKPOINT, Purpose.CONTROL),
    ]


def test_nothing_is_lost_when_threads_record_while_another_closes() -> None:
    ledger, records = Ledger(), []
    ledger.sinks.append(records.append)
    stop = threading.Event()

    def work(payload: int) -> None:
        for _ in range(2000):
            record(ledger, payload, 0.0).complete()

    def close() -> None:
        while not stop.is_set():
            ledger.close()

    closer = threading.Thread(target=close)
    closer.start()
    workers = [threading.Thread(target=work, args=(payload,)) for payload in (1, 10, 100)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stop.set()
    closer.join()
    ledger.close()
    assert ledger.total() == Total(6000, 222_000, 0.0)
    assert sum(e.payload_bytes for r in records for e in r.entries) == 222_000


def test_a_record_is_plain_json() -> None:
    ledger = Ledger()
    record(ledger).complete()
    times = Times(step=1.0, codec=0.25, exposed_comm=0.5)
    data = json.loads(json.dumps(ledger.close(3, times).as_json()))
    assert data["step"] == 3
    assert data["times"] == {"step": 1.0, "codec": 0.25, "exposed_comm": 0.5}
    assert data["entries"][0]["op"] == "all_reduce"
    assert data["entries"][0]["phase"] == "init"
    assert StepRecord(None, (), None).as_json() == {"step": None, "times": None, "entries": []}
