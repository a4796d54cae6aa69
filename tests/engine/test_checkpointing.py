"""Activation checkpointing: no bit of a gradient changes, and what it costs at Stable Video Diffusion's size (meta device)."""

import pytest
import torch
from diffusers.models import UNetSpatioTemporalConditionModel
from torch.utils.flop_counter import FlopCounterMode

from recapture.engine.models import adapters
from recapture.engine.models.checkpointing import checkpointed
from recapture.engine.models.temporal_bypass import temporal_bypass
from recapture.engine.planning.tensor_memory import shapes_of, step_bytes

from ..small_models import small_unet

HOW = ("none", "balanced", "full", "stock")


def gradients(unet, passed: str, how: str) -> list[torch.Tensor]:
    """Of one training pass, whose choice of adapters has been undone when its backward pass comes."""
    unet.zero_grad()
    adapters.train_only(unet, [passed])
    draw = torch.Generator().manual_seed(3)
    frames = 1 if passed == "spatial" else 4
    inputs, image_embeds = torch.randn(1, frames, 8, 8, 8, generator=draw), torch.randn(1, 1, 16, generator=draw)
    with checkpointed(unet, how):
        with adapters.enabled(unet, [passed]):
            if passed == "spatial":
                with temporal_bypass(unet):
                    output = unet(inputs, torch.ones(1), image_embeds, torch.ones(1, 3)).sample
            else:
                output = unet(inputs, torch.ones(1), image_embeds, torch.ones(1, 3)).sample
        output.square().mean().backward()
    return [parameter.grad.clone() for parameter in adapters.adapter_parameters(unet, passed).values()]


@pytest.mark.parametrize("passed", ["spatial", "temporal"])
def test_gradients_are_the_same_bits(passed):
    torch.manual_seed(0)
    unet = small_unet()
    adapters.inject(unet, 2)
    for name, parameter in unet.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_()
    plain = gradients(unet, passed, "none")
    assert any(gradient.any() for gradient in plain)
    for how in HOW[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients(unet, passed, how), plain, strict=True)), how
    assert not any("forward" in module.__dict__ for module in unet.modules())


@pytest.mark.slow
def test_costs_at_full_size(svd_configs):
    """C8. Stable Video Diffusion, 14 frames of 576x1024, both adapters."""
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel().to("meta")  # diffusers' defaults are its config
        adapters.inject(unet, 16)
        adapters.train_only(unet, ["temporal"])
        inputs, image_embeds = torch.empty(1, 14, 8, 72, 128), torch.empty(1, 1, 1024)
        flops = {}
        for how in HOW:
            with checkpointed(unet, how):
                flops[how] = flops_of(unet, inputs, image_embeds, backward=True)
        forward = flops_of(unet, inputs, image_embeds, backward=False)
        adapters.train_only(unet, ["spatial"])
        single = flops_of(unet, inputs[:, :1], image_embeds, backward=True)
        with temporal_bypass(unet):
            bypassed = flops_of(unet, inputs[:, :1], image_embeds, backward=True)
    shapes = shapes_of(svd_configs, torch.float32, 16, cuda=False)
    kept = {how: step_bytes(shapes, "temporal", 1, 14, (576, 1024), how).kept for how in HOW}
    assert flops["none"] <= 2.30 * forward
    assert flops["balanced"] <= flops["stock"]
    assert kept["balanced"] <= 0.45 * kept["stock"]
    assert kept["stock"] < kept["none"]
    assert kept["full"] <= 0.4 * kept["balanced"]
    assert bypassed <= 0.72 * single


def flops_of(unet, inputs: torch.Tensor, image_embeds: torch.Tensor, *, backward: bool) -> int:
    with FlopCounterMode(display=False) as counter:
        output = unet(inputs, torch.empty(1), image_embeds, torch.empty(1, 3)).sample
        if backward:
            output.sum().backward()
    return counter.get_total_flops()
