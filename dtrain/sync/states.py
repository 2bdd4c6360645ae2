"""The compressor's states on one rank, kept by parameter name, committed with the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.exchange import (
    Bucket,
    Compressor,
    Context,
    Exchange,
    Exchanged,
    Layout,
    Parts,
    Scratch,
    State,
    check_parts,
    has_vectors,
    put_together,
    share_out,
    take_apart,
)
from dtrain.sync.ahead import compile_ahead
from dtrain.sync.buckets import NamedParameter, layout_of


class States:
    """States of buckets, whatever the bucketing: it may change from step to step, and between saving and loading.

    An exchange is started by `exchange` and what comes of it handed to `stage`; the step ends with `commit` or
    `discard`. A step whose mean is not finite leaves the states as they were: a NaN in a residual would stay for ever.
    One thread at a time. What encodes on a CPU is compiled when they are made.

    Args:
        parameters: of the model, all that are exchanged.
        seed: the same on every rank; for compressors that draw random numbers.
        check_finite: look for NaN and Inf also where no state depends on it, at the price of reading means once more.
    """

    def __init__(
        self,
        compressor: Compressor,
        parameters: Sequence[NamedParameter],
        *,
        rank: int,
        world_size: int,
        seed: int = 0,
        check_finite: bool = False,
    ) -> None:
        self._compressor, self._parameters = compressor, parameters
        self._rank, self._world_size, self._seed, self._check_finite = rank, world_size, seed, check_finite
        self._committed: dict[Layout, State] = {}
        self._staged: dict[Layout, State] = {}
        self._loaded: dict[str, Mapping[str, Tensor]] = {}
        self._scratch: dict[Layout, Scratch] = {}
        self._means: list[tuple[Layout, Tensor, Tensor]] = []
        self._bad: str | None = None
        compile_ahead(compressor, parameters[0].parameter.device)
        self.step = 0
        """Of the exchange: counts steps that were committed or discarded."""

    def exchange(self, bucket: Bucket, *, wants_contribution: bool = False) -> Exchange:
        """Start exchanging this rank's share of a bucket in this step."""
        scratch = self._scratch.setdefault(bucket.layout, Scratch())
        context = Context(
            self._rank,
            self._world_size,
            self.step,
            seed=self._seed,
            scratch=scratch,
            wants_contribution=wants_contribution,
        )
        return self._compressor.exchange(bucket, self._of(bucket), context)

    def stage(self, layout: Layout, result: Exchanged) -> None:
        """What a bucket's state becomes once the step is committed."""
        self._staged[layout] = result.state
        if self._check_finite or has_vectors(result.state):  # one cheap pass, which NaN and Inf cannot survive
            self._means.append((layout, result.mean, result.mean.sum(dtype=torch.float32)))

    def not_finite(self) -> str | None:
        """The first parameter whose mean of this step holds NaN or Inf, if any.

        Asked first before means are written over. A sum can also overflow, hence the second look.
        """
        means, self._means = self._means, []
        for layout, mean, total in means:
            if self._bad is None and not torch.isfinite(total):
                pieces = layout.pieces(mean)
                self._bad = next((name for name, piece in pieces if not torch.isfinite(piece).all()), None)
        return self._bad

    def commit(self) -> None:
        """The step is whole: what was staged replaces the states of these parameters under any bucketing."""
        if self.not_finite() is None:
            if self._staged.keys() != self._committed.keys():
                self._drop_replaced()
            self._committed |= self._staged
        self.discard()

    def discard(self) -> None:
        """The step does not count: forget what was staged."""
        self.undo()
        self.step += 1

    def undo(self) -> None:
        """The exchange did not come to its end, and the step will be made again: forget what was staged."""
        self._staged, self._means, self._bad = {}, [], None

    def rescale(self, factor: float) -> None:
        """What is exchanged has another unit from now on, so many times the old one: between steps.

        All that compressors keep is linear in it.
        """
        for pieces in self._parts().values():
            for piece in pieces.values():
                piece.mul_(factor)

    def state_dict(self) -> dict[str, Any]:
        """The committed state, copied: {"step", "rank", "world_size", "parameters": {name: {path: tensor}}}.

        Of parameters that have not been exchanged, where others have, it has what they begin with.
        """
        kept = dict(self._parts())
        if kept:
            others = [named for named in self._parameters if named.name not in kept]
            kept |= {named.name: take_apart(self._fresh(named)).get(named.name, {}) for named in others}
        return {
            "step": self.step,
            "rank": self._rank,
            "world_size": self._world_size,
            "parameters": {name: {path: part.clone() for path, part in parts.items()} for name, parts in kept.items()},
        }

    def load_state_dict(self, *saved: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave: this rank's own, or that of all the ranks that saved, in their order.

        Another number of ranks than now needs all of them: `exchange.share_out` says what each takes.
        Raises ValueError, and changes nothing, where they do not fit this rank, this model or this compressor.
        """
        ranks = self._in_order(saved)
        known = {name for name, _ in self._parameters}
        unknown = sorted({name for parts in ranks for name in parts} - known)
        if unknown:
            raise ValueError(f"saved state of parameter {unknown[0]!r}, which this model does not have")
        loaded = {}
        for name, parameter in self._parameters:
            parts = self._taken_up(name, parameter, ranks)
            if parts:
                loaded[name] = parts
        self._loaded, self._committed, self._staged = loaded, {}, {}
        self.step = int(saved[0]["step"])

    def _in_order(self, saved: Sequence[Mapping[str, Any]]) -> list[Parts]:
        """As `share_out` takes them: one for each rank that saved, or this rank's alone."""
        saved_by = int(saved[0]["world_size"])
        whose = [int(state["rank"]) for state in saved]
        if any(int(state["world_size"]) != saved_by for state in saved):
            raise ValueError("saved states of several jobs: give those of one")
        if len(saved) == 1 and saved_by == self._world_size:
            if whose != [self._rank]:
                raise ValueError(f"saved state of rank {whose[0]}, given to rank {self._rank}: give each rank its own")
            parts: Parts = saved[0]["parameters"]
            return [parts] * self._world_size  # of which `share_out` takes this rank's
        if whose != list(range(saved_by)):
            raise ValueError(
                f"saved states of ranks {', '.join(map(str, whose))}, but {saved_by} ranks saved: give all of them, in "
                "the order of their ranks"
            )
        return [state["parameters"] for state in saved]

    def _taken_up(self, name: str, parameter: nn.Parameter, ranks: Sequence[Parts]) -> Mapping[str, Tensor]:
        """What this rank has of one parameter, by path in the state."""
        template = self._fresh(NamedParameter(name, parameter))
        for parts in ranks:
            if parts:  # else it was saved before the first step
                check_parts([template], {name: parts.get(name, {})})
        put_together(template, share_out(template, ranks, self._rank, self._world_size))
        return take_apart(template).get(name, {})

    def _fresh(self, named: NamedParameter) -> State:
        """What a parameter in a bucket of its own begins with."""
        layout, (_, parameter) = layout_of([named]), named
        value = torch.empty(layout.numel, dtype=parameter.dtype.to_real(), device=parameter.device)
        state: State = self._compressor.init(Bucket(value, layout))
        return state

    def _of(self, bucket: Bucket) -> State:
        state = self._committed.get(bucket.layout)
        return state if state is not None else put_together(self._compressor.init(bucket), self._parts())

    def _parts(self) -> dict[str, Mapping[str, Tensor]]:
        committed = [take_apart(state) for state in self._committed.values()]
        return {**self._loaded, **{name: parts for state in committed for name, parts in state.items()}}

    def _drop_replaced(self) -> None:
        """Forget what other buckets, or a checkpoint, say of parameters whose state was staged."""
        staged = {name for layout in self._staged for name in layout.names}
        kept = {layout: state for layout, state in self._committed.items() if staged.isdisjoint(layout.names)}
        self._loaded = {name: parts for name, parts in self._loaded.items() if name not in staged}
        self._committed = kept
        self._scratch = {k: scratch for k, scratch in self._scratch.items() if k in kept or k in self._staged}
