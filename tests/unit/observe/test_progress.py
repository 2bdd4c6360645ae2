from __future__ import annotations

import re
from io import StringIO

from rich.console import Console

from dtrain.observe.figures import TrainFigures
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


def at_the_end_of_alexnet(**options: bool) -> str:
    out = StringIO()
    progress = ShowProgress(108000, Console(file=out, width=80, legacy_windows=False, **options))
    progress.on_train(
        TrainFigures(
            step=108000,
            epoch=24,
            loss=12.3456,
            accuracy=1.0,
            learning_rate=0.01,
            images_per_second=1234.0,
            wire_bytes=108000 * 243_860_896.0,
            step_seconds=1.0,
            exposed_comm_seconds=1.0,
            codec_seconds=0.0,
            transfer_seconds=None,
            straggler_wait_seconds=None,
            total_wire_bytes_all_ranks=0.0,
        )
    )
    progress.close()
    return out.getvalue()


def test_elsewhere_than_in_a_terminal_all_is_one_line() -> None:
    assert at_the_end_of_alexnet() == (
        "step 108000/108000  0:00:00 left  loss 12.3456  243.861 MB/step  accuracy 100.0%\n"
    )


def test_a_terminal_of_80_columns_shows_all_of_it_in_two_lines() -> None:
    shown = at_the_end_of_alexnet(force_terminal=True, no_color=True)
    *_, first, second = (line for line in re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", shown).split("\n") if line)
    assert re.fullmatch(r"step 108000/108000 ━{10,} 0:00:00 left  loss 12\.3456  243\.861 MB/step", first.rstrip())
    assert second == "accuracy 100.0%  1,234 images/s  100% of the time communicating"
    assert max(len(first), len(second)) <= 80
    assert "…" not in shown
