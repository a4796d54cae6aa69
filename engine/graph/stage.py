"""What a stage is, and the list that the decorator fills in the order of definition."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..store import Entry, Store, Writer
from .context import Run

Inputs = Mapping[str, Entry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One arrow of the design.

    Attributes:
        version: raised when the stage computes something else from the same inputs.
        inputs: names of the stages whose results it reads.
        config: the options (and digests of user files) it depends on.
        weights: digest of the networks it runs, None where it runs none.
        run: does the work, writing to the entry.
        per_clip: shared by every path of a clip.
        by_frame: its networks and kernels run in work given to `Run.each_frame`, never in `run` itself.
    """

    name: str
    version: int
    inputs: tuple[str, ...]
    config: Callable[[Run], dict[str, Any]]
    weights: Callable[[Run], str | None]
    run: Callable[[Run, Inputs, Writer], None]
    about: str
    per_clip: bool
    by_frame: bool


STAGES: list[Stage] = []


def stage(
    *inputs: str,
    version: int = 1,
    config: Callable[[Run], dict[str, Any]] = lambda run: {},
    weights: Callable[[Run], str | None] = lambda run: None,
    per_clip: bool = False,
    by_frame: bool = False,
) -> Callable[[Callable[[Run, Inputs, Writer], None]], Callable[[Run, Inputs, Writer], None]]:
    """Append the function to STAGES under its own name; its docstring's first line is what progress shows."""

    def register(function: Callable[[Run, Inputs, Writer], None]) -> Callable[[Run, Inputs, Writer], None]:
        STAGES.append(
            Stage(
                name=function.__name__,
                version=version,
                inputs=inputs,
                config=config,
                weights=weights,
                run=function,
                about=(function.__doc__ or "").splitlines()[0].rstrip("."),
                per_clip=per_clip,
                by_frame=by_frame,
            )
        )
        return function

    return register


Perform = Callable[[Stage, Run, Inputs, Store, str], Entry]
"""Computes a stage's result under its key, wherever that may be."""


def perform(stage: Stage, run: Run, inputs: Inputs, store: Store, key: str) -> Entry:
    """Run a stage in this process and publish its result."""
    before = len(run.warnings)
    with store.begin(stage.name, key) as writer:
        stage.run(run, inputs, writer)
        return writer.publish({"clip": run.clip_name, "warnings": run.warnings[before:]})
