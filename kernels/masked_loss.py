"""Masked diffusion loss of an EDM model, in the space of the network's output F.

With sigma s, noisy latents z_s = z + s n and denoiser D = c_skip z_s + c_out F (c_skip = 1/(s^2+1),
c_out = -s/sqrt(s^2+1)), the weighted error w |D - z|^2 with w = (s^2+1)/s^2 equals |F - v|^2 for
v = ((z_s - z)/s - s z)/sqrt(s^2+1), since w c_out^2 = 1. Computing it through D would lose 1e-5 at small s.

Loss L = sum_i W m_i (F_i - v_i)^2 and gradient dL/dF_i = 2 W m_i (F_i - v_i) share everything that is read, so the
fast paths write the gradient while they sum the loss; the backward pass multiplies it by a number that is almost
always 1. W = 1 / (groups C max(valid cells of the group, least)), a group being a window or a frame.

Shapes: B windows, T frames, C channels, h x w latent cells; inside the kernels N = B T frames of n = h w cells.
"""

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import Backend, Implementation, choose, njit, on_device

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this machine: the other two do the work
    triton = tl = None

Normalization = Literal["window", "frame", "none"]
LEAST_SHARE = 0.05
"""A window (or frame) with fewer valid cells than this is divided as if it had as many: no cell outweighs the rest."""


# Plain torch: the oracle, the benchmark's baseline, the fallback.


def v_target(noisy: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """What F should be: [B, T, C, h, w] from noisy and clean latents and sigma [B]."""
    s = sigma.view(-1, 1, 1, 1, 1).to(noisy)
    return ((noisy - clean) / s - s * clean) / torch.sqrt(s * s + 1)


def masked_loss_torch(
    predicted: Tensor,
    noisy: Tensor,
    clean: Tensor,
    sigma: Tensor,
    mask: Tensor | None = None,
    *,
    normalization: Normalization = "window",
) -> Tensor:
    """`masked_loss` in plain torch, differentiable in every input."""
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    predicted, noisy, clean = (x.to(dtype) for x in (predicted, noisy, clean))
    difference = predicted - v_target(noisy, clean, sigma)
    _, frames, channels, height, width = difference.shape
    if mask is None:
        return difference.square().mean()
    mask = mask.to(dtype)
    # Not a product, and before the square: a non-finite value under the mask must reach neither loss nor gradient.
    difference = torch.where(mask[:, :, None] > 0, difference, 0.0)
    per_frame = (difference.square() * mask[:, :, None]).sum(dim=(2, 3, 4))  # [B, T]
    cells = mask.sum(dim=(2, 3))  # [B, T]
    if normalization == "none":
        return per_frame.sum(1).mean() / (channels * frames * height * width)
    if normalization == "frame":
        return (per_frame / (channels * cells.clamp(min=LEAST_SHARE * height * width))).mean()
    least = LEAST_SHARE * frames * height * width
    return (per_frame.sum(1) / (channels * cells.sum(1).clamp(min=least))).mean()


# numba: one thread, vectorized; sums of a row of cells in fp32, of rows in fp64, always in the same order.

_ROW = 4096


def _numba_pass(
    gradient: np.ndarray,  # [N, C, n] float32, written where `wanted`
    predicted: np.ndarray,  # [N, C, n] float32, as are noisy and clean
    noisy: np.ndarray,
    clean: np.ndarray,
    sigma: np.ndarray,  # [B] float64
    mask: np.ndarray,  # [N, n] uint8 or float32
    frames: int,
    counted: int,  # frames a group whose valid cells divide the loss: T for a window, 1 for a frame, 0 for none
    least: float,  # cells
    wanted: bool,
) -> float:
    count, channels, cells = predicted.shape
    weights = np.zeros(count)
    for f in range(count):
        for start in range(0, cells, _ROW):
            valid, mask_row = np.float32(0), mask[f, start : start + _ROW]
            for i in range(len(mask_row)):
                valid += np.float32(mask_row[i])
            weights[f] += valid
    group = max(counted, 1) if counted != 0 else frames
    for first in range(0, count, group):
        valid = np.sum(weights[first : first + group]) if counted != 0 else 0.0
        weights[first : first + group] = group / (count * channels * max(valid, least))
    loss = 0.0
    for f in range(count):
        s = sigma[f // frames]
        root = np.sqrt(s * s + 1)
        noise_scale, clean_scale, slope = np.float32(1 / (s * root)), np.float32(s / root), np.float32(2 * weights[f])
        for c in range(channels):
            for start in range(0, cells, _ROW):
                # Rows of their own: an index that is no sum is never negative, and the compiler loads whole vectors.
                end, row = start + _ROW, np.float32(0)
                mask_row, gradient_row = mask[f, start:end], gradient[f, c, start:end]
                F, noisy_row, z = predicted[f, c, start:end], noisy[f, c, start:end], clean[f, c, start:end]
                for i in range(len(F)):
                    m = np.float32(mask_row[i])
                    difference = F[i] - ((noisy_row[i] - z[i]) * noise_scale - z[i] * clean_scale)
                    difference = difference if m > 0 else np.float32(0)
                    row += m * difference * difference
                    if wanted:
                        gradient_row[i] = slope * m * difference
                loss += weights[f] * row
    return loss


@cache
def _compiled() -> Any:
    # Sums may be reordered into vector lanes (once, by the compiler); NaN and infinity keep their meaning.
    return njit(_numba_pass, fastmath={"reassoc", "nsz", "contract"})


# Triton: one program a tile of one frame, all its channels; the program that ends last adds up the others' sums.

_TILE = 1024
_WARPS = 8
"""Four values a thread: one load of 16 bytes in fp32, 32 registers, every multiprocessor full."""
_COUNTED_IN_PLACE = 1 << 18
"""A group of at most this many cells is counted anew by every program (from cache) rather than in a launch before."""

if triton is not None:

    @triton.jit
    def _count_kernel(counts_ptr, mask_ptr, cells, tiles, TILE: tl.constexpr):
        """counts[tile] = sum of the mask [N, n] over one tile of one frame."""
        program = tl.program_id(0)
        i = (program % tiles) * TILE + tl.arange(0, TILE)
        frame = (program // tiles).to(tl.int64)
        m = tl.load(mask_ptr + frame * cells + i, mask=i < cells, other=0).to(tl.float32)
        tl.store(counts_ptr + program, tl.sum(m))

    @triton.jit
    def _loss_kernel(
        loss_ptr,  # [] float32
        gradient_ptr,  # [N, C, n]
        partial_ptr,  # [programs] float32, scratch
        done_ptr,  # [] int32, zero before and after
        predicted_ptr,  # [N, C, n], as are noisy and clean
        noisy_ptr,
        clean_ptr,
        sigma_ptr,  # [B]
        mask_ptr,  # [N, n]
        counts_ptr,  # [N, a frame's counts]: the mask itself or the sums of its tiles
        frames,
        channels,
        cells,
        tiles,
        group,  # frames a group
        groups,
        frame_counts,
        least,
        HAS_MASK: tl.constexpr,
        COUNTED: tl.constexpr,
        GRADIENT: tl.constexpr,
        TILE: tl.constexpr,
    ):
        """L = sum W m (F - v)^2 and dL/dF = 2 W m (F - v), see the module."""
        program = tl.program_id(0)
        frame = program // tiles
        i = (program % tiles) * TILE + tl.arange(0, TILE)
        inside = i < cells

        valid = 0.0
        if COUNTED:
            first = counts_ptr + (frame // group).to(tl.int64) * group * frame_counts
            lanes = tl.zeros([4 * TILE], tl.float32)  # wide: few trips, each as long as the cache takes to answer
            for start in range(0, group * frame_counts, 4 * TILE):
                at = start + tl.arange(0, 4 * TILE)
                lanes += tl.load(first + at, mask=at < group * frame_counts, other=0).to(tl.float32)
            valid = tl.sum(lanes)
        weight = tl.div_rn(1.0, groups * (channels * tl.maximum(valid, least)))

        s = tl.load(sigma_ptr + frame // frames).to(tl.float32)
        root = tl.sqrt_rn(s * s + 1)
        noise_scale, clean_scale = tl.div_rn(1.0, s * root), tl.div_rn(s, root)
        m = inside.to(tl.float32)
        if HAS_MASK:
            m = tl.load(mask_ptr + frame.to(tl.int64) * cells + i, mask=inside, other=0).to(tl.float32)
        lanes = tl.zeros([TILE], tl.float32)
        for c in range(channels):
            at = (frame.to(tl.int64) * channels + c) * cells + i
            f = tl.load(predicted_ptr + at, mask=inside, other=0).to(tl.float32)
            z = tl.load(clean_ptr + at, mask=inside, other=0).to(tl.float32)
            noisy = tl.load(noisy_ptr + at, mask=inside, other=0).to(tl.float32)
            difference = tl.where(m > 0, f - ((noisy - z) * noise_scale - z * clean_scale), 0.0)
            lanes += m * difference * difference
            if GRADIENT:
                tl.store(gradient_ptr + at, 2 * weight * m * difference, mask=inside)

        # Sums in the order of the programs' numbers, whichever ends last: no float atomics, the same bits every time.
        tl.store(partial_ptr + program, weight * tl.sum(lanes))
        if tl.atomic_add(done_ptr, 1, sem="acq_rel") == tl.num_programs(0) - 1:
            lanes = tl.zeros([TILE], tl.float32)
            for start in range(0, tl.num_programs(0), TILE):
                at = start + tl.arange(0, TILE)
                # Past the L1 cache, which does not see what other multiprocessors wrote.
                lanes += tl.load(partial_ptr + at, mask=at < tl.num_programs(0), other=0, cache_modifier=".cg")
            tl.store(loss_ptr, tl.sum(lanes))
            tl.store(done_ptr, 0)

    @triton.jit
    def _scale_kernel(out_ptr, gradient_ptr, factor_ptr, count, IN_PLACE: tl.constexpr, TILE: tl.constexpr):
        """out = factor gradient; in place, a factor of 1 (the usual one) touches no memory."""
        factor = tl.load(factor_ptr).to(tl.float32)
        i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
        if IN_PLACE:
            count = tl.where(factor == 1.0, 0, count)
        moved = i < count
        value = tl.load(gradient_ptr + i, mask=moved, other=0).to(tl.float32)
        tl.store(out_ptr + i, factor * value, mask=moved)


# Launchers: (loss, gradient or None). Inputs of any strides and float dtypes; sums in fp32.


def _run_numba(
    predicted: Tensor,
    noisy: Tensor,
    clean: Tensor,
    sigma: Tensor,
    mask: Tensor | None,
    normalization: Normalization,
    wanted: bool,
) -> tuple[Tensor, Tensor | None]:
    batch, frames, channels, height, width = predicted.shape
    cells = height * width
    if mask is None:
        mask, normalization = torch.ones(batch, frames, height, width, dtype=torch.uint8), "none"
    values = [x.detach().float().contiguous().view(-1, channels, cells) for x in (predicted, noisy, clean)]
    gradient = torch.empty_like(values[0]) if wanted else values[0]
    loss = _compiled()(
        gradient.numpy(),
        *(x.numpy() for x in values),
        sigma.detach().double().contiguous().numpy(),
        _plain(mask).view(-1, cells).numpy(),
        frames,
        {"window": frames, "frame": 1, "none": 0}[normalization],
        _least(normalization, frames, cells),
        wanted,
    )
    return torch.tensor(loss, dtype=torch.float32), gradient.view(predicted.shape) if wanted else None


def _run_triton(
    predicted: Tensor,
    noisy: Tensor,
    clean: Tensor,
    sigma: Tensor,
    mask: Tensor | None,
    normalization: Normalization,
    wanted: bool,
) -> tuple[Tensor, Tensor | None]:
    batch, frames, channels, height, width = predicted.shape
    device, cells = predicted.device, height * width
    tiles = triton.cdiv(cells, _TILE)
    programs = batch * frames * tiles
    if max(programs, cells + _TILE) >= 2**31:
        raise ValueError(
            f"{tuple(predicted.shape)} is more than one launch holds; give fewer windows or smaller frames"
        )
    values = [x.detach().contiguous() for x in (predicted, noisy, clean)]
    # A gradient of a million cells' mean is below what fp16 resolves until a loss scale has multiplied it.
    kept = torch.float32 if predicted.dtype == torch.float16 else predicted.dtype
    gradient = torch.empty(predicted.shape, dtype=kept, device=device) if wanted else None
    loss = torch.empty((), dtype=torch.float32, device=device)
    partial = torch.empty(programs, dtype=torch.float32, device=device)
    normalization = "none" if mask is None else normalization
    group = 1 if normalization == "frame" else frames
    plain = values[0] if mask is None else _plain(mask)  # a pointer that is never read, where there is no mask
    counts, frame_counts = plain, cells
    counted = normalization != "none"
    with on_device(device):
        if counted and group * cells > _COUNTED_IN_PLACE:
            counts, frame_counts = torch.empty(programs, dtype=torch.float32, device=device), tiles
            _count_kernel[(programs,)](counts, plain, cells, tiles, TILE=_TILE, num_warps=_WARPS)
        _loss_kernel[(programs,)](
            loss,
            loss if gradient is None else gradient,
            partial,
            _finished(device),
            *values,
            sigma.detach().to(device).contiguous(),
            plain,
            counts,
            frames,
            channels,
            cells,
            tiles,
            group,
            batch * frames // group,
            frame_counts,
            _least(normalization, frames, cells),
            HAS_MASK=mask is not None,
            COUNTED=counted,
            GRADIENT=wanted,
            TILE=_TILE,
            num_warps=_WARPS,
        )
    return loss, gradient


def _least(normalization: Normalization, frames: int, cells: int) -> float:
    """Cells that a group is divided by at least; with no count this is all of them."""
    share = 1.0 if normalization == "none" else LEAST_SHARE
    return share * cells * (1 if normalization == "frame" else frames)


def _plain(mask: Tensor) -> Tensor:
    """A mask as contiguous uint8 or float32."""
    mask = mask.detach().contiguous()
    if mask.dtype == torch.bool:
        return mask.view(torch.uint8)
    return mask if mask.dtype == torch.uint8 else mask.float()


_finished_of: dict[tuple[int | None, int], Tensor] = {}


def _finished(device: torch.device) -> Tensor:
    """Count of finished programs, int32 zero; each kernel leaves it at zero for the next one of its stream."""
    if device.type != "cuda":
        return torch.zeros((), dtype=torch.int32, device=device)
    if torch.cuda.is_current_stream_capturing():
        # Its own, from the graph's memory: it must live as long as the graph, and two graphs may replay side by side.
        return torch.zeros((), dtype=torch.int32, device=device)
    key = device.index, torch.cuda.current_stream(device).cuda_stream
    if key not in _finished_of:
        _finished_of[key] = torch.zeros((), dtype=torch.int32, device=device)
    return _finished_of[key]


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype, implementation: Implementation) -> Tensor:
    """factor [] times gradient as `dtype`; the gradient's memory is reused where it can be."""
    if implementation == "triton":
        out = gradient if gradient.dtype == dtype else torch.empty_like(gradient, dtype=dtype)
        grid = (triton.cdiv(gradient.numel(), _TILE),)
        with on_device(gradient.device):
            _scale_kernel[grid](
                out,
                gradient,
                factor.contiguous(),
                gradient.numel(),
                IN_PLACE=out is gradient,
                TILE=_TILE,
                num_warps=_WARPS,
            )
        return out
    if float(factor) != 1.0:  # on a CPU nobody waits for this
        gradient.mul_(factor)
    return gradient.to(dtype)


class _MaskedLoss(torch.autograd.Function):
    """Differentiable in `predicted` alone; its gradient is ready when the loss is."""

    @staticmethod
    def forward(
        ctx: Any,
        predicted: Tensor,
        noisy: Tensor,
        clean: Tensor,
        sigma: Tensor,
        mask: Tensor | None,
        normalization: Normalization,
        implementation: Implementation,
    ) -> Tensor:
        ctx.save_for_backward(predicted, noisy, clean, sigma, mask)
        ctx.choice = normalization, implementation, predicted.dtype
        loss, ctx.gradient = _RUN[implementation](predicted, noisy, clean, sigma, mask, normalization, True)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        normalization, implementation, dtype = ctx.choice
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # a second pass over a kept graph: the first gave the memory away
            gradient = _RUN[implementation](*ctx.saved_tensors, normalization, True)[1]
        scaled = _scaled(gradient, grad_loss, dtype, implementation)
        return scaled, None, None, None, None, None, None


_RUN = {"numba": _run_numba, "triton": _run_triton}


def masked_loss(
    predicted: Tensor,
    noisy: Tensor,
    clean: Tensor,
    sigma: Tensor,
    mask: Tensor | None = None,
    *,
    normalization: Normalization = "window",
    backend: Backend = "auto",
) -> Tensor:
    """Mean masked loss of a batch, a scalar in fp32 (fp64 for fp64 inputs); masked cells get a gradient of exactly 0.

    The same inputs give the same bits on every run and with any number of threads, but each backend has its own bits:
    they agree to about 1e-6.

    Args:
        predicted: F, [B, T, C, h, w].
        noisy: z_s, [B, T, C, h, w].
        clean: z, scaled latents [B, T, C, h, w].
        sigma: [B].
        mask: [B, T, h, w], 1 = valid, of any dtype; values between weigh a cell. None counts every cell.
        normalization: `window`: sum / (C max(valid cells, 5 % of all)) a window, then the mean over the batch;
            `frame`: the same for each frame, then the mean; `none`: sum / (C T h w).
        backend: `triton` and `numba` compute the gradient together with the loss, in fp32, and only that of
            `predicted`. `auto` leaves to `torch` what they do not do: fp64, gradients of other inputs, nothing at all.

    Raises:
        ValueError: shapes that do not belong together, or a backend that is not installed or cannot do it.
    """
    if predicted.ndim != 5 or not predicted.shape == noisy.shape == clean.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (predicted, noisy, clean))
        raise ValueError(f"predicted, noisy and clean are of one shape [B, T, C, h, w], these are {shapes}")
    batch, frames, _, height, width = predicted.shape
    if sigma.shape != (batch,) or (mask is not None and mask.shape != (batch, frames, height, width)):
        given = tuple(sigma.shape), None if mask is None else tuple(mask.shape)
        raise ValueError(f"sigma is [B] and mask [B, T, h, w] of {tuple(predicted.shape)}, these are {given}")
    if normalization not in ("window", "frame", "none"):
        raise ValueError(f"no normalization {normalization!r}; there are window, frame, none")
    implementation = choose(backend, predicted.device)
    others = (noisy, clean, sigma) if mask is None else (noisy, clean, sigma, mask)
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in others)
    unfit = differentiated or predicted.numel() == 0 or torch.float64 in (predicted.dtype, noisy.dtype, clean.dtype)
    if implementation == "torch" or (backend == "auto" and unfit):
        return masked_loss_torch(predicted, noisy, clean, sigma, mask, normalization=normalization)
    if unfit:
        raise ValueError(
            f"backend {implementation!r} takes at least one cell, in fp32 or less, and differentiates `predicted` "
            "alone; use 'torch'"
        )
    if torch.is_grad_enabled() and predicted.requires_grad:
        return _MaskedLoss.apply(predicted, noisy, clean, sigma, mask, normalization, implementation)  # pyright: ignore[reportReturnType]
    return _RUN[implementation](predicted, noisy, clean, sigma, mask, normalization, False)[0]
