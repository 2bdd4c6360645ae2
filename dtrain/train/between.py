"""What is between two groups of workers of one job, on one of them (docs/adr/0023-survivors-go-on.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dtrain.comm.membership import NOTHING, Group, Member
from dtrain.train.carry import Carried


@dataclass
class Between:
    """A worker, the group that it is in now, and what it has of the one before."""

    member: Member
    group: Group
    carried: Carried | None = None

    @property
    def step(self) -> int:
        """How far this worker has come; NOTHING if nowhere yet."""
        return NOTHING if self.carried is None else self.carried.manifest.step

    @property
    def run_dir(self) -> Path | None:
        """Of the run, where it was begun."""
        return None if self.carried is None else self.carried.run_dir

    def is_waited_for(self) -> bool:
        """Whether workers wait to come in, as far as rank 0 knows; the others ask nobody."""
        return self.group.rank == 0 and self.member.is_waited_for()

    def join_next(self) -> None:
        """Go into the next group."""
        self.group = self.member.join(self.step)
