"""Stages on the terminal: a bar with the remaining time where there is a terminal, a line a stage where there is none."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ..engine.stage_results import StageRecord, StageResults


class Display:
    """Shows a run on standard error, so that standard output stays for results."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description:10}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:>4.0f}/{task.total:<4.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            transient=True,
            disable=not sys.stderr.isatty() or quiet,
        )
        self._task: TaskID | None = None
        self._noted = 0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def on_stage_start(self, name: str, result: "StageResults | None" = None) -> None:
        """Show a bar for a stage, and what was found or chosen for the user."""
        self._say_notes(result)
        self._remove_bar()
        self._task = self._bars.add_task(name, total=1, detail="")

    def on_stage_end(self, record: "StageRecord", result: "StageResults | None" = None) -> None:
        """Say how a stage went."""
        self._say_notes(result)
        self._remove_bar()
        how = f"{record.seconds:6.1f} s" if not record.reused else f"reused, {record.seconds:.1f} s saved"
        about = "" if record.reused else record.about[0].lower() + record.about[1:]  # SDEdit keeps its capitals
        self.say(f"{record.name:11}{how:24}{about}".rstrip())

    def _say_notes(self, result: "StageResults | None") -> None:
        if result is not None:
            for sentence in result.notes[self._noted :]:
                self.say(sentence)
            self._noted = len(result.notes)

    def _remove_bar(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None

    def on_progress(self, stage: str, done: int, total: int, detail: Mapping[str, Any]) -> None:
        if self._task is not None:
            text = "  ".join(f"{name} {value:.3f}" for name, value in detail.items())
            self._bars.update(self._task, completed=done, total=total, detail=text)
