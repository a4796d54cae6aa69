"""The validity mask at the resolution of the latents: which cells of the anchor may teach."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def latent_mask(
    mask: Tensor, cell: tuple[int, int], *, mode: Literal["area", "min"] = "area", threshold: float = 0.9
) -> Tensor:
    """Reduce a pixel mask to latent cells.

    Args:
        mask: bool [T, H, W], True = valid. H and W are multiples of the cell.
        cell: (height, width) of a latent cell in pixels; (8, 8) for Stable Video Diffusion.
        mode: `area`: a cell counts when at least `threshold` of its pixels are valid; `min`: when all are.
        threshold: Share of valid pixels, 0 to 1, for `area`.

    Returns:
        float32 [T, H / cell, W / cell] of zeros and ones.

    Raises:
        ValueError: the mask is not a whole number of cells.
    """
    if mask.shape[-2] % cell[0] or mask.shape[-1] % cell[1]:
        raise ValueError(f"a mask of {tuple(mask.shape[-2:])} is not a whole number of {cell} cells")
    share = F.avg_pool2d(mask[:, None].double(), cell)[:, 0]
    least = 1.0 if mode == "min" else threshold
    return (share >= least - 1e-9).float()
