"""bf16 and fp16: which is taken where, and why fp16 needs a scaled loss."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recapture.engine.config import RunConfig, TuneConfig, check, override
from recapture.engine.diffusion.tuner import AdamW
from recapture.engine.errors import InputError
from recapture.engine.models.precision import dtype_of, name_of
from recapture.kernels.masked_loss import masked_loss, v_target

WINDOW = (1, 14, 4, 72, 128)
"""Latents of Stable Video Diffusion at 576x1024: the loss is a mean over half a million values."""
LEAST_NORMAL = torch.finfo(torch.float16).tiny


class LastLayer(nn.Module):
    """A frozen network's end: an fp32 adapter whose output is of half precision, as under autocast."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.weight = dtype, nn.Parameter(torch.eye(4))
        self.seen: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        out = torch.einsum("oc,btchw->btohw", self.weight.to(self.dtype), features.to(self.dtype))
        out.register_hook(self._look)
        return out.float()

    def _look(self, gradient: Tensor) -> None:
        self.seen = gradient.detach()


def batch() -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    clean, noise, missed = (torch.randn(WINDOW, generator=draw) for _ in range(3))
    sigma = torch.full((1,), 2.0)
    noisy = clean + sigma * noise
    # A trained network misses its target by about this much.
    return v_target(noisy, clean, sigma) + 0.3 * missed, noisy, clean, sigma


def backward(dtype: torch.dtype, *, scaled: bool) -> tuple[LastLayer, AdamW]:
    network = LastLayer(dtype)
    model: Any = SimpleNamespace(device=torch.device("cpu"), dtype=dtype if scaled else torch.float32)
    optimiser = AdamW(model, TuneConfig(lr=1e-3), {"temporal": [network.weight]})
    features, noisy, clean, sigma = batch()
    optimiser.backward(masked_loss(network(features), noisy, clean, sigma))
    return network, optimiser


def relative_error(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true.double()).abs().sum() / true.double().abs().sum())


def test_gradients_of_a_window_underflow_in_fp16_and_scaling_cures_it():
    true, _ = backward(torch.float32, scaled=False)
    assert true.seen is not None
    assert true.seen.abs().max() < LEAST_NORMAL  # every one lies where fp16 has no digits to spare

    lost, _ = backward(torch.float16, scaled=False)
    assert lost.seen is not None
    vanished = float(((lost.seen == 0) & (true.seen != 0)).float().mean())
    assert 0.01 < vanished < 0.2
    assert relative_error(lost.seen, true.seen) > 0.01

    cured, optimiser = backward(torch.float16, scaled=True)
    assert cured.seen is not None
    scale = optimiser.state()["scaler.scale"]
    assert ((cured.seen == 0) == (true.seen == 0)).float().mean() > 0.9999
    assert relative_error(cured.seen.double() / scale, true.seen) < 2**-9

    wide, _ = backward(torch.bfloat16, scaled=False)
    assert wide.seen is not None
    assert not ((wide.seen == 0) & (true.seen != 0)).any()  # bf16 has the range of fp32
    assert relative_error(wide.seen, true.seen) < 0.02


def test_a_scaled_step_is_the_step():
    plain, plainly = backward(torch.float32, scaled=False)
    scaled, optimiser = backward(torch.float16, scaled=True)
    for each in (plainly, optimiser):
        each.step()
    moved = plain.weight.detach() - torch.eye(4)
    assert relative_error(scaled.weight.detach() - torch.eye(4), moved) < 0.01
    assert moved.abs().min() > 0


def test_an_overflow_is_skipped_and_the_scale_is_kept_in_checkpoints():
    network, optimiser = backward(torch.float16, scaled=True)
    before = float(optimiser.state()["scaler.scale"])
    network.weight.grad = torch.full((4, 4), torch.inf)
    optimiser.step()
    assert torch.equal(network.weight.detach(), torch.eye(4))
    state = optimiser.state()
    assert float(state["scaler.scale"]) == before / 2
    _, other = backward(torch.float16, scaled=True)
    other.restore(state)
    assert other.state().keys() == state.keys()
    assert float(other.state()["scaler.scale"]) == before / 2


def test_precision_by_name_and_device():
    cpu = torch.device("cpu")
    assert dtype_of("auto", cpu) is torch.float32
    for name in ("bf16", "fp16", "fp32"):
        assert name_of(dtype_of(name, cpu)) == name
    with pytest.raises(InputError, match="not one of auto, bf16, fp16, fp32") as refused:
        check(override(RunConfig(), {"": {"dtype": "int8"}}))
    assert refused.value.param == "dtype"
