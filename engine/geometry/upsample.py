"""Depth at the clip's resolution: each pixel takes the depth of the coarse neighbours that look like it."""

import torch
import torch.nn.functional as F
from torch import Tensor

_COLOR_SIGMA = 0.06


def guided_upsample(depth: Tensor, frames: Tensor, *, band: float = 0.05) -> Tensor:
    """Upsample depth under guidance of the colours (joint bilateral upsampling, Kopf et al. 2007), edges kept hard.

    The best-matching neighbour decides which surface a pixel belongs to; only neighbours of that surface are averaged.

    Args:
        depth: float [T, h, w]; inf and NaN pass through.
        frames: float [T, 3, H, W] in 0..1, H >= h and W >= w.
        band: relative depth within which neighbours are one surface.

    Returns:
        float [T, H, W]; the input itself at equal size.
    """
    height, width = frames.shape[-2:]
    h, w = depth.shape[-2:]
    if (h, w) == (height, width):
        return depth
    coarse = F.interpolate(frames, size=(h, w), mode="bilinear", antialias=True)
    y = (torch.arange(height, device=depth.device) + 0.5) * h / height - 0.5
    x = (torch.arange(width, device=depth.device) + 0.5) * w / width - 0.5
    row, column = y.round().long(), x.round().long()
    out = torch.empty(len(depth), height, width, dtype=depth.dtype, device=depth.device)
    for t in range(len(depth)):
        # Sky as a large finite logarithm, so that it averages with itself; unknown depths are never chosen.
        log = depth[t].log().clamp(max=60.0)
        values, weights = [], []
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                r, c = (row + dy).clamp(0, h - 1), (column + dx).clamp(0, w - 1)
                value = log[r][:, c]
                color = (coarse[t][:, r][:, :, c] - frames[t]).square().sum(0)
                distance = (r - y).square()[:, None] + (c - x).square()[None]
                weight = torch.exp(-color / (2 * _COLOR_SIGMA**2) - distance / 2) + 1e-12 * torch.exp(-distance)
                values.append(torch.nan_to_num(value))
                weights.append(torch.where(value.isnan(), 0.0, weight))
        value, weight = torch.stack(values), torch.stack(weights)  # [9, H, W]
        best = value.gather(0, weight.argmax(0, keepdim=True))
        weight = torch.where((value - best).abs() <= band, weight, 0.0)
        mean = (weight * value).sum(0) / weight.sum(0)
        out[t] = torch.where(mean > 50, torch.inf, mean.exp())
    return out
