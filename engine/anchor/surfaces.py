"""What surfaces an anchor frame shows: their depth from the new camera, and which of them stand before something else."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from ...kernels.splat import splat, warp
from ..cameras import CameraPath, Depths
from ..geometry.background import Plate, hidden
from ..geometry.upsample import upsample
from .render import to_tensor

_BESIDE_PX = 4
_BEFORE = 0.1
"""Log depth by which what lies beside a pixel is farther, until the pixel counts as in front."""


def draw_surfaces(
    frames: np.ndarray,
    depth: Depths,
    t: int,
    source_K_px: np.ndarray,
    path: CameraPath,
    *,
    plate: Plate | None,
    depth_tolerance: float,
    valid: Callable[[int], np.ndarray] | None,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Depth and front of the anchor's frame t; the arguments are `draw_anchor`'s, `source_K_px` [3, 3].

    Returns:
        float32 [h, w], z from the new camera: inf is sky, NaN where nothing was drawn. And bool [h, w], True on the
        pixels of a thing within 4 source pixels of something farther.
    """
    w2c, target_K = torch.from_numpy(path.w2c[t : t + 1].copy()), torch.from_numpy(path.K_px[t : t + 1].copy())
    source_K, size = torch.from_numpy(source_K_px[None].copy()), (path.height, path.width)
    image = to_tensor(frames[t : t + 1]).to(device)
    one = slice(t, t + 1)
    lifted = torch.from_numpy(upsample(np.array(depth[one]), frames[one], depth_tolerance=depth_tolerance)).to(device)
    allowed = None if valid is None else torch.from_numpy(valid(t)[None].copy()).to(device)
    drawn = splat(image, lifted, source_K, w2c, target_K, size, valid=allowed, depth_tolerance=depth_tolerance)
    log = lifted.log().clamp(max=60.0).nan_to_num(-60.0)[:, None]  # sky as a large finite logarithm
    front = warp(F.max_pool2d(log, 2 * _BESIDE_PX + 1, 1, _BESIDE_PX) - log > _BEFORE, drawn.winner)[0, 0]
    z = drawn.depth[0]
    if plate is not None and not bool(drawn.mask.all()):
        behind = torch.from_numpy(hidden(plate, frames[t], depth[t], depth_tolerance=depth_tolerance)[None]).to(device)
        far = torch.from_numpy(plate.depth[None].copy()).to(device)
        other = splat(image, far, source_K, w2c, target_K, size, valid=behind, depth_tolerance=depth_tolerance)
        z = torch.where(drawn.mask[0], z, other.depth[0])
    return z.cpu().numpy(), front.cpu().numpy()
