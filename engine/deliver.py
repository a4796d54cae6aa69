"""The delivered picture: real pixels at the clip's resolution, generated ones only where the new camera saw nothing."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .fill import push_pull

_MATCH_SCALE = 4  # colour differences are matched at a quarter of the resolution: tone, not texture
_MATCH_LIMIT = 0.25


def rim_weight(mask: np.ndarray, feather_px: float) -> np.ndarray:
    """1 at a hole's rim, falling to 0 over `feather_px` into the hole; float32 [h, w], mask bool [h, w]."""
    if mask.all() or not mask.any() or feather_px == 0:
        return np.zeros(mask.shape, np.float32)
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ramp = np.clip(1 - distance / (feather_px + 1), 0, 1)
    return np.where(mask, 0, ramp * ramp * (3 - 2 * ramp)).astype(np.float32)


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


def fitted(generated: Tensor, anchor: Tensor, mask: np.ndarray) -> Tensor:
    """The generated picture [N, 3, h, w] at the anchor's size and in its tone; mask bool [N, H, W]."""
    upsampled = to_clip_size(generated, anchor.shape[-2:])
    return match_color(upsampled, anchor, torch.from_numpy(mask.copy()).to(anchor.device))


def composite(generated: Tensor, anchor: Tensor, mask: np.ndarray, *, feather_px: float) -> Tensor:
    """Delivered frames: every real pixel as it is, the generated picture in the holes.

    What the picture still misses at a hole's rim is carried `feather_px` into the hole and fades out there, so that no
    seam shows and no real pixel is touched.

    Args:
        generated: float [N, 3, h, w] in 0..1 at the working size.
        anchor: float [N, 3, H, W] in 0..1 at the clip's size.
        mask: bool [N, H, W].

    Returns:
        float [N, 3, H, W].
    """
    if mask.all():
        return anchor
    picture = fitted(generated, anchor, mask)
    real = torch.from_numpy(mask.copy()).to(anchor.device)
    weight = np.stack([rim_weight(frame, feather_px) for frame in mask])
    missed = push_pull(anchor - picture, real) * torch.from_numpy(weight).to(anchor.device)[:, None]
    return torch.where(real[:, None], anchor, (picture + missed).clamp(0, 1))


def to_clip_size(generated: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Generated frames at the clip's resolution (bicubic); undoes the slight stretch of the working size."""
    if generated.shape[-2:] == tuple(size):
        return generated
    return F.interpolate(generated, size=tuple(size), mode="bicubic", antialias=True).clamp(0, 1)
