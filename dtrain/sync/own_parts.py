"""What a worker with an optimizer of its own has besides its compressor's state: by parameter name, as in `States`.

Paths: `optimizer.<key>` for each tensor of the optimizer's state of a parameter, `outer.<key>` for each of the outer
optimizer's, which is the same on every worker; of what was changed since the last exchange `local.common`, the weights
that all workers had in common then, and `local.value`, this worker's own; of what is yet to be taken up `local.mean`,
and `local.sent` where the momentum of what was sent is to be masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dtrain.sync.buckets import NamedParameter, held
from dtrain.sync.slot import Slot

OPTIMIZER, OUTER, ROUND = "optimizer.", "outer.", "local."

Parts = dict[str, dict[str, Tensor]]
"""Tensors by parameter name and path."""


class OwnParts:
    """Of the parameters of one worker's model and optimizer."""

    def __init__(self, parameters: Sequence[NamedParameter], optimizer: Optimizer) -> None:
        self._parameters, self._optimizer = dict(parameters), optimizer

    def add_optimizer(self, parts: Parts) -> None:
        """Add the optimizer's state, copied. What is not a tensor follows from the step."""
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    parts.setdefault(name, {})[OPTIMIZER + key] = held(value.detach()).clone()

    def add_outer(self, parts: Parts, slot: Slot) -> None:
        """Add the outer optimizer's state of a bucket, copied."""
        for key, value in slot.outer.state.get(slot.common, {}).items():
            if isinstance(value, Tensor):
                _add_pieces(parts, slot, OUTER + key, value)

    def add_round(self, parts: Parts, slot: Slot) -> None:
        """Add what was changed in a bucket since the last exchange, copied."""
        _add_pieces(parts, slot, ROUND + "common", slot.common)
        for name, value in zip(slot.names, slot.values, strict=True):
            parts[name][ROUND + "value"] = value.detach().clone()

    def add_mean(self, parts: Parts, slot: Slot) -> None:
        """Add the mean change of a bucket that is to be taken up later, copied, and what this rank sent to it."""
        assert slot.mean is not None
        _add_pieces(parts, slot, ROUND + "mean", slot.mean)
        if slot.sent is not None:
            _add_pieces(parts, slot, ROUND + "sent", slot.sent)

    def split_off(
        self, saved: Sequence[Mapping[str, Any]], rank: int, world_size: int
    ) -> tuple[list[dict[str, Any]], Callable[[Sequence[Slot]], None]]:
        """What was saved without these parts; and a function that takes them up.

        Returns the state dicts for `States.load_state_dict`, and the function, which fills the optimizer and the
        buckets given: for after `States` has taken its own, so that what is refused changes nothing. Raises ValueError
        in the middle of a local round for another number of ranks.
        """
        steps = max(saved[0].get("changed", [0]))
        if (steps or "flight" in saved[0]) and int(saved[0]["world_size"]) != world_size:
            raise ValueError(
                f"saved {steps} steps after the last exchange by {saved[0]['world_size']} ranks, to go on with "
                f"{world_size}: call align() on every rank before state_dict()"
            )
        states, own = [], []
        for state in saved:
            others: Parts = {}
            mine: Parts = {}
            for name, pieces in state["parameters"].items():
                for path, piece in pieces.items():
                    chosen = mine if path.startswith((OPTIMIZER, OUTER, ROUND)) else others
                    chosen.setdefault(name, {})[path] = piece
            states.append({**state, "parameters": others})
            own.append(mine)
        self._check(own)
        taken = [own[rank]] if len(own) == world_size else own  # as many ranks as before: each its own

        def take(slots: Sequence[Slot]) -> None:
            self._take_optimizer(taken)
            for slot in slots:
                _take_slot(slot, taken[0])

        return states, take

    def _check(self, own: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> None:
        for mine in own:
            for name, pieces in mine.items():
                parameter = self._parameters.get(name)
                if parameter is None:
                    raise ValueError(f"saved state of parameter {name!r}, which this model does not have")
                for path, piece in pieces.items():
                    shape = held(parameter.detach()).shape
                    if piece.ndim and piece.shape != shape:
                        raise ValueError(
                            f"saved state {path!r} of parameter {name!r} has shape {tuple(piece.shape)}, this model "
                            f"{tuple(shape)}: give a state of this one"
                        )

    def _take_optimizer(self, own: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> None:
        for name, parameter in self._parameters.items():
            paths = dict.fromkeys(path for mine in own for path in mine.get(name, {}) if path.startswith(OPTIMIZER))
            for path in paths:
                pieces = [mine[name][path] for mine in own if path in mine.get(name, {})]
                mean = pieces[0] if len(pieces) == 1 else torch.stack(pieces).mean(0)
                self._optimizer.state[parameter][path[len(OPTIMIZER) :]] = _as_held(mean, parameter)


def _as_held(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy on the parameter's device; sharded as it is, where it is."""
    copied = value.clone().to(parameter.device)
    sharded: Any = parameter
    if not hasattr(sharded, "to_local") or not value.ndim:
        return copied
    mesh, placements = sharded.device_mesh, sharded.placements
    whole: Tensor = sharded.from_local(copied, mesh, placements, shape=parameter.shape, stride=parameter.stride())
    return whole


def _add_pieces(parts: Parts, slot: Slot, path: str, flat: Tensor) -> None:
    for name, piece in slot.layout.pieces(flat):
        parts.setdefault(name, {})[path] = piece.clone()


@torch.no_grad()
def _take_slot(slot: Slot, own: Mapping[str, Mapping[str, Tensor]]) -> None:
    """The model has the weights that were saved with it; where a round was under way, those of its start are common."""
    slot.take_common()
    for name, common, value in zip(slot.names, slot.commons, slot.values, strict=True):
        if ROUND + "common" in own.get(name, {}):
            common.copy_(own[name][ROUND + "common"])
            value.copy_(own[name][ROUND + "value"])
    slot.mean, slot.sent = (_together(slot, own, ROUND + what) for what in ("mean", "sent"))
    slot.outer.state.clear()
    for key in dict.fromkeys(path for name in slot.names for path in own.get(name, {}) if path.startswith(OUTER)):
        slot.outer.state[slot.common][key[len(OUTER) :]] = _together(slot, own, key)


def _together(slot: Slot, own: Mapping[str, Mapping[str, Tensor]], path: str) -> Tensor | None:
    """What was saved of a bucket's parameters as one flat vector; zeros for those of which nothing was."""
    if not any(path in own.get(name, {}) for name in slot.names):
        return None
    flat = torch.zeros_like(slot.common)
    for name, piece in slot.layout.pieces(flat):
        if path in own.get(name, {}):
            piece.copy_(own[name][path])
    return flat
