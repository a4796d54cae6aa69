"""The presets: what each does to the camera, and what may be said about it.

A preset turns progress (0 to 1 along its eased time) into a motion in the frame of the camera that it finds, so that
`a + b` is the product of the two. Signs: see the table in docs/cameras.md; every one is tested on a known point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ..errors import CameraError
from .rigid import level_basis, rigid, rot_x, rot_y, rot_z

Values: TypeAlias = Mapping[str, float | str]
Unit: TypeAlias = Literal["deg", "median depths", "factor", "count", "clip", "word"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One thing that can be said about a preset: a number within bounds, one of some words, or either."""

    name: str
    unit: Unit
    default: float | str
    low: float = 0.0
    high: float = 0.0
    words: tuple[str, ...] = ()
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A motion's input, in the frame of the camera that earlier motions have moved."""

    progress: np.ndarray  # [N], 0 to 1
    pivot: np.ndarray  # [N, 3], the point looked at, scene units
    median_depth: float
    source: np.ndarray  # [N, 4, 4], the source camera's own motion; all alike where it stands still
    times_s: np.ndarray  # [N]


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """A preset's share of the path."""

    c2w: np.ndarray  # [N, 4, 4]
    zoom: np.ndarray  # [N], factor on both focal lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A named camera movement; its first parameter is the one that may be given without its name."""

    name: str
    summary: str
    parameters: tuple[Parameter, ...]
    move: Callable[[Values, Scene], Motion]


EASINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda u: u,
    "in": lambda u: u**2,
    "out": lambda u: 1 - (1 - u) ** 2,
    "in_out": lambda u: u**2 * (3 - 2 * u),
}

TIMING = (
    Parameter(name="ease", unit="word", default="in_out", words=tuple(EASINGS), help="how the speed changes"),
    Parameter(name="from", unit="clip", default=0.0, high=1.0, help="when it begins, as a fraction of the clip"),
    Parameter(name="to", unit="clip", default=1.0, high=1.0, help="when it ends, as a fraction of the clip"),
)


def _number(values: Values, name: str) -> float:
    return float(values[name])


def _ramp(values: Values, name: str, scene: Scene) -> np.ndarray:
    start, end = _number(values, "start"), _number(values, name)
    return start + (end - start) * scene.progress


def _turned(R: np.ndarray) -> Motion:
    return Motion(c2w=rigid(R, np.zeros((len(R), 3))), zoom=np.ones(len(R)))


def _static(_: Values, scene: Scene) -> Motion:
    return _turned(np.broadcast_to(np.eye(3), (len(scene.progress), 3, 3)))


def _pan(values: Values, scene: Scene) -> Motion:
    return _turned(rot_y(np.radians(_ramp(values, "angle", scene))))


def _tilt(values: Values, scene: Scene) -> Motion:
    return _turned(rot_x(np.radians(_ramp(values, "angle", scene))))


def _roll(values: Values, scene: Scene) -> Motion:
    return _turned(rot_z(np.radians(_ramp(values, "angle", scene))))


def _zoom(values: Values, scene: Scene) -> Motion:
    # Interpolated in the logarithm: the picture then grows by the same share in every equal step.
    start, end = np.log(_number(values, "start")), np.log(_number(values, "factor"))
    still = _static(values, scene)
    return Motion(c2w=still.c2w, zoom=np.exp(start + (end - start) * scene.progress))


def _placed(position: np.ndarray, values: Values, scene: Scene) -> Motion:
    """The camera at `position` [N, 3]; with look_at it turns so that the pivot stays where it was in the picture."""
    n = len(position)
    if values["look_at"] == "none":
        R = np.broadcast_to(np.eye(3), (n, 3, 3))
    else:
        bases = []
        for ray in (scene.pivot - position, scene.pivot):
            distance = np.linalg.norm(ray, axis=-1, keepdims=True)
            if distance.min() < 1e-6 * scene.median_depth:
                raise CameraError("the camera reaches the point it looks at: move it less", param="camera")
            ray = ray / distance
            if np.abs(ray[:, 1]).max() > 1 - 1e-9:
                raise CameraError("the camera looks straight up or down at its subject: move it less", param="camera")
            bases.append(level_basis(ray))
        R = bases[0] @ bases[1].transpose(0, 2, 1)
    return Motion(c2w=rigid(R, position), zoom=np.ones(n))


def _travel(name: str, x: float, y: float, z: float) -> Callable[[Values, Scene], Motion]:
    def move(values: Values, scene: Scene) -> Motion:
        distance = _ramp(values, name, scene) * scene.median_depth
        return _placed(distance[:, None] * np.array([x, y, z]), values, scene)

    return move


def _dolly_zoom(values: Values, scene: Scene) -> Motion:
    distance = _ramp(values, "distance", scene) * scene.median_depth
    depth = scene.pivot[:, 2]
    if (distance >= depth).any() or (depth <= 0).any():
        raise CameraError(
            f"dolly_zoom moves {distance.max():.3g} scene units forward and passes its subject at {depth.min():.3g}: "
            "its distance must stay below the subject's",
            param="camera",
        )
    # A thing at depth Z has the size f / Z in the picture: f (Z - d) / Z keeps it.
    position = distance[:, None] * np.array([0.0, 0.0, 1.0])
    R = np.broadcast_to(np.eye(3), (len(position), 3, 3))
    return Motion(c2w=rigid(R, position), zoom=(depth - distance) / depth)


def _arc(values: Values, scene: Scene) -> Motion:
    azimuth = np.radians(_ramp(values, "angle", scene))
    elevation = np.radians(_number(values, "elevation") * scene.progress)
    R = rot_y(-azimuth) @ rot_x(-elevation)
    # The rotation about the pivot p: X -> p + R (X - p).
    return Motion(c2w=rigid(R, scene.pivot - np.einsum("nij,nj->ni", R, scene.pivot)), zoom=np.ones(len(R)))


def _spiral(values: Values, scene: Scene) -> Motion:
    s = scene.progress
    phase = 2 * np.pi * _number(values, "turns") * s
    radius = _number(values, "radius") * s
    position = np.stack([radius * np.cos(phase), -radius * np.sin(phase), _number(values, "forward") * s], -1)
    return _placed(position * scene.median_depth, values, scene)


def _lemniscate(values: Values, scene: Scene) -> Motion:
    # Bernoulli's figure of eight, x = a sin / (1 + cos^2), y = x cos, which crosses itself at the source camera.
    phase = 2 * np.pi * _number(values, "loops") * scene.progress
    x = _number(values, "radius") * np.sin(phase) / (1 + np.cos(phase) ** 2)
    position = np.stack([x, -x * np.cos(phase), np.zeros_like(x)], -1)
    return _placed(position * scene.median_depth, values, scene)


def _source(_: Values, scene: Scene) -> Motion:
    return Motion(c2w=scene.source, zoom=np.ones(len(scene.source)))


def _stabilize(values: Values, scene: Scene) -> Motion:
    """The source camera's motion under a Gaussian in time; rotations by their chordal mean (Hartley et al. 2013)."""
    sigma = _number(values, "strength") * _STEADY_S
    if sigma == 0:
        return _source(values, scene)
    apart = (scene.times_s[:, None] - scene.times_s) / sigma
    weight = np.exp(-0.5 * apart**2)
    weight /= weight.sum(1, keepdims=True)
    u, _, vt = np.linalg.svd(np.einsum("ts,sij->tij", weight, scene.source[:, :3, :3]))
    u[..., 2] *= np.linalg.det(u @ vt)[:, None]
    return Motion(c2w=rigid(u @ vt, weight @ scene.source[:, :3, 3]), zoom=np.ones(len(u)))


def _offset(values: Values, scene: Scene) -> Motion:
    right, up, forward = (_number(values, name) * scene.median_depth for name in ("right", "up", "forward"))
    still = _static(values, scene)
    position = np.broadcast_to([right, -up, forward], (len(still.zoom), 3))
    return Motion(c2w=rigid(still.c2w[:, :3, :3], position), zoom=still.zoom)


def _angle(default: float, limit: float, meaning: str) -> tuple[Parameter, Parameter]:
    return _from_to("angle", "deg", default, -limit, limit, 0.0, meaning)


def _length(name: str, default: float, meaning: str) -> tuple[Parameter, Parameter]:
    return _from_to(name, "median depths", default, -10.0, 10.0, 0.0, meaning)


def _from_to(
    name: str, unit: Unit, default: float, low: float, high: float, start: float, meaning: str
) -> tuple[Parameter, Parameter]:
    return (
        Parameter(name=name, unit=unit, default=default, low=low, high=high, help=meaning),
        Parameter(name="start", unit=unit, default=start, low=low, high=high, help=f"the {name} it starts from"),
    )


def _look_at(default: str, *, none: bool = True) -> Parameter:
    return Parameter(
        name="look_at",
        unit="median depths",
        default=default,
        low=0.01,
        high=100.0,
        words=("subject", "none") if none else ("subject",),
        help="the point on the source's axis that keeps its place in the picture"
        if none
        else "the point on the source's axis that the camera moves about",
    )


_ELEVATION = Parameter(name="elevation", unit="deg", default=0.0, low=-85.0, high=85.0, help="how far it also rises")
_PIVOT = _look_at("subject", none=False)

_STEADY_S = 2.0
"""Standard deviation of the smoothing in time, at strength 1."""

_PRESETS = (
    ("static", "Stands still.", (), _static),
    ("source", "Moves as the source camera does.", (), _source),
    (
        "stabilize",
        "Moves as the source camera does, without its shake.",
        (Parameter(name="strength", unit="factor", default=0.25, low=0.0, high=5.0, help="1 smooths over some 2 s"),),
        _stabilize,
    ),
    (
        "offset",
        "Stands beside where it would be.",
        tuple(
            Parameter(name=name, unit="median depths", default=0.0, low=-10.0, high=10.0, help=f"how far {name}")
            for name in ("right", "up", "forward")
        ),
        _offset,
    ),
    ("pan", "Turns on the spot; positive looks right.", _angle(10.0, 360.0, "how far"), _pan),
    ("tilt", "Turns on the spot; positive looks up.", _angle(5.0, 90.0, "how far"), _tilt),
    ("roll", "Turns about its axis; positive is clockwise.", _angle(5.0, 360.0, "how far"), _roll),
    (
        "zoom",
        "Changes the focal length; above 1 magnifies.",
        _from_to("factor", "factor", 1.3, 0.1, 10.0, 1.0, "factor on the focal length"),
        _zoom,
    ),
    (
        "dolly",
        "Moves along its axis; positive is forward.",
        (*_length("distance", 0.2, "how far"), _look_at("none")),
        _travel("distance", 0, 0, 1),
    ),
    (
        "truck",
        "Moves sideways; positive is right.",
        (*_length("distance", 0.1, "how far"), _look_at("none")),
        _travel("distance", 1, 0, 0),
    ),
    (
        "pedestal",
        "Moves up and down; positive is up.",
        (*_length("distance", 0.1, "how far"), _look_at("none")),
        _travel("distance", 0, -1, 0),
    ),
    (
        "dolly_zoom",
        "Moves forward while it zooms out: the subject keeps its size.",
        (*_length("distance", 0.3, "how far"), _PIVOT),
        _dolly_zoom,
    ),
    (
        "arc",
        "Moves around the subject; positive goes to the right.",
        (*_angle(20.0, 360.0, "how far around"), _ELEVATION, _PIVOT),
        _arc,
    ),
    (
        "orbit",
        "An arc that goes all the way round.",
        (*_angle(360.0, 3600.0, "how far around"), _ELEVATION, _PIVOT),
        _arc,
    ),
    (
        "crane",
        "Rises while it keeps the subject; positive is up.",
        (*_length("height", 0.2, "how far up"), _look_at("subject")),
        _travel("height", 0, -1, 0),
    ),
    (
        "spiral",
        "Circles outwards from the source camera, first right, then up.",
        (
            Parameter(name="radius", unit="median depths", default=0.1, low=-10, high=10, help="how wide at the end"),
            Parameter(name="turns", unit="count", default=2.0, low=-20.0, high=20.0, help="how often round"),
            Parameter(name="forward", unit="median depths", default=0.0, low=-10, high=10, help="how far it dollies"),
            _look_at("subject"),
        ),
        _spiral,
    ),
    (
        "lemniscate",
        "A figure of eight through the source camera, first right and up.",
        (
            Parameter(name="radius", unit="median depths", default=0.1, low=-10, high=10, help="half its width"),
            Parameter(name="loops", unit="count", default=1.0, low=-20.0, high=20.0, help="how often"),
            _look_at("subject"),
        ),
        _lemniscate,
    ),
)

_WHOLE = ("stabilize", "offset")
"""They hold from the first frame to the last."""

PRESETS: dict[str, Preset] = {
    name: Preset(
        name=name,
        summary=summary,
        parameters=(*parameters, *(TIMING if parameters and name not in _WHOLE else ())),
        move=move,
    )
    for name, summary, parameters, move in _PRESETS
}


def presets() -> list[Preset]:
    """Every preset, in the order of the documentation."""
    return list(PRESETS.values())
