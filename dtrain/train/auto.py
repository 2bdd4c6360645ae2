"""`compressor=auto`: what `plan.choose` chooses, as a synchroniser that is made anew when the choice changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dtrain import compressors
from dtrain.plan.candidates import NONE, Candidate, parse
from dtrain.plan.choose import Watch
from dtrain.sync.synchronizer import Reversible, Spent
from dtrain.train.synchronizers import EveryStepSync, Exchanging, LocalSync


def build(candidate: Candidate, model: nn.Module, optimizer: torch.optim.Optimizer, parts: Exchanging) -> Reversible:
    """The synchroniser of a choice."""
    made = replace(
        parts,
        compressor=compressors.build(candidate.compressor, **candidate.options),
        sends_few=compressors.sends_few(candidate.compressor),
    )
    every = candidate.every
    sync = EveryStepSync() if candidate.exchanged == "gradient" else LocalSync(every=every)
    return sync.build(model, optimizer, made)


class Auto:
    """A `Reversible` that is one of others, and changes which when the link does.

    At a change a local round is brought to its end; what the old compressor had kept back is let go of.

    Args:
        build: makes the synchroniser of a choice.
        choose: makes the choice, on every rank alike.
        watch: of what steps wait.
    """

    def __init__(self, build: Callable[[Candidate], Reversible], choose: Callable[[], Candidate], watch: Watch) -> None:
        self._build, self._choose, self._watch = build, choose, watch
        self.candidate = NONE
        self._inner: Reversible | None = None
        self._waited, self._ended = 0.0, time.perf_counter()

    @property
    def inner(self) -> Reversible:
        """That of the choice, which is made with the first step."""
        if self._inner is None:
            self._take(self._choose())
        assert self._inner is not None
        return self._inner

    @property
    def ends_with_step(self) -> bool:
        """See `Synchronizer`."""
        return self.inner.ends_with_step

    def no_sync(self) -> AbstractContextManager[None]:
        """See `Synchronizer`."""
        return self.inner.no_sync()

    def before_step(self) -> Spent:
        """See `Synchronizer`."""
        spent = self.inner.before_step()
        self._waited = spent.exposed
        return spent

    def after_step(self) -> Spent:
        """See `Synchronizer`."""
        spent = self.inner.after_step()
        took = time.perf_counter() - self._ended
        if self._watch.has_changed(waited=self._waited + spent.exposed, took=took):
            self._take(self._choose())
        self._ended = time.perf_counter()
        return spent

    def align(self) -> Spent:
        """See `Synchronizer`."""
        return self.inner.align()

    @property
    def num_own_steps(self) -> int:
        """See `Reversible`."""
        return 0 if self._inner is None else self._inner.num_own_steps

    def roll_back(self) -> None:
        """See `Reversible`."""
        if self._inner is not None:
            self._inner.roll_back()

    def discard(self) -> None:
        """See `Synchronizer`."""
        self.inner.discard()

    def state_dict(self) -> dict[str, Any]:
        """That of the choice, with its label."""
        return {**self.inner.state_dict(), "choice": self.candidate.label}

    def load_state_dict(self, *saved: Mapping[str, Any]) -> None:
        """Take up the choice that was saved, and its state."""
        self._take(parse(str(saved[0].get("choice", NONE.label))))
        self.inner.load_state_dict(*({key: part for key, part in state.items() if key != "choice"} for state in saved))

    def close(self) -> None:
        """See `Synchronizer`."""
        if self._inner is not None:
            self._inner.close()

    def _take(self, candidate: Candidate) -> None:
        if self._inner is not None and candidate != self.candidate:
            self._inner.align()
            self._inner.close()
            self._inner = None
        if self._inner is None:
            self.candidate, self._inner = candidate, self._build(candidate)
        self._watch.begin(candidate.every)
