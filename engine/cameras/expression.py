"""The preset language: `arc(20deg, ease=linear) + zoom(1.3)`.

    expression := motion ( '+' motion )*
    motion     := name [ '(' [ argument ( ',' argument )* ] ')' ]
    argument   := [ name '=' ] ( number [ 'deg' ] | name )

Only the first argument may leave its name out. Spaces mean nothing. Motions multiply from left to right: each acts in
the frame of the camera that those before it have moved, about the one subject of the clip; zoom factors multiply.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from ..errors import CameraError
from .path import CameraPath, SourceView
from .presets import EASINGS, PRESETS, Parameter, Preset, Scene
from .rigid import inverse

# Bumped when a preset's meaning changes, so that no cached result of the old meaning is taken for the new one.
_MEANING = 1
_MAX_LENGTH = 2000
_MAX_MOTIONS = 32
_KNOWN = f"Presets: {', '.join(PRESETS)}; or give the path of a camera file"
_TOKEN = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|(?P<word>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<mark>[-+(),=])|(?P<space>[ \t\r\n]+)|(?P<other>.)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionSpec:
    """One preset with a value for each of its parameters."""

    preset: Preset
    values: dict[str, float | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetSpec:
    """A camera made of presets."""

    text: str
    motions: tuple[MotionSpec, ...]

    in_world = True

    def source_poses(self, view: SourceView) -> np.ndarray | None:
        """A preset knows none."""
        return None

    def resolve(self, view: SourceView) -> CameraPath:
        """The path for this clip, each motion sampled at the frames' times.

        Raises:
            CameraError: the movement is impossible in this scene (it reaches the point it looks at).
        """
        n = len(view.times_s)
        elapsed = view.times_s - view.times_s[0]
        clip_fraction = elapsed / elapsed[-1] if n > 1 else elapsed
        c2w = still = np.broadcast_to(np.eye(4), (n, 4, 4))
        zoom = np.ones(n)
        for motion in self.motions:
            target = np.array([0.0, 0.0, _target_depth(motion.values, view)])
            w2c = inverse(c2w)
            scene = Scene(
                progress=_progress(motion.values, clip_fraction),
                pivot=w2c[:, :3, :3] @ target + w2c[:, :3, 3],
                median_depth=view.median_depth,
                source=still if view.source_c2w is None else view.source_c2w,
                times_s=view.times_s,
            )
            step = motion.preset.move(motion.values, scene)
            c2w = c2w @ step.c2w
            zoom = zoom * step.zoom
        K_px = view.frame_intrinsics_px.copy()
        K_px[:, 0, 0] *= zoom
        K_px[:, 1, 1] *= zoom
        return CameraPath(c2w=c2w, K_px=K_px, width=view.width, height=view.height, times_s=view.times_s)

    def warnings(self, view: SourceView) -> list[str]:
        """Presets are defined for every clip: nothing to say."""
        return []

    def to_json(self) -> str:
        """Canonical: two spellings of one movement give one text."""
        motions = [{"preset": m.preset.name, **m.values} for m in self.motions if m.preset.name != "static"]
        return json.dumps({"kind": "preset", "meaning": _MEANING, "motions": motions}, sort_keys=True)


def _target_depth(values: dict[str, float | str], view: SourceView) -> float:
    look_at = values.get("look_at", "subject")
    return view.subject_depth if isinstance(look_at, str) else look_at * view.median_depth


def _progress(values: dict[str, float | str], clip_fraction: np.ndarray) -> np.ndarray:
    if "ease" not in values:
        return clip_fraction
    start, end = float(values["from"]), float(values["to"])
    return EASINGS[str(values["ease"])](np.clip((clip_fraction - start) / (end - start), 0.0, 1.0))


def starts_with_preset(text: str) -> bool:
    """Whether the text begins with the name of a preset, whatever follows."""
    match = re.match(r"\s*([A-Za-z_][A-Za-z_0-9]*)\s*(?:$|[(+])", text)
    return match is not None and match[1] in PRESETS


def parse_expression(text: str) -> PresetSpec:
    """Read a preset expression.

    Raises:
        CameraError: with the column at which the text stops making sense and what would be accepted there.
    """
    if len(text) > _MAX_LENGTH:
        raise CameraError(f"an expression has at most {_MAX_LENGTH} characters, not {len(text)}", param="camera")
    return PresetSpec(text=text.strip(), motions=tuple(_Parser(text).expression()))


class _Parser:
    """Recursive descent, one method a rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._tokens = [
            _Token(str(m.lastgroup), m[0], m.start() + 1) for m in _TOKEN.finditer(text) if m.lastgroup != "space"
        ]
        self._tokens.append(_Token("end", "", len(text) + 1))
        self._at = 0

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._next
        self._at += token.kind != "end"
        return token

    def _took(self, mark: str) -> bool:
        return self._next.kind == "mark" and self._next.text == mark and bool(self._take())

    def expression(self) -> list[MotionSpec]:
        motions = [self._motion()]
        while self._took("+"):
            motions.append(self._motion())
            if len(motions) > _MAX_MOTIONS:
                raise CameraError(f"an expression has at most {_MAX_MOTIONS} movements", param="camera")
        if self._next.kind != "end":
            _fail(self._next, f"expected '+' and another movement, or the end, not {self._next.text!r}")
        return motions

    def _motion(self) -> MotionSpec:
        token = self._take()
        if token.kind != "word":
            _fail(token, f"expected a preset, not {_shown(token)}. {_KNOWN}")
        preset = PRESETS.get(token.text)
        if preset is None:
            _fail(token, f"unknown preset {token.text[:40]!r}{_meant(token.text, PRESETS)}. {_KNOWN}")
        given: dict[str, float | str] = {}
        if self._took("(") and not self._took(")"):
            self._argument(preset, given)
            while self._took(","):
                self._argument(preset, given)
            if not self._took(")"):
                _fail(self._next, f"expected ',' or ')', not {_shown(self._next)}")
        values = {p.name: given.get(p.name, p.default) for p in preset.parameters}
        if "from" in values and float(values["from"]) >= float(values["to"]):
            _fail(token, f"{preset.name} must begin before it ends: from={values['from']:g}, to={values['to']:g}")
        return MotionSpec(preset=preset, values=values)

    def _argument(self, preset: Preset, given: dict[str, float | str]) -> None:
        token = self._next
        following = self._tokens[min(self._at + 1, len(self._tokens) - 1)]
        if token.kind == "word" and following.text == "=":
            self._at += 2
            by_name = {p.name: p for p in preset.parameters}
            parameter = by_name.get(token.text)
            if parameter is None:
                meant = _meant(token.text, by_name)
                _fail(token, f"{preset.name} has no parameter {token.text!r}{meant}. {_listed('It takes', by_name)}")
        elif not preset.parameters:
            _fail(token, f"{preset.name} takes no parameters")
        elif given:
            names = [p.name for p in preset.parameters[1:]]
            _fail(token, f"only the first value may leave its name out. {_listed('Say which', names)}")
        else:
            parameter = preset.parameters[0]
        if parameter.name in given:
            _fail(token, f"{parameter.name} is given twice")
        given[parameter.name] = self._value(parameter)

    def _value(self, parameter: Parameter) -> float | str:
        token = self._take()
        if token.kind == "word" and token.text in parameter.words:
            return token.text
        if token.kind != "number" or parameter.unit == "word":
            _fail(token, f"{parameter.name} must be {_accepted(parameter)}, not {_shown(token)}")
        value = float(token.text)
        if self._next.kind == "word":
            unit = self._take()
            if unit.text != "deg" or parameter.unit != "deg":
                only = " or 'deg'" if parameter.unit == "deg" else ""
                _fail(unit, f"unexpected {unit.text!r} after {token.text}: {parameter.name} takes a bare number{only}")
        # Written so that infinity, which a long exponent makes, fails it too.
        if not parameter.low <= value <= parameter.high:
            _fail(token, f"{parameter.name} must be {_accepted(parameter)}, not {token.text}")
        return value + 0.0  # -0 and 0 are one camera and must be one cache key


def _fail(token: _Token, problem: str) -> NoReturn:
    raise CameraError(f"column {token.column}: {problem}", param="camera")


def _shown(token: _Token) -> str:
    return repr(token.text) if token.text else "the end"


def _listed(lead: str, names: Iterable[str]) -> str:
    return f"{lead}: {', '.join(names)}"


def _meant(word: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(word.lower(), list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _accepted(parameter: Parameter) -> str:
    if parameter.unit == "word":
        return f"one of {', '.join(parameter.words)}"
    words = " or ".join(parameter.words)
    unit = "" if parameter.unit in ("factor", "count") else f" ({parameter.unit})"
    number = f"a number from {parameter.low:g} to {parameter.high:g}{unit}"
    return f"{words} or {number}" if words else number
