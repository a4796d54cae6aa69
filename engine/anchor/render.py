"""The anchor video: every frame lifted by its depth and drawn from the new path, with the mask of what is real."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor

from ...kernels.splat import Splat, splat, warp
from ..cameras import CameraPath, Depths
from ..geometry.background import TRUSTED, Plate, hidden
from ..geometry.upsample import upsample
from ..graph.frame_task import FrameBatch
from .matte import split_layers
from .other_frames import UNCERTAIN, OtherFrames, Own

FRAMES_AT_ONCE = 2
"""Frames lifted and drawn together: memory is bounded by this, whatever the clip's length."""
_NARROW_PX = 4
"""A gap in what is sure, between two sides that are, is no wider than this; a hole beside one side is none."""
_SPECK_PX = 4
"""Islands and holes of at most this many pixels are no content."""


def draw_anchor(
    frames: np.ndarray,
    depth: Depths,
    chosen: range,
    source_K_px: np.ndarray,
    path: CameraPath,
    *,
    plate: Plate | None,
    others: OtherFrames | None = None,
    depth_tolerance: float,
    valid: Callable[[int], np.ndarray] | None,
    device: torch.device,
) -> FrameBatch:
    """The anchor of a few frames, each drawn as two layers (`matte.py`): the near things' soft edges over the rest.

    Returns:
        `color` uint8 [T, h, w, 3]; `validity_mask` bool [T, h, w]; `alpha` uint8 [T, h, w], 255 where it
        is covered, else how much of the pixel the soft edge of a near thing covers, whose color it then has: a hole
        beside a near thing begins outside its soft edge, and what fills the hole goes behind that edge; `provenance`
        uint8 [T, h, w], where a pixel comes from: 255 is the frame of the same moment, 1 to 254 other frames of a
        locked-off clip (the confidence in them) or of a camera that moves (254 less their distance in time), 0 a hole.
        `covered` and `from_other_frames`, float64 [T]: the share of each picture that is covered, and that other frames gave.

    Args:
        frames: uint8 [N, H, W, 3].
        depth: float32 [N, h', w'], at the depth network's resolution.
        chosen: the T frames that are drawn, at once.
        source_K_px: [N, 3, 3] in pixels of (W, H).
        path: the new camera; its size is the anchor's.
        plate: the static background that other frames show, drawn into the holes.
        others: the clip's other frames in one world with these, drawn into the holes where the source camera moves.
        valid: mask of frame t, bool [H, W]: pixels that may be lifted.
    """
    part = slice(chosen.start, chosen.stop)
    w2c = torch.from_numpy(path.w2c[part].copy())
    target_K, source_K = torch.from_numpy(path.K_px[part].copy()), torch.from_numpy(source_K_px[part].copy())
    allowed = None if valid is None else torch.from_numpy(np.stack([valid(t) for t in chosen])).to(device)

    def draw(pictures: Tensor, depths: Tensor) -> Splat:
        size = (path.height, path.width)
        return splat(pictures, depths, source_K, w2c, target_K, size, valid=allowed, depth_tolerance=depth_tolerance)

    layers = _split(
        frames[part],
        upsample(np.array(depth[part]), frames[part], depth_tolerance=depth_tolerance),
        depth_tolerance,
        device,
    )
    far, near = draw(layers.color, layers.depth), draw(layers.near, layers.near_depth)
    seen = _laid_over(far, near, layers.mixed, depth_tolerance)
    covered, behind = seen.covered, seen.behind
    source = covered.to(torch.uint8) * 255
    if plate is not None and not bool(covered.all()):
        unseen = np.stack([hidden(plate, frames[t], depth[t], depth_tolerance=depth_tolerance) for t in chosen])
        unseen |= (layers.mixed.cpu().numpy() > 0) & (plate.confidence >= TRUSTED)  # what a soft edge lies over
        other, confidence = _draw_plate(plate, unseen, source_K, w2c, target_K, path, depth_tolerance, device)
        filled = other.mask & ~covered
        behind = torch.where(filled[:, None], other.color, behind)
        source = torch.where(filled, confidence, source)
        covered = covered | filled
    if others is not None and not bool(covered.all()):
        for k, t in enumerate(chosen):
            own = Own(color=far.color[k], depth=far.depth[k], covered=covered[k])
            found = others.fill(t, own, depth_tolerance, valid)
            filled = found.mask & ~covered[k]
            behind[k] = torch.where(filled[None], found.color, behind[k])
            source[k] = torch.where(filled, found.provenance, source[k])
            covered[k] |= filled
    whole = seen.edge + (1 - seen.alpha)[:, None] * behind
    picture = to_uint8(torch.where(covered[:, None], whole, seen.alone))
    mask, provenance = covered.cpu().numpy(), source.cpu().numpy()
    for t in range(len(mask)):
        _remove_specks(picture[t], mask[t], provenance[t])
    return {
        "color": picture,
        "validity_mask": mask,
        "alpha": np.where(mask, np.uint8(255), to_uint8(seen.alpha[:, None])[..., 0]),
        "provenance": provenance,
        "covered": mask.mean((1, 2)),
        "from_other_frames": ((provenance > 0) & (provenance < 255)).mean((1, 2)),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """Both layers from the new camera.

    Attributes:
        edge: float32 [T, 3, h, w], the near edges' color times `alpha` [T, h, w], what they cover of a pixel.
        alone: float32 [T, 3, h, w], their color by itself, all that is known of a soft edge before a hole.
        behind: float32 [T, 3, h, w], the far layer, `alone` where it has nothing.
        covered: bool [T, h, w], pixels of which both together show enough that is certain.
    """

    edge: Tensor
    alpha: Tensor
    alone: Tensor
    behind: Tensor
    covered: Tensor


def _laid_over(far: Splat, near: Splat, mixed: Tensor, depth_tolerance: float) -> _Seen:
    """The near layer over the far one; `mixed` [T, H, W] of the source says how uncertain the far one's colors are."""
    # An edge lies before what is farther. Before its own thing, which is whole there, it adds nothing.
    in_front = near.mask & ~(far.depth <= near.depth * (1 + depth_tolerance))  # the depth of what is open is NaN
    alpha = torch.where(in_front, near.color[:, 3], 0.0)
    edge = torch.where(in_front[:, None], near.color[:, :3], 0.0)
    alone = edge / alpha.clamp(min=1e-3)[:, None]
    uncertain = torch.where(far.mask, warp(mixed[:, None], far.winner)[:, 0], 1.0)
    covered = (1 - alpha) * uncertain <= UNCERTAIN
    covered = covered | (_closed(covered) & far.mask)  # what was behind a thin thing is known from both its sides
    return _Seen(
        edge=edge, alpha=alpha, alone=alone, behind=torch.where(far.mask[:, None], far.color, alone), covered=covered
    )


def _closed(masks: Tensor) -> Tensor:
    """Masks [T, h, w] without the gaps that are at most `_NARROW_PX` wide."""
    kernel = np.ones((_NARROW_PX + 1, _NARROW_PX + 1), np.uint8)
    closed = [cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel) for mask in masks.byte().cpu().numpy()]
    return torch.from_numpy(np.stack(closed)).to(masks.device) > 0


def _remove_specks(color: np.ndarray, mask: np.ndarray, source: np.ndarray) -> None:
    """Take islands of at most `_SPECK_PX` pixels out of a frame's holes, and close holes of that size, in place.

    Args:
        color: uint8 [h, w, 3]; a closed pixel takes the mean of what is covered around it.
        mask: bool [h, w].
        source: uint8 [h, w], provenance.
    """
    islands = _small_parts(mask)
    mask[islands], source[islands] = False, 0
    rows, columns = np.nonzero(_small_parts(~mask) & ~islands)
    if not len(rows):
        return
    reach = np.arange(1 - _SPECK_PX, _SPECK_PX)  # out of any hole of that size
    v = (rows[:, None, None] + reach[:, None]).clip(0, mask.shape[0] - 1)  # [N, K, 1]
    u = (columns[:, None, None] + reach).clip(0, mask.shape[1] - 1)  # [N, 1, K]
    weight = mask[v, u] / (1 + np.square(reach)[:, None] + np.square(reach))
    weight /= weight.sum((1, 2), keepdims=True)
    mean, footage = (color[v, u] * weight[..., None]).sum((1, 2)), source[v, u].max((1, 2))
    color[rows, columns], mask[rows, columns], source[rows, columns] = np.rint(mean), True, footage


def _small_parts(mask: np.ndarray) -> np.ndarray:
    """The connected parts of a mask [h, w] (eight neighbors) that have at most `_SPECK_PX` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] <= _SPECK_PX
    small[0] = False
    return small[labels.astype(np.intp)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawables:
    """`matte.Layers` of a few frames as `splat` takes them; `near` [T, 4, H, W] is color times alpha, then alpha."""

    color: Tensor
    depth: Tensor
    mixed: Tensor
    near: Tensor
    near_depth: Tensor


def _split(frames: np.ndarray, depth: np.ndarray, depth_tolerance: float, device: torch.device) -> _Drawables:
    """Frames uint8 [T, H, W, 3] with depth float32 [T, H, W], taken apart side by side."""
    with ThreadPoolExecutor(max(1, min(len(frames), torch.get_num_threads()))) as pool:
        parts = list(pool.map(partial(split_layers, depth_tolerance=depth_tolerance), frames, depth))

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(part, name) for part in parts])).to(device)

    alpha = stacked("alpha")[:, None]
    return _Drawables(
        color=stacked("color").permute(0, 3, 1, 2),
        depth=stacked("depth"),
        mixed=stacked("mixed"),
        near=torch.cat([stacked("near_color").permute(0, 3, 1, 2) * alpha, alpha], 1),
        near_depth=stacked("near_depth"),
    )


def _draw_plate(
    plate: Plate,
    behind: np.ndarray,
    source_K_px: Tensor,
    w2c: Tensor,
    target_K_px: Tensor,
    path: CameraPath,
    depth_tolerance: float,
    device: torch.device,
) -> tuple[Splat, Tensor]:
    """The background's pixels of `behind` [T, H, W] from the new camera, and their provenance uint8 [T, h, w]."""
    count = len(behind)
    values = np.concatenate([plate.color.astype(np.float32) / 255, plate.confidence[..., None]], -1)
    pictures = torch.from_numpy(values).permute(2, 0, 1)[None].expand(count, -1, -1, -1).to(device)
    depth = torch.from_numpy(plate.depth.copy())[None].expand(count, -1, -1).to(device)
    valid = torch.from_numpy(behind).to(device)
    size = (path.height, path.width)
    drawn = splat(pictures, depth, source_K_px, w2c, target_K_px, size, valid=valid, depth_tolerance=depth_tolerance)
    confidence = (drawn.color[:, 3] * 254).round().clamp(1, 254).to(torch.uint8)
    return replace(drawn, color=drawn.color[:, :3]), confidence


def to_tensor(frames: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] to float [N, 3, H, W] in 0..1."""
    return torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 255


def to_uint8(frames: Tensor) -> np.ndarray:
    """float [N, 3, H, W] in 0..1 to uint8 [N, H, W, 3], rounded."""
    return (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
