"""What a worker with an optimizer of its own has besides its compressor's state: by parameter name, as in `States`.

Paths: `optimizer.<key>` for each tensor of the optimizer's state of a parameter; in the middle of a local round also
`local.common`, the weights that all workers had in common at its start, and `local.value`, this worker's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from dtrain.sync.buckets import NamedParameter

OPTIMIZER, ROUND = "optimizer.", "local."


class LocalRound(NamedTuple):
    """One parameter in the middle of a local round."""

    common: Tensor
    value: Tensor


class OwnParts:
    """Of the parameters of one worker's model and optimizer."""

    def __init__(self, parameters: Sequence[NamedParameter], optimizer: Optimizer) -> None:
        self._parameters, self._optimizer = dict(parameters), optimizer

    def add_optimizer(self, parts: dict[str, dict[str, Tensor]]) -> None:
        """Add the optimizer's state, copied. What is not a tensor follows from the step."""
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    parts.setdefault(name, {})[OPTIMIZER + key] = value.detach().clone()

    def add_round(
        self,
        parts: dict[str, dict[str, Tensor]],
        names: Sequence[str],
        commons: Sequence[Tensor],
        values: Sequence[Tensor],
    ) -> None:
        """Add what was changed since the last exchange, copied."""
        for name, common, value in zip(names, commons, values, strict=True):
            parts.setdefault(name, {}).update(
                {ROUND + "common": common.clone(), ROUND + "value": value.detach().clone()}
            )

    def split_off(
        self, saved: Sequence[Mapping[str, Any]], rank: int, world_size: int
    ) -> tuple[int, list[dict[str, Any]], Callable[[], dict[str, LocalRound]]]:
        """What was saved without these parts; and a function that takes them up.

        Returns the steps since the last exchange, the state dicts for `States.load_state_dict`, and the function, which
        fills the optimizer and returns the local round by parameter: for after `States` has taken its own, so that what
        is refused changes nothing. Raises ValueError in the middle of a local round for another number of ranks.
        """
        made = int(saved[0].get("made", 0))
        if made and int(saved[0]["world_size"]) != world_size:
            raise ValueError(
                f"saved {made} steps after the last exchange by {saved[0]['world_size']} ranks, to go on with "
                f"{world_size}: call align() on every rank before state_dict()"
            )
        states, own = [], []
        for state in saved:
            others: dict[str, dict[str, Tensor]] = {}
            mine: dict[str, dict[str, Tensor]] = {}
            for name, pieces in state["parameters"].items():
                for path, piece in pieces.items():
                    (mine if path.startswith((OPTIMIZER, ROUND)) else others).setdefault(name, {})[path] = piece
            states.append({**state, "parameters": others})
            own.append(mine)
        self._check(own)
        taken = [own[rank]] if len(own) == world_size else own  # as many ranks as before: each its own
        return made, states, lambda: self._take(taken)

    def _check(self, own: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> None:
        for mine in own:
            for name, pieces in mine.items():
                parameter = self._parameters.get(name)
                if parameter is None:
                    raise ValueError(f"saved state of parameter {name!r}, which this model does not have")
                for path, piece in pieces.items():
                    if piece.ndim and piece.shape != parameter.shape:
                        raise ValueError(
                            f"saved state {path!r} of parameter {name!r} has shape {tuple(piece.shape)}, this model "
                            f"{tuple(parameter.shape)}: give a state of this one"
                        )

    def _take(self, own: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> dict[str, LocalRound]:
        rounds = {}
        for name, parameter in self._parameters.items():
            paths = dict.fromkeys(path for mine in own for path in mine.get(name, {}))
            found = {path: [mine[name][path] for mine in own if path in mine.get(name, {})] for path in paths}
            for path, pieces in found.items():
                if path.startswith(OPTIMIZER):
                    mean = pieces[0] if len(pieces) == 1 else torch.stack(pieces).mean(0)
                    self._optimizer.state[parameter][path[len(OPTIMIZER) :]] = mean.clone().to(parameter.device)
            if ROUND + "common" in found:
                rounds[name] = LocalRound(found[ROUND + "common"][0], found[ROUND + "value"][0])
        return rounds
