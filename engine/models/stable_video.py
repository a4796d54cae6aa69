"""Stable Video Diffusion's networks from their published configs: to plan for it, and to measure it, without its weights.

How fast a network is and what it holds depends on its shape alone, so random weights measure as the real ones do.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

StableVideo = Literal["svd", "svd-xt"]
FRAMES: dict[StableVideo, int] = {"svd": 14, "svd-xt": 25}
"""Frames of a window; the two models differ in nothing else."""

_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
}
_IMAGE_ENCODER = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 1024,
    "hidden_act": "gelu",
}
_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "interpolation_type": "linear",
    "use_karras_sigmas": True,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "steps_offset": 1,
}
_PIXELS = {
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "size": {"shortest_edge": 224},
}


def write_configs(model: StableVideo, folder: Path) -> Path:
    """The model's directory without its weights: enough to plan a run with it."""
    with torch.device("meta"):
        unet, vae, _ = _networks(model)
    for part, network in (("unet", unet), ("vae", vae)):
        network.save_config(folder / part)
    _image_encoder_config().save_pretrained(folder / "image_encoder")
    return _write_rest(folder)


def write_random(model: StableVideo, folder: Path, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Path:
    """The model's directory with random weights; 4.5 GB in half precision."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        networks = _networks(model)
    finally:
        torch.set_default_dtype(before)
    for part, network in zip(("unet", "vae", "image_encoder"), networks, strict=True):
        nn.Module.to(network, dtype)
        network.save_pretrained(folder / part)
    return _write_rest(folder)


def _networks(model: StableVideo) -> tuple[Any, Any, Any]:
    """UNet, VAE and image encoder."""
    from diffusers.models import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionModelWithProjection

    # The UNet's config is diffusers' defaults.
    unet = UNetSpatioTemporalConditionModel(sample_size=96, num_frames=FRAMES[model])
    return unet, AutoencoderKLTemporalDecoder(**_VAE), CLIPVisionModelWithProjection(_image_encoder_config())


def _image_encoder_config() -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(**_IMAGE_ENCODER)


def _write_rest(folder: Path) -> Path:
    from diffusers.schedulers import EulerDiscreteScheduler

    EulerDiscreteScheduler(**_SCHEDULER).save_config(folder / "scheduler")
    (folder / "feature_extractor").mkdir(parents=True, exist_ok=True)
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(_PIXELS, indent=2) + "\n")
    return folder
