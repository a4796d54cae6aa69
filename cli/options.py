"""How commands declare their options, and what an option is called on the command line.

The options of a run come from the engine's table; those that several commands share are dataclasses of declarations.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Annotated, Any, cast, get_type_hints

import typer
from rich.markup import escape

from ..engine.config import BY_QUALITY, OPTIONS
from ..engine.errors import InputError
from ..engine.options import Option

STEPS = replace(
    OPTIONS["tune.temporal_steps"], path="steps", flag="--steps", help="Tuning steps of each adapter.",
    default=None, unset="by quality",
)  # fmt: skip
"""Both adapters' numbers of steps in one option."""

RENDER_OPTIONS = (
    *(option for option in sorted(OPTIONS.values(), key=lambda one: "." not in one.path) if option.flag),
    STEPS,
)
"""Everything that a command may set of a render: the sections in their order, then the run's own."""

_ARGUMENTS = {"video": "CLIP", "manifest": "MANIFEST", "dataset": "DATASET", "job": "JOB", "key_id": "ID"}


def spelling(name: str) -> str:
    """What the command line calls a parameter that an error or a message names.

    A field of the configuration without a flag keeps its path: only `--config` or a bulk row can have set it.
    """
    if name in OPTIONS:
        return OPTIONS[name].flag or name
    option = next((one for one in OPTIONS.values() if name == f"options.{one.request_name}"), None)
    if option is not None:  # a service names fields of its request
        return option.flag or name
    return _ARGUMENTS.get(name) or re.sub(r"^[a-z][a-z_]*$", lambda word: "--" + word[0].replace("_", "-"), name)


def by_path(options: dict[str, Any]) -> dict[str, Any]:
    """Options as a command got them, with `--steps` as the two that it stands for."""
    given = dict(options)
    if (steps := given.pop(STEPS.path, None)) is not None:
        given = {"tune.spatial_steps": steps, "tune.temporal_steps": steps, **given}
    return given


def takes(*options: Option) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command declare many options in few words.

    A parameter annotated with a dataclass becomes an option per field, declared by the field's annotation. The parameter
    `options` becomes an option of the command for each of the table's given here; the command gets a mapping of path to
    value that holds those which were given.
    """

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters.values()
        groups = {one.name: cast("type[Any]", one.annotation) for one in own if is_dataclass(one.annotation)}

        def declarations() -> Iterator[inspect.Parameter]:
            for one in own:
                if one.name in groups:
                    yield from _fields(groups[one.name])
                elif one.name == "options":
                    yield from map(_declared, options)
                else:
                    yield one.replace(kind=inspect.Parameter.KEYWORD_ONLY)

        def command(**values: Any) -> None:
            for name, kind in groups.items():
                values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            if options:
                given = {option.path: values.pop(option.name) for option in options}
                values["options"] = {path: value for path, value in given.items() if value is not None}
            function(**values)

        signature = inspect.Signature(list(declarations()))
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
        command.__signature__ = signature  # type: ignore[attr-defined]
        return command

    return wrap


def _fields(kind: type) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
        )


def _declared(option: Option) -> inspect.Parameter:
    assert option.flag is not None
    # Numbers and choices come as text, for the table to read and refuse: it says the same on every face.
    kind = bool if option.kind is bool else str
    words = [*option.choices, *([f"{option.range}{option.unit and ' '}{option.unit}"] if option.bounds else [])]
    said = typer.Option(
        "/".join(filter(None, (option.flag, option.off))),
        help=escape(option.help),
        metavar=f"<{'|'.join(words)}>" if words else None,
        show_default=_default(option),
        rich_help_panel=option.panel,
        callback=_reader(option),
        autocompletion=lambda: list(option.choices),
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, said]
    )


def _reader(option: Option) -> Callable[..., Any]:
    def read(context: typer.Context, parameter: typer.CallbackParam, given: Any) -> Any:
        value = option.read(given)
        try:
            if given is not None:
                option.check(value)
        except InputError as error:
            raise typer.BadParameter(error.message, ctx=context, param=cast(Any, parameter)) from None
        return value

    return read


def _default(option: Option) -> str:
    """What holds where an option is not given, for its help."""
    if option.path in BY_QUALITY:
        return "by quality"
    if isinstance(option.default, bool):
        return "yes" if option.default else "no"
    return option.unset if option.default is None else str(option.default)
