"""Adapters: on the right layers, alive, switched and trained one at a time, saved as PEFT."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.resnet import AlphaBlender

from recapture.engine.errors import InputError
from recapture.engine.models import adapters
from recapture.engine.models.temporal_bypass import temporal_bypass

from ..small_models import small_unet


def run(unet, *, frames: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(1, frames, unet.config.in_channels, 8, 8, generator=generator)
    token = torch.randn(1, 1, 16, generator=generator)
    return unet(sample, torch.tensor(0.3), token, torch.tensor([[6.0, 127.0, 0.02]])).sample


@pytest.fixture
def unet():
    torch.manual_seed(0)
    unet = small_unet().eval()
    adapters.inject(unet, 4, seed=1)
    return unet


def wake(unet) -> None:
    """Make both adapters do something: B is zero after injection."""
    torch.manual_seed(3)
    for adapter in adapters.ADAPTERS:
        for name, parameter in adapters.adapter_parameters(unet, adapter).items():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter.data, std=0.1)


def test_layers_of_the_full_size_unet():
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel()  # the defaults are Stable Video Diffusion's
    spatial, temporal = (adapters.target_names(unet, adapter) for adapter in adapters.ADAPTERS)
    assert (len(spatial), len(temporal)) == (96, 160)
    assert not set(spatial) & set(temporal)
    assert not any("temporal" in name or name.endswith(("attn2.to_q", "attn2.to_k")) for name in spatial)
    assert all("temporal_transformer_blocks" in name for name in temporal)
    first = "down_blocks.0.attentions.0"
    assert spatial[:6] == [
        f"{first}.transformer_blocks.0.{layer}"
        for layer in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_v", "attn2.to_out.0")
    ]
    assert f"{first}.temporal_transformer_blocks.0.ff_in.net.0.proj" in temporal


def test_fresh_adapters_change_nothing_and_live_ones_do(unet):
    with torch.no_grad():
        with adapters.enabled(unet, ()):
            plain = run(unet)
        assert torch.equal(run(unet), plain)
        wake(unet)
        outputs = {}
        for chosen in ((), ("spatial",), ("temporal",), ("spatial", "temporal")):
            with adapters.enabled(unet, chosen):
                outputs[chosen] = run(unet)
    assert torch.equal(outputs[()], plain)
    values = list(outputs.values())
    for i, a in enumerate(values):
        assert all((a - b).abs().max() > 1e-4 for b in values[i + 1 :])


@pytest.mark.parametrize("trained", adapters.ADAPTERS)
def test_a_pass_moves_only_its_own_weights(unet, trained):
    wake(unet)
    adapters.train_only(unet, [trained])
    run(unet).square().mean().backward()
    for adapter in adapters.ADAPTERS:
        for name, parameter in adapters.adapter_parameters(unet, adapter).items():
            assert (parameter.grad is not None and bool(parameter.grad.any())) == (adapter == trained), name
    assert all(p.grad is None for n, p in unet.named_parameters() if ".lora_" not in n)


def test_round_trip_is_peft_layout(unet, tmp_path: Path):
    wake(unet)
    adapters.save(unet, "temporal", tmp_path, base_model="here")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == 4
    assert config["target_modules"] == sorted(config["target_modules"])
    with torch.no_grad():
        before = run(unet)
        adapters.reset(unet, ["temporal"])
        assert not torch.equal(run(unet), before)
        adapters.load(unet, "temporal", tmp_path)
        assert torch.equal(run(unet), before)


def test_untrained_is_not_saved(unet, tmp_path: Path):
    with pytest.raises(ValueError, match="untrained"):
        adapters.save(unet, "spatial", tmp_path, base_model="here")
    assert not list(tmp_path.iterdir())


def test_loading_another_rank_is_refused(unet, tmp_path: Path):
    wake(unet)
    adapters.save(unet, "spatial", tmp_path, base_model="here")
    other = small_unet()
    adapters.inject(other, 8)
    with pytest.raises(InputError, match="rank 4"):
        adapters.load(other, "spatial", tmp_path)


def test_bypass_equals_image_only_indicator_of_ones(monkeypatch):
    torch.manual_seed(0)
    unet = small_unet().eval()
    with torch.no_grad():
        with temporal_bypass(unet):
            bypassed = run(unet)
        video = run(unet)
        original = AlphaBlender.get_alpha
        monkeypatch.setattr(
            AlphaBlender, "get_alpha", lambda self, indicator, ndims: original(self, torch.ones_like(indicator), ndims)
        )
        assert torch.equal(bypassed, run(unet))
    assert not torch.equal(bypassed, video)
