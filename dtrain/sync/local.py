"""What the optimizer changed is exchanged, instead of the gradient: every step, or every few of them.

Each worker takes steps of its own, with an optimizer state of its own, from weights that all have in common; then an
outer optimizer makes of the mean of what these steps changed the next common change. Every step: the update is what is
compressed, whose elements an adaptive optimizer has made of one size, where on gradients the error of a small element
is divided by the small root of its second moment. Every H steps it is local SGD (Stich, ICLR 2019), or federated
averaging (McMahan et al., AISTATS 2017, Algorithm 1) of workers who all take part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dtrain.comm import Communicator
from dtrain.exchange import Compressor, Exchange, Exchanged
from dtrain.meter.clock import clock_for
from dtrain.meter.ledger import Ledger
from dtrain.sync.buckets import BUCKET_BYTES, FIRST_BUCKET_BYTES, assign, held, trainable
from dtrain.sync.engine import Engine
from dtrain.sync.fragments import Fragments
from dtrain.sync.lanes import Lane
from dtrain.sync.outer import Outer
from dtrain.sync.own_parts import OwnParts
from dtrain.sync.rounds import Rounds
from dtrain.sync.slot import Slot
from dtrain.sync.states import States
from dtrain.sync.synchronizer import NOTHING_SPENT, NonFiniteGradientError, Spent


@dataclass(frozen=True)
class Method:
    """How `Local` exchanges: after which steps, what becomes of the mean change, and all at once or in fragments.

    `masks_momentum` is for compressors that send few elements: SGD's momentum of what this rank sent becomes zero, as
    it is in what was sent already: momentum factor masking (Lin et al., Deep Gradient Compression, ICLR 2018,
    equation 7), with the momentum where it is.
    """

    rounds: Rounds = Rounds()  # noqa: RUF009
    outer: Outer = Outer()  # noqa: RUF009
    fragments: Fragments = Fragments()  # noqa: RUF009
    masks_momentum: bool = False


@dataclass
class _Flight:
    """Fragments whose exchange was started, and is to be taken up after so many more steps.

    `bad` is a parameter whose mean change is not finite, once it has arrived.
    """

    fragments: list[int]
    steps_left: int
    arrived: bool = False
    bad: str | None = None


class Local:
    """Exchanges what steps of the optimizer changed in `model`: a `Synchronizer`.

    Gradients stay each worker's own, and so does the optimizer's state: `state_dict` holds it. Replicas are equal after
    each exchange, unless fragments are taken up late: then after `align`. Buffers (the statistics of BatchNorm) are
    each worker's own.

    A gradient that is not finite on one rank makes the whole local round of its fragment one that does not count, on
    every rank alike: its weights go back to what they were before it. That rank's optimizer is as it was before its bad
    step, those of the others have made theirs. Where ranks hold shards, that is of the shard that holds the parameter:
    other shards of the same model are not told.

    Args:
        model: the same on every worker; a plain one.
        optimizer: of this model's parameters, the worker's own.
        compressor: how a bucket is exchanged.
        communicator: used for changes of weights alone.
        ledger: where the scopes of the exchange are opened.
        method: when what is exchanged, and what becomes of it.
        seed: the same on every worker; for compressors that draw random numbers.
        check_finite: look for NaN and Inf in gradients and in mean changes, at the price of reading them once more.
        lane: where exchanges run: that of the model's device unless another is given.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        compressor: Compressor,
        communicator: Communicator,
        ledger: Ledger,
        *,
        method: Method | None = None,
        seed: int = 0,
        first_bucket_bytes: int = FIRST_BUCKET_BYTES,
        bucket_bytes: int = BUCKET_BYTES,
        check_finite: bool = True,
        lane: Lane | None = None,
    ) -> None:
        parameters = trainable(model)
        if not parameters:
            raise ValueError("the model has no trainable parameter: nothing to synchronise")
        self._method = method = method or Method()
        rank, world_size = communicator.rank, communicator.world_size
        self._parameters, self._rank, self._world_size = parameters, rank, world_size
        self._optimizer, self._ledger, self._check_finite = optimizer, ledger, check_finite
        self._states = States(
            compressor, parameters, rank=rank, world_size=world_size, seed=seed, check_finite=check_finite
        )
        self._fragments = [
            [
                Slot(bucket, world_size, method.outer)
                for bucket in assign(fragment, first_bytes=first_bucket_bytes, cap_bytes=bucket_bytes)
            ]
            for fragment in method.fragments.split(parameters)
        ]
        self._own = OwnParts(parameters, optimizer)
        device = self._fragments[0][0].common.device
        self._clock = clock_for(device)
        self._engine = Engine(communicator, ledger, device, overlap=method.fragments.delay > 0, lane=lane)
        self._steps = 0  # of this run
        self._position = 0  # in the local round
        self._length = 0  # of the local round, from its first step
        self._changed = [0] * method.fragments.count  # steps since a fragment's exchange
        self._bad: set[str] = set()  # parameters whose gradient was not finite since then
        self._flight: _Flight | None = None
        self._pending = False  # this step has begun, and has not been counted yet

    @property
    def num_buckets(self) -> int:
        """Buckets in a round."""
        return sum(len(slots) for slots in self._fragments)

    @property
    def ends_with_step(self) -> bool:
        """Not where a fragment is under way beside the steps that follow."""
        return self._method.fragments.delay == 0

    def no_sync(self) -> AbstractContextManager[None]:
        """Nothing is exchanged in backward passes, whichever they are."""
        return nullcontext()

    def before_step(self) -> Spent:
        """Gradients stay as they are, this rank's own; where one is not finite, the optimizer is given none at all."""
        self._pending = True
        if self._check_finite and (bad := self._not_finite()) is not None:
            self._bad.add(bad)
            for _, parameter in self._parameters:
                parameter.grad = None
        return NOTHING_SPENT

    def after_step(self) -> Spent:
        """Exchange what was changed, of the fragments whose turn it is, and take up what has arrived.

        Raises NonFiniteGradientError, on every rank alike, where it looks for NaN and Inf and finds one.
        """
        self._pending = False
        if self._position == 0:
            self._length = self._method.rounds.length(self._steps, float(self._optimizer.param_groups[0]["lr"]))
        self._steps += 1
        self._position += 1
        self._changed = [changed + 1 for changed in self._changed]
        start = self._clock.mark()
        due = self._method.fragments.due(self._position, self._length)
        lands = self._flight is not None and (self._flight.steps_left <= 1 or bool(due))
        if not due and not lands:
            if self._flight is not None:
                self._flight.steps_left -= 1
            return NOTHING_SPENT
        bad = self._land() if lands else None
        if due:
            self._launch(due)
            if self._method.fragments.delay_within(self._length) == 0:
                bad = self._land() or bad
        if self._position == self._length:
            self._position = 0
            self._ledger.rounds += 1
        return self._spent_since(start, bad)

    def align(self) -> Spent:
        """End the local round now. Nothing is sent of what no step has changed since it was exchanged."""
        if self._flight is None and not any(self._changed):
            return NOTHING_SPENT
        start = self._clock.mark()
        bad = self._land() if self._flight is not None else None
        changed = [fragment for fragment, steps in enumerate(self._changed) if steps]
        if changed:
            self._launch(changed)
            bad = self._land() or bad
            self._ledger.rounds += 1
        self._position = 0
        return self._spent_since(start, bad)

    @property
    def num_own_steps(self) -> int:
        """See `Reversible`."""
        return max(self._changed)

    def roll_back(self) -> None:
        """See `Reversible`: what was learned in the round, or of a fragment since its last exchange, is lost."""
        self._states.undo()
        self._flight, self._pending, self._bad = None, False, set()
        self._steps -= self._position
        self._position, self._changed = 0, [0] * len(self._changed)
        for slot in self._slots(range(len(self._fragments))):
            slot.put_back()

    def discard(self) -> None:
        """This rank's step is left out, whatever others do; the local round goes on, and with it the exchange."""
        if self._pending:
            with suppress(NonFiniteGradientError):  # what was to be left out
                self.after_step()

    def state_dict(self) -> dict[str, Any]:
        """See `States`; with the optimizer's state, the outer optimizer's, and where this rank is in its local round.

        On every rank alike: a fragment that is under way is brought to its end, and kept with what is to come of it.
        """
        flight = self._flight
        if flight is not None:
            self._arrive(flight)
        saved = self._states.state_dict()
        parts = saved["parameters"]
        self._own.add_optimizer(parts)
        for slots, changed in zip(self._fragments, self._changed, strict=True):
            for slot in slots:
                self._own.add_outer(parts, slot)
                if changed:
                    self._own.add_round(parts, slot)
        saved |= {"steps": self._steps, "position": self._position, "length": self._length}
        saved |= {"changed": list(self._changed), "not_finite": sorted(self._bad)}
        if flight is not None:
            for slot in self._slots(flight.fragments):
                self._own.add_round(parts, slot)
                self._own.add_mean(parts, slot)
            saved["flight"] = {"fragments": flight.fragments, "steps_left": flight.steps_left, "bad": flight.bad}
        return saved

    def load_state_dict(self, *saved: Mapping[str, Any]) -> None:
        """See `States`. The model has the weights that were saved with it.

        With another number of ranks each optimizer state becomes the mean of those that were saved, and no local round
        may be under way: call `align` before such a state is saved.
        """
        if "made" in saved[0]:
            raise ValueError("saved by a dtrain that had no rounds of several kinds: start from its weights")
        states, take = self._own.split_off(saved, self._rank, self._world_size)
        first = saved[self._rank if len(saved) == self._world_size else 0]
        changed = [int(steps) for steps in first.get("changed", [])]
        if changed and len(changed) != len(self._changed):
            raise ValueError(f"saved in {len(changed)} fragments, and this run has {len(self._changed)}: give as many")
        self._states.load_state_dict(*states)
        take(self._slots(range(len(self._fragments))))
        self._steps, self._position = int(first.get("steps", 0)), int(first.get("position", 0))
        self._length, self._changed = int(first.get("length", 0)), changed or [0] * len(self._changed)
        self._bad, self._pending, self._flight = set(first.get("not_finite", ())), False, None
        if "flight" in first:
            flight = first["flight"]
            self._flight = _Flight(list(flight["fragments"]), int(flight["steps_left"]), True, flight["bad"])

    def close(self) -> None:
        """Let go of the model."""
        self._engine.close()

    def _slots(self, fragments: Iterable[int]) -> list[Slot]:
        return [slot for fragment in fragments for slot in self._fragments[fragment]]

    def _launch(self, fragments: list[int]) -> None:
        """Start the exchange of what these fragments changed."""
        assert self._flight is None, "one at a time"
        self._flight = _Flight(fragments, self._method.fragments.delay_within(self._length))
        for fragment in fragments:
            self._changed[fragment] = 0
        for slot in self._slots(fragments):
            slot.fill()
            for bad in self._bad.intersection(slot.names):
                slot.spoil(bad)
            self._bad.difference_update(slot.names)
            self._submit(slot)
        self._engine.flush()  # else later rounds of the exchange would wait for it to be asked for

    def _arrive(self, flight: _Flight) -> None:
        """Wait for a fragment's exchange; what compressors keep of it is committed."""
        if not flight.arrived:
            self._engine.finish()
            flight.bad, flight.arrived = self._states.not_finite(), True
            self._states.commit()

    def _land(self) -> str | None:
        """Take up what is under way, with what this worker learned meanwhile.

        Returns a parameter whose mean change is not finite, for which the round of these fragments does not count.
        """
        flight, self._flight = self._flight, None
        assert flight is not None
        self._arrive(flight)
        counts = flight.bad is None or not self._check_finite
        for fragment in flight.fragments:
            learned = self._changed[fragment] and counts  # something, while it was under way
            kept = self._method.fragments.kept if learned else 0.0
            for slot in self._fragments[fragment]:
                if counts:
                    slot.step()
                slot.put_back(kept)
                if counts and self._method.masks_momentum:
                    slot.mask_momentum(self._optimizer)
            if not kept:  # of what was learned meanwhile nothing is left, nor of what was wrong in it
                self._changed[fragment] = 0
                self._bad.difference_update(name for slot in self._fragments[fragment] for name in slot.names)
        return None if counts else flight.bad

    def _spent_since(self, start: Any, bad: str | None) -> Spent:
        if bad is not None:
            raise NonFiniteGradientError(bad, self._states.step - 1)
        return Spent(self._clock.seconds(start, self._clock.mark()), self._engine.take_codec_seconds())

    def _not_finite(self) -> str | None:
        """The first parameter whose gradient holds NaN or Inf, if any: one cheap pass, then a second look."""
        gradients = [(name, held(p.grad)) for name, p in self._parameters if p.grad is not None]
        if not gradients:
            return None
        sums = [torch.sparse.sum(g) if g.is_sparse else g.sum(dtype=torch.float32) for _, g in gradients]
        if torch.isfinite(torch.stack(sums)).all():
            return None
        values = [(name, g.coalesce().values() if g.is_sparse else g) for name, g in gradients]
        return next((name for name, g in values if not torch.isfinite(g).all()), None)

    def _submit(self, slot: Slot) -> None:
        def start() -> Exchange:
            return self._states.exchange(slot.bucket, wants_contribution=self._method.masks_momentum)

        def keep(result: Exchanged) -> None:
            if self._method.masks_momentum:
                slot.note_sent(result.contribution)
            self._states.stage(slot.layout, result)
            slot.mean = result.mean

        self._engine.submit(start, keep)
