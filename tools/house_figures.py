"""How the house stands: what lies where, how large files are, and which way imports go.

    python tools/house_figures.py [CHECKOUT ...]    # this one unless given

Read off the source, so that any checkout can be looked at, of any age: nothing of it is imported. Arrows are imports
from one package of dtrain, or file at its root, into another; the layers of a checkout's own pyproject.toml say which
of them go upwards.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LINES = 250
"""Of a file: more of them are a smell."""
STATE_ASSERT = re.compile(r"assert .*isinstance\(.*(Bucket|Mapping)")


class Arrow(NamedTuple):
    """An import of one package from another."""

    source: str
    target: str


def sources(root: Path) -> list[Path]:
    """The Python files of a package, without what is only linked into it."""
    linked = [path for path in root.iterdir() if path.is_symlink()]
    return sorted(path for path in root.rglob("*.py") if not any(path.is_relative_to(link) for link in linked))


def parts(root: Path) -> set[str]:
    """What lies at the root of the package: files and packages by name."""
    return {path.stem if path.is_file() else path.name for path in root.iterdir()} - {"__init__", "__pycache__"}


def imported(path: Path) -> Iterator[str]:
    """Every module or name that a file imports, by its full name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(root: Path) -> Counter[Arrow]:
    """How often each goes; a statement that imports several names of a package counts for each."""
    known, found = parts(root), Counter[Arrow]()
    for path in sources(root):
        source = path.relative_to(root).parts[0].removesuffix(".py")
        for name in imported(path):
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if package == root.name and target in known and source in known and target != source:
                found[Arrow(source, target)] += 1
    return found


def heights(checkout: Path) -> dict[str, int]:
    """The layer of each package, from the top; empty where no layers are declared."""
    declared = tomllib.loads((checkout / "pyproject.toml").read_text()).get("tool", {}).get("importlinter", {})
    contracts = [contract for contract in declared.get("contracts", []) if contract["type"] == "layers"]
    return {
        name.strip(): height
        for contract in contracts
        for height, layer in enumerate(contract["layers"])
        for name in re.split(r"[|:]", layer)
    }


def figures(checkout: Path) -> str:
    """All of them, as text."""
    root = checkout / "dtrain"
    files = sorted(path.name for path in root.iterdir() if path.is_file())
    sizes = {path.relative_to(root).as_posix(): len(path.read_text().splitlines()) for path in sources(root)}
    large = sorted(((size, name) for name, size in sizes.items() if size > LINES), reverse=True)
    found, height = arrows(root), heights(checkout)
    upwards = {a: n for a, n in found.items() if height.get(a.source, -1) > height.get(a.target, len(height))}
    asserts = [line for path in sources(root) for line in path.read_text().splitlines() if STATE_ASSERT.search(line)]
    return "\n".join(
        [
            f"{checkout}",
            f"  {len(files)} files at the root of dtrain/: {' '.join(files)}",
            f"  {len(sizes)} modules, {sum(sizes.values()):,} lines; {len(large)} of more than {LINES} lines",
            *(f"    {size:4} {name}" for size, name in large),
            f"  {len(found)} arrows between {len({name for arrow in found for name in arrow})} packages, "
            f"of {found.total()} imports",
            f"  {len(upwards)} arrows upwards",
            *(f"    {arrow.source} -> {arrow.target} ({count})" for arrow, count in sorted(upwards.items())),
            f"  {len(asserts)} asserts that a state is what it is taken for",
        ]
    )


if __name__ == "__main__":
    this = Path(__file__).resolve().parents[1]
    for argument in sys.argv[1:] or [str(this)]:
        if not (Path(argument) / "dtrain").is_dir():
            sys.exit(f"tools/house_figures.py: {argument} is not a checkout of dtrain")
        print(figures(Path(argument)))
