"""What other moments show of surfaces that stand still, drawn from the new path: a source camera that moves fills holes.

Poses bring all frames into one world. For each picture of the new path a few source frames are
chosen that see most of its holes, nearer ones in time first, and drawn without what moves. The nearest surface wins; of
frames that show the same surface, the nearest in time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.splat import Splat, splat
from ..cameras import CameraPath, Depths
from ..cameras.rigid import inverse
from ..geometry.upsample import upsample
from .matte import split_layers

MOST = 4
"""Other frames per picture."""
CANDIDATES = 24
"""Frames that are considered, evenly spread: time does not grow with the clip's length."""
_GRID = (36, 64)
"""Cells of a picture in which coverage is counted; points of a source frame are taken twice as densely."""
_LEAST_GAIN = 0.003
"""Share of the picture that a frame must add to be drawn."""
_LATE = 0.3
"""By how much less the frame farthest in time counts."""
_LEAST_PROVENANCE = 54
UNCERTAIN = 0.3
"""A pixel counts as covered while at most this share of it is open, or of a color that was not seen by itself."""
_GAIN_BOUNDS = (0.8, 1.25)
_LEAST_OVERLAP = 200
_NEARBY = 0.12
"""Side of the neighborhood, in picture widths, in which a frame must look like the moment's own."""
_LEAST_NEARBY = 0.05
_UNLIKE = 0.06
"""Mean difference of color, 0 to 1, from which on it does not."""


Valid = Callable[[int], np.ndarray]
"""Mask of a frame, bool [H, W]: pixels that may be lifted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What brings the frames of a clip into one space.

    Attributes:
        c2w: float64 [N, 4, 4], the source camera in the world.
        moving: bool [N, h', w'], what moves by itself.
    """

    c2w: np.ndarray
    moving: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """What other frames show from the new camera: color float32 [3, h, w], mask bool [h, w], provenance uint8 [h, w]."""

    color: Tensor
    mask: Tensor
    provenance: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What a moment's own frame shows from the new camera: color float32 [3, h, w], depth [h, w], covered bool [h, w]."""

    color: Tensor
    depth: Tensor
    covered: Tensor


class OtherFrames:
    """Draws holes of a path's pictures from other frames of the clip."""

    def __init__(
        self, frames: np.ndarray, depth: Depths, source_K_px: np.ndarray, path: CameraPath, world: World
    ) -> None:
        """As `draw_anchor`."""
        self.frames, self.depth, self.source_K_px, self.path, self.world = frames, depth, source_K_px, path, world
        self.static = lru_cache(maxsize=2 * MOST)(self._static)
        self.points = lru_cache(maxsize=CANDIDATES + 2)(self._points)

    def fill(self, t: int, own: Own, depth_tolerance: float, valid: Valid | None) -> Filling:
        """What other frames than t show in the picture of moment t."""
        drawn = [(u, self._draw(t, u, own.color.device, depth_tolerance, valid)) for u in self._chosen(t, own.covered)]
        color, mask = torch.zeros_like(own.color), torch.zeros_like(own.covered)
        provenance = torch.zeros_like(own.covered, dtype=torch.uint8)
        if not drawn:
            return Filling(color=color, mask=mask, provenance=provenance)
        depths = torch.stack([torch.where(part.mask[0], part.depth[0], torch.inf) for _, part in drawn])
        front = depths.min(0).values
        for k, (u, part) in enumerate(drawn):
            picture = part.color[0] * _exposure(part, own, depth_tolerance)[:, None, None]
            new = part.mask[0] & ~mask & (depths[k] <= front * (1 + 2 * depth_tolerance)) & _agrees(picture, part, own)
            color = torch.where(new[None], picture.clamp(0, 1), color)
            provenance[new] = max(_LEAST_PROVENANCE, 254 - abs(u - t))
            mask = mask | new
        return Filling(color=color, mask=mask, provenance=provenance)

    def _draw(self, t: int, u: int, device: torch.device, depth_tolerance: float, valid: Valid | None) -> Splat:
        picture, depth, static = (part.to(device) for part in self.static(u, depth_tolerance, valid))
        return splat(
            picture,
            depth,
            torch.from_numpy(self.source_K_px[u : u + 1].copy()),
            torch.from_numpy(self._motion(t, u)[None]),
            torch.from_numpy(self.path.K_px[t : t + 1].copy()),
            (self.path.height, self.path.width),
            valid=static,
            depth_tolerance=depth_tolerance,
        )

    def _motion(self, t: int, u: int) -> np.ndarray:
        """float64 [4, 4], from the source camera of moment u to the new camera of moment t."""
        return self.path.w2c[t] @ inverse(self.world.c2w[t : t + 1])[0] @ self.world.c2w[u]

    def _static(self, u: int, depth_tolerance: float, valid: Valid | None) -> tuple[Tensor, Tensor, Tensor]:
        """Frame u as `splat` takes it: color [1, 3, H, W], depth [1, H, W], and what of it stands still and is whole."""
        height, width = self.frames.shape[1:3]
        depth = upsample(np.array(self.depth[u : u + 1]), self.frames[u : u + 1], depth_tolerance=depth_tolerance)
        layers = split_layers(self.frames[u], depth[0], depth_tolerance=depth_tolerance)
        moving = cv2.resize(self.world.moving[u].astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        # The rim of a thing that moves holds some of its color.
        kept = (cv2.dilate(moving, np.ones((5, 5), np.uint8)) == 0) & (layers.mixed <= UNCERTAIN)
        if valid is not None:
            kept &= valid(u)
        color = torch.from_numpy(layers.color).permute(2, 0, 1)[None]
        return color, torch.from_numpy(layers.depth)[None], torch.from_numpy(kept)[None]

    def _chosen(self, t: int, covered: Tensor) -> list[int]:
        """Frames that show most of what is open in picture t, in order of their distance in time."""
        count = len(self.frames)
        spread = {round(u) for u in np.linspace(0, count - 1, min(count, CANDIDATES))}
        candidates = [u for u in sorted(spread | {t - 2, t + 2}, key=lambda u: abs(u - t)) if u != t and 0 <= u < count]
        open_cells = 1 - cv2.resize(covered.cpu().numpy().astype(np.float32), _GRID[::-1], interpolation=cv2.INTER_AREA)
        seen = [self._coverage(t, u) for u in candidates]
        late = [1 - _LATE * abs(u - t) / max(1, count - 1) for u in candidates]
        chosen: list[int] = []
        while len(chosen) < min(MOST, len(candidates)):
            gains = [float(open_cells[cells].sum()) * weight for cells, weight in zip(seen, late, strict=True)]
            best = int(np.argmax(gains))
            if gains[best] < _LEAST_GAIN * open_cells.size:
                break
            chosen.append(candidates[best])
            open_cells = np.where(seen[best], 0, open_cells)
        return sorted(chosen, key=lambda u: abs(u - t))

    def _coverage(self, t: int, u: int) -> np.ndarray:
        """bool of `_GRID`: cells of picture t that static points of frame u fall into."""
        motion, K_px = self._motion(t, u), self.path.K_px[t]
        local = self.points(u) @ motion[:3, :3].T + motion[:3, 3]
        local = local[local[:, 2] > 1e-6]
        pixel = local[:, :2] / local[:, 2:] * (K_px[0, 0], K_px[1, 1]) + (K_px[0, 2], K_px[1, 2])
        cell = np.floor(pixel * (_GRID[1] / self.path.width, _GRID[0] / self.path.height)).astype(int)
        inside = ((cell >= 0) & (cell < _GRID[::-1])).all(-1)
        out = np.zeros(_GRID, bool)
        out[cell[inside, 1], cell[inside, 0]] = True
        return out

    def _points(self, u: int) -> np.ndarray:
        """Some static points of frame u in its own camera, float64 [M, 3]."""
        height, width = self.frames.shape[1:3]
        size = 2 * _GRID[1], 2 * _GRID[0]
        z = cv2.resize(self.depth[u], size, interpolation=cv2.INTER_NEAREST)
        moving = cv2.resize(self.world.moving[u].astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        y, x = np.mgrid[: size[1], : size[0]] + 0.5
        pixel = np.stack([x * width / size[0], y * height / size[1], np.ones_like(x)], -1)
        rays = pixel @ np.linalg.inv(self.source_K_px[u]).T
        return (rays * np.minimum(z, 1e6)[..., None])[~moving & (z > 0)]


def _agrees(picture: Tensor, part: Splat, own: Own) -> Tensor:
    """bool [h, w]: where a frame looks like the moment's own around what both show, and forms more than crumbs.

    Estimated depth puts a frame's surfaces beside where they belong. Where that shows in the overlap nearby, what the
    frame adds is displaced as well.
    """
    both = (part.mask[0] & own.covered).float()
    off = (picture - own.color).abs().mean(0) * both
    side = round(_NEARBY * own.covered.shape[1]) | 1
    total, count = (F.avg_pool2d(v[None, None], side, 1, side // 2)[0, 0] for v in (off, both))
    near = count > _LEAST_NEARBY
    everywhere = off.sum() / both.sum().clamp(min=1)
    alike = torch.where(near, total / count.clamp(min=1e-6), everywhere) < _UNLIKE
    opened = cv2.morphologyEx((part.mask[0] & alike).byte().cpu().numpy(), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return torch.from_numpy(opened).to(alike.device) > 0


def _exposure(part: Splat, own: Own, depth_tolerance: float) -> Tensor:
    """Factor per channel [3] that brings a frame to the moment's exposure, by what both show."""
    both = part.mask[0] & own.covered & ((part.depth[0] / own.depth - 1).abs() < depth_tolerance)
    if int(both.sum()) < _LEAST_OVERLAP:
        return torch.ones_like(own.color[:, 0, 0])
    ratio = own.color[:, both].median(1).values / part.color[0][:, both].median(1).values.clamp(min=0.02)
    return ratio.clamp(*_GAIN_BOUNDS)
