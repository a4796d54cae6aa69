"""The splat's Triton kernels compiled for an H100 on a machine without one."""

import re

import pytest

from recapture.kernels.backends import installed, interpreted

from .triton_compile import Compiled, compile_for_sm90

pytestmark = pytest.mark.skipif(
    not installed("triton") or interpreted(), reason="triton is not installed, or interprets its kernels"
)

MOST_REGISTERS = 64
SIGNATURE = {
    **{name: "*i64" for name in ("keys_ptr", "sums_ptr")},
    **{name: "*fp32" for name in ("frames_ptr", "depth_ptr", "cameras_ptr", "color_ptr", "z_ptr")},
    "winner_ptr": "*i32",
    "counts_ptr": "*i16",
    **dict.fromkeys(("height", "width", "h", "w", "channels", "source", "target", "least"), "i32"),
    **dict.fromkeys(("jump", "beyond", "most"), "fp32"),
}


@pytest.fixture(autouse=True)
def without_fusion(monkeypatch):
    """As the kernels are launched."""
    import triton

    compile_ = triton.compile
    monkeypatch.setattr(
        triton,
        "compile",
        lambda *given, options, **more: compile_(*given, options={**options, "enable_fp_fusion": False}, **more),
    )


def compiled(name: str, **constants: object) -> Compiled:
    from recapture.kernels.splat import triton_backend

    kernel = getattr(triton_backend, name)
    return compile_for_sm90(
        kernel, SIGNATURE, {**constants, "BLOCK": triton_backend.BLOCK}, num_warps=triton_backend.WARPS
    )


def assert_light_and_exact(kernel: Compiled) -> None:
    """No spills, no local memory, few enough registers; nothing contracted, every division and root rounded right."""
    assert kernel.n_spills == 0
    assert kernel.stack_bytes == 0
    assert kernel.n_regs <= MOST_REGISTERS
    # Subnormals are flushed by floor and ceil alone, which never see one.
    assert not re.findall(r"\bfma\.rn\.f32\b|\.approx|div\.full|(?<!rmi)(?<!rpi)\.ftz", kernel.ptx)


@pytest.mark.parametrize("flying", [False, True])
def test_nearest(flying):
    kernel = compiled("_nearest_kernel", FLYING=flying)
    assert_light_and_exact(kernel)
    assert reductions(kernel) == ["REDG.E.MIN.S64.STRONG.GPU"]


@pytest.mark.parametrize("flying", [False, True])
def test_soft_keys(flying):
    kernel = compiled("_soft_kernel", FLYING=flying, ADDING=False)
    assert_light_and_exact(kernel)
    assert reductions(kernel) == 4 * ["REDG.E.MIN.S64.STRONG.GPU"]  # one a tap


def test_soft_sums():
    kernel = compiled("_soft_kernel", FLYING=False, ADDING=True)
    assert_light_and_exact(kernel)
    assert reductions(kernel) == 4 * ["REDG.E.ADD.64.STRONG.GPU"]


@pytest.mark.parametrize("name", ["_nearest_resolve_kernel", "_soft_resolve_kernel"])
def test_resolving(name):
    kernel = compiled(name)
    assert_light_and_exact(kernel)
    assert reductions(kernel) == []


def reductions(kernel: Compiled) -> list[str]:
    """Atomic instructions of the program: reductions answer nobody; an ATOM would be waited for."""
    if not kernel.sass:
        pytest.skip("no disassembler came with triton")
    return re.findall(r"\b(?:REDG|RED|ATOMG|ATOM)\.[\w.]+", kernel.sass)
