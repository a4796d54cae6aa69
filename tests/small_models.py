"""Model directories small enough for a test, of the exact class layouts, with random weights."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
)

from recapture.priors.train_multiview import build_unet


def small_unet(
    *, latent_channels: int = 4, extra_channels: int = 0, frames: int = 4
) -> UNetSpatioTemporalConditionModel:
    return UNetSpatioTemporalConditionModel(
        sample_size=8,
        in_channels=2 * latent_channels + extra_channels,
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=16,
        num_attention_heads=(2, 4),
        num_frames=frames,
    )


def write_small_svd(folder: Path, *, latent_channels: int = 4, extra_channels: int = 0, frames: int = 4) -> Path:
    torch.manual_seed(0)
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=latent_channels,
        sample_size=64,
    )
    image_encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=224,
            patch_size=56,
            projection_dim=16,
        )
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        interpolation_type="linear",
        use_karras_sigmas=True,
        timestep_spacing="leading",
        timestep_type="continuous",
        sigma_min=0.002,
        sigma_max=700.0,
        steps_offset=1,
    )
    StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=image_encoder,
        unet=small_unet(latent_channels=latent_channels, extra_channels=extra_channels, frames=frames),
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}),
    ).save_pretrained(folder)
    return folder


def write_small_multiview(folder: Path, encoder: Path, **about: object) -> Path:
    """A multiview model in the embedded one's layout; `encoder` is a directory with VAE and image encoder."""
    torch.manual_seed(0)
    build_unet(small_unet(extra_channels=5).config).save_pretrained(folder / "unet")
    usual = {"encoder": str(encoder), "license": "CC0", "noncommercial": False, "steps": 2, "guidance": 1.5}
    (folder / "multiview.json").write_text(json.dumps(usual | about))
    return folder


def write_small_depth(folder: Path, *, width: int = 16, **extra: object) -> Path:
    """A Depth Anything directory; relative disparity unless `extra`, of its config, says otherwise."""
    torch.manual_seed(0)
    dino = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=56,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=dino,
        head_hidden_size=8,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        patch_size=14,
        **extra,
    )
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    processor = {
        "size": {"height": 56, "width": 56},
        "ensure_multiple_of": 14,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
