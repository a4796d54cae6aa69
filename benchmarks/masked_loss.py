"""Masked loss, forward and gradient: the plain one eager and compiled, the fused one, and the copy it cannot beat.

Targets, at the real shape: CPU >= 6x eager and >= 2x compiled; CUDA at most 2 launches, capturable, and at 64 M
elements >= 0.90 of the copy.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels.backends import installed
from ..kernels.masked_loss import masked_loss, masked_loss_torch
from .timing import COPY, Row, compare, copy_of, one_thread

OP = "masked_loss"
REAL = (1, 14, 4, 72, 128)
"""[B, T, C, h, w] of Stable Video Diffusion at 576x1024."""
LARGE = (8, 16, 4, 256, 512)
"""64 M elements: past every cache."""


def rows(device: str, quick: bool) -> list[Row]:
    """Rows of this operation; `quick` leaves out the compiled rival and the large shape."""
    if device == "cuda":
        return _cuda_rows(quick)
    with one_thread():
        return _measure(REAL, "cpu", torch.float32, repeats=30 if quick else 200, compiled=not quick)


def _cuda_rows(quick: bool) -> list[Row]:
    real = _measure(REAL, "cuda", torch.float32, repeats=50 if quick else 300, compiled=not quick)
    for row in real:
        if row["implementation"] == "triton":
            step = _steps(REAL, "cuda", torch.float32)["triton"]
            row |= {"launches": launches(step), "graph_replay_ms": _graph_ms(step)}
    if quick:
        return real
    large = [_measure(LARGE, "cuda", dtype, repeats=50, compiled=False) for dtype in (torch.float32, torch.bfloat16)]
    return real + [row for part in large for row in part]


def _measure(shape: tuple[int, ...], device: str, dtype: torch.dtype, *, repeats: int, compiled: bool) -> list[Row]:
    steps = _steps(shape, device, dtype)
    if compiled:
        steps["compiled"] = _step(torch.compile(masked_loss_torch), _inputs(shape, device, dtype))
    steps[COPY] = copy_of(_bytes(shape, dtype), device)
    name = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
    return compare(OP, name, steps, baseline="eager", device=device, repeats=repeats)


def _steps(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    inputs = _inputs(shape, device, dtype)
    steps = {"eager": _step(masked_loss_torch, inputs)}
    fast = "triton" if device == "cuda" else "numba"
    if installed(fast):
        steps[fast] = _step(lambda *values: masked_loss(*values, backend=fast), inputs)
    return steps


def _inputs(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> list[Tensor]:
    """F, noisy, clean [B, T, C, h, w], sigma [B] and a mask [B, T, h, w] of uint8 with two thirds valid."""
    torch.manual_seed(0)
    clean, noise, predicted = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
    sigma = torch.full((shape[0],), 1.5, device=device)
    mask = (torch.rand(*shape[:2], *shape[3:], device=device) < 0.66).to(torch.uint8)
    return [predicted, clean + 1.5 * noise, clean, sigma, mask]


def _step(loss_of: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    """A training step's share: the loss, and its gradient in F."""
    leaf = inputs[0].detach().clone().requires_grad_()
    # Given, so that the launch that would make it counts for nobody.
    one = torch.ones((), device=leaf.device)

    def step() -> tuple[Tensor, Tensor]:
        loss = loss_of(leaf, *inputs[1:])
        return loss.detach(), torch.autograd.grad(loss, leaf, one)[0]

    return step


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """The bytes that must move: three fields in, the gradient out, the mask in."""
    batch, frames, channels, height, width = shape
    return batch * frames * height * width * (4 * channels * dtype.itemsize + 1)


def launches(step: Callable[[], Any]) -> int:
    """Kernels on the device in one step, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events() or ())


def _graph_ms(step: Callable[[], Any]) -> float:
    """Milliseconds of one replay of the step captured as a CUDA graph, the median of many."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return compare(OP, "", {"replay": graph.replay}, baseline="replay", device="cuda", repeats=100)[0]["p50_ms"]
