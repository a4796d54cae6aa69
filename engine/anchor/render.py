"""The anchor video: every frame lifted by its depth and drawn from the new path, with the mask of what is real."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...kernels.splat import Splat, splat
from ..cameras import CameraPath
from ..geometry.background import Plate, hidden
from ..geometry.upsample import guided_upsample
from ..graph.frame_task import FrameBatch

FRAMES_AT_ONCE = 2
"""Frames lifted and drawn together: memory is bounded by this, whatever the clip's length."""


def draw_anchor(
    frames: np.ndarray,
    depth: np.ndarray,
    chosen: range,
    source_K_px: np.ndarray,
    path: CameraPath,
    *,
    plate: Plate | None,
    band: float,
    valid: Callable[[int], np.ndarray] | None,
    device: torch.device,
) -> FrameBatch:
    """The anchor's colours (uint8 [T, h, w, 3]), mask (bool [T, h, w]) and evidence (uint8 [T, h, w]) of a few frames.

    Evidence says where a pixel comes from: 255 is the frame of the same moment, 1 to 254 other frames of a locked-off
    clip (the confidence in them), 0 a hole. Also `covered` and `borrowed`, float64 [T]: the share of each picture that
    is covered, and that other frames gave.

    Args:
        frames: uint8 [N, H, W, 3].
        depth: float32 [N, h', w'], at the depth network's resolution.
        chosen: the T frames that are drawn, at once.
        source_K_px: [N, 3, 3] in pixels of (W, H).
        path: the new camera; its size is the anchor's.
        plate: the static background that other frames show, drawn into the holes.
        valid: mask of frame t, bool [H, W]: pixels that may be lifted.
    """
    part = slice(chosen.start, chosen.stop)
    w2c = torch.from_numpy(path.w2c[part].copy())
    target_K, source_K = torch.from_numpy(path.K_px[part].copy()), torch.from_numpy(source_K_px[part].copy())
    images = to_tensor(frames[part]).to(device)
    lifted = guided_upsample(torch.from_numpy(depth[part].copy()).to(device), images, band=band)
    allowed = None if valid is None else torch.from_numpy(np.stack([valid(t) for t in chosen])).to(device)
    drawn = splat(images, lifted, source_K, w2c, target_K, (path.height, path.width), valid=allowed, band=band)
    picture, covered = drawn.color, drawn.mask
    source = covered.to(torch.uint8) * 255
    if plate is not None and not bool(covered.all()):
        behind = np.stack([hidden(plate, frames[t], depth[t], band=band) for t in chosen])
        other, confidence = _draw_plate(plate, behind, source_K, w2c, target_K, path, band, device)
        filled = other.mask & ~covered
        picture = torch.where(filled[:, None], other.color, picture)
        source = torch.where(filled, confidence, source)
        covered = covered | filled
    own, share = (np.array([float(each.float().mean()) for each in m]) for m in (drawn.mask, covered))
    return {
        "color": to_uint8(picture),
        "mask": covered.cpu().numpy(),
        "evidence": source.cpu().numpy(),
        "covered": share,
        "borrowed": share - own,
    }


def _draw_plate(
    plate: Plate,
    behind: np.ndarray,
    source_K_px: Tensor,
    w2c: Tensor,
    target_K_px: Tensor,
    path: CameraPath,
    band: float,
    device: torch.device,
) -> tuple[Splat, Tensor]:
    """The background's pixels of `behind` [T, H, W] from the new camera, and their evidence uint8 [T, h, w]."""
    count = len(behind)
    values = np.concatenate([plate.color.astype(np.float32) / 255, plate.confidence[..., None]], -1)
    pictures = torch.from_numpy(values).permute(2, 0, 1)[None].expand(count, -1, -1, -1).to(device)
    depth = torch.from_numpy(plate.depth.copy())[None].expand(count, -1, -1).to(device)
    valid = torch.from_numpy(behind).to(device)
    size = (path.height, path.width)
    drawn = splat(pictures, depth, source_K_px, w2c, target_K_px, size, valid=valid, band=band)
    confidence = (drawn.color[:, 3] * 254).round().clamp(1, 254).to(torch.uint8)
    return replace(drawn, color=drawn.color[:, :3]), confidence


def to_tensor(frames: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] to float [N, 3, H, W] in 0..1."""
    return torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 255


def to_uint8(frames: Tensor) -> np.ndarray:
    """float [N, 3, H, W] in 0..1 to uint8 [N, H, W, 3], rounded."""
    return (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
