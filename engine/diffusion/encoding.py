"""The video model's conditioning, encoded once: the hole-filled anchor with its latent mask, and augmented source frames."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.latent_mask import latent_mask
from ..anchor.render import to_tensor
from ..config import ConditionConfig
from ..imaging.push_pull import push_pull
from ..models.video import VideoModel
from .edm import seeded_noise


def to_working(images: Tensor, size: tuple[int, int]) -> Tensor:
    """float [N, C, H, W] resized to the working size (antialiased; unchanged at equal size)."""
    return images if images.shape[-2:] == size else F.interpolate(images, size=size, mode="bilinear", antialias=True)


def working_anchor(
    color: np.ndarray, mask: np.ndarray, size: tuple[int, int], *, filled: bool = False
) -> tuple[Tensor, Tensor]:
    """Anchor frames at the working size, holes filled for encoding, and the mask of cells without a hole in them.

    Args:
        color: uint8 [N, H, W, 3].
        mask: bool [N, H, W].
        filled: the holes already have colors (a multiview model's), which stay.

    Returns:
        float [N, 3, h, w] and bool [N, h, w].
    """
    weight = torch.from_numpy(mask.copy())[:, None].float()
    share = to_working(weight, size)
    if filled:
        picture = to_working(to_tensor(color), size)
    else:
        mean = to_working(to_tensor(color) * weight, size) / share.clamp(min=1e-6)
        picture = push_pull(mean, share[:, 0].clamp(max=1))
    return picture.clamp(0, 1), share[:, 0] > 0.99


class Encoder:
    """Frames to latents, image prompts and tokens in fixed micro-batches counted from the first frame.

    The last micro-batch is filled up with its last frame, so every call has one shape and no split changes a bit.
    """

    def __init__(self, model: VideoModel, config: ConditionConfig, size: tuple[int, int], seed: int) -> None:
        self.model, self.batch = model, config.micro_batch
        # SVD was trained with slightly noisy prompts; one draw for all frames, so that the prompt does not flicker.
        self.noise = config.noise_augmentation * seeded_noise((1, 3, *size), seed, device=model.device)

    def __call__(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled latents [N, C, h, w], unscaled prompts [N, C, h, w] and tokens [N, 1, D] of at most a micro-batch."""
        count = len(frames)
        frames = torch.cat([frames, frames[-1:].expand(self.batch - count, -1, -1, -1)]).to(self.model.device)
        parts = self.model.encode(frames) * self.model.scaling, self.image_latents(frames), self.model.embed(frames)
        latents, image_latents, image_embeds = (part[:count] for part in parts)
        return latents, image_latents, image_embeds

    def image_latents(self, frames: Tensor) -> Tensor:
        return self.model.encode(frames + self.noise / 2)  # the noise is of the range [-1, 1], frames are in [0, 1]

    def encode_image(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Image prompt [C, h, w] and token [1, D] of a generated latent frame [C, h, w]."""
        frame = self.model.decode(latent[None])
        return self.image_latents(frame)[0], self.model.embed(frame)[0]


def anchor_mask(mask: Tensor, model: VideoModel, config: ConditionConfig) -> Tensor:
    """The latent mask of a working-size mask, float [N, h, w]."""
    cell = (model.shape.vae_scale, model.shape.vae_scale)
    return latent_mask(mask, cell, mode=config.mask_mode, threshold=config.mask_threshold)


def augmented_frames(
    frames: np.ndarray, count: int, size: tuple[int, int], seed: int, chosen: range
) -> tuple[Tensor, list[int]]:
    """Those `chosen` of `count` views of frames spread evenly over the clip: [K, 3, h, w], and each one's source frame.

    Every fourth is the frame as it is; the rest are random crops (70 to 100 % of each side, as one), half of them
    mirrored: the look of the scene is to be learned, not its framing.
    """
    draw = torch.Generator().manual_seed(seed)
    views, sources = [], []
    for i in range(chosen.stop):
        scale, x, y, mirror = torch.rand(4, generator=draw).tolist() if i % 4 else (1.0, 0.0, 0.0, 1.0)
        if i < chosen.start:
            continue  # its draw had to be made, or the others would be other ones
        index = i * len(frames) // count
        image = to_tensor(frames[index : index + 1])
        height, width = image.shape[-2:]
        rows, columns = (max(1, round(side * (0.7 + 0.3 * scale))) for side in (height, width))
        top, left = round(y * (height - rows)), round(x * (width - columns))
        image = image[..., top : top + rows, left : left + columns]
        image = image.flip(-1) if mirror < 0.5 else image
        views.append(to_working(image, size).clamp(0, 1))
        sources.append(index)
    return torch.cat(views), sources
