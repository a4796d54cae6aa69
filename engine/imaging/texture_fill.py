"""Texture for the holes, copied from the clip's own footage.

The video model says what color a hole has, but its picture is soft. The detail that it lacks is known wherever there is
footage: footage less the model's picture of the same place. For each hole pixel `patch_match` looks for footage of a
surface as far away, of the color that the model says, which continues what is known at the rim; the detail found there is
laid over the model's picture. Where no footage fits well, or pieces would be small, the model's picture stays as it is.

A match is a step in the world, so the fill of one frame is carried to the next by the cameras alone, and only what has
come into view is looked for. For the same reason a copied floor keeps its perspective.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from . import patch_match
from .hole_depth import hole_depth, lifted
from .patch_match import RADIUS, Pictures, Target, Weights

REFERENCES = 8
"""Frames that can be copied from, evenly spread: memory and time do not grow with the clip's length."""
_REFERENCE_PIXELS = 2_000_000
"""All of them together, so that a large clip keeps fewer."""
_SKY = 50.0
"""Median depths: what is farther lies this far away."""
_LEVELS, _ROUNDS = 4, 4
_GUIDE_PX, _DETAIL_PX = 4.5, 2.25
"""In pixels of the generated picture: the blur of the color that guides, and the size up to which texture is copied."""
_GAIN = 0.8
_FITS = 1500.0
"""Squared levels of 255 over RGB by which the guide's color may be off until a match counts 1/e."""
_TORN = 0.5
"""What is taken off where all of the neighborhood is pieces' ends."""
_TORN_PX = 3.0
_WEIGHTS = Weights(*(np.float32(v) for v in (0.2, 2000, 0.02, 1500, 1000)))


class FrameView(NamedTuple):
    """A frame as the fill reads it, at the clip's size.

    Attributes:
        color: uint8 [h, w, 3], the anchor.
        real: bool [h, w], where it is footage.
        depth: float32 [h, w], z of the footage; inf is sky, NaN unknown.
        front: bool [h, w], footage of a thing beside something farther.
        generated: uint8 [h, w, 3], the model's picture.
    """

    color: np.ndarray
    real: np.ndarray
    depth: np.ndarray
    front: np.ndarray
    generated: np.ndarray


@dataclass(slots=True, kw_only=True)
class _Copies:
    """What each hole pixel copies: picture int32 [h, w] (-1 none), step float32 [h, w, 3], fit float32 [h, w] in 0..1."""

    picture: np.ndarray
    step: np.ndarray
    fit: np.ndarray

    @staticmethod
    def none(height: int, width: int) -> "_Copies":
        return _Copies(
            picture=np.full((height, width), -1, np.int32),
            step=np.zeros((height, width, 3), np.float32),
            fit=np.zeros((height, width), np.float32),
        )


class TextureFill:
    """Fills the holes of a clip's frames, called for one after the other.

    Args:
        view: gives a frame by its index.
        c2w: float64 [N, 4, 4] of the new camera, in a world that stands still.
        K_px: float64 [N, 3, 3] in pixels of (w, h).
        scale: pixels of the clip per pixel of the generated picture.
        seed: of the search.
    """

    def __init__(
        self, view: Callable[[int], FrameView], c2w: np.ndarray, K_px: np.ndarray, *, scale: float, seed: int = 0
    ) -> None:
        self._view, self._c2w, self._K_px, self._scale, self._seed = view, c2w, K_px, scale, seed
        first = view(0)
        count = max(2, min(REFERENCES, _REFERENCE_PIXELS // first.real.size))
        times = sorted({round(t) for t in np.linspace(0, len(c2w) - 1, min(len(c2w), count))})
        views = [view(t) for t in times]
        finite = np.concatenate([each.depth[np.isfinite(each.depth)] for each in views])
        self._sky = float(np.log(_SKY * np.median(finite))) if len(finite) else 0.0
        self._detail = [self._detail_of(each) for each in views]
        self._levels = [self._pictures(views, times)]
        for level in range(1, _LEVELS):
            self._levels.append(_halved_pictures(self._levels[-1], K_px[times], c2w[times], level))
        self._before: tuple[int, _Copies] | None = None

    def __call__(self, t: int, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lay texture over a frame's holes.

        Args:
            picture: float32 [h, w, 3] in levels of 255, the footage with the model's picture in the holes.

        Returns:
            The picture with texture, float32, and how much of the copied detail each pixel has, float32 [h, w] in 0..1.
        """
        view = self._view(t)
        hole, log = ~view.real, self._log_depth(view)
        nothing = np.zeros(hole.shape, np.float32)
        behind = hole_depth(log, view.front, view.real) if hole.any() and len(self._levels[0].places) else None
        if behind is None:
            self._before = None
            return picture, nothing
        points = lifted(behind, self._K_px[t], self._c2w[t])
        copies = self._carried(t, hole, points)
        wanted = hole & (copies.picture < 0)
        if wanted.any():
            self._search(t, view, log, behind, points, copies, wanted, picture)
        self._before = t, copies
        share = np.where(hole & (copies.picture >= 0), _GAIN * copies.fit, 0).astype(np.float32)
        share *= 1 - _TORN * _ends(copies, behind, self._K_px[t][0, 0])
        sky = np.where(hole, np.clip((behind - self._sky) / 0.3 + 1, 0, 1), 0)
        rim_px = cv2.distanceTransform(hole.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        share *= 1 - sky * (1 - np.exp(-rim_px / (hole.shape[0] / 16)))  # at infinity no depth tells surfaces apart
        share = np.where(hole, cv2.GaussianBlur(share, (0, 0), 2), 0).astype(np.float32)
        return picture + share[..., None] * self._copied(copies, points), share

    def _log_depth(self, view: FrameView) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            log = np.minimum(np.log(view.depth), self._sky).astype(np.float32)
        return np.where(view.real & np.isfinite(log), log, np.nan).astype(np.float32)

    def _guide(self, view: FrameView) -> np.ndarray:
        return cv2.GaussianBlur(view.generated.astype(np.float32), (0, 0), _GUIDE_PX * self._scale)

    def _detail_of(self, view: FrameView) -> np.ndarray:
        """What footage has beyond the model's picture, int16 [h, w, 3] in levels of 255; coarse differences left out."""
        missed = view.color.astype(np.float32) - view.generated
        weight, sigma = view.real.astype(np.float32)[..., None], _DETAIL_PX * self._scale
        around = cv2.GaussianBlur(missed * weight, (0, 0), sigma)
        share = cv2.GaussianBlur(weight, (0, 0), sigma)[..., None]
        return ((missed - around / np.maximum(share, 1e-4)) * weight).round().astype(np.int16)

    def _pictures(self, views: list[FrameView], times: list[int]) -> Pictures:
        logs = [self._log_depth(view) for view in views]
        patch = np.ones((2 * RADIUS + 3,) * 2, np.uint8)
        nearest = [
            np.where(
                cv2.erode(np.isfinite(log).astype(np.uint8), patch, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0,
                cv2.erode(np.nan_to_num(log), patch),
                -np.inf,
            )
            for log in logs
        ]
        return _pictures(
            np.stack([self._guide(view) for view in views]),
            np.stack([view.color for view in views]).astype(np.float32),
            np.stack(nearest).astype(np.float32),
            np.stack([np.nan_to_num(log) for log in logs]),
            self._K_px[times],
            self._c2w[times],
        )

    def _carried(self, t: int, hole: np.ndarray, points: np.ndarray) -> _Copies:
        """What the frame before copied at the same places of the world."""
        height, width = hole.shape
        copies = _Copies.none(height, width)
        if self._before is None:
            return copies
        last, before = self._before
        camera = self._K_px[last] @ np.linalg.inv(self._c2w[last])[:3]
        moved = points @ camera[:, :3].T + camera[:, 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            at = np.where(moved[..., 2:] > 0, moved[..., :2] / moved[..., 2:], -1)
        x, y = np.floor(np.clip(at, -1, max(height, width))).astype(np.int64).transpose(2, 0, 1)
        there = hole & (x >= 0) & (y >= 0) & (x < width) & (y < height)
        for mine, theirs in ((copies.picture, before.picture), (copies.step, before.step), (copies.fit, before.fit)):
            mine[there] = theirs[y[there], x[there]]
        return copies

    def _search(
        self,
        t: int,
        view: FrameView,
        log: np.ndarray,
        behind: np.ndarray,
        points: np.ndarray,
        copies: _Copies,
        wanted: np.ndarray,
        picture: np.ndarray,
    ) -> None:
        """Find what the wanted pixels copy, coarse to fine, in place."""
        K_px, c2w, filled = self._K_px[t], self._c2w[t], copies.picture >= 0
        # A nearer thing at the rim says nothing of what lies behind it.
        source_known = np.where(view.real, np.where(log >= behind - _WEIGHTS.slack, 1, -1), filled).astype(np.float32)
        seen = np.where(filled[..., None], picture + self._copied(copies, points), view.color).astype(np.float32)
        targets = [Target(self._guide(view), seen, source_known, behind, points, wanted)]
        for level in range(1, _LEVELS):
            targets.append(_halved_target(targets[-1], K_px, c2w, level))
        state = np.array([(self._seed << 32) + t + 1 ^ 0x9E3779B97F4A7C15], np.uint64)
        guess: tuple[np.ndarray, np.ndarray] | None = None
        for level in reversed(range(_LEVELS)):
            target, pictures = targets[level], self._levels[level]
            rows, columns = target.wanted.shape
            found = copies.picture[:: 2**level, :: 2**level][:rows, :columns].copy()
            step = copies.step[:: 2**level, :: 2**level][:rows, :columns].copy()
            if guess is not None:
                for mine, coarse in zip((found, step), guess, strict=True):
                    twice = coarse.repeat(2, 0).repeat(2, 1)
                    odd = ((0, rows - twice.shape[0]), (0, columns - twice.shape[1]), (0, 0))[: twice.ndim]
                    mine[target.wanted] = np.pad(twice, odd, mode="edge")[target.wanted]
            if len(pictures.places):
                focal_px = np.float32(K_px[0, 0] / 2**level)
                patch_match.match(target, pictures, _WEIGHTS, focal_px, found, step, state, _ROUNDS)
            guess = found, step
        assert guess is not None
        copies.picture[wanted], copies.step[wanted] = guess[0][wanted], guess[1][wanted]
        got = wanted & (copies.picture >= 0)
        u, v = np.rint(self._landings(copies, points)[got]).astype(np.int64).T
        off = self._levels[0].guide[copies.picture[got], v, u] - targets[0].guide[got]
        copies.fit[got] = np.exp(-np.square(off).sum(-1) / _FITS)

    def _landings(self, copies: _Copies, points: np.ndarray) -> np.ndarray:
        at = np.empty((*copies.picture.shape, 2), np.float32)
        patch_match.landings(copies.picture, copies.step, points, self._levels[0].cameras, at)
        return at

    def _copied(self, copies: _Copies, points: np.ndarray) -> np.ndarray:
        """The detail that each pixel copies, float32 [h, w, 3]; zero where it copies none."""
        at = self._landings(copies, points)
        out = np.zeros((*copies.picture.shape, 3), np.float32)
        for k, detail in enumerate(self._detail):
            here = copies.picture == k
            if here.any():
                spot = np.where(here[..., None], at, -9).astype(np.float32)
                drawn = cv2.remap(
                    detail, spot[..., 0], spot[..., 1], cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_CONSTANT
                )
                out[here] = drawn[here]
        return out


def _ends(copies: _Copies, log_depth: np.ndarray, focal_px: float) -> np.ndarray:
    """Share of the surroundings in which pieces end, float32 [h, w]."""
    near = (np.exp(log_depth) * _TORN_PX / focal_px) ** 2
    filled = copies.picture >= 0
    ends = np.zeros(filled.shape, bool)
    for axis in (0, 1):
        after = np.s_[1:] if axis == 0 else np.s_[:, 1:]
        before = np.s_[:-1] if axis == 0 else np.s_[:, :-1]
        apart = np.square(np.diff(copies.step, axis=axis)).sum(-1) > near[after]
        apart |= filled[after] != filled[before]
        ends[after] |= apart
        ends[before] |= apart
    return cv2.GaussianBlur(ends.astype(np.float32), (0, 0), _TORN_PX)


def _pictures(
    guide: np.ndarray, seen: np.ndarray, nearest: np.ndarray, log_depth: np.ndarray, K_px: np.ndarray, c2w: np.ndarray
) -> Pictures:
    inner = np.zeros(nearest.shape, bool)
    inside = np.s_[:, RADIUS:-RADIUS, RADIUS:-RADIUS]
    inner[inside] = np.isfinite(nearest[inside])
    return Pictures(
        guide=guide,
        seen=seen,
        nearest=np.where(inner, nearest, -np.inf).astype(np.float32),
        log_depth=log_depth,
        points=np.stack([lifted(*each) for each in zip(log_depth, K_px, c2w, strict=True)]),
        cameras=(K_px @ np.linalg.inv(c2w)[:, :3]).astype(np.float32),
        places=np.argwhere(inner).astype(np.int32),
    )


def _halved_pictures(fine: Pictures, K_px: np.ndarray, c2w: np.ndarray, level: int) -> Pictures:
    """Pictures at half the size; K_px are those of the full size."""
    least = np.stack([_blocks(each).min((1, 3)) for each in fine.nearest])
    # A patch reaches twice as far here.
    least = np.stack([cv2.erode(each, np.ones((3, 3), np.uint8)) for each in least])
    even = np.s_[:, : least.shape[1] * 2 : 2, : least.shape[2] * 2 : 2]
    guide, seen = (np.stack([_half(each) for each in pictures]) for pictures in (fine.guide, fine.seen))
    return _pictures(guide, seen, least, np.ascontiguousarray(fine.log_depth[even]), _scaled(K_px, level), c2w)


def _halved_target(fine: Target, K_px: np.ndarray, c2w: np.ndarray, level: int) -> Target:
    weight = _blocks(fine.weight)
    least = np.where((weight < 0).any((1, 3)), -1, weight.min((1, 3))).astype(np.float32)
    log_depth = np.ascontiguousarray(fine.log_depth[: least.shape[0] * 2 : 2, : least.shape[1] * 2 : 2])
    points = lifted(log_depth, _scaled(K_px, level), c2w)
    return Target(_half(fine.guide), _half(fine.seen), least, log_depth, points, _blocks(fine.wanted).max((1, 3)))


def _blocks(values: np.ndarray) -> np.ndarray:
    """[h, w] as blocks of 2 x 2: [h // 2, 2, w // 2, 2]; an odd last row or column is left out."""
    height, width = values.shape[0] // 2, values.shape[1] // 2
    return values[: height * 2, : width * 2].reshape(height, 2, width, 2)


def _half(picture: np.ndarray) -> np.ndarray:
    even = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
    return cv2.resize(even, (even.shape[1] // 2, even.shape[0] // 2), interpolation=cv2.INTER_AREA)


def _scaled(K_px: np.ndarray, level: int) -> np.ndarray:
    return np.diag([0.5**level, 0.5**level, 1.0]) @ K_px
