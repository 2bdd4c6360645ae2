"""What watches runs: dashboard export."""

from __future__ import annotations

import argparse
from pathlib import Path

from dtrain.cli.output import Verbs, add_verbs, json_option, print_json


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    dashboard = verbs.add_parser("dashboard", help="Grafana dashboards, Prometheus rules and alerts to watch runs with")
    export = add_verbs(dashboard).add_parser("export", help="write prometheus.yml, rules/ and grafana/ into a folder")
    export.add_argument("folder", type=Path)
    export.add_argument("--overwrite", action="store_true", help="replace files there that differ")
    json_option(export)
    export.set_defaults(run=_export)


def _export(parsed: argparse.Namespace) -> int:
    from dtrain.observe import dashboards as dashboard

    written = dashboard.export(parsed.folder, overwrite=parsed.overwrite)
    if parsed.json:
        print_json([str(path) for path in written])
    else:
        print(f"{len(written)} files in {parsed.folder}: prometheus.yml is for Prometheus, grafana/ for Grafana")
    return 0
