"""What an option of a run is. Each is defined once, at its field in `config.py`; every face is derived from that.

The command's flags and help, the request's fields and bounds, the knobs of an evaluation, the command in a report and
the names in error messages come from `config.OPTIONS`. This module imports no torch and knows no face.
"""

import numbers
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from .errors import InputError

Scope = Literal["clip", "render", "resample"]
"""The requests that may set an option: all that read a clip, renders, or renders and resamples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One field of the configuration.

    Attributes:
        path: `section.field`, or `field` for one of the run's own; errors carry it.
        default: its value unless a quality sets another.
        kind: of its value, or of each of the two in a pair.
        choices: words it may be, besides a number where `kind` is one; empty where any text will do.
        optional: whether None is accepted.
        pair: whether the value is a pair whose first is 1 unless set in a configuration; faces take the second.
        help: one sentence in plain words.
        flag: of the command; None for an option that only a configuration sets.
        off: the flag that sets a switch to False.
        bounds: least and most number.
        unit: of a number.
        unset: what None means.
        panel: subject that help lists it under.
        request: the requests of the service that may set it; None leaves it to the operator.
    """

    path: str
    default: Any
    kind: type
    choices: tuple[str, ...]
    optional: bool
    pair: bool
    help: str
    flag: str | None
    off: str | None
    bounds: tuple[float, float] | None
    unit: str
    unset: str
    panel: str
    request: Scope | None

    @property
    def name(self) -> str:
        """As programs write it: `sdedit_sigma` for `--sdedit-sigma`, the path where there is no flag."""
        return self.flag.removeprefix("--").replace("-", "_") if self.flag else self.path

    @property
    def request_name(self) -> str:
        """As requests write it: a unit in the field's name stays in the request's, as in `fov_deg`."""
        return f"{self.name}_{self.unit}" if self.unit and self.path.endswith(f"_{self.unit}") else self.name

    @property
    def range(self) -> str:
        """Of a number: `1..1000`."""
        assert self.bounds is not None
        return "..".join(str(int(end)) if end == int(end) else f"{end:g}" for end in self.bounds)

    @property
    def accepted(self) -> str:
        """What it may be, to follow "is not" in an error message."""
        if self.kind is bool:
            return "true or false"
        words = ", ".join(self.choices)
        if self.kind is str:
            return f"one of {words}" if self.choices else "text"
        number = "whole number" if self.kind is int else "number"
        ranged = f"a {number} from {self.range.replace('..', ' to ')} {self.unit}".rstrip()
        return f"{words} or {ranged}" if self.choices else ranged

    def check(self, value: Any) -> None:
        """Refuse a value of another type, out of bounds or not among the choices.

        Raises:
            InputError: carries the path and says what is accepted.
        """
        if value is None and self.optional:
            return
        pair = isinstance(value, tuple) and len(value) == 2
        if pair != self.pair:
            raise InputError(f"{value!r} is not {'two of ' * self.pair}{self.accepted}", param=self.path)
        for item in cast("tuple[Any, ...]", value) if pair else (value,):
            if not self._takes(item):
                raise InputError(f"{item!r} is not {self.accepted}", param=self.path)

    def _takes(self, value: Any) -> bool:
        if isinstance(value, str):
            return value in self.choices or (self.kind is str and not self.choices)
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        whole_or_real = numbers.Integral if self.kind is int else numbers.Real
        if self.bounds is None or not isinstance(value, whole_or_real):
            return False
        return self.bounds[0] <= cast(float, value) <= self.bounds[1]

    def read(self, given: Any) -> Any:
        """The configuration's value for the single one, or its text, that a face takes; `check` refuses a wrong one."""
        if isinstance(given, str) and self.kind in (int, float) and given not in self.choices:
            with suppress(ValueError):
                given = self.kind(given)
        return (1.0, given) if self.pair and given is not None else given

    def given(self, value: Any) -> Any:
        """The single value that `read` makes this one of; None for a pair that no single value gives."""
        return (value[1] if value[0] == 1 else None) if self.pair else value

    def words(self, value: Any) -> list[str] | None:
        """The words of the command that set a value; None where it has none for it."""
        if isinstance(value, bool):
            flag = self.flag if value else self.off
            return None if flag is None else [flag]
        value = self.given(value)
        return None if self.flag is None or value is None else [self.flag, str(value)]


def option(
    default: Any,
    help: str,
    flag: str | None = None,
    *,
    off: str | None = None,
    bounds: tuple[float, float] | None = None,
    unit: str = "",
    unset: str = "",
    panel: str | None = None,
    request: Scope | None = None,
) -> Any:
    """A field of a configuration; see `Option` for the arguments. `panel` is the section's unless given."""
    said = {"help": help, "flag": flag, "off": off, "bounds": bounds, "unit": unit, "unset": unset, "request": request}
    return field(default=default, metadata={**said, "panel": panel})


def table_of(config: type, path: str = "", panel: str = "") -> dict[str, Option]:
    """Path -> option for a configuration class and its sections, in the order of their definition."""
    found: dict[str, Option] = {}
    hints = get_type_hints(config)
    for one in fields(config):
        said, hint, here = dict(one.metadata), hints[one.name], f"{path}{one.name}"
        if is_dataclass(hint):
            found |= table_of(hint, f"{here}.", said["panel"])  # type: ignore[arg-type]
            continue
        assert one.default is not MISSING
        said["panel"] = said["panel"] or panel
        found[here] = Option(path=here, default=one.default, **_type_of(hint), **said)
    return found


def by_section(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"refine.sigma": 1}` as `{"refine": {"sigma": 1}}`; the run's own options are under ""."""
    sections: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        where, _, name = path.rpartition(".")
        sections.setdefault(where, {})[name] = value
    return sections


def _type_of(hint: Any) -> dict[str, Any]:
    """Kind, choices, optional and pair of a field's type, such as `float | Literal["auto"] | None`."""
    parts = [hint] if get_origin(hint) in (tuple, Literal, None) else list(get_args(hint))
    choices = tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))
    kinds = [part for part in parts if part is not NoneType and get_origin(part) is not Literal]
    pair = bool(kinds) and get_origin(kinds[0]) is tuple
    kind = get_args(kinds[0])[0] if pair else kinds[0] if kinds else str
    return {"kind": kind, "choices": choices, "optional": NoneType in parts, "pair": pair}
