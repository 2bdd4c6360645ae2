"""Reading one JSON object whose keys are a contract: present, of the right type, in range, or a clear error.

`summary.json` is an interface that outsiders write against; a wrong type that is found here, by name, is found once and
not as a traceback in a chart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dtrain.files import MAX_JSON_BYTES, parse_json, read_file

_MOST = 1 << 64
SCHEMA = 1
"""The version of `summary.json` that this code reads."""


def printable(text: str) -> str:
    """The text with every control character, surrogate and invisible mark replaced by U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def read_object(path: Path) -> Mapping[str, object]:
    """The JSON object in a file. ValueError naming the file and the cure if there is none."""
    try:
        content = read_file(path, MAX_JSON_BYTES)
    except ValueError as error:
        raise ValueError(f"{error}, or leave this run out") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): mend its permissions, or leave it out") from error
    try:
        value = parse_json(content, not_finite=True)  # losses may be
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): the run was probably killed while writing it; "
            "train again, or leave this run out"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object: it was not written by dtrain train; leave this run out")
    return value


@dataclass(frozen=True)
class Fields:
    """A JSON object and the file it came from, which every error names."""

    path: Path
    values: Mapping[str, object]

    def require_schema(self, schema: int) -> None:
        """Refuses a file of another version, before any key of it is misread."""
        found = self._value("schema")
        if found != schema:
            raise ValueError(
                f"{self.path} has schema {found!r} and this dtrain reads schema {schema}: "
                "report it with the dtrain version that trained it, or train again"
            )

    def text(self, key: str) -> str:
        """A string, made printable."""
        value = self._value(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return printable(value)

    def flag(self, key: str) -> bool:
        """A boolean."""
        value = self._value(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def count(self, key: str, at_least: int = 0) -> int:
        """A whole number, not below `at_least`, and such as a float holds: figures are made of it."""
        value = self._value(key)
        if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= _MOST:
            raise self._wrong(key, f"a whole number, {at_least} or more and at most 2**64")
        return value

    def optional_count(self, key: str) -> int | None:
        """A whole number, or None where the key is absent or null."""
        return None if self.values.get(key) is None else self.count(key)

    def measured(self, key: str, required: bool = True, may_diverge: bool = False) -> float | None:
        """A measurement of 0 or more, or None where the run has none (null).

        `may_diverge` lets NaN, infinity and negative values through: a loss can be any of them.
        """
        value = self._value(key) if required else self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(key, "a number or null")
        if isinstance(value, int) and abs(value) > _MOST:  # JSON has whole numbers of any length
            raise self._wrong(key, "a number that a float holds, or null")
        if not may_diverge and not (math.isfinite(value) and value >= 0):
            raise self._wrong(key, "a number, 0 or more, or null")
        return float(value)

    def table_of_bytes(self, key: str) -> dict[str, float]:
        """An object of byte counts; empty where the key is absent."""
        table = Fields(self.path, self._object(key))
        return {printable(name): table.measured(name) or 0.0 for name in table.values}

    def table_of_text(self, key: str) -> dict[str, str]:
        """An object of short values, each as printable text; empty where the key is absent."""
        return {printable(name): printable(str(value)) for name, value in self._object(key).items()}

    def objects(self, key: str) -> tuple[Fields, ...]:
        """A list of objects; empty where the key is absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._wrong(key, "a list of objects")
        return tuple(Fields(self.path, item) for item in value)

    def _object(self, key: str) -> Mapping[str, object]:
        value = self.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return value

    def _value(self, key: str) -> object:
        if key not in self.values:
            raise ValueError(f"{self.path} lacks {key!r}: this dtrain cannot report it; train again to write a new one")
        return self.values[key]

    def _wrong(self, key: str, expected: str) -> ValueError:
        found = repr(self.values.get(key))
        return ValueError(
            f"{self.path}: {key!r} must be {expected}, not {printable(found[:60])}; "
            "restore the file as training wrote it, or train again"
        )
