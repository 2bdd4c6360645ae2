"""Records as JSON, one object a line, each line written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dtrain.meter.ledger import StepRecord
from dtrain.observe.figures import EvalFigures, PlanFigures, TrainFigures


class JsonLines:
    """A file of JSON lines, of which what is written is seen at once, by the line.

    A line that does not go in is an error with the path in it, OSError, once: whoever cleans up after that closes a
    file that has nothing left to write.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._file = path, path.open("wb", buffering=0)

    def write(self, data: Mapping[str, Any]) -> None:
        """Append one object."""
        line, before = memoryview((json.dumps(data) + "\n").encode()), self._file.tell()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(before)  # no half lines
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LedgerFile:
    """`ledger/rank<k>.jsonl`: a ledger's sink, one line per step record that holds anything."""

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)

    def __call__(self, record: StepRecord) -> None:
        if record.entries or record.times:
            self._lines.write(record.as_json())

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class MetricsFile:
    """`metrics.jsonl`: what the trainer reports, with `kind` train or eval."""

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)

    def on_phase(self, name: str, num_values: int) -> None:
        """Nothing: the file's lines are of training and of evaluations, by step."""

    def on_plan(self, figures: PlanFigures) -> None:
        """Nothing, likewise."""

    def on_packed(self, num_bytes: int) -> None:
        """Nothing, likewise."""

    def on_train(self, figures: TrainFigures) -> None:
        data = asdict(figures)
        del data["wait_by_rank"]  # a line must not grow with the number of ranks; the summary names the worst
        self._lines.write({"kind": "train", **data})

    def on_eval(self, figures: EvalFigures) -> None:
        self._lines.write({"kind": "eval", **asdict(figures)})

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
