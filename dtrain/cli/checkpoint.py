"""The checkpoints of a run: list, verify, prune."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrain.cli.output import Verbs, add_verbs, json_option, print_json

if TYPE_CHECKING:
    from dtrain.train.checkpoint_folder import Found

FAILED = 1


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    checkpoint = verbs.add_parser("checkpoint", help="a run's checkpoints: list, verify, prune")
    actions = add_verbs(checkpoint)
    for action, summary, run in (
        ("list", "steps, sizes and workers, by what manifests say", _list),
        ("verify", "read every file; exit code 1 where one is not the one that was saved", _verify),
        ("prune", "remove all but the last ones and the best", _prune),
    ):
        parser = actions.add_parser(action, help=summary)
        parser.add_argument("run_dir", type=Path, metavar="RUN", help="a run directory")
        if action == "prune":
            parser.add_argument("--keep", type=_at_least_one, required=True, help="how many of the last to keep")
        json_option(parser)
        parser.set_defaults(run=run)


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _list(parsed: argparse.Namespace) -> int:
    from dtrain.train.checkpoint_folder import best

    checkpoints = _find(parsed.run_dir)
    chosen = best(parsed.run_dir, [found.step for found in checkpoints if found.fault is None])
    return _show(
        [_described(found, found.fault) | {"best": found.step == chosen} for found in checkpoints], parsed.json
    )


def _verify(parsed: argparse.Namespace) -> int:
    from dtrain.train.checkpoint_folder import verify

    checkpoints = [_described(found, verify(found)) for found in _find(parsed.run_dir)]
    _show(checkpoints, parsed.json)
    return FAILED if any(checkpoint["fault"] for checkpoint in checkpoints) else 0


def _prune(parsed: argparse.Namespace) -> int:
    from dtrain.train.checkpoint_folder import prune

    _find(parsed.run_dir)
    removed = prune(parsed.run_dir, parsed.keep)
    if parsed.json:
        print_json({"removed": [str(folder) for folder in removed]})
    else:
        print("\n".join(f"removed {folder}" for folder in removed) or "nothing to remove")
    return 0


def _find(run_dir: Path) -> list[Found]:
    """Raises ValueError where there are none."""
    from dtrain.train.checkpoint_folder import find

    checkpoints = find(run_dir)
    if not checkpoints:
        raise ValueError(f"{run_dir} has no checkpoints: give a run's directory, of one with save_every=N")
    return checkpoints


def _described(found: Found, fault: str | None) -> dict[str, Any]:
    manifest = None if found.checkpoint is None else found.checkpoint.manifest
    return {
        "folder": str(found.folder),
        "step": found.step,
        "epoch": None if manifest is None else manifest.epoch,
        "workers": None if manifest is None else manifest.world_size,
        "size_bytes": found.size_bytes,
        "fault": fault,
    }


def _show(checkpoints: list[dict[str, Any]], as_json: bool) -> int:
    if as_json:
        print_json(checkpoints)
        return 0
    for each in checkpoints:
        about = f"epoch {each['epoch']}, {each['workers']} workers, {each['size_bytes'] / 1e6:,.1f} MB"
        said = each["fault"] or about + (", the best" if each.get("best") else "")
        print(f"step {each['step']:,}: {' '.join(said.split())}")
    return 0
