"""The gradient checks themselves: each fault is seen, and named."""

import pytest
import torch

from .gradient_checks import assert_same_gradient, relative_error


def oracle() -> torch.Tensor:
    gradient = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient[:8] = 0
    return gradient


def test_rounding_passes():
    e = oracle()
    assert_same_gradient(e.float(), e, tolerance=1e-6)
    assert relative_error(e.float(), e) < 1e-7


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda e: torch.where(torch.arange(64) == 63, 0.0, e), "missing"),
        (lambda e: torch.zeros_like(e), "missing"),
        (lambda e: e + torch.where(e == 0, 1e-12, 0.0), "exactly zero"),
        (lambda e: -e, "direction"),
        (lambda e: e.flip(1), "direction"),
        (lambda e: 1.01 * e, "magnitude"),
        (lambda e: e + 1e-4 * e.abs(), "bias"),
        (lambda e: e * torch.nan, "not finite"),
    ],
)
def test_faults_are_named(fault, said):
    with pytest.raises(AssertionError, match=said):
        assert_same_gradient(fault(oracle()), oracle(), tolerance=5e-5)


def test_an_oracle_of_nothing_is_refused():
    with pytest.raises(AssertionError, match="nothing is tested"):
        assert_same_gradient(torch.zeros(3), torch.zeros(3), tolerance=1)
