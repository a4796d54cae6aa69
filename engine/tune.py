"""Tune the two adapters on one clip: the spatial one on source frames, the temporal one on the masked anchor.

Every step draws from a generator seeded by (seed, pass, step), so a resumed run continues bit for bit. Nothing here
calls the VAE or the image encoder: what they make is in the banks.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..kernels.masked_loss import masked_loss
from . import adapters
from .adapters import AdapterName
from .bypass import temporal_bypass
from .config import TuneConfig
from .models import VideoModel
from .sample import Condition
from .store import Writer

_PASSES: dict[AdapterName, int] = {"spatial": 1, "temporal": 2}
_HELD_OUT = 1 << 40
"""Steps from here on are the draws of the held-out loss; training never reaches them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceBank:
    """Augmented source frames, encoded once (A of them).

    Attributes:
        latents: scaled [A, C, h, w].
        prompts: noise-augmented, unscaled [A, C, h, w].
        tokens: [A, 1, D].
        frame: [A] index of the source frame each was made from.
        ids: [3].
    """

    latents: Tensor
    prompts: Tensor
    tokens: Tensor
    frame: Tensor
    ids: Tensor


class Tuner:
    """Draws, losses and steps of both passes; one instance a tuning stage."""

    def __init__(self, model: VideoModel, config: TuneConfig, seed: int) -> None:
        self.model, self.config, self.seed = model, config, seed

    def spatial_loss(self, bank: SourceBank, step: int) -> Tensor:
        """L_spatial: plain diffusion loss of single augmented source frames, temporal layers skipped."""
        draw = self._generator("spatial", step)
        count = self.config.spatial_batch
        index = torch.randint(len(bank.latents), (count,), generator=draw)
        clean = bank.latents[index][:, None]  # [B, 1, C, h, w]
        noisy, sigma = self._noised(clean, draw)
        prompt, token = bank.prompts[index], bank.tokens[index]
        if self.config.spatial_prompt == "other" and len(bank.frame.unique()) > 1:
            other = torch.stack([self._other(bank, int(i), draw) for i in index])
            prompt, token = bank.prompts[other], bank.tokens[other]
        else:
            prompt, token = torch.zeros_like(prompt), torch.zeros_like(token)
        with temporal_bypass(self.model.unet), adapters.enabled(self.model.unet, ["spatial"]):
            predicted = self.model.predict(noisy, sigma, prompt, token, bank.ids.expand(count, -1))
        return masked_loss(predicted, noisy, clean, sigma)

    def temporal_loss(
        self, anchor: Condition, step: int, *, chosen: tuple[AdapterName, ...] = ("spatial", "temporal")
    ) -> Tensor:
        """L_temp: masked diffusion loss of a random window of the anchor, its image prompt the window's first frame."""
        draw = self._generator("temporal", step)
        size = min(self.model.shape.frames, len(anchor.latents))
        start = int(torch.randint(len(anchor.latents) - size + 1, (1,), generator=draw))
        frames = slice(start, start + size)
        clean, mask = anchor.latents[frames][None], anchor.mask[frames][None]
        noisy, sigma = self._noised(clean, draw)
        with adapters.enabled(self.model.unet, chosen):
            predicted = self.model.predict(
                noisy, sigma, anchor.prompts[start][None], anchor.tokens[start][None], anchor.ids[None], clean, mask
            )
        return masked_loss(predicted, noisy, clean, sigma, mask, normalisation=self.config.normalisation)

    @torch.no_grad()
    def held_out(self, anchor: Condition, chosen: tuple[AdapterName, ...], draws: int = 4) -> float:
        """Masked loss with these adapters on, over fixed noise that training never sees."""
        losses = [self.temporal_loss(anchor, _HELD_OUT + i, chosen=chosen) for i in range(draws)]
        return float(torch.stack(losses).mean())

    def _generator(self, kind: AdapterName, step: int) -> torch.Generator:
        # Large odd multipliers keep (seed, pass, step) from colliding.
        mixed = (
            self.seed * 0x9E3779B97F4A7C15 + _PASSES[kind] * 0xBF58476D1CE4E5B9 + step * 0x94D049BB133111EB
        ) % 2**63
        return torch.Generator().manual_seed(mixed)

    def _noised(self, clean: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        sigma = torch.randn(len(clean), generator=draw) * self.config.sigma_std + self.config.sigma_mean
        sigma = sigma.exp().to(clean.device)
        noise = torch.randn(clean.shape, generator=draw).to(clean.device)
        return clean + sigma.view(-1, 1, 1, 1, 1) * noise, sigma

    @staticmethod
    def _other(bank: SourceBank, index: int, draw: torch.Generator) -> Tensor:
        choices = (bank.frame != bank.frame[index]).nonzero().flatten().cpu()
        return choices[torch.randint(len(choices), (), generator=draw)]


def tune(
    model: VideoModel,
    config: TuneConfig,
    writer: Writer,
    steps: int,
    losses: dict[AdapterName, Callable[[int], Tensor]],
    on_step: Callable[[int, float], Any],
    enough: Callable[[], bool] = lambda: False,
) -> dict[AdapterName, list[float]]:
    """Minimise the losses, each by its own adapter alone, checkpointing as configured.

    Args:
        losses: a function of the step for each adapter that is tuned. In the joint schedule there are two: each step
            runs both, and since no gradient of the temporal pass may reach the spatial adapter, each backward pass has
            only its own adapter's parameters open.
        on_step: called with (steps done, loss of the last pass).
        enough: asked every `checkpoint_every` steps; True ends the tuning early.

    Returns:
        Loss of every step that was taken, by adapter.
    """
    unet = model.unet
    parameters = {name: list(adapters.adapter_parameters(unet, name).values()) for name in losses}
    optimiser = torch.optim.AdamW(
        [p for part in parameters.values() for p in part],
        lr=config.lr,
        weight_decay=config.weight_decay,
        fused=model.device.type == "cuda",
    )
    curves: dict[AdapterName, list[Tensor]] = {name: [] for name in losses}  # on the device: no wait for a number
    first = _resume(writer, parameters, optimiser, curves)
    # fp32 adapters on half-precision weights: autocast casts at each product, the optimiser keeps full precision.
    half = torch.autocast(model.device.type, dtype=model.dtype) if model.dtype != torch.float32 else nullcontext()
    for step in range(first, steps):
        for name, loss_of in losses.items():
            adapters.train_only(unet, [name])
            with half:
                loss = loss_of(step)
            loss.backward()
            curves[name].append(loss.detach())
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        on_step(step + 1, float(curves[next(reversed(losses))][-1]))
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < steps:
            if enough():
                break
            _checkpoint(writer, parameters, optimiser, curves, step + 1)
    adapters.train_only(unet, ())
    return {name: [float(value) for value in curve] for name, curve in curves.items()}


def _checkpoint(
    writer: Writer,
    parameters: dict[AdapterName, list[torch.nn.Parameter]],
    optimiser: torch.optim.Optimizer,
    curves: dict[AdapterName, list[Tensor]],
    step: int,
) -> None:
    """Weights, optimiser moments, loss curves and the step; the generators need no state, they are seeded by step."""
    tensors: dict[str, Tensor] = {"step": torch.tensor(step)}
    for name, part in parameters.items():
        tensors[f"loss.{name}"] = torch.stack(curves[name])
        for i, parameter in enumerate(part):
            tensors[f"{name}.{i}"] = parameter.detach()
            for key, value in optimiser.state[parameter].items():
                tensors[f"{name}.{i}.{key}"] = value
    state = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    writer.save_checkpoint({"tune.safetensors": lambda: save(state)})


def _resume(
    writer: Writer,
    parameters: dict[AdapterName, list[torch.nn.Parameter]],
    optimiser: torch.optim.Optimizer,
    curves: dict[AdapterName, list[Tensor]],
) -> int:
    folder = writer.load_checkpoint()
    if folder is None:
        return 0
    state = load_file(folder / "tune.safetensors")
    for name, part in parameters.items():
        curves[name].extend(state[f"loss.{name}"])
        for i, parameter in enumerate(part):
            parameter.data.copy_(state[f"{name}.{i}"])
            optimiser.state[parameter] = {
                key: state[f"{name}.{i}.{key}"].to(parameter.device if key != "step" else "cpu")
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
    return int(state["step"])
