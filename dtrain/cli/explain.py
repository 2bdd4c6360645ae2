"""What a compressor would put on the network: explain."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from dtrain.cli.output import Verbs, console, json_option, print_json

_OWN = ("model", "world_size", "num_classes", "step")
"""Options that are not the compressor's."""


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    explain = verbs.add_parser("explain", help="what a compressor would put on the network, before anything runs")
    explain.add_argument("compressor")
    explain.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="the compressor's options")
    explain.add_argument("--model", default="squeezenet1_1")
    explain.add_argument("--world-size", type=int, default=2, metavar="N")
    explain.add_argument("--num-classes", type=int, default=1000, metavar="N")
    explain.add_argument("--step", type=int, default=0, help="the step to look at (a warm-up differs)")
    json_option(explain)
    explain.set_defaults(run=_explain)


def _explain(parsed: argparse.Namespace) -> int:
    from dtrain.plan.explain import explain, explain_table

    explanation = explain(
        parsed.compressor,
        model=parsed.model,
        world_size=parsed.world_size,
        num_classes=parsed.num_classes,
        step=parsed.step,
        **_options(parsed.options),
    )
    if parsed.json:
        print_json(explanation.as_json())
    else:
        console().print(explain_table(explanation))
    return 0


def _options(assignments: Sequence[str]) -> dict[str, Any]:
    """OPTION=VALUE as on the training command line: VALUE is YAML."""
    if not assignments:
        return {}
    from omegaconf import OmegaConf
    from yaml import YAMLError

    for assignment in assignments:
        name, found, _ = assignment.partition("=")
        if not found:
            raise ValueError(f"{assignment!r} is not of the form OPTION=VALUE")
        if name in _OWN:
            raise ValueError(f"{name} is no option of a compressor: write --{name.replace('_', '-')} VALUE")
    try:
        options = OmegaConf.to_container(OmegaConf.from_dotlist(list(assignments)))
    except YAMLError:
        raise ValueError(f"{' '.join(assignments)}: a value is no YAML: put quotes around a text") from None
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}
