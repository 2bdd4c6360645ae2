"""A job whose workers come and go: elastic."""

from __future__ import annotations

import argparse

from dtrain.cli.output import Verbs

TIMEOUT_SECONDS = 10
"""For a collective, where the settings do not say: what others wait for where a host's network is cut."""


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    elastic = verbs.add_parser(
        "elastic",
        help="train with workers that come and go: the others go on without starting again",
        description="Settings as for `dtrain train`. A worker that is lost is started again, and joins the others "
        "between two steps. Exit code: 0 done, 1 failed, 2 a mistake, 75 saved for SIGTERM, 130 interrupted.",
    )
    elastic.add_argument("-n", type=int, default=2, metavar="N", help="workers of this host (default: 2)")
    elastic.add_argument("--min", type=int, default=1, metavar="N", help="fewest that train together (default: 1)")
    elastic.add_argument("--max", type=int, metavar="N", help="most that do, over all hosts (default: -n)")
    elastic.add_argument("--host", default="", metavar="ADDRESS", help="let other hosts join this one there")
    elastic.add_argument("--port", type=int, default=0, metavar="PORT", help="of it (default: any that is free)")
    elastic.add_argument("--join", metavar="HOST:PORT", help="run workers of the job whose first host is there")
    elastic.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the training")
    elastic.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from dtrain.elastic import join, serve

    most = parsed.n if parsed.max is None else parsed.max
    if not 1 <= parsed.min <= most or parsed.n < 1 or (parsed.join is None and parsed.n > most):
        raise ValueError(f"-n {parsed.n}, --min {parsed.min} and --max {most} must be at least 1, and rise to --max")
    settings = list(parsed.settings)
    if not any(setting.startswith("backend.timeout_seconds=") for setting in settings):
        settings.append(f"backend.timeout_seconds={TIMEOUT_SECONDS}")
    if parsed.join is None:
        return serve(settings, count=parsed.n, minimum=parsed.min, maximum=most, host=parsed.host, port=parsed.port)
    host, _, port = parsed.join.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--join {parsed.join} must be HOST:PORT, as the first host says it")
    return join(settings, count=parsed.n, host=host, port=int(port))
