"""Where the cameras stand: the scene from above and from the side, as inline SVG.

Source camera axes (x right, y down, z forward) in scene units. Poses are relative to the source camera of the same
moment, so the source camera stays at the origin whatever it did in the world.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from ...stage_results import StageResults

_WIDTH, _HEIGHT, _MARGIN = 520, 400, 26
_POINTS = (84, 48)
"""Columns and rows of the frame that are drawn as points."""
_TONES = 6
"""Steps a color channel of a point: equal colors share one path."""
MOST_POSES = 300
"""Positions that the moving marker takes at most; a page need not know more."""


@dataclass(frozen=True, slots=True)
class PlanView:
    """An orthographic look at the scene: two axes of source camera space to the picture's right and up."""

    name: str
    label: str
    right: int
    up: int
    across: int
    """The picture's axis that this view shows: 0 its width, 1 its height."""


VIEWS = (
    PlanView("top", "From above: right is right, up is away from the source camera", 0, 2, 0),
    PlanView("side", "From the side: right is away from the source camera, up is up", 2, 1, 1),
)


@dataclass(frozen=True, slots=True)
class PlanScene:
    """What is drawn: points [P, 3] with colors uint8 [P, 3], the poses, and the distances worth marking."""

    points: np.ndarray
    colors: np.ndarray
    c2w: np.ndarray
    half: np.ndarray
    """Half width and half height of each picture at distance 1, [N, 2]."""
    source_half: np.ndarray
    subject: float
    median: float
    far: float


def scene_of(result: StageResults) -> PlanScene:
    """The scene as the middle frame's depth gives it."""
    lens, summary = result.entries["intrinsics"].json("intrinsics"), result.entries["depth"].json("summary")
    K = np.array(lens["K_px"])
    middle = len(result.source) // 2
    columns, rows = _POINTS
    depth = cv2.resize(result.depth[middle], (columns, rows), interpolation=cv2.INTER_NEAREST).ravel()
    color = cv2.resize(result.source[middle], (columns, rows), interpolation=cv2.INTER_AREA).reshape(-1, 3)
    u, v = np.meshgrid(
        (np.arange(columns) + 0.5) / columns * lens["width"], (np.arange(rows) + 0.5) / rows * lens["height"]
    )
    rays = np.stack([(u.ravel() - K[0, 2]) / K[0, 0], (v.ravel() - K[1, 2]) / K[1, 1], np.ones(columns * rows)], -1)
    usable = np.isfinite(depth) & (depth > 0)
    nearby = float(np.percentile(depth[usable], 92)) if usable.any() else summary["median"]
    far = 1.06 * max(summary["subject"], summary["median"], min(nearby, 3 * summary["median"]))
    usable &= depth <= far
    path = result.camera
    focal = path.K_px[:, [0, 1], [0, 1]]
    return PlanScene(
        points=(rays * depth[:, None])[usable],
        colors=color[usable],
        c2w=path.c2w,
        half=np.array([path.width, path.height]) / 2 / focal,
        source_half=np.array([lens["width"] / 2 / K[0, 0], lens["height"] / 2 / K[1, 1]]),
        subject=summary["subject"],
        median=summary["median"],
        far=far,
    )


class Sheet:
    """One view's mapping from scene units to the picture, chosen so that everything that matters fits."""

    def __init__(self, scene: PlanScene, view: PlanView) -> None:
        self.scene, self.view = scene, view
        wide = scene.source_half[view.across] * scene.far
        corners = np.array([[0, 0, 0], [0, 0, scene.far], [0, 0, scene.far]], float)
        corners[1, view.across], corners[2, view.across] = wide, -wide
        known = self._flat(np.concatenate([corners, scene.c2w[:, :3, 3], scene.points]))
        low, high = known.min(0), known.max(0)
        room = np.array([_WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN])
        self.scale = float((room / np.maximum(high - low, 1e-9)).min())
        self.center = (low + high) / 2

    def _flat(self, points: np.ndarray) -> np.ndarray:
        """[P, 2] in scene units, the second one growing downwards as in the picture."""
        up = points[:, self.view.up]
        return np.stack([points[:, self.view.right], up if self.view.up == 1 else -up], -1)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Picture positions [P, 2] of points [P, 3]."""
        return (self._flat(np.atleast_2d(points)) - self.center) * self.scale + [_WIDTH / 2, _HEIGHT / 2]

    def frustum(self, c2w: np.ndarray, half: np.ndarray, length: float) -> str:
        """The `points` of the triangle that a camera sees up to a distance."""
        side, across = half[self.view.across] * length, self.view.across
        local = np.array([[0, 0, 0, 1], [0, 0, length, 1], [0, 0, length, 1]], float)
        local[1, across], local[2, across] = side, -side
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self((local @ c2w.T)[:, :3]))


def draw_view(scene: PlanScene, view: PlanView) -> str:
    """One SVG; the marker that the page moves is drawn at the first frame."""
    sheet, count = Sheet(scene, view), len(scene.c2w)
    size = 0.2 * scene.subject
    origin = np.eye(4)
    parts = [
        _points(scene, sheet),
        f'<polygon class="cone" points="{sheet.frustum(origin, scene.source_half, scene.far)}"/>',
    ]
    ends = np.array([[0, 0, scene.median], [0, 0, scene.median]], float)
    ends[:, view.across] = scene.source_half[view.across] * scene.median * np.array([-1, 1])
    (x0, y0), (x1, y1) = sheet(ends)
    parts.append(f'<path class="depth" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
    parts.append(f'<polygon class="source" points="{sheet.frustum(origin, scene.source_half, size)}"/>')
    for t in sorted({0, count // 2, count - 1}):
        parts.append(f'<polygon class="new" points="{sheet.frustum(scene.c2w[t], scene.half[t], size)}"/>')
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in sheet(scene.c2w[poses_of(count), :3, 3]))
    parts.append(f'<path class="path" d="M{line}"/>')
    sx, sy = sheet(np.array([0.0, 0.0, scene.subject]))[0]
    parts.append(f'<path class="subject" d="M{sx - 6:.1f} {sy:.1f}h12M{sx:.1f} {sy - 6:.1f}v12"/>')
    parts.append(
        f'<polygon class="marker" data-view="{view.name}" points="{sheet.frustum(scene.c2w[0], scene.half[0], size)}"/>'
    )
    return (
        f'<figure><figcaption>{view.label}</figcaption><svg class="plan" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{view.label}: the source camera, the new path and the scene\'s points">{"".join(parts)}</svg></figure>'
    )


def marker_positions(scene: PlanScene, view: PlanView) -> list[str]:
    """The marker's `points` at each of `poses_of`."""
    sheet = Sheet(scene, view)
    return [sheet.frustum(scene.c2w[t], scene.half[t], 0.2 * scene.subject) for t in poses_of(len(scene.c2w))]


def poses_of(count: int) -> list[int]:
    """Frames whose poses are drawn."""
    return sorted({round(t) for t in np.linspace(0, count - 1, min(count, MOST_POSES))})


def _points(scene: PlanScene, sheet: Sheet) -> str:
    step = 255 / (_TONES - 1)
    tones = (np.round(scene.colors / step) * step).astype(int)
    where = sheet(scene.points)
    paths: dict[tuple[int, int, int], list[str]] = {}
    for tone, (x, y) in zip(tones.tolist(), where, strict=True):
        paths.setdefault(tuple(tone), []).append(f"M{x:.0f} {y:.0f}h0")
    return (
        '<g class="points">'
        + "".join(f'<path stroke="#{r:02x}{g:02x}{b:02x}" d="{"".join(d)}"/>' for (r, g, b), d in paths.items())
        + "</g>"
    )
