"""torch's flight recorder, which remembers the collectives of gloo's and NCCL's groups whether they are metered or not.

Only its JSON is read and written: what torch writes by itself is a pickle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch._C import _distributed_c10d as c10d

from dtrain.files import parse_json

DEFAULT_GROUP = "default_pg"
"""What torch calls the group of all ranks."""
_BYTES = {
    **dict.fromkeys(("Byte", "Char", "Bool", "Float8_e5m2", "Float8_e4m3fn", "Float8_e5m2fnuz", "Float8_e4m3fnuz"), 1),
    **dict.fromkeys(("Short", "Half", "BFloat16", "UInt16"), 2),
    **dict.fromkeys(("Int", "Float", "ComplexHalf", "UInt32"), 4),
    **dict.fromkeys(("Long", "Double", "ComplexFloat", "UInt64"), 8),
    "ComplexDouble": 16,
}
"""Of an element, by torch's name of its type."""


def last_of_torch(kept: int) -> dict[str, Any] | None:
    """What torch remembers of this process, its last `kept` collectives; None where it recorded nothing."""
    if not torch.distributed.is_available():
        return None
    recorded: dict[str, Any] = json.loads(c10d._dump_fr_trace_json(True, False))  # type: ignore[attr-defined]
    entries = recorded.get("entries")
    return {**recorded, "entries": entries[-kept:]} if entries else None


def is_of_torch(data: Any) -> bool:
    """Whether a file's JSON is what torch's recorder writes."""
    return isinstance(data, dict) and "entries" in data and "schema" not in data


def rank_by_name(path: Path) -> int:
    """Of a dump of torch's, which does not say it. Raises ValueError for a name that does not end with a rank."""
    found = re.search(r"(?<![0-9])([0-9]{1,6})(\.json)?$", path.name)
    if found is None:
        raise ValueError("it is torch's, so its name has to end with the rank, as in trace_rank_3.json")
    return int(found[1])


def members(data: Mapping[str, Any], rank: int) -> dict[str, list[int]]:
    """The ranks of each group but that of all, by its name: as torch says; where it does not, this one if it was in it.

    Raises ValueError, KeyError or TypeError for what the recorder would not write.
    """
    said = {name: parse_json(one["ranks"]) for name, one in data.get("pg_config", {}).items() if name}
    seen = {_group(one) for one in data["entries"] if one["process_group"][1] != DEFAULT_GROUP}
    return {name: list(said.get(name) or [rank]) for name in seen}


def collectives(data: Mapping[str, Any], *, has_failed: bool) -> list[dict[str, Any]]:
    """As dumps of ours have them. `has_failed`: the last one did, which gloo's recorder does not tell from success.

    Sends and receives are left out: they have numbers by pair; and what groups of the same name did before they were
    made anew, whose numbers began at 1 too. Raises ValueError, KeyError or TypeError likewise.
    """
    entries: Sequence[Mapping[str, Any]] = data["entries"]
    newest: dict[str, int] = {}
    for one in entries:
        newest[_group(one)] = max(newest.get(_group(one), 0), one.get("pg_id", 0))
    found = []
    for place, one in enumerate(entries, start=1):
        if one["is_p2p"] or one.get("pg_id", 0) < newest[_group(one)]:
            continue
        ended = one["state"] == "completed" or bool(one["retired"])
        found.append(
            {
                "group": _group(one),
                "number": one["collective_seq_id"],
                "op": one["profiling_name"].partition(":")[2],
                "purpose": "unknown",  # as Purpose has it, which is made beside the ledger, above this
                "payload_bytes": _payload_bytes(one),
                "started": one["time_created_ns"] / 1e9,
                "ended": ended and not (has_failed and place == len(entries)),
            }
        )
    return found


def _group(one: Mapping[str, Any]) -> str:
    return str(one["process_group"][0])


def _payload_bytes(one: Mapping[str, Any]) -> int:
    sizes, dtypes = one["input_sizes"], one["input_dtypes"]
    unknown = set(dtypes) - set(_BYTES)
    if unknown or len(sizes) != len(dtypes):
        raise ValueError(f"inputs of types {sorted(map(str, unknown))}" if unknown else "inputs without types")
    if not all(type(length) is int and 0 <= length < 1 << 63 and len(size) <= 64 for size in sizes for length in size):
        raise ValueError("an input has a size that no tensor has")
    return sum(prod(size) * _BYTES[dtype] for size, dtype in zip(sizes, dtypes, strict=True))
