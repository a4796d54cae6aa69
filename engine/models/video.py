"""Video models are directories in the diffusers layout of `StableVideoDiffusionPipeline`; here they are loaded.

`catalog.find_model` finds them by name.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.edm import network_input
from ..errors import ModelError

ENCODER_PARTS = ("vae", "image_encoder", "feature_extractor")
"""Encodes pictures to latents and image embeddings."""


def weight_count(folder: Path) -> int:
    """Weights in a component's safetensors files by their headers; loading a network for it would cost far more."""
    files = sorted(folder.glob("*.safetensors"))
    total = 0
    # Repositories hold half-precision twins beside the full files: one of the two is counted.
    for path in [f for f in files if ".fp16" not in f.name] or files:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Properties of a model directory, read from its configs without loading weights."""

    latent_channels: int
    frames: int
    vae_scale: int
    """Pixels a latent cell and axis."""
    multiple: int
    """Working sizes are multiples of this many pixels."""
    area_px: int
    """Pixels a frame that the model was trained at."""
    guided: bool
    """The UNet also takes the anchor's latents and the latent mask."""

    @staticmethod
    def read(folder: Path) -> "ModelShape":
        """Raises ModelError: the UNet's input channels are neither those of SVD nor of an anchor-guided model."""
        try:
            unet = json.loads((folder / "unet" / "config.json").read_text())
            vae = json.loads((folder / "vae" / "config.json").read_text())
            channels, inputs = unet["out_channels"], unet["in_channels"]
            vae_scale = 2 ** (len(vae["block_out_channels"]) - 1)
            levels = len(unet["block_out_channels"])
            sample_size = unet.get("sample_size") or 64
            frames = unet.get("num_frames", 25)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"the configs in {folder} cannot be read ({error})", param="model") from None
        if inputs not in (2 * channels, 3 * channels + 1):
            raise ModelError(
                f"the UNet in {folder} takes {inputs} channels; with {channels} latent channels "
                f"{2 * channels} (image to video) or {3 * channels + 1} (anchor-guided) are understood",
                param="model",
            )
        # SVD says 96, and 96 * 8 squared is 576 x 1024 exactly: the training area, whatever the aspect.
        rows, columns = sample_size if isinstance(sample_size, list) else (sample_size, sample_size)
        return ModelShape(
            latent_channels=channels,
            frames=frames,
            vae_scale=vae_scale,
            multiple=vae_scale * 2 ** (levels - 1),
            area_px=rows * columns * vae_scale**2,
            guided=inputs == 3 * channels + 1,
        )

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) near the training area that covers a whole width x height frame, nothing cropped.

        Each axis is rounded to the model's multiple; the slight stretch is undone at delivery.
        """
        scale = math.sqrt(self.area_px / (width * height))
        rows, columns = (max(1, round(side * scale / self.multiple)) for side in (height, width))
        return rows * self.multiple, columns * self.multiple


class Codec:
    """The half of a model that turns frames into latents, frames and tokens: VAE and image encoder.

    Frames are float [N, 3, H, W] in 0..1; latents [N, C, h, w], unscaled as the VAE's `mode()` gives them unless said.
    """

    def __init__(self, folder: Path, *, device: torch.device, param: str = "model") -> None:
        """Raises ModelError: the directory's files are damaged or of other classes."""
        from diffusers.models import AutoencoderKLTemporalDecoder
        from transformers import CLIPVisionModelWithProjection

        self.folder, self.device = folder, device
        with loading(folder, param):
            # SVD's VAE overflows in fp16; it is small beside the UNet, so it always runs in fp32.
            self.vae = load_network(AutoencoderKLTemporalDecoder, folder / "vae", torch.float32)
            self.image_encoder = load_network(CLIPVisionModelWithProjection, folder / "image_encoder", torch.float32)
            pixels = json.loads((folder / "feature_extractor" / "preprocessor_config.json").read_text())
        for module in (self.vae, self.image_encoder):
            module.requires_grad_(False).eval().to(device)
        self.scaling = float(self.vae.config.scaling_factor)
        self._mean, self._std = (
            torch.tensor(pixels[k], device=device).view(3, 1, 1) for k in ("image_mean", "image_std")
        )

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents of frames, unscaled `mode()`, fp32."""
        self._place_encoders(self.device)
        return self.vae.encode(frames.to(self.device) * 2 - 1).latent_dist.mode()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Frames in 0..1 of one chunk of scaled latents; neighbors in the chunk share the decoder's temporal layers."""
        self._place_encoders(self.device)
        frames = self.vae.decode(latents.to(self.device).float() / self.scaling, num_frames=len(latents)).sample
        return (frames / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def embed(self, frames: Tensor) -> Tensor:
        """Image tokens [N, 1, D], fp32, of frames resized to the encoder's square."""
        self._place_encoders(self.device)
        side = self.image_encoder.config.image_size
        images = F.interpolate(frames.to(self.device), size=(side, side), mode="bicubic", antialias=True)
        return self.image_encoder((images - self._mean) / self._std).image_embeds[:, None]

    def _place_encoders(self, device: torch.device) -> None:
        for module in (self.vae, self.image_encoder):
            if next(module.parameters()).device.type != device.type:
                module.to(device)


class VideoModel(Codec):
    """A loaded model: VAE, image encoder and UNet behind the few calls that the method makes."""

    def __init__(self, folder: Path, *, device: torch.device, dtype: torch.dtype) -> None:
        """Raises ModelError: the directory's files are damaged or of other classes."""
        from diffusers.models import UNetSpatioTemporalConditionModel
        from diffusers.schedulers import EulerDiscreteScheduler

        super().__init__(folder, device=device)
        self.dtype, self.shape = dtype, ModelShape.read(folder)
        self.offload = False
        """The VAE and the image encoder come to the device when they are used, and leave it when the UNet is."""
        with loading(folder):
            self.unet = load_network(UNetSpatioTemporalConditionModel, folder / "unet", dtype)
            scheduler: Any = EulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        if scheduler.config.prediction_type != "v_prediction":
            raise ModelError(f"{folder} predicts {scheduler.config.prediction_type}, v_prediction is needed")
        self.unet.requires_grad_(False).eval().to(device)
        self.sigma_min = float(scheduler.config.sigma_min or 0.002)
        self.sigma_max = float(scheduler.config.sigma_max or 700.0)

    @property
    def parameters(self) -> int:
        """Parameters of the directory's networks, adapters not counted."""
        modules = (self.unet, self.vae, self.image_encoder)
        return sum(p.numel() for m in modules for n, p in m.named_parameters() if ".lora_" not in n)

    def predict(
        self,
        noisy: Tensor,
        sigma: Tensor,
        image_latents: Tensor,
        image_embeds: Tensor,
        added_time_ids: Tensor,
        anchor: Tensor | None = None,
        latent_mask: Tensor | None = None,
    ) -> Tensor:
        """The network's output F in fp32, [B, T, C, h, w]; the EDM input scaling and noise label happen here.

        Args:
            noisy: scaled noisy latents [B, T, C, h, w].
            sigma: [B].
            image_latents: image-prompt latents, unscaled [B, C, h, w].
            image_embeds: [B, 1, D].
            added_time_ids: [B, 3]: fps - 1, motion bucket, noise augmentation.
            anchor: for guided models, scaled anchor latents [B, T, C, h, w]; zeros if absent.
            latent_mask: for guided models, latent mask [B, T, h, w]; zeros if absent.
        """
        if self.offload:
            self._place_encoders(torch.device("cpu"))
        scaled, label = network_input(noisy, sigma)
        parts = [scaled, image_latents[:, None].expand_as(noisy)]
        if self.shape.guided:
            parts.append(torch.zeros_like(noisy) if anchor is None else anchor)
            parts.append(
                torch.zeros_like(noisy[:, :, :1]) if latent_mask is None else latent_mask[:, :, None].to(noisy)
            )
        inputs = torch.cat(parts, dim=2).to(self.dtype)
        return self.unet(inputs, label, image_embeds.to(self.dtype), added_time_ids.to(self.dtype)).sample.float()


@contextmanager
def loading(folder: Path, param: str = "model") -> Iterator[None]:
    """Whatever the libraries raise about a directory's files becomes a ModelError."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ModelError(f"{folder} cannot be loaded: {reason}", param=param) from None


def load_network(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network of diffusers or transformers from its directory; of the fp16 files where there are no others."""
    variant = "fp16" if not any(folder.glob("*model.safetensors")) and any(folder.glob("*.fp16.safetensors")) else None
    keyword = "dtype" if kind.__module__.startswith("transformers") else "torch_dtype"
    return kind.from_pretrained(
        folder, variant=variant, use_safetensors=True, local_files_only=True, **{keyword: dtype}
    )
