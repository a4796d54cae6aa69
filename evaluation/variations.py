"""`--vary KNOB=VALUE,VALUE`: options of the pipeline tried one value at a time."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..engine.config import RunConfig, override
from ..engine.errors import InputError
from .rows import Overrides

KNOBS = {
    "anchor": ("anchor.route",),
    "mask": ("condition.mask_mode",),
    "mask_threshold": ("condition.mask_threshold",),
    "steps": ("tune.spatial_steps", "tune.temporal_steps"),
    "sample_steps": ("sample.steps",),
    "sdedit_sigma": ("refine.sigma",),
    "sdedit_steps": ("refine.steps",),
    "feather": ("deliver.feather_px",),
}
"""Options that the `run` command calls otherwise than the configuration does."""


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
        raise InputError(f"{text!r} is not KNOB=VALUE,VALUE", param="--vary")
    places = [place.split(".") for place in KNOBS.get(knob, ())] or _places(knob, base)
    variations = []
    for word in listed.split(","):
        config: dict[str, dict[str, Any]] = {}
        for section, field in places:
            config.setdefault(section, {})[field] = _value(word.strip())
        override(base, config)
        variations.append(Variation(name=f"{knob}={word.strip()}", config=config))
    return variations


def merged(first: Overrides, second: Overrides) -> dict[str, dict[str, Any]]:
    """Both overrides; the second wins."""
    return {section: {**first.get(section, {}), **second.get(section, {})} for section in {**first, **second}}


def _places(knob: str, base: RunConfig) -> list[list[str]]:
    sections = {name: part for name, part in asdict(base).items() if isinstance(part, dict)}
    found = [[s, f] for s, part in sections.items() for f in part if knob in (f, f"{s}.{f}")]
    if len(found) == 1:
        return found
    if found:
        names = ", ".join(".".join(place) for place in found)
        raise InputError(f"{knob!r} is one of {names}: give it with its section", param="--vary")
    known = ", ".join([*KNOBS, *(f"{s}.{f}" for s, part in sections.items() for f in part)])
    raise InputError(f"there is no knob {knob!r}; there are {known}", param="--vary")


def _value(word: str) -> Any:
    """A number, a truth value or null where the word is one, else the word."""
    try:
        return json.loads(word)
    except ValueError:
        return word
