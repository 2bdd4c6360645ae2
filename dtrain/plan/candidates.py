"""What a plan chooses from: the ways to exchange, and what is known of training with each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dtrain.arguments import check_name
from dtrain.compressors.registry import COMPRESSORS, keeps_momentum
from dtrain.compressors.trials import Exchanged, Trial, that_hold, trials_of

Known = Literal["holds", "costs", "fails", "untried"]

MANY = 3
"""Workers from which on updates count only where they were tried with more than two."""
MOST = 6
"""Of gradients, and of updates, that a plan has of those that hold."""


@dataclass(frozen=True)
class Candidate:
    """A compressor with its options, of gradients every step or of the updates of `every` steps."""

    compressor: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    exchanged: Exchanged = "gradient"
    every: int = 1

    @property
    def label(self) -> str:
        """For people, and as a key."""
        options = "".join(f" {name}={value}" for name, value in self.options.items())
        return f"{'local ' if self.exchanged == 'update' else ''}{self.compressor}{options}{self._every}"

    @property
    def _every(self) -> str:
        return f" every={self.every}" if self.exchanged == "update" else ""

    def trials(self, optimizer: str, world_size: int) -> tuple[Trial, ...]:
        """Of this method, or of a milder form of it, with at most as many workers."""
        return trials_of(
            self.compressor,
            self.options,
            optimizer=optimizer,
            exchanged=self.exchanged,
            every=self.every,
            world_size=world_size,
        )

    def known(self, optimizer: str | None, world_size: int) -> Known:
        """Whether it trains under this optimizer ("sgd" with momentum, "adamw"), as far as was measured.

        What holds with two workers says nothing of updates with more: under AdamW, and over rounds, they cost more.
        """
        if self.exchanged == "gradient" and self.compressor in ("none", "fp16", "bf16"):
            return "holds"
        tried = self.trials(optimizer, world_size) if optimizer is not None else ()
        too_few = self.exchanged == "update" and world_size >= MANY
        if not tried or (too_few and max(trial.world_size for trial in tried) < MANY):
            return "untried"
        if any(trial.fails for trial in tried):
            return "fails"
        return "holds" if all(trial.holds for trial in tried) else "costs"


NONE, FP16 = Candidate("none"), Candidate("fp16")
PLAIN = (NONE, FP16, Candidate("int8"), Candidate("int4"), Candidate("one_bit"))


def candidates(optimizer: str | None, world_size: int) -> list[Candidate]:
    """Those every plan has, and those that hold wherever they were tried under this optimizer."""
    held = []
    for trials in [*that_hold(optimizer, world_size), *that_hold(optimizer)] if optimizer is not None else []:
        first = trials[0]
        if not (keeps_momentum(first.compressor) and first.exchanged == "update"):
            held.append(Candidate(first.compressor, dict(first.options), first.exchanged, first.every))
    of_gradients = [one for one in held if one.exchanged == "gradient"][:MOST]
    of_updates = [one for one in held if one.exchanged == "update"][:MOST]
    chosen = {one.label: one for one in (*PLAIN, *of_gradients, *of_updates)}
    return list(chosen.values())


def parse(text: str) -> Candidate:
    """A candidate as `label` writes it: `int4`, `top_k density=0.01`, `local ternary every=4`.

    Raises ValueError for anything else.
    """
    words = text.split()
    exchanged: Exchanged = "update" if words[:1] == ["local"] else "gradient"
    name, *assignments = words[exchanged == "update" :] or [""]
    check_name("compressor ", name, COMPRESSORS)
    options: dict[str, Any] = {}
    for assignment in assignments:
        key, found, value = assignment.partition("=")
        if not found:
            raise ValueError(f"{assignment!r} is not of the form OPTION=VALUE")
        options[key] = _value(value)
    every = options.pop("every", 1)
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"every={every} must be a whole number of steps")
    if every > 1 and exchanged == "gradient":
        raise ValueError(f"gradients are exchanged every step: write 'local {text}'")
    return Candidate(name, options, exchanged, every)


def parse_all(texts: Sequence[str]) -> list[Candidate]:
    """Each once, with what they are compared with first."""
    chosen = {one.label: one for one in (NONE, FP16, *map(parse, texts))}
    return list(chosen.values())


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
