"""The video model's conditioning as tensors: what `encoding.py` makes and what the tuner and the sampler read.

The names are diffusers': `image_latents` and `image_embeds` show the model the frame that a window begins with.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..config import ConditionConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorConditioning:
    """What the model is given of the whole anchor (N frames).

    Attributes:
        latents: scaled anchor latents [N, C, h, w].
        latent_mask: [N, h, w].
        image_latents: noise-augmented image-prompt latents, unscaled [N, C, h, w]: any frame may begin a window.
        image_embeds: [N, 1, D].
        added_time_ids: [3]: fps - 1, motion bucket, noise augmentation.
    """

    latents: Tensor
    latent_mask: Tensor
    image_latents: Tensor
    image_embeds: Tensor
    added_time_ids: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceBank:
    """Augmented source frames, encoded once (A of them).

    Attributes:
        latents: scaled [A, C, h, w].
        image_latents: noise-augmented, unscaled [A, C, h, w].
        image_embeds: [A, 1, D].
        frame: [A] index of the source frame each was made from.
        added_time_ids: [3].
    """

    latents: Tensor
    image_latents: Tensor
    image_embeds: Tensor
    frame: Tensor
    added_time_ids: Tensor


def added_time_ids(rate: float, config: ConditionConfig) -> np.ndarray:
    """SVD's added ids, float32 [3]: fps - 1 (it was trained on 1 to 30), motion bucket, noise augmentation."""
    fps = round(min(30.0, max(1.0, rate)))
    return np.array([fps - 1, config.motion_bucket, config.noise_augmentation], np.float32)
