"""The delivered picture: real pixels at the clip's resolution, generated ones only where the new camera saw nothing."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .fill import push_pull

_MATCH_SCALE = 4  # colour differences are matched at a quarter of the resolution: tone, not texture
_MATCH_LIMIT = 0.25


def matte_of(mask: np.ndarray, feather_px: float) -> np.ndarray:
    """Share of the generated picture, float32 [h, w]: 1 in holes, falling to 0 over `feather_px` outside them."""
    if mask.all():
        return np.zeros(mask.shape, np.float32)
    if not mask.any() or feather_px == 0:
        return (~mask).astype(np.float32)
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ramp = np.clip(1 - (distance - 1) / feather_px, 0, 1)
    return np.where(mask, ramp * ramp * (3 - 2 * ramp), 1).astype(np.float32)


def match_color(generated: Tensor, anchor: Tensor, mask: Tensor) -> Tensor:
    """Shift the generated picture's tone to the anchor's: their difference where both exist, carried into the holes.

    Args:
        generated: float [N, 3, H, W].
        anchor: float [N, 3, H, W].
        mask: bool [N, H, W], where the anchor is real.
    """
    height, width = mask.shape[-2:]
    weight = mask[:, None].float()
    size = (max(1, height // _MATCH_SCALE), max(1, width // _MATCH_SCALE))
    share = F.interpolate(weight, size=size, mode="area")
    difference = F.interpolate((anchor - generated) * weight, size=size, mode="area") / share.clamp(min=1e-6)
    field = push_pull(difference.clamp(-_MATCH_LIMIT, _MATCH_LIMIT), share[:, 0])
    return generated + F.interpolate(field, size=(height, width), mode="bilinear")


def composite(generated: Tensor, anchor: Tensor, mask: np.ndarray, *, feather_px: float) -> tuple[Tensor, np.ndarray]:
    """Delivered frames and their matte.

    Args:
        generated: float [N, 3, h, w] in 0..1 at the working size.
        anchor: float [N, 3, H, W] in 0..1 at the clip's size.
        mask: bool [N, H, W].

    Returns:
        float [N, 3, H, W] and the matte, float32 [N, H, W].
    """
    matte = np.stack([matte_of(frame, feather_px) for frame in mask])
    if not matte.any():
        return anchor, matte
    upsampled = to_clip_size(generated, anchor.shape[-2:])
    matched = match_color(upsampled, anchor, torch.from_numpy(mask.copy()).to(anchor.device))
    alpha = torch.from_numpy(matte).to(anchor.device)[:, None]
    return (matched * alpha + anchor * (1 - alpha)).clamp(0, 1), matte


def to_clip_size(generated: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Generated frames at the clip's resolution (bicubic); undoes the slight stretch of the working size."""
    if generated.shape[-2:] == tuple(size):
        return generated
    return F.interpolate(generated, size=tuple(size), mode="bicubic", antialias=True).clamp(0, 1)
