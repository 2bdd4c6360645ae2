from __future__ import annotations

from io import StringIO

from rich.console import Console

from dtrain.observe.progress import ShowProgress


def said(*phases: tuple[str, int]) -> str:
    out = StringIO()
    progress = ShowProgress(10, Console(file=out, width=100))
    for name, num_values in phases:
        progress.on_phase(name, num_values)
    progress.close()
    return out.getvalue()


def test_a_phase_is_announced_with_what_its_steps_exchange() -> None:
    assert said(("prune", 412_345)) == "now phase prune: 412,345 values to exchange a step\n"


def test_a_run_without_phases_announces_none() -> None:
    assert said(("", 412_345)) == ""
