"""A bar for whoever calls the engine from Python and asks for no other account of its progress."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .graph.context import ProgressCallback
from .graph.stage import Stage


@contextmanager
def progress_bar(
    stages: list[Stage], on_progress: ProgressCallback | None, options: Mapping[str, Any]
) -> Iterator[ProgressCallback]:
    """Within the context a bar runs over the stages' work; the callback moves it.

    Args:
        on_progress: the caller's own account of progress, which replaces the bar.
        options: of `tqdm`. By default the bar shows in terminals and notebooks alone.
    """
    if on_progress is not None:
        yield on_progress
        return
    from tqdm.auto import tqdm

    efforts = {stage.name: stage.effort for stage in stages}
    starts = {name: sum(list(efforts.values())[:i]) for i, name in enumerate(efforts)}
    shown = sys.stderr.isatty() or "ipykernel" in sys.modules
    usual = {
        "total": 100,
        "disable": not shown,
        "bar_format": "{desc:10} {percentage:3.0f} %|{bar}| {elapsed}<{remaining}",
    }
    with tqdm(**{**usual, **options}) as bar:

        def move(stage: str, done: int, total: int, detail: Mapping[str, Any]) -> None:
            at = (starts[stage] + efforts[stage] * done / max(1, total)) / sum(efforts.values())
            bar.set_description_str(stage, refresh=False)
            bar.update(100 * at - bar.n)

        yield move
        bar.update(100 - bar.n)
