"""How far a run has come, counted in samples: steps mean another number of them when the number of workers changes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """How far training has come; phases hand it on from one to the next.

    `step` counts the optimizer's steps, whatever their size. `position` is how many samples of the epoch were trained
    on, over all ranks; a finished epoch is position 0 of the next.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0

    def advance(self, num_samples: int, of_an_epoch: int) -> None:
        """A step of so many samples was made."""
        self.step += 1
        self.position += num_samples
        assert self.position <= of_an_epoch, "a step never crosses the end of an epoch"
        if self.position == of_an_epoch:
            self.epoch, self.position = self.epoch + 1, 0

    def is_before(self, end: Place) -> bool:
        """Whether there is anything left to train."""
        return (self.epoch, self.position) < (end.epoch, end.position)


@dataclass(frozen=True)
class Place:
    """A point of a run: `position` samples into an epoch."""

    epoch: int
    position: int


@dataclass(frozen=True)
class Course:
    """A run as it was planned: epochs of `num_samples`, in steps of `step_samples`, the last of an epoch smaller.

    `step_samples` is what a step had when the run began. What is said in steps (a run's length, schedules, phases) is
    said in these, so it holds when another number of workers, with steps of another size, goes on.
    """

    num_samples: int
    step_samples: int

    @property
    def steps_per_epoch(self) -> int:
        """Planned steps."""
        return -(-self.num_samples // self.step_samples)

    def place(self, step: int) -> Place:
        """Where so many planned steps end."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return Place(epoch, within * self.step_samples)

    def steps(self, progress: Progress) -> float:
        """How many planned steps were made; a whole number unless steps of another size were."""
        return progress.epoch * self.steps_per_epoch + progress.position / self.step_samples

    def samples(self, progress: Progress) -> int:
        """Seen in all."""
        return progress.epoch * self.num_samples + progress.position

    def steps_left(self, progress: Progress, end: Place, step_samples: int) -> int:
        """Steps from `progress` to `end`, in steps of `step_samples`."""
        first = -(-(self.num_samples - progress.position) // step_samples)
        last = -(-end.position // step_samples)
        if progress.epoch == end.epoch:
            return max(0, -(-(end.position - progress.position) // step_samples))
        whole = end.epoch - progress.epoch - 1
        return max(0, first + whole * -(-self.num_samples // step_samples) + last)
