"""The anchor video: every frame lifted by its depth and drawn from the new path, with the mask of what is real."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..kernels.splat import splat
from .cameras import CameraPath
from .depth.upsample import guided_upsample
from .store.arrays import ArrayWriter

FRAMES_AT_ONCE = 2
"""Frames lifted and drawn together: memory is bounded by this, whatever the clip's length."""


def draw_anchor(
    frames: np.ndarray,
    depth: np.ndarray,
    source_K_px: np.ndarray,
    path: CameraPath,
    color: ArrayWriter,
    mask: ArrayWriter,
    *,
    band: float,
    valid: Callable[[int], np.ndarray] | None,
    device: torch.device,
    on_frame: Callable[[int, float], None],
) -> None:
    """Append the anchor's colours (uint8 [h, w, 3]) and mask (bool [h, w]) frame by frame.

    Args:
        frames: uint8 [N, H, W, 3].
        depth: float32 [N, h', w'], at the depth network's resolution.
        source_K_px: [N, 3, 3] in pixels of (W, H).
        path: the new camera; its size is the anchor's.
        valid: mask of frame t, bool [H, W]: pixels that may be lifted.
        on_frame: called with (frames done, share of the last one that is covered).
    """
    w2c = torch.from_numpy(path.w2c.copy())
    target_K, source_K = torch.from_numpy(path.K_px.copy()), torch.from_numpy(source_K_px.copy())
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        part = slice(start, min(start + FRAMES_AT_ONCE, len(frames)))
        images = to_tensor(frames[part]).to(device)
        lifted = guided_upsample(torch.from_numpy(depth[part].copy()).to(device), images, band=band)
        allowed = None
        if valid is not None:
            allowed = torch.from_numpy(np.stack([valid(t) for t in range(part.start, part.stop)])).to(device)
        drawn = splat(
            images,
            lifted,
            source_K[part],
            w2c[part],
            target_K[part],
            (path.height, path.width),
            valid=allowed,
            band=band,
        )
        color.append(to_uint8(drawn.color))
        mask.append(drawn.mask.cpu().numpy())
        for t in range(part.start, part.stop):
            on_frame(t + 1, float(drawn.mask[t - part.start].float().mean()))


def to_tensor(frames: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] to float [N, 3, H, W] in 0..1."""
    return torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 255


def to_uint8(frames: Tensor) -> np.ndarray:
    """float [N, 3, H, W] in 0..1 to uint8 [N, H, W, 3], rounded."""
    return (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
