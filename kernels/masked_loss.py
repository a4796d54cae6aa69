"""Masked diffusion loss of an EDM model, in the space of the network's output F.

With sigma s, noisy latents z_s = z + s n and denoiser D = c_skip z_s + c_out F (c_skip = 1/(s^2+1),
c_out = -s/sqrt(s^2+1)), the weighted error w |D - z|^2 with w = (s^2+1)/s^2 equals |F - v|^2 for
v = ((z_s - z)/s - s z)/sqrt(s^2+1), since w c_out^2 = 1. Computing it through D would lose 1e-5 at small s.
"""

from typing import Literal

import torch
from torch import Tensor

Normalisation = Literal["window", "frame", "none"]
LEAST_SHARE = 0.05
"""A window (or frame) with fewer valid cells than this is divided as if it had as many: no cell outweighs the rest."""


def v_target(noisy: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """What F should be: [B, T, C, h, w] from noisy and clean latents and sigma [B]."""
    s = sigma.view(-1, 1, 1, 1, 1).to(noisy)
    return ((noisy - clean) / s - s * clean) / torch.sqrt(s * s + 1)


def masked_loss(
    predicted: Tensor,
    noisy: Tensor,
    clean: Tensor,
    sigma: Tensor,
    mask: Tensor | None = None,
    *,
    normalisation: Normalisation = "window",
) -> Tensor:
    """Mean masked loss of a batch, a scalar in fp32 (fp64 for fp64 inputs); masked cells get a gradient of exactly 0.

    Args:
        predicted: F, [B, T, C, h, w].
        noisy: z_s, [B, T, C, h, w].
        clean: z, scaled latents [B, T, C, h, w].
        sigma: [B].
        mask: [B, T, h, w], 1 = valid; None counts every cell.
        normalisation: `window`: sum / (C max(valid cells, 5 % of all)) a window, then the mean over the batch;
            `frame`: the same for each frame, then the mean; `none`: sum / (C T h w).
    """
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    predicted, noisy, clean = (x.to(dtype) for x in (predicted, noisy, clean))
    error = (predicted - v_target(noisy, clean, sigma)).square()
    _, frames, channels, height, width = error.shape
    if mask is None:
        return error.mean()
    mask = mask.to(dtype)
    # Not a product: a non-finite value under the mask must not leak.
    per_frame = torch.where(mask[:, :, None] > 0, error * mask[:, :, None], 0.0).sum(dim=(2, 3, 4))  # [B, T]
    cells = mask.sum(dim=(2, 3))  # [B, T]
    if normalisation == "none":
        return per_frame.sum(1).mean() / (channels * frames * height * width)
    if normalisation == "frame":
        return (per_frame / (channels * cells.clamp(min=LEAST_SHARE * height * width))).mean()
    least = LEAST_SHARE * frames * height * width
    return (per_frame.sum(1) / (channels * cells.sum(1).clamp(min=least))).mean()
