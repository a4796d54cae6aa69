"""The delivered picture: real pixels at the clip's resolution, generated ones only where the new camera saw nothing."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .push_pull import push_pull


def rim_weight(mask: np.ndarray, feather_px: float) -> np.ndarray:
    """1 at a hole's rim, falling to 0 over `feather_px` into the hole; float32 [h, w], mask bool [h, w]."""
    if mask.all() or not mask.any() or feather_px == 0:
        return np.zeros(mask.shape, np.float32)
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ramp = np.clip(1 - distance / (feather_px + 1), 0, 1)
    return np.where(mask, 0, ramp * ramp * (3 - 2 * ramp)).astype(np.float32)


def composite(
    generated: Tensor, anchor: Tensor, mask: np.ndarray, alpha: np.ndarray | None = None, *, feather_px: float
) -> Tensor:
    """Delivered frames: every real pixel as it is, the generated picture in the holes, behind soft edges.

    What the picture misses at a hole's rim is carried `feather_px` into the hole and fades out there, so that no seam
    shows and no real pixel is touched. It is not carried farther, as tone matching would: what the picture misses at its
    rim says little of what it misses deep inside.

    Args:
        generated: float [N, 3, h, w] in 0..1 at the working size.
        anchor: float [N, 3, H, W] in 0..1 at the clip's size.
        mask: bool [N, H, W], real pixels.
        alpha: uint8 [N, H, W], how much of a pixel that is not real the anchor's color covers; None is nothing.

    Returns:
        float [N, 3, H, W].
    """
    if mask.all():
        return anchor
    picture = to_clip_size(generated, anchor.shape[-2:])
    real = torch.from_numpy(mask.copy()).to(anchor.device)
    weight = np.stack([rim_weight(frame, feather_px) for frame in mask])
    missed = push_pull(anchor - picture, real) * torch.from_numpy(weight).to(anchor.device)[:, None]
    behind = (picture + missed).clamp(0, 1)
    if alpha is not None:
        share = torch.from_numpy(alpha.copy()).to(behind)[:, None] / 255
        behind = share * anchor + (1 - share) * behind
    return torch.where(real[:, None], anchor, behind)


def to_clip_size(generated: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Generated frames at the clip's resolution (bicubic); undoes the slight stretch of the working size."""
    if generated.shape[-2:] == tuple(size):
        return generated
    return F.interpolate(generated, size=tuple(size), mode="bicubic", antialias=True).clamp(0, 1)
