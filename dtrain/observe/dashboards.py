"""`dtrain dashboard export`: what Prometheus and Grafana need to show runs, out of an installed dtrain."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from dtrain.files import read_file, write_whole

FOLDERS = ("rules", "grafana", "dashboards", "provisioning", "datasources")


def export(folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write prometheus.yml, rules/ and grafana/ into `folder`, with targets/ for ranks to name themselves in.

    Returns the files that were written.

    Raises ValueError, before anything is written, for a file there that is another and `overwrite` not given.
    """
    contents = {folder / path: text for path, text in _shipped(files("dtrain") / "metrics", Path())}
    changed = [path for path, text in contents.items() if path.exists() and read_file(path) != text.encode()]
    if changed and not overwrite:
        raise ValueError(f"{changed[0]} is there and differs: choose another folder, or add --overwrite to replace it")
    for path, text in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    (folder / "targets").mkdir(exist_ok=True)
    return list(contents)


def _shipped(folder: Traversable, at: Path) -> Iterator[tuple[Path, str]]:
    """Path and text of every file that is for users: in a checkout there are others beside them."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir() and entry.name in FOLDERS:
            yield from _shipped(entry, at / entry.name)
        elif entry.is_file() and entry.name.endswith((".yml", ".json")):
            yield at / entry.name, entry.read_text(encoding="utf-8")
