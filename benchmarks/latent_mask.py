"""Latent mask of a whole anchor: average pooling in torch against one pass of counting."""

import torch

from ..kernels.backends import Backend, installed
from ..kernels.latent_mask import latent_mask
from .timing import COPY, Row, compare, copy_of, one_thread

OP = "latent_mask"
SHAPE = (14, 576, 1024)
"""[T, H, W]"""


def rows(device: str, quick: bool) -> list[Row]:
    """Rows of this operation; `quick` repeats less."""
    mask = torch.rand(SHAPE, device=device) < 0.95
    fast: Backend = "triton" if device == "cuda" else "numba"
    rivals = {"torch": lambda: latent_mask(mask, (8, 8), backend="torch")}
    if installed(fast):
        rivals[fast] = lambda: latent_mask(mask, (8, 8), backend=fast)
    rivals[COPY] = copy_of(mask.numel() + 4 * mask.numel() // 64, device)
    with one_thread():
        return compare(
            OP, "x".join(map(str, SHAPE)), rivals, baseline="torch", device=device, repeats=10 if quick else 60
        )
