"""What `python -m dtrain.meter --json FILE` wrote of any program, to be put beside runs and others like it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dtrain.report.fields import Fields, printable, read_object


@dataclass(frozen=True)
class Metered:
    """A program's traffic: bytes of all ranks that reported, and steps where they were followed (else None)."""

    path: Path
    command: str
    world_size: int
    num_steps: int | None
    total_wire_bytes_all_ranks: float
    gradient_wire_bytes_all_ranks: float
    num_collectives: int

    @property
    def wire_bytes_per_step(self) -> float | None:
        """Of gradients, per rank, as of a run."""
        return self.gradient_wire_bytes_all_ranks / self.world_size / self.num_steps if self.num_steps else None


def read_metered(path: Path) -> Metered:
    """Raises ValueError, with the file and the cure, for what the meter did not write."""
    values = read_object(path)
    if not {"command", "world_size", "purposes", "total_wire_bytes_all_ranks"} <= set(values):
        raise ValueError(
            f"{path} is not what `python -m dtrain.meter --json FILE` writes: give that, or a run directory"
        )
    fields = Fields(path, values)
    purposes = {one.text("purpose"): one.measured("wire_bytes") or 0.0 for one in fields.objects("purposes")}
    return Metered(
        path=path,
        command=_command(values["command"]),
        world_size=fields.count("world_size", at_least=1),
        num_steps=fields.optional_count("steps"),
        total_wire_bytes_all_ranks=fields.measured("total_wire_bytes_all_ranks") or 0.0,
        gradient_wire_bytes_all_ranks=purposes.get("gradient", 0.0),
        num_collectives=fields.count("total_collectives_all_ranks"),
    )


def _command(words: object) -> str:
    """Of the program, without the folders that it lies in."""
    listed = words if isinstance(words, list) else [words]
    program, *arguments = map(str, listed or [""])
    return printable(" ".join([Path(program).name, *arguments]))
