"""The Triton kernels compiled for an H100 on a machine without one: what they take of it, and how they read memory."""

import pytest

from recapture.kernels import latent_mask, masked_loss
from recapture.kernels.backends import installed, interpreted

from .triton_compile import Compiled, compile_for_sm90

pytestmark = pytest.mark.skipif(
    not installed("triton") or interpreted(), reason="triton is not installed, or interprets its kernels"
)

MOST_REGISTERS = 64


def assert_light(compiled: Compiled) -> None:
    """No spills, no local memory, few enough registers for a full multiprocessor."""
    assert compiled.n_spills == 0
    assert compiled.stack_bytes == 0
    assert compiled.n_regs <= MOST_REGISTERS


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("mask", ["u8", "fp32"])
@pytest.mark.parametrize(("values", "kept"), [("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp32")])
def test_masked_loss(values, kept, mask, gradient):
    whole = ("frames", "channels", "cells", "tiles", "group", "groups", "frame_counts")
    compiled = compile_for_sm90(
        masked_loss._loss_kernel,
        {
            "loss_ptr": "*fp32",
            "gradient_ptr": f"*{kept}",
            "partial_ptr": "*fp32",
            "done_ptr": "*i32",
            **{name: f"*{values}" for name in ("predicted_ptr", "noisy_ptr", "clean_ptr")},
            "sigma_ptr": "*fp32",
            "mask_ptr": f"*{mask}",
            "counts_ptr": f"*{mask}",
            **dict.fromkeys(whole, "i32"),
            "least": "fp32",
        },
        {"HAS_MASK": True, "COUNTED": True, "GRADIENT": gradient, "TILE": masked_loss._TILE},
        num_warps=masked_loss._WARPS,
        divisible_by_16=("cells", "frame_counts"),
    )
    assert_light(compiled)
    width = {"fp32": "v4", "bf16": "v2", "fp16": "v2"}[values]  # four values a thread in one instruction
    assert compiled.ptx.count(f"ld.global.{width}.b32") >= 3
    assert ("st.global.v" in compiled.ptx) == gradient
    # One count of finished programs and no other atomic: floats are added in the order of the programs.
    assert compiled.ptx.count("atom.") == 1
    assert "atom.global.gpu.acq_rel.add.u32" in compiled.ptx
    assert "red.global" not in compiled.ptx


def test_the_smaller_kernels():
    tile = {"TILE": masked_loss._TILE}
    counts = {"counts_ptr": "*fp32", "mask_ptr": "*u8", "cells": "i32", "tiles": "i32"}
    pointers = {"out_ptr": "*fp32", "gradient_ptr": "*fp32", "factor_ptr": "*fp32", "count": "i32"}
    area = {"out_ptr": "*fp32", "mask_ptr": "*u8", **dict.fromkeys(("columns", "runs", "width_px", "need"), "i32")}
    cell = {"HEIGHT": 8, "WIDTH": 8, "COLUMNS_PX": 8, "CELLS": latent_mask._CELLS}
    for kernel, signature, constants in [
        (masked_loss._count_kernel, counts, tile),
        (masked_loss._scale_kernel, pointers, {**tile, "IN_PLACE": True}),
        (masked_loss._scale_kernel, pointers, {**tile, "IN_PLACE": False}),
        (latent_mask._area_kernel, area, cell),
    ]:
        assert_light(compile_for_sm90(kernel, signature, constants))


def test_the_check_sees_spills():
    """A kernel that holds more than a thread has registers for, so that zero means something above."""
    import triton
    import triton.language as tl

    globals()["tl"] = tl  # a jitted function finds names among its module's

    @triton.jit
    def greedy(out_ptr, in_ptr, trips, SIZE: tl.constexpr):
        i = tl.arange(0, SIZE)
        a = tl.load(in_ptr + i)
        b = tl.load(in_ptr + i + SIZE)
        c = tl.load(in_ptr + i + 2 * SIZE)
        for _ in range(trips):
            a, b, c = b * c, c + a, a * b
        tl.store(out_ptr + i, a + b + c)

    signature = {"out_ptr": "*fp32", "in_ptr": "*fp32", "trips": "i32"}
    compiled = compile_for_sm90(greedy, signature, {"SIZE": 4096}, num_warps=1)
    assert compiled.n_spills > 0
    with pytest.raises(AssertionError):
        assert_light(compiled)
