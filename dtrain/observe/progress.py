"""What rank 0 shows while it trains: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dtrain.observe.figures import EvalFigures, TrainFigures


def _line(figures: TrainFigures, bytes_per_step: float) -> str:
    share = figures.exposed_comm_seconds / figures.step_seconds
    return (
        f"loss {figures.loss:.4f}  accuracy {figures.accuracy:6.1%}  {figures.images_per_second:,.0f} images/s  "
        f"{bytes_per_step / 1e6:,.3f} MB/step sent  {share:.0%} of the time communicating"
    )


class ShowProgress:
    """An observer that prints. `num_steps` is the plan's."""

    def __init__(self, num_steps: int, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._num_steps = num_steps
        self._last: TrainFigures | None = None
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=20),
                TimeRemainingColumn(),
                TextColumn("{task.fields[line]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("train", total=num_steps, line="")
            self._bar.start()

    def on_phase(self, name: str, num_values: int) -> None:
        """Say that a phase begins; a run without phases has one of no name, of which there is nothing to say."""
        if name:
            self._print(f"now phase {name}: {num_values:,} values to exchange a step")

    def on_packed(self, num_bytes: int) -> None:
        self._print(f"packed without loss into {num_bytes:,} B")

    def on_train(self, figures: TrainFigures) -> None:
        before = self._last
        steps = figures.step - (before.step if before else 0)
        line = _line(figures, (figures.wire_bytes - (before.wire_bytes if before else 0.0)) / steps)
        self._last = figures
        if self._bar is not None:
            self._bar.update(self._task, completed=figures.step, line=line)
        else:
            self._print(f"step {figures.step}/{self._num_steps}  {line}")

    def on_eval(self, figures: EvalFigures) -> None:
        self._print(
            f"test after step {figures.step}: loss {figures.loss:.4f}  accuracy {figures.accuracy:.2%} "
            f"of {figures.num_images:,} images"
        )

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
