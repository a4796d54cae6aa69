"""`--vary KNOB=VALUE,VALUE`: options of the pipeline tried one value at a time."""

import json
from dataclasses import dataclass
from typing import Any

from ..engine.config import OPTIONS, RunConfig, override
from ..engine.errors import InputError
from ..engine.options import by_section
from .rows import Overrides

KNOBS = {
    **{option.name: (path,) for path, option in OPTIONS.items() if "." in path},
    "steps": ("tune.spatial_steps", "tune.temporal_steps"),
}
"""Paths of the options by the name of their flag, or by their path where they have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """One value of one knob; `name` is `knob=value`."""

    name: str
    config: Overrides


def parse_vary(text: str, base: RunConfig) -> list[Variation]:
    """The values of `knob=a,b`; a knob is an option of the `run` command, a field, or section.field.

    Raises:
        InputError: no such knob, one that several sections have, or a value that is not accepted.
    """
    knob, _, listed = text.partition("=")
    if not knob or not listed:
        raise InputError(f"{text!r} is not KNOB=VALUE,VALUE", param="vary")
    paths = KNOBS.get(knob) or _paths(knob)
    variations = []
    for word in listed.split(","):
        config = by_section({path: OPTIONS[path].read(_value(word.strip())) for path in paths})
        override(base, config)
        variations.append(Variation(name=f"{knob}={word.strip()}", config=config))
    return variations


def merged(first: Overrides, second: Overrides) -> dict[str, dict[str, Any]]:
    """Both overrides; the second wins."""
    return {section: {**first.get(section, {}), **second.get(section, {})} for section in {**first, **second}}


def _paths(knob: str) -> tuple[str, ...]:
    """The option whose path, or the last part of it, is the knob."""
    found = [path for path in OPTIONS if "." in path and knob in (path, path.rpartition(".")[2])]
    if len(found) > 1:
        raise InputError(f"{knob!r} is one of {', '.join(found)}: give it with its section", param="vary")
    if not found:
        raise InputError(f"unknown option {knob!r}; choose from {', '.join(KNOBS)}", param="vary")
    return (found[0],)


def _value(word: str) -> Any:
    """A number, a truth value or null where the word is one, else the word."""
    try:
        return json.loads(word)
    except ValueError:
        return word
