"""Is this the gradient? Checks that see what an elementwise tolerance misses: one that is absent, scaled or biased."""

import torch
from torch import Tensor


def assert_same_gradient(actual: Tensor, expected: Tensor, *, tolerance: float) -> None:
    """Direction, magnitude, bias and places of zero of `actual` against an oracle's gradient.

    Args:
        tolerance: of 1 - cosine (which grows with the square of the error), of the ratio of norms to 1, and of the
            mean difference to the mean size.
    """
    a, e = actual.double().flatten(), expected.double().flatten()
    assert torch.isfinite(a).all(), "not finite"
    assert e.norm() > 0, "the oracle's gradient is zero: nothing is tested"
    seen = e.abs() > tolerance * e.square().mean().sqrt()  # an entry smaller than this may round to zero
    missing = int(((a == 0) & seen).sum())
    assert not missing, f"{missing} of {e.numel()} entries are missing"
    extra = int(((a != 0) & (e == 0)).sum())
    assert not extra, f"{extra} of {e.numel()} entries should be exactly zero"
    cosine = float(a @ e / (a.norm() * e.norm()))
    assert 1 - cosine <= tolerance, f"direction: cosine {cosine}"
    ratio = float(a.norm() / e.norm())
    assert abs(ratio - 1) <= tolerance, f"magnitude: {ratio} of the oracle's"
    bias = float((a - e).mean() / e.abs().mean())
    assert abs(bias) <= tolerance, f"bias: {bias} of the mean size"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of the oracle."""
    a, e = actual.double(), expected.double()
    return float((a - e).norm() / e.norm())
