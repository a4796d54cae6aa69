"""The latent mask: its two modes, and each backend to the last cell."""

import pytest
import torch

from recapture.kernels.latent_mask import latent_mask

from .backends import BACKENDS, FAST, device_of


@pytest.mark.parametrize("backend", BACKENDS)
def test_modes(backend):
    mask = torch.ones(1, 16, 16, dtype=torch.bool, device=device_of(backend))
    mask[0, 0, 0] = False  # 63 of 64
    mask[0, 8:, :4] = False  # half a cell
    assert latent_mask(mask, (8, 8), backend=backend).tolist() == [[[1, 1], [0, 1]]]
    assert latent_mask(mask, (8, 8), mode="min", backend=backend).tolist() == [[[0, 1], [0, 1]]]
    assert latent_mask(mask, (8, 8), threshold=0.5, backend=backend).tolist() == [[[1, 1], [1, 1]]]
    assert latent_mask(mask, (8, 8), threshold=1.0, backend=backend).tolist() == [[[0, 1], [0, 1]]]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    ("shape", "cell"),
    [
        ((2, 48, 72), (8, 8)),
        ((3, 6, 6), (1, 1)),
        ((1, 21, 30), (7, 5)),
        ((1, 8, 8 * 67), (8, 8)),
        ((1, 16, 32), (16, 32)),
    ],
)
def test_backends_agree_on_every_cell(backend, shape, cell):
    g = torch.Generator().manual_seed(0)
    pixels = torch.rand(shape, generator=g)
    for threshold in (0.0, 0.3, 0.5, 0.9, 1.0):
        mask = (pixels < threshold + 0.05).to(device_of(backend))  # counts on both sides of the threshold
        for mode in ("area", "min"):
            given = latent_mask(mask, cell, mode=mode, threshold=threshold, backend=backend)
            expected = latent_mask(mask, cell, mode=mode, threshold=threshold, backend="torch")
            assert given.dtype == torch.float32
            assert torch.equal(given, expected), (mode, threshold)


@pytest.mark.parametrize("backend", FAST)
def test_strides_do_not_matter(backend):
    mask = (torch.rand(2, 40, 24, generator=torch.Generator().manual_seed(0)) < 0.9).to(device_of(backend))
    turned = mask.transpose(1, 2)
    assert torch.equal(
        latent_mask(turned, (8, 8), backend=backend), latent_mask(turned.contiguous(), (8, 8), backend="torch")
    )


def test_other_dtypes_and_empty_masks_are_the_plain_ones():
    weights = torch.full((1, 8, 8), 0.95)
    assert latent_mask(weights, (8, 8)).tolist() == [[[1]]]
    assert latent_mask(torch.ones(0, 16, 8, dtype=torch.bool), (8, 8)).shape == (0, 2, 1)


@pytest.mark.parametrize("backend", FAST)
def test_refusals_name_what_is_wrong(backend):
    mask = torch.ones(1, 16, 16, dtype=torch.bool, device=device_of(backend))
    with pytest.raises(ValueError, match="cells"):
        latent_mask(mask[:, :15], (8, 8), backend=backend)
    with pytest.raises(ValueError, match="area, min"):
        latent_mask(mask, (8, 8), mode="most", backend=backend)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="bool mask"):
        latent_mask(mask.float(), (8, 8), backend=backend)
