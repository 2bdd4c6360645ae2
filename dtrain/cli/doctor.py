"""What on this machine would keep ranks from training together: doctor."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path

from dtrain.cli.output import Verbs, console, json_option, print_json


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    doctor = verbs.add_parser(
        "doctor",
        help="what on this machine would keep ranks from training together, and the cure",
        description="Exit code: 0 all well, 3 warnings, 1 errors (torchrun makes 1 of both), 2 a mistake.",
    )
    doctor.add_argument(
        "--net",
        action="store_true",
        help="measure between ranks: torchrun's or mpiexec's (of `-m dtrain.cli doctor --net`), else 2 of this host",
    )
    doctor.add_argument("--run-dir", type=Path, default=Path("runs"), help="where runs go (default: runs)")
    json_option(doctor)
    doctor.set_defaults(run=_doctor)


def _doctor(parsed: argparse.Namespace) -> int:
    from dtrain import doctor
    from dtrain.comm import detect_launch

    launch = detect_launch(os.environ)
    checks = doctor.examine(launch, os.environ, parsed.run_dir)
    if parsed.net:
        checks += doctor.examine_network(launch, checks)
    if launch.rank != 0:
        return 0
    if parsed.json:
        print_json([asdict(check) for check in checks])
    else:
        console().print(doctor.checks_table(checks))
    return doctor.exit_code(checks)
