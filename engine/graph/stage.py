"""What a stage is, the list that the decorator fills in the order of definition, and how a result is found again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..store import Entry, Store, Writer, stage_key
from .context import StageContext

Inputs = Mapping[str, Entry]
"""Results of earlier stages, by stage name (or by the name of an optional input)."""

Compute = Callable[[StageContext, Inputs, Writer], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionalInput:
    """A result of another run that a stage can start from.

    Attributes:
        name: under which the stage finds it among its inputs.
        reads: further stages whose results tell how well an offer fits; they are not part of the key.
        find: what the store offers, best first.
        config: what the stage's key says of it.
    """

    name: str
    reads: tuple[str, ...]
    find: Callable[[StageContext, Inputs, Store], list[Entry]]
    config: Callable[[StageContext, Entry], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One arrow of the program.

    Attributes:
        name: in the store; a new name is a new key.
        version: raised when the stage computes something else from the same inputs.
        inputs: names of the stages whose results it reads.
        config: the options (and digests of user files) that it depends on.
        weights: digest of the networks that it runs, None where it runs none.
        compute: does the work, writing to the entry.
        about: what progress shows, from the docstring's first line.
        effort: its share of the work of a usual run, on the scale of the other stages.
        per_clip: shared by every path of a clip.
        by_frame: its networks and kernels run in tasks given to `StageContext.each_frame`, never in `compute` itself.
        samples: it calls the step callback, which may change its result.
        optional: a result of another run that it starts from where there is one.
    """

    name: str
    version: int
    inputs: tuple[str, ...]
    config: Callable[[StageContext], dict[str, Any]]
    weights: Callable[[StageContext], str | None]
    compute: Compute
    about: str
    effort: float
    per_clip: bool
    by_frame: bool
    samples: bool
    optional: OptionalInput | None

    @property
    def reads(self) -> tuple[str, ...]:
        """Stages whose results it is given."""
        return self.inputs if self.optional is None else (*self.inputs, *self.optional.reads)

    def key(self, context: StageContext, inputs: Inputs) -> str:
        """Where the store has the result for these inputs."""
        config = self.config(context)
        if self.optional is not None and self.optional.name in inputs:
            config = {**config, **self.optional.config(context, inputs[self.optional.name])}
        return stage_key(
            stage=self.name,
            version=self.version,
            config=config,
            inputs={name: inputs[name].digest for name in self.inputs},
            weights=self.weights(context),
        )

    def choose_inputs(self, context: StageContext, inputs: Inputs, store: Store) -> tuple[Inputs, Entry | None]:
        """The inputs to start from, and the result if the store has it already.

        Of the optional inputs on offer (and doing without), the best with a finished result is taken, else the best.
        """
        offers = [] if self.optional is None else self.optional.find(context, inputs, store)
        name = "" if self.optional is None else self.optional.name
        choices = [*({**inputs, name: entry} for entry in offers), inputs]
        for choice in choices:
            if (entry := store.get(self.name, self.key(context, choice))) is not None:
                return choice, entry
        return choices[0], None


STAGES: list[Stage] = []


def stage(
    name: str,
    *,
    inputs: tuple[str, ...] = (),
    config: Callable[[StageContext], dict[str, Any]] = lambda context: {},
    weights: Callable[[StageContext], str | None] = lambda context: None,
    version: int = 1,
    effort: float = 1.0,
    per_clip: bool = False,
    by_frame: bool = False,
    samples: bool = False,
    optional: OptionalInput | None = None,
) -> Callable[[Compute], Compute]:
    """Append the function to STAGES; its docstring's first line is what progress shows. See `Stage`."""

    def register(function: Compute) -> Compute:
        STAGES.append(
            Stage(
                name=name,
                version=version,
                inputs=inputs,
                config=config,
                weights=weights,
                compute=function,
                about=(function.__doc__ or "").splitlines()[0].rstrip("."),
                effort=effort,
                per_clip=per_clip,
                by_frame=by_frame,
                samples=samples,
                optional=optional,
            )
        )
        return function

    return register


def compute_stage(stage: Stage, context: StageContext, inputs: Inputs, store: Store, key: str) -> Entry:
    """Compute a stage in this process and publish its result."""
    context.warnings.clear()
    context.notes.clear()
    with store.begin(stage.name, key) as writer:
        stage.compute(context, inputs, writer)
        said = {"warnings": list(context.warnings), "notes": list(context.notes)}
        return writer.publish({"clip": context.request.clip_name, **said})
