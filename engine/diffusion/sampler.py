"""Sampling: steps of the EDM ODE over windows of the anchor, and SDEdit of the result.

Our own loop, because the stock pipeline fails at one frame with guidance and knows nothing of windows or guided models.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ..models.video import VideoModel
from .conditioning import AnchorConditioning
from .edm import clean_estimate, euler_step, karras_sigmas, seeded_noise


class Sampler(Protocol):
    """How noise levels are chosen, and how one step goes from a level to the next. It may be sent to another process."""

    version: str
    """Names what it does, in the keys of results."""

    def sigmas(self, steps: int, sigma_max: float, sigma_min: float) -> list[float]:
        """Falling noise levels from sigma_max on; the last is 0."""
        ...

    def step(self, latents: Tensor, clean: Tensor, sigma: float, below: float) -> Tensor:
        """Latents [T, C, h, w] at noise level `below`, from those at `sigma` and the network's estimate without noise."""
        ...


class EulerSampler:
    """Euler steps of the EDM ODE over Karras' noise levels."""

    version = "1"

    def sigmas(self, steps: int, sigma_max: float, sigma_min: float) -> list[float]:
        """See `karras_sigmas`."""
        return karras_sigmas(steps, sigma_max, sigma_min)

    def step(self, latents: Tensor, clean: Tensor, sigma: float, below: float) -> Tensor:
        """See `Sampler`."""
        return euler_step(latents, clean, sigma, below)


EULER = EulerSampler()


def plan_windows(count: int, size: int, overlap: int) -> list[range]:
    """Windows of `size` frames over `count`, each sharing at least `overlap` frames with the one before.

    The last one is moved back to end with the clip, so every window is full; a shorter clip is one shorter window.
    """
    if count <= size:
        return [range(count)]
    overlap = min(overlap, size - 1)
    starts = [*range(0, count - size, size - overlap), count - size]
    return [range(start, start + size) for start in starts]


def denoise(
    model: VideoModel,
    latents: Tensor,
    sigmas: list[float],
    condition: AnchorConditioning,
    window: range,
    *,
    image_latents: Tensor,
    image_embeds: Tensor,
    guidance: tuple[float, float] = (1.0, 1.0),
    known: Tensor | None = None,
    noise: Tensor | None = None,
    sampler: Sampler = EULER,
    on_step: Callable[[int, Tensor], Tensor | None] = lambda step, latents: None,
) -> Tensor:
    """Steps from sigmas[0] to 0 over one window.

    Args:
        latents: [T, C, h, w], already at noise level sigmas[0].
        image_latents: image prompt of the window [C, h, w], unscaled.
        image_embeds: image token of the prompt [1, D].
        guidance: scale at the first and last frame of the window; (1, 1) runs the network once per step.
        known: clean latents [K, C, h, w] of the window's first frames, held at each step (the window before made them).
        noise: [T, C, h, w], the noise that `known` is held with.
        on_step: called after each step with its index and the latents; may return replaced latents.
    """
    frames = slice(window.start, window.stop)
    scales = torch.linspace(*guidance, len(window), device=latents.device).view(-1, 1, 1, 1)
    guide = guidance != (1.0, 1.0)
    batch = 2 if guide else 1
    anchor = condition.latents[frames][None].expand(batch, -1, -1, -1, -1)
    mask = condition.latent_mask[frames][None].expand(batch, -1, -1, -1)
    image_latents = torch.stack([image_latents, torch.zeros_like(image_latents)][:batch])
    image_embeds = torch.stack([image_embeds, torch.zeros_like(image_embeds)][:batch])
    added_time_ids = condition.added_time_ids.expand(batch, -1)
    for step, (sigma, below) in enumerate(pairwise(sigmas)):
        if known is not None and noise is not None:
            latents = torch.cat([known + sigma * noise[: len(known)], latents[len(known) :]])
        level = latents.new_full((batch,), sigma)
        output = model.predict(
            latents[None].expand(batch, -1, -1, -1, -1),
            level,
            image_latents,
            image_embeds,
            added_time_ids,
            anchor,
            mask,
        )
        predicted = output[0] if not guide else output[1] + scales * (output[0] - output[1])
        clean = clean_estimate(latents, predicted, sigma)
        latents = sampler.step(latents, clean, sigma, below)
        replaced = on_step(step, latents)
        latents = latents if replaced is None else replaced
    return latents if known is None else torch.cat([known, latents[len(known) :]])


@torch.no_grad()
def sample(
    model: VideoModel,
    base: Tensor,
    condition: AnchorConditioning,
    windows: list[range],
    sigmas: list[float],
    *,
    encode_image: Callable[[Tensor], tuple[Tensor, Tensor]],
    first_image: tuple[Tensor, Tensor],
    guidance: tuple[float, float] = (1.0, 1.0),
    seed: int,
    sampler: Sampler = EULER,
    on_step: Callable[[int, int, Tensor], Tensor | None],
) -> Iterator[Tensor]:
    """Denoise `base` + noise window by window, the end of each carried into the next.

    The frames two windows share are taken from the first and held while the second is made, and the second's image
    prompt is the shared frame it begins with, so a seam is neither a cut nor a fade. With a `base` of zeros this is
    sampling from noise; with the anchor or an earlier sample it is SDEdit (Meng et al. 2022) from sigmas[0].

    Args:
        base: scaled latents [N, C, h, w].
        encode_image: image prompt and token of one clean latent frame [C, h, w] (decoded and encoded again).
        first_image: those of the first window.
        on_step: called with window index, step and latents; may return replaced latents.

    Yields:
        scaled latents of each window's new frames [K, C, h, w], in order.
    """
    noise = seeded_noise(tuple(base.shape), seed, device=base.device)
    previous = base[:0]
    done = 0
    for index, window in enumerate(windows):
        frames = slice(window.start, window.stop)
        shared = done - window.start
        known = previous[len(previous) - shared :] if shared > 0 else None
        image_latents, image_embeds = first_image if known is None else encode_image(known[0])
        previous = denoise(
            model,
            base[frames] + sigmas[0] * noise[frames],
            sigmas,
            condition,
            window,
            image_latents=image_latents,
            image_embeds=image_embeds,
            guidance=guidance,
            known=known,
            noise=noise[frames],
            sampler=sampler,
            on_step=lambda step, latents, index=index: on_step(index, step, latents),
        )
        yield previous[shared:]
        done = window.stop
