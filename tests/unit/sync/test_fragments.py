"""A model that is exchanged in fragments, beside the steps that follow."""

from __future__ import annotations

import copy
import threading
import time
from typing import Any

import pytest
import torch
from test_local import MODEL, adamw, sgd, worker
from threads import ThreadCommunicator, run_ranks
from torch import Tensor, nn

from dtrain.comm.lockstep import lockstep
from dtrain.compressors import NoCompression
from dtrain.exchange import Bucket, Context, Exchange, State
from dtrain.meter.ledger import Activity, Ledger, Purpose
from dtrain.sync.buckets import trainable
from dtrain.sync.fragments import Fragments
from dtrain.sync.local import Local, Method
from dtrain.sync.rounds import Rounds
from dtrain.sync.synchronizer import NonFiniteGradientError

STREAMS = {
    "in turn": Fragments(3),
    "beside steps": Fragments(3, delay=1),
    "mixed in": Fragments(3, delay=1, kept=0.5),
    "one, late": Fragments(1, delay=4, kept=0.3),
}


def heavy(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def test_parameters_are_shared_out_in_order_and_none_is_left_out() -> None:
    parameters = trainable(MODEL)  # of 192, 16, 48 and 3 elements
    for count in (1, 2, 3, 4):
        fragments = Fragments(count).split(parameters)
        assert [named for fragment in fragments for named in fragment] == parameters
        assert len(fragments) == count and all(fragments)
    with pytest.raises(ValueError, match="fragments=5, but the model has 4 parameters"):
        Fragments(5).split(parameters)


def test_fragments_without_delay_are_equal_after_their_turn_and_apart_before_it() -> None:
    def body(communicator: ThreadCommunicator) -> list[list[Tensor]]:
        own = worker(communicator, every=4, fragments=Fragments(2))
        weights = []
        for step in range(8):
            own.step(step)
            weights.append([p.detach().clone() for p in own.model.parameters()])
        return weights

    first, second = run_ranks(2, body)
    same = [
        [torch.equal(a, b) for a, b in zip(one, other, strict=True)] for one, other in zip(first, second, strict=True)
    ]
    apart, turn, end = [False] * 4, [True, False, False, False], [False, True, True, True]
    assert same == [apart, turn, apart, end] * 2


def test_a_fragment_is_taken_up_after_its_delay() -> None:
    def body(communicator: ThreadCommunicator) -> list[float]:
        own = worker(communicator, every=6, optimizer=sgd, fragments=Fragments(1, delay=2))
        apart = []
        for step in range(9):
            own.step(step)
            apart.append(float(own.weights.sum()))
        own.synchronizer.align()
        own.synchronizer.close()
        return apart

    first, second = run_ranks(2, body)
    same = [a == b for a, b in zip(first, second, strict=True)]
    assert same == [False] * 7 + [True] + [False]  # exchanged after step 6, taken up after step 8


def test_what_is_kept_of_a_worker_is_a_fraction_of_what_it_has_beside_the_common() -> None:
    def body(communicator: ThreadCommunicator, kept: float) -> Tensor:
        own = worker(communicator, every=6, optimizer=sgd, fragments=Fragments(1, delay=2, kept=kept))
        for step in range(7):
            own.step(step)
        own.gradients(7)
        own.synchronizer.before_step()
        own.optimizer.step()
        alone = own.weights
        own.synchronizer.after_step()
        own.synchronizer.close()
        return torch.stack((alone, own.weights))

    common = run_ranks(2, lambda communicator: body(communicator, 0.0))
    mixed = run_ranks(2, lambda communicator: body(communicator, 0.25))
    for (alone, taken), (same, wanted) in zip(mixed, common, strict=True):
        assert torch.equal(alone, same)
        torch.testing.assert_close(taken, 0.25 * alone + 0.75 * wanted)


@pytest.mark.parametrize("stop", range(1, 10))
@pytest.mark.parametrize("stream", STREAMS)
def test_resumed_at_any_step_it_goes_on_bit_for_bit_to_the_same_weights_on_all(stream: str, stop: int) -> None:
    def body(communicator: ThreadCommunicator) -> tuple[Tensor, Tensor]:
        rounds = Rounds(6)
        how: dict[str, Any] = {"optimizer": heavy, "masks_momentum": True, "fragments": STREAMS[stream]}
        whole = worker(communicator, "top_k", rounds=rounds, **how)
        for step in range(stop):
            whole.step(step)
        saved, model = whole.synchronizer.state_dict(), copy.deepcopy(whole.model.state_dict())
        for step in range(stop, 14):
            whole.step(step)
        whole.synchronizer.align()
        resumed = worker(communicator.duplicate(), "top_k", rounds=rounds, **how)
        resumed.model.load_state_dict(model)
        resumed.synchronizer.load_state_dict(saved)
        for step in range(stop, 14):
            resumed.step(step)
        resumed.synchronizer.align()
        for own in (whole, resumed):
            own.synchronizer.close()
        return whole.weights, resumed.weights

    (first, resumed), *others = run_ranks(2, body)
    assert torch.equal(first, resumed)
    assert all(torch.equal(first, other) for pair in others for other in pair)


def test_a_run_with_other_fragments_does_not_take_up_what_was_saved() -> None:
    def body(communicator: ThreadCommunicator) -> None:
        own = worker(communicator, every=4, fragments=Fragments(2))
        own.step(0)
        with pytest.raises(ValueError, match="saved in 2 fragments, and this run has 1"):
            worker(communicator.duplicate(), every=4).synchronizer.load_state_dict(own.synchronizer.state_dict())

    run_ranks(2, body)


def test_a_gradient_that_is_not_finite_spoils_the_round_of_its_own_fragment_alone() -> None:
    def body(communicator: ThreadCommunicator) -> list[Tensor]:
        own = worker(communicator, every=4, optimizer=adamw, fragments=Fragments(2))
        before = [p.detach().clone() for p in own.model.parameters()]
        for step in range(4):
            own.gradients(step)
            if (step, own.rank) == (0, 1):
                grad = own.model[2].weight.grad
                assert grad is not None
                grad[1, 2] = float("nan")
            own.synchronizer.before_step()
            own.optimizer.step()
            if step == 3:  # the second fragment's turn
                with pytest.raises(NonFiniteGradientError, match=r"2\.weight"):
                    own.synchronizer.after_step()
            else:
                own.synchronizer.after_step()
        after = list(own.model.parameters())
        assert not torch.equal(before[0], after[0])
        assert all(torch.equal(b, a) for b, a in zip(before[1:], after[1:], strict=True))
        own.step(4)
        own.synchronizer.align()
        return [p.detach() for p in own.model.parameters()]

    first, second = run_ranks(2, body)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_all_rounds_of_an_exchange_are_done_while_steps_go_on() -> None:
    """int4 has two, the second of which nobody asks for until it is needed."""

    def body(communicator: ThreadCommunicator) -> list[float | int]:
        own = worker(communicator, "int4", every=6, optimizer=sgd, fragments=Fragments(1, delay=4))
        for step in range(6):
            own.step(step)
        deadline = time.monotonic() + 10
        while len(own.synchronizer._states._staged) < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        staged = len(own.synchronizer._states._staged)
        own.synchronizer.align()
        own.synchronizer.close()
        return [staged, float(torch.isfinite(own.weights).all())]

    assert run_ranks(2, body) == [[1, 1.0], [1, 1.0]]


@pytest.mark.parametrize("activity", [Activity.INIT, Activity.EVAL, Activity.CHECKPOINT])
def test_what_a_fragment_under_way_sends_is_training_s_whatever_the_process_does(activity: Activity) -> None:
    starts = threading.Event()

    class Late(NoCompression):
        def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
            assert starts.wait(10)
            return (yield from super().exchange(bucket, state, context))

    model, ledger = copy.deepcopy(MODEL), Ledger()
    method = Method(Rounds(2), fragments=Fragments(1, delay=1))
    synchronizer = Local(model, sgd(model), Late(), lockstep(1, [ledger])[0], ledger, method=method)
    with ledger.scope(activity=Activity.TRAIN):
        for _ in range(2):
            synchronizer.before_step()
            synchronizer.after_step()
    with ledger.scope(activity=activity, purpose=Purpose.CONTROL):
        assert ledger.total().count == 0
        starts.set()
        synchronizer.state_dict()
    synchronizer.close()
    assert {(key.activity, key.purpose) for key in ledger.totals} == {(Activity.TRAIN, Purpose.GRADIENT)}
