"""Loss and accuracy over a run, from `metrics.jsonl`: what the learning curves are drawn from.

The file is appended to while training runs, so a last line that was cut off is expected and dropped; a broken line
before it is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dtrain.files import open_file, parse_json
from dtrain.report.fields import Fields


@dataclass(frozen=True)
class Point:
    """One line: the step, the wire bytes rank 0 had sent by then (train, gradient), and what was measured there.

    `total_wire_bytes`: of all ranks and everything; None at evaluations, which do not ask the others.
    """

    step: int
    wire_bytes: float
    total_wire_bytes: float | None
    loss: float | None
    accuracy: float | None


Curve = tuple[Point, ...]
_MAX_BYTES, _MAX_LINE_BYTES = 1 << 29, 1 << 16


def read_curves(path: Path) -> tuple[Curve, Curve]:
    """The training points and the evaluation points, in file order; both empty where the file is missing.

    Raises:
        ValueError: a line that is not a metrics record, naming file and line. A cut-off last line is dropped.
    """
    if not path.exists():
        return (), ()
    curves: dict[str, list[Point]] = {"train": [], "eval": []}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, not_finite=True)
        except ValueError as error:
            if not line.endswith("\n"):  # the last
                break
            raise ValueError(f"{path}:{number} is not JSON ({error}): delete that line, or train again") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}:{number} holds no JSON object: delete that line, or train again")
        curve = curves.get(str(record.get("kind")))
        if curve is not None:
            curve.append(_point(Path(f"{path}:{number}"), record))
    return tuple(curves["train"]), tuple(curves["eval"])


def _lines(path: Path) -> Iterator[str]:
    """One after the other, with their ends."""
    try:
        with open_file(path) as file:
            while line := file.readline(_MAX_LINE_BYTES):
                if len(line) == _MAX_LINE_BYTES or file.tell() > _MAX_BYTES:
                    raise ValueError(f"{path} has longer lines, or more of them, than metrics of a run: remove it")
                yield line.decode("utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): mend its permissions, or remove it") from error


def _point(where: Path, record: Mapping[str, object]) -> Point:
    fields = Fields(where, record)
    return Point(
        step=fields.count("step"),
        wire_bytes=fields.measured("wire_bytes") or 0.0,
        total_wire_bytes=fields.measured("total_wire_bytes_all_ranks", required=False),
        loss=fields.measured("loss", may_diverge=True),
        accuracy=fields.measured("accuracy", may_diverge=True),
    )
