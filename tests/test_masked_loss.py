"""The masked loss against the definition it is derived from, and the latent mask."""

import pytest
import torch

from recapture.engine.fill import push_pull
from recapture.kernels.latent_mask import latent_mask
from recapture.kernels.masked_loss import LEAST_SHARE, masked_loss


def batch(seed: int = 0, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(seed)
    shape = (2, 3, 4, 5, 6)  # [B, T, C, h, w]
    clean, noise, predicted = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.05, 3.0], dtype=torch.float64)
    mask = (torch.rand(2, 3, 5, 6, generator=g) > 0.4).double()
    return (x.to(dtype) for x in (predicted, clean + sigma.view(-1, 1, 1, 1, 1) * noise, clean, sigma, mask))


def test_equals_the_weighted_error_of_the_denoiser():
    predicted, noisy, clean, sigma, mask = batch()
    s = sigma.view(-1, 1, 1, 1, 1)
    denoised = noisy / (s**2 + 1) - s / (s**2 + 1).sqrt() * predicted
    error = (s**2 + 1) / s**2 * (denoised - clean) ** 2 * mask[:, :, None]
    expected = (error.sum(dim=(1, 2, 3, 4)) / (4 * mask.sum(dim=(1, 2, 3)))).mean()
    assert torch.allclose(masked_loss(predicted, noisy, clean, sigma, mask), expected, rtol=1e-10)


@pytest.mark.parametrize("normalisation", ["window", "frame", "none"])
def test_gradient_is_right_and_exactly_zero_where_masked(normalisation):
    predicted, noisy, clean, sigma, mask = batch()
    predicted.requires_grad_()

    def loss(p):
        return masked_loss(p, noisy, clean, sigma, mask, normalisation=normalisation)

    assert torch.autograd.gradcheck(loss, predicted)
    (gradient,) = torch.autograd.grad(loss(predicted), predicted)
    masked = (mask == 0)[:, :, None].expand_as(gradient)
    assert bool((gradient[masked] == 0).all())
    assert bool((gradient[~masked] != 0).all())


def test_full_mask_is_no_mask_and_empty_counts_nothing():
    predicted, noisy, clean, sigma, mask = batch()
    full = torch.ones_like(mask)
    assert torch.allclose(
        masked_loss(predicted, noisy, clean, sigma, full), masked_loss(predicted, noisy, clean, sigma)
    )
    assert masked_loss(predicted, noisy, clean, sigma, torch.zeros_like(mask)) == 0


def test_few_cells_do_not_outweigh_the_rest():
    predicted, noisy, clean, sigma, mask = batch()
    one = torch.zeros_like(mask)
    one[:, 0, 0, 0] = 1
    strict = masked_loss(predicted, noisy, clean, sigma, one, normalisation="none")
    assert torch.allclose(masked_loss(predicted, noisy, clean, sigma, one), strict / LEAST_SHARE)


def test_half_precision_accumulates_in_fp32_and_ignores_masked_garbage():
    predicted, noisy, clean, sigma, mask = batch(dtype=torch.bfloat16)
    predicted[mask[:, :, None].expand_as(predicted) == 0] = torch.nan
    loss = masked_loss(predicted, noisy, clean, sigma, mask)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_latent_mask_modes():
    mask = torch.ones(1, 16, 16, dtype=torch.bool)
    mask[0, 0, 0] = False  # 63 of 64
    mask[0, 8:, :4] = False  # half a cell
    assert latent_mask(mask, (8, 8)).tolist() == [[[1, 1], [0, 1]]]
    assert latent_mask(mask, (8, 8), mode="min").tolist() == [[[0, 1], [0, 1]]]
    assert latent_mask(mask, (8, 8), threshold=0.5).tolist() == [[[1, 1], [1, 1]]]
    with pytest.raises(ValueError, match="cells"):
        latent_mask(mask[:, :15], (8, 8))


def test_push_pull_keeps_valid_pixels_and_fills_the_rest():
    image = torch.rand(2, 3, 37, 53)
    mask = torch.rand(2, 37, 53) > 0.3
    mask[:, 10:30, 20:40] = False
    filled = push_pull(image, mask)
    kept = mask[:, None].expand_as(image)
    assert torch.equal(filled[kept], image[kept])
    assert torch.isfinite(filled).all()
    constant = push_pull(torch.full((1, 1, 9, 7), 0.4), torch.rand(1, 9, 7) > 0.8)
    assert torch.allclose(constant, torch.full_like(constant, 0.4), atol=1e-6)
    assert torch.equal(push_pull(image, torch.zeros(2, 37, 53)), torch.zeros_like(image))
