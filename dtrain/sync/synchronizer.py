"""What keeps replicas together, as one protocol: the training loop, phases and checkpoints know nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol


class NonFiniteGradientError(ArithmeticError):
    """A mean gradient holds NaN or Inf; raised on every rank alike, since all have the same mean."""

    def __init__(self, parameter: str, step: int) -> None:
        super().__init__(f"the gradient of {parameter} is not finite in step {step}")
        self.parameter, self.step = parameter, step


class Spent(NamedTuple):
    """Seconds that a step's exchange took of this rank.

    `exposed` is what the training thread waited, codec included; `codec` what compressors took, which may have been
    beside backward.
    """

    exposed: float
    codec: float


NOTHING_SPENT = Spent(0.0, 0.0)


class Synchronizer(Protocol):
    """A step is: backward passes, `before_step`, `optimizer.step()`, `after_step`.

    A step may end with `discard` in place of the last two, on every rank alike. What compressors keep from step to step
    is committed with the step: one that is discarded, or never ends, leaves it as it was.
    """

    @property
    def ends_with_step(self) -> bool:
        """Whether all that a step sends has been sent when it ends, on every rank alike."""
        ...

    def no_sync(self) -> AbstractContextManager[None]:
        """Backward passes inside only accumulate; the last one of a step stands outside."""
        ...

    def before_step(self) -> Spent:
        """After the last backward: every `parameter.grad` becomes what the optimizer should see.

        Raises NonFiniteGradientError, on every rank alike, where it looks for NaN and Inf and finds one.
        """
        ...

    def after_step(self) -> Spent:
        """After the optimizer's step: parameters may be exchanged, and states are committed.

        Raises NonFiniteGradientError as `before_step` does; the parameters are then what they were before the step.
        """
        ...

    def align(self) -> Spent:
        """Between steps, on every rank alike: replicas become equal, where an exchange of parameters is due later."""
        ...

    def discard(self) -> None:
        """The step does not count: states stay as they were before it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Between steps: what this rank keeps from step to step: see `States.state_dict`."""
        ...

    def load_state_dict(self, *saved: Mapping[str, Any]) -> None:
        """Take up what was saved: see `States.load_state_dict`."""
        ...

    def close(self) -> None:
        """Let go of the model and end the threads."""
        ...


class Reversible(Synchronizer, Protocol):
    """One whose replicas can go back to what they last had in common, when a worker is lost."""

    @property
    def num_own_steps(self) -> int:
        """How many steps were made since replicas were last equal; 0 between steps where all are exchanged."""
        ...

    def roll_back(self) -> None:
        """After a collective that failed: parameters and states become what they were when replicas were last equal.

        What is to come of the exchange is not waited for; the optimizer's state stays. Then only `state_dict` and
        `close` are called.
        """
        ...
