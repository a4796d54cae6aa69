"""The masked loss against the definition it is derived from, and its fast paths against the plain one."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from recapture.benchmarks.masked_loss import launches
from recapture.engine.imaging.push_pull import push_pull
from recapture.kernels.backends import interpreted
from recapture.kernels.masked_loss import LEAST_SHARE, masked_loss

from .backends import BACKENDS, FAST, NUMBA, TRITON, device_of, run_interpreted
from .gradient_checks import assert_same_gradient, relative_error

NORMALIZATIONS = ["window", "frame", "none"]


def batch(
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    shape: tuple[int, ...] = (2, 3, 4, 5, 6),
    share: float = 0.6,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, ...]:
    """predicted, noisy, clean [B, T, C, h, w], sigma [B], mask [B, T, h, w]"""
    g = torch.Generator().manual_seed(seed)
    clean, noise, predicted = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.05, 3.0], dtype=torch.float64).repeat(shape[0])[: shape[0]]
    mask = (torch.rand(*shape[:2], *shape[3:], generator=g) < share).double()
    values = predicted, clean + sigma.view(-1, 1, 1, 1, 1) * noise, clean, sigma, mask
    return tuple(x.to(device=device, dtype=dtype) for x in values)


def loss_and_gradient(predicted, noisy, clean, sigma, mask, **options) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = predicted.detach().clone().requires_grad_()
    loss = masked_loss(leaf, noisy, clean, sigma, mask, **options)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def assert_as_the_oracle(values, *, tolerance: float = 1e-6, **options) -> None:
    """Loss and gradient of a backend against the plain one in float64 on the same (already rounded) inputs."""
    predicted, noisy, clean, sigma, mask = values
    loss, gradient = loss_and_gradient(*values, **options)
    exact = [None if x is None else x.double() for x in (predicted, noisy, clean, sigma, mask)]
    expected, expected_gradient = loss_and_gradient(*exact, **{**options, "backend": "torch"})
    assert loss.dtype == torch.float32
    assert gradient.dtype == predicted.dtype
    assert abs(float(loss) / float(expected) - 1) <= tolerance
    assert relative_error(gradient, expected_gradient) <= tolerance
    assert_same_gradient(gradient, expected_gradient, tolerance=tolerance)


def test_equals_the_weighted_error_of_the_denoiser():
    predicted, noisy, clean, sigma, mask = batch()
    s = sigma.view(-1, 1, 1, 1, 1)
    denoised = noisy / (s**2 + 1) - s / (s**2 + 1).sqrt() * predicted
    error = (s**2 + 1) / s**2 * (denoised - clean) ** 2 * mask[:, :, None]
    expected = (error.sum(dim=(1, 2, 3, 4)) / (4 * mask.sum(dim=(1, 2, 3)))).mean()
    assert torch.allclose(masked_loss(predicted, noisy, clean, sigma, mask), expected, rtol=1e-10)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradient_is_right_and_exactly_zero_where_masked(normalization):
    predicted, noisy, clean, sigma, mask = batch()
    predicted.requires_grad_()

    def loss(p):
        return masked_loss(p, noisy, clean, sigma, mask, normalization=normalization)

    assert torch.autograd.gradcheck(loss, predicted)
    (gradient,) = torch.autograd.grad(loss(predicted), predicted)
    masked = (mask == 0)[:, :, None].expand_as(gradient)
    assert bool((gradient[masked] == 0).all())
    assert bool((gradient[~masked] != 0).all())


# Odd sizes, one cell, many channels, tiles with a rest, a window of more than one tile.
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 7, 11), (3, 2, 16, 33, 31), (1, 5, 4, 40, 72), (2, 1, 3, 1, 1030)]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_fast_paths_equal_the_oracle(backend, normalization, shape):
    values = batch(dtype=torch.float32, shape=shape, share=1.0 if shape[-1] == 1 else 0.6, device=device_of(backend))
    assert_as_the_oracle(values, normalization=normalization, backend=backend)
    assert_as_the_oracle((*values[:4], None), normalization=normalization, backend=backend)


@pytest.mark.parametrize("backend", FAST)
def test_real_shape_within_a_millionth_of_float64(backend):
    values = batch(dtype=torch.float32, shape=(1, 14, 4, 72, 128), device=device_of(backend))
    assert_as_the_oracle(values, backend=backend)


@pytest.mark.parametrize("backend", FAST)
def test_windows_counted_in_a_launch_before(backend, monkeypatch):
    """More cells a window than every program counts for itself."""
    from recapture.kernels import masked_loss as module

    monkeypatch.setattr(module, "_COUNTED_IN_PLACE", 100)
    values = batch(dtype=torch.float32, shape=(2, 3, 2, 40, 72), device=device_of(backend))
    for normalization in NORMALIZATIONS:
        assert_as_the_oracle(values, normalization=normalization, backend=backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.float16, torch.float64, torch.int64])
def test_masks_of_any_dtype(backend, kind):
    predicted, noisy, clean, sigma, mask = batch(dtype=torch.float32, device=device_of(backend))
    expected = loss_and_gradient(predicted, noisy, clean, sigma, mask, backend=backend)
    given = loss_and_gradient(predicted, noisy, clean, sigma, mask.to(kind), backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))


@pytest.mark.parametrize("backend", FAST)
def test_masks_that_weigh(backend):
    predicted, noisy, clean, sigma, mask = batch(dtype=torch.float32, device=device_of(backend))
    weights = mask * (torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)).to(mask) + 0.1)
    assert_as_the_oracle((predicted, noisy, clean, sigma, weights), backend=backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.bfloat16, 5e-3), (torch.float16, 2e-2)])
def test_half_precision_gives_a_half_precision_gradient(backend, kind, tolerance):
    values = batch(dtype=kind, device=device_of(backend))
    loss, gradient = loss_and_gradient(*values, backend=backend)
    expected, expected_gradient = loss_and_gradient(*(x.double() for x in values), backend="torch")
    assert gradient.dtype == kind
    assert abs(float(loss) / float(expected) - 1) < 1e-6  # sums are in fp32
    assert relative_error(gradient, expected_gradient) < tolerance


@pytest.mark.parametrize("backend", FAST)
def test_a_scaled_fp16_gradient_keeps_its_digits(backend):
    """The gradient of a mean over many cells lies below fp16's normal range until the loss scale has multiplied it."""
    values = batch(dtype=torch.float16, shape=(1, 5, 4, 40, 72), device=device_of(backend))
    leaf = values[0].clone().requires_grad_()
    (masked_loss(leaf, *values[1:], backend=backend) * 4096).backward()
    _, expected = loss_and_gradient(*(x.double() for x in values), backend="torch")
    assert leaf.grad is not None
    assert relative_error(leaf.grad / 4096.0, expected) < 2e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf])
def test_garbage_under_the_mask_reaches_nothing(backend, garbage):
    predicted, noisy, clean, sigma, mask = batch(dtype=torch.float32, device=device_of(backend))
    clear = loss_and_gradient(predicted, noisy, clean, sigma, mask, backend=backend)
    hidden = mask[:, :, None].expand_as(predicted) == 0
    spoilt = [torch.where(hidden, garbage, x) for x in (predicted, noisy, clean)]
    loss, gradient = loss_and_gradient(*spoilt, sigma, mask, backend=backend)
    assert torch.equal(loss, clear[0])
    assert torch.equal(gradient, clear[1])
    assert bool((gradient[hidden] == 0).all())


@pytest.mark.parametrize("backend", FAST)
def test_garbage_that_counts_is_not_hidden(backend):
    predicted, noisy, clean, sigma, mask = batch(dtype=torch.float32, device=device_of(backend))
    predicted = torch.where(mask[:, :, None] > 0, torch.nan, predicted)
    assert torch.isnan(masked_loss(predicted, noisy, clean, sigma, mask, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_an_empty_mask_teaches_nothing(backend, normalization):
    predicted, noisy, clean, sigma, mask = batch(dtype=torch.float32, device=device_of(backend))
    options = {"normalization": normalization, "backend": backend}
    loss, gradient = loss_and_gradient(predicted, noisy, clean, sigma, torch.zeros_like(mask), **options)
    assert loss == 0
    assert not gradient.any()
    full = masked_loss(predicted, noisy, clean, sigma, torch.ones_like(mask), **options)
    assert torch.allclose(full, masked_loss(predicted, noisy, clean, sigma, **options), rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_few_cells_do_not_outweigh_the_rest(backend):
    predicted, noisy, clean, sigma, mask = batch(dtype=torch.float32, device=device_of(backend))
    one = torch.zeros_like(mask)
    one[:, 0, 0, 0] = 1
    strict = masked_loss(predicted, noisy, clean, sigma, one, normalization="none", backend=backend)
    assert torch.allclose(masked_loss(predicted, noisy, clean, sigma, one, backend=backend), strict / LEAST_SHARE)


@pytest.mark.parametrize("backend", FAST)
def test_strides_do_not_matter(backend):
    predicted, noisy, clean, sigma, mask = batch(dtype=torch.float32, device=device_of(backend))

    def strided(x: torch.Tensor) -> torch.Tensor:
        return x.movedim(2, -1).contiguous().movedim(-1, 2)  # channels last

    expected = loss_and_gradient(predicted, noisy, clean, sigma, mask, backend=backend)
    wide = torch.stack([mask, mask], dim=-1)[..., 0]
    loss, gradient = loss_and_gradient(*map(strided, (predicted, noisy, clean)), sigma, wide, backend=backend)
    assert torch.equal(loss, expected[0])
    assert torch.equal(gradient, expected[1])


@pytest.mark.parametrize("backend", FAST)
def test_the_loss_can_be_scaled_and_differentiated_twice_over(backend):
    predicted, noisy, clean, sigma, mask = batch(dtype=torch.float32, device=device_of(backend))
    _, once = loss_and_gradient(predicted, noisy, clean, sigma, mask, backend=backend)
    leaf = predicted.clone().requires_grad_()
    loss = masked_loss(leaf, noisy, clean, sigma, mask, backend=backend)
    (thrice,) = torch.autograd.grad(3 * loss, leaf, retain_graph=True)
    assert torch.allclose(thrice, 3 * once, rtol=1e-6)
    (again,) = torch.autograd.grad(loss, leaf)  # the kept graph still knows the inputs
    assert torch.equal(again, once)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaf)


@pytest.mark.parametrize("backend", FAST)
def test_only_the_loss_without_a_gradient(backend):
    predicted, noisy, clean, sigma, mask = batch(dtype=torch.float32, device=device_of(backend))
    with_gradient, _ = loss_and_gradient(predicted, noisy, clean, sigma, mask, backend=backend)
    with torch.no_grad():
        loss = masked_loss(predicted.requires_grad_(), noisy, clean, sigma, mask, backend=backend)
    assert not loss.requires_grad
    assert torch.equal(loss, with_gradient)


@pytest.mark.parametrize("backend", [NUMBA])
def test_threads_do_not_change_a_bit(backend):
    values = batch(dtype=torch.float32, shape=(1, 14, 4, 36, 64))
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(loss_and_gradient(*values, backend=backend))
    torch.set_num_threads(before)
    with ThreadPoolExecutor(4) as pool:
        results += pool.map(lambda _: loss_and_gradient(*values, backend=backend), range(8))
    for loss, gradient in results:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("backend", FAST)
def test_what_the_fast_paths_do_not_do_is_the_plain_ones(backend):
    device = device_of(backend)
    predicted, noisy, clean, sigma, mask = batch(dtype=torch.float32, device=device)
    for unfit in (
        [x.double() for x in (predicted, noisy, clean, sigma, mask)],
        [predicted[:0], noisy[:0], clean[:0], sigma[:0], mask[:0]],
        [predicted, noisy, clean.clone().requires_grad_(), sigma, mask],
    ):
        expected = masked_loss(*unfit, backend="torch")
        assert torch.equal(masked_loss(*unfit), expected) or bool(torch.isnan(expected))
        with pytest.raises(ValueError, match="use 'torch'"):
            masked_loss(*unfit, backend=backend)


def test_refusals_name_what_is_wrong(monkeypatch):
    predicted, noisy, clean, sigma, mask = batch(dtype=torch.float32)
    for arguments, said in [
        ((predicted[0], noisy, clean, sigma, mask), "one shape"),
        ((predicted, noisy[:, :1], clean, sigma, mask), "one shape"),
        ((predicted, noisy, clean, sigma[:1], mask), "sigma is"),
        ((predicted, noisy, clean, sigma, mask[:, :, :1]), "sigma is"),
    ]:
        with pytest.raises(ValueError, match=said):
            masked_loss(*arguments)
    with pytest.raises(ValueError, match="window, frame, none"):
        masked_loss(predicted, noisy, clean, sigma, mask, normalization="batch")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="auto, triton, numba, torch"):
        masked_loss(predicted, noisy, clean, sigma, mask, backend="cupy")  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr("recapture.kernels.backends.find_spec", lambda name: None)
    for backend in ("triton", "numba"):
        with pytest.raises(ValueError, match="pip install"):
            masked_loss(predicted, noisy, clean, sigma, mask, backend=backend)
    # `auto` is content with what is there.
    assert torch.equal(
        masked_loss(predicted, noisy, clean, sigma, mask),
        masked_loss(predicted, noisy, clean, sigma, mask, backend="torch"),
    )


@pytest.mark.skipif(interpreted(), reason="the interpreter takes CPU tensors")
def test_a_backend_of_another_device_is_refused():
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="takes tensors on cuda"):
        masked_loss(*batch(dtype=torch.float32), backend="triton")


@pytest.mark.parametrize("backend", [TRITON])
def test_more_than_a_launch_holds_is_refused(backend):
    small = torch.zeros(1, 1, 1, 1, 1, device=device_of(backend))
    huge = small.expand(1, 1, 1, 2**16, 2**16)
    with pytest.raises(ValueError, match="one launch"):
        masked_loss(huge, huge, huge, torch.ones(1), None, backend=backend)


@pytest.mark.slow
@pytest.mark.ci
def test_kernels_interpreted():
    """The Triton kernels themselves, without a GPU."""
    pytest.importorskip("triton")
    run_interpreted(["test_masked_loss.py", "test_latent_mask.py"])


@pytest.mark.gpu
def test_two_launches_at_the_real_shape_and_a_graph():
    values = batch(dtype=torch.float32, shape=(1, 14, 4, 72, 128), device="cuda")
    leaf, one = values[0].clone().requires_grad_(), torch.ones((), device="cuda")

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        loss = masked_loss(leaf, *values[1:], backend="triton")
        return loss.detach(), torch.autograd.grad(loss, leaf, one)[0]

    for _ in range(3):
        expected = step()
    assert launches(step) <= 2
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, expected, strict=True):
        assert torch.equal(a, b)


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
