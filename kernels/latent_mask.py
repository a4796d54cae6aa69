"""The validity mask at the resolution of the latents: which cells of the anchor may teach.

A cell counts when at least `need` of its n pixels are valid: all of them, or the least k with k / n >= threshold.
Counts are whole numbers, so every backend gives the same cells.
"""

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import Backend, choose, njit, on_device

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this machine: the other two do the work
    triton = tl = None

_SLACK = 1e-9
"""What rounding may take from a share that equals the threshold."""


def latent_mask_torch(
    mask: Tensor, cell: tuple[int, int], *, mode: Literal["area", "min"] = "area", threshold: float = 0.9
) -> Tensor:
    """`latent_mask` in plain torch."""
    share = F.avg_pool2d(mask[:, None].double(), cell)[:, 0]
    least = 1.0 if mode == "min" else threshold
    return (share >= least - _SLACK).float()


# numba: one thread; a row of cells at a time, columns summed first (they are vectors), then each cell's columns.


def _numba_pass(
    out: np.ndarray,  # [T, h, w] float32
    mask: np.ndarray,  # [T, H, W] uint8 of zeros and ones
    height: int,  # of a cell, as is width
    width: int,
    need: int,
) -> None:
    count, rows, columns = out.shape
    summed = np.empty(columns * width, np.int32)
    for t in range(count):
        for r in range(rows):
            summed[:] = 0
            for y in range(r * height, (r + 1) * height):
                for x in range(columns * width):
                    summed[x] += mask[t, y, x]
            for c in range(columns):
                valid = 0
                for x in range(c * width, (c + 1) * width):
                    valid += summed[x]
                out[t, r, c] = 1.0 if valid >= need else 0.0


@cache
def _compiled() -> Any:
    return njit(_numba_pass)


# Triton: one program a run of cells of one row of cells.

_CELLS = 32

if triton is not None:

    @triton.jit
    def _area_kernel(
        out_ptr,  # [T, h, w] float32
        mask_ptr,  # [T, H, W] uint8
        columns,  # w
        runs,  # of CELLS cells in a row of cells
        width_px,  # W
        need,
        HEIGHT: tl.constexpr,  # of a cell, as is WIDTH
        WIDTH: tl.constexpr,
        COLUMNS_PX: tl.constexpr,  # WIDTH rounded up to a power of two
        CELLS: tl.constexpr,
    ):
        """out = 1 where a cell of HEIGHT x WIDTH pixels has at least `need` valid ones."""
        program = tl.program_id(0)
        row = (program // runs).to(tl.int64)  # counted over all frames: a frame is a whole number of cells high
        c = (program % runs) * CELLS + tl.arange(0, CELLS)
        x = tl.arange(0, COLUMNS_PX)
        at = c[:, None] * WIDTH + x[None, :]
        inside = (c[:, None] < columns) & (x[None, :] < WIDTH)
        valid = tl.zeros([CELLS, COLUMNS_PX], tl.int32)
        for y in range(HEIGHT):
            valid += tl.load(mask_ptr + (row * HEIGHT + y) * width_px + at, mask=inside, other=0).to(tl.int32)
        cells = tl.sum(valid, axis=1)
        tl.store(out_ptr + row * columns + c, (cells >= need).to(tl.float32), mask=c < columns)


def _run_numba(out: Tensor, mask: Tensor, cell: tuple[int, int], need: int) -> None:
    _compiled()(out.numpy(), mask.numpy(), *cell, need)


def _run_triton(out: Tensor, mask: Tensor, cell: tuple[int, int], need: int) -> None:
    count, rows, columns = out.shape
    runs = triton.cdiv(columns, _CELLS)
    if max(count * rows * runs, mask.shape[-1] + _CELLS * cell[1]) >= 2**31:
        raise ValueError(f"a mask of {tuple(mask.shape)} is more than one launch holds; give fewer frames")
    with on_device(mask.device):
        _area_kernel[(count * rows * runs,)](
            out,
            mask,
            columns,
            runs,
            mask.shape[-1],
            need,
            HEIGHT=cell[0],
            WIDTH=cell[1],
            COLUMNS_PX=triton.next_power_of_2(cell[1]),
            CELLS=_CELLS,
        )


def latent_mask(
    mask: Tensor,
    cell: tuple[int, int],
    *,
    mode: Literal["area", "min"] = "area",
    threshold: float = 0.9,
    backend: Backend = "auto",
) -> Tensor:
    """Reduce a pixel mask to latent cells.

    Args:
        mask: bool [T, H, W], True = valid. H and W are multiples of the cell.
        cell: (height, width) of a latent cell in pixels; (8, 8) for Stable Video Diffusion.
        mode: `area`: a cell counts when at least `threshold` of its pixels are valid; `min`: when all are.
        threshold: Share of valid pixels, 0 to 1, for `area`.
        backend: All give the same cells. A mask of another dtype, whose values weigh the pixels, is `torch`'s.

    Returns:
        float32 [T, H / cell, W / cell] of zeros and ones.

    Raises:
        ValueError: the mask is not a whole number of cells, or a backend that is not installed or cannot do it.
    """
    if mask.shape[-2] % cell[0] or mask.shape[-1] % cell[1]:
        raise ValueError(f"a mask of {tuple(mask.shape[-2:])} is not a whole number of {cell} cells")
    if mode not in ("area", "min"):
        raise ValueError(f"no mode {mode!r}; there are area, min")
    implementation = choose(backend, mask.device)
    unfit = mask.dtype != torch.bool or mask.numel() == 0
    if implementation == "torch" or (backend == "auto" and unfit):
        return latent_mask_torch(mask, cell, mode=mode, threshold=threshold)
    if unfit:
        raise ValueError(f"backend {implementation!r} takes a bool mask with at least one pixel; use 'torch'")
    out = torch.empty(
        (len(mask), mask.shape[1] // cell[0], mask.shape[2] // cell[1]), dtype=torch.float32, device=mask.device
    )
    least, pixels = 1.0 if mode == "min" else threshold, cell[0] * cell[1]
    need = next((k for k in range(pixels + 1) if k / pixels >= least - _SLACK), pixels + 1)
    run = _run_numba if implementation == "numba" else _run_triton
    run(out, mask.contiguous().view(torch.uint8), cell, need)
    return out
