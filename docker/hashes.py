"""Print the entries of requirements.lock for some packages, or for all but some: what pip may install, by SHA-256.

    hashes.py torch numpy      those
    hashes.py -v mpich         all others

Wheels in /wheelhouse are trusted, since whoever builds the image put them there: their hashes are added.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

LOCK, WHEELHOUSE = Path(__file__).with_name("requirements.lock"), Path("/wheelhouse")


def normal(name: str) -> str:
    """As PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def entries() -> dict[str, str]:
    """Of the lock, by name: a requirement with its hashes, in one line."""
    text = re.sub(r"\\\n\s*", "", LOCK.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {normal(line.partition("==")[0]): line for line in lines}


def main(names: list[str]) -> None:
    """See the module."""
    locked = entries()
    if names[:1] == ["-v"]:
        names = [name for name in locked if name not in names]
    unknown = [name for name in names if name not in locked]
    if unknown:
        sys.exit(f"{LOCK} has no {unknown[0]}: make it again, by `make lock`")
    for wheel in sorted(WHEELHOUSE.glob("*.whl")):
        name = normal(wheel.name.partition("-")[0])
        if name in locked:
            locked[name] += f" --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
    print(*(locked[name] for name in names), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
