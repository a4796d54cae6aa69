"""Tune the two adapters on one clip: the spatial one on source frames, the temporal one on the masked anchor.

Every step draws from a generator seeded by (seed, pass, step), so a resumed run continues bit for bit. Nothing here
calls the VAE or the image encoder: what they make is in the banks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ...kernels.masked_loss import masked_loss
from ..config import TuneConfig
from ..models import adapters
from ..models.adapters import AdapterName
from ..models.checkpointing import checkpointed
from ..models.temporal_bypass import temporal_bypass
from ..models.video import VideoModel
from ..store import Writer
from .sampler import Condition

_PASSES: dict[AdapterName, int] = {"spatial": 1, "temporal": 2}
_HELD_OUT = 1 << 40
"""Steps from here on are the draws of the held-out loss; training never reaches them."""


Share = tuple[int, int]
"""(rank, of): which part of each step's batch a process takes; (0, 1) is all of it."""


def slice_of(batch: int, share: Share) -> slice:
    """A process's part of a batch."""
    rank, of = share
    return slice(batch * rank // of, batch * (rank + 1) // of)


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

    def __init__(self, model: VideoModel, config: TuneConfig, seed: int, share: Share = (0, 1)) -> None:
        """`share` is the part of each step's batch that is this process's."""
        self.model, self.config, self.seed, self.share = model, config, seed, share

    def spatial_loss(self, bank: SourceBank, step: int) -> Tensor:
        """L_spatial: plain diffusion loss of single augmented source frames, temporal layers skipped."""
        draw = self._generator("spatial", step)
        mine = slice_of(self.config.spatial_batch, self.share)
        index = torch.randint(len(bank.latents), (self.config.spatial_batch,), generator=draw)
        clean = bank.latents[index][:, None]  # [B, 1, C, h, w]
        noisy, sigma = self._noised(clean, draw)
        prompt, token = bank.prompts[index], bank.tokens[index]
        if self.config.spatial_prompt == "other" and len(bank.frame.unique()) > 1:
            other = torch.stack([self._other(bank, int(i), draw) for i in index])
            prompt, token = bank.prompts[other], bank.tokens[other]
        else:
            prompt, token = torch.zeros_like(prompt), torch.zeros_like(token)
        noisy, sigma, clean, prompt, token = (each[mine] for each in (noisy, sigma, clean, prompt, token))
        with temporal_bypass(self.model.unet), adapters.enabled(self.model.unet, ["spatial"]):
            predicted = self.model.predict(noisy, sigma, prompt, token, bank.ids.expand(len(noisy), -1))
        return masked_loss(predicted, noisy, clean, sigma)

    def temporal_loss(self, anchor: Condition, step: int) -> Tensor:
        """L_temp: masked diffusion loss of random windows of the anchor, each one's image prompt its first frame."""
        batch = self.config.temporal_batch
        draws = range(step * batch, (step + 1) * batch)[slice_of(batch, self.share)]
        return self._masked(anchor, draws, ("spatial", "temporal"))

    @torch.no_grad()
    def held_out(self, anchor: Condition, chosen: tuple[AdapterName, ...], draws: int = 4) -> float:
        """Masked loss with these adapters on, over fixed noise that training never sees."""
        losses = [self._masked(anchor, [_HELD_OUT + i], chosen) for i in range(draws)]
        return float(torch.stack(losses).mean())

    def _masked(self, anchor: Condition, draws: Sequence[int], chosen: tuple[AdapterName, ...]) -> Tensor:
        """Mean over windows, one a draw."""
        size = min(self.model.shape.frames, len(anchor.latents))
        windows = []
        for number in draws:
            draw = self._generator("temporal", number)
            start = int(torch.randint(len(anchor.latents) - size + 1, (1,), generator=draw))
            frames = slice(start, start + size)
            clean = anchor.latents[frames][None]
            prompt, token = anchor.prompts[start][None], anchor.tokens[start][None]
            windows.append((clean, anchor.mask[frames][None], *self._noised(clean, draw), prompt, token))
        clean, mask, noisy, sigma, prompt, token = (torch.cat(parts) for parts in zip(*windows, strict=True))
        with adapters.enabled(self.model.unet, chosen):
            predicted = self.model.predict(noisy, sigma, prompt, token, anchor.ids.expand(len(clean), -1), clean, mask)
        return masked_loss(predicted, noisy, clean, sigma, mask, normalisation=self.config.normalisation)

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


class Optimiser(Protocol):
    """AdamW over the parameters that are tuned, in one process or spread over several."""

    leads: bool
    """Whether this process keeps the checkpoints."""

    def backward(self, loss: Tensor) -> None: ...

    def step(self) -> None:
        """Apply the gradients, and forget them."""
        ...

    def mean(self, loss: Tensor) -> Tensor:
        """Of all processes that share the batch."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Weights and moments by parameter."""
        ...

    def restore(self, state: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        """Take the state that the leading process found, if it found one, in all of them."""
        ...

    def close(self) -> None:
        """Leave the tuned weights in the model, and nothing else."""
        ...


OptimiserOf = Callable[[VideoModel, TuneConfig, dict[AdapterName, list[nn.Parameter]]], Optimiser]


class AdamW:
    """The optimiser of one process."""

    leads = True

    def __init__(
        self, model: VideoModel, config: TuneConfig, parameters: dict[AdapterName, list[nn.Parameter]]
    ) -> None:
        self._parameters = parameters
        self._optimiser = adamw(parameters, config, model.device)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    def mean(self, loss: Tensor) -> Tensor:
        return loss

    def state(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for key, parameter in by_key(self._parameters):
            found[key] = parameter.detach()
            found |= {f"{key}.{name}": value for name, value in self._optimiser.state[parameter].items()}
        return found

    def restore(self, state: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        if not state:
            return state
        for key, parameter in by_key(self._parameters):
            parameter.data.copy_(state[key])
            self._optimiser.state[parameter] = {
                name: state[f"{key}.{name}"].to(parameter.device if name != "step" else "cpu")
                for name in ("step", "exp_avg", "exp_avg_sq")
            }
        return state

    def close(self) -> None:
        pass


def adamw(
    parameters: dict[AdapterName, list[nn.Parameter]], config: TuneConfig, device: torch.device
) -> torch.optim.AdamW:
    """torch's AdamW over the parameters of all tuned adapters."""
    return torch.optim.AdamW(
        [p for part in parameters.values() for p in part],
        lr=config.lr,
        weight_decay=config.weight_decay,
        fused=device.type == "cuda",
    )


def by_key(parameters: dict[AdapterName, list[nn.Parameter]]) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by their names in a checkpoint."""
    return ((f"{name}.{i}", parameter) for name, part in parameters.items() for i, parameter in enumerate(part))


def tune(
    model: VideoModel,
    config: TuneConfig,
    writer: Writer,
    steps: int,
    losses: dict[AdapterName, Callable[[int], Tensor]],
    on_step: Callable[[int, float], Any],
    enough: Callable[[], bool] = lambda: False,
    optimiser_of: OptimiserOf = AdamW,
) -> dict[AdapterName, list[float]]:
    """Minimise the losses, each by its own adapter alone, checkpointing as configured.

    Args:
        losses: a function of the step for each adapter that is tuned. In the joint schedule there are two: each step
            runs both, and since no gradient of the temporal pass may reach the spatial adapter, each backward pass has
            only its own adapter's parameters open.
        on_step: called with (steps done, loss of the last pass).
        enough: asked every `checkpoint_every` steps; True ends the tuning early.
        optimiser_of: makes the optimiser.

    Returns:
        Loss of every step that was taken, by adapter.
    """
    parameters: dict[AdapterName, list[nn.Parameter]] = {
        name: list(adapters.adapter_parameters(model.unet, name).values()) for name in losses
    }
    adapters.train_only(model.unet, losses)
    optimiser = optimiser_of(model, config, parameters)
    curves: dict[AdapterName, list[Tensor]] = {name: [] for name in losses}  # on the device: no wait for a number
    first = _resume(writer, optimiser, curves)
    # fp32 adapters on half-precision weights: autocast casts at each product, the optimiser keeps full precision.
    half = torch.autocast(model.device.type, dtype=model.dtype) if model.dtype != torch.float32 else nullcontext()
    for step in range(first, steps):
        for name, loss_of in losses.items():
            if len(losses) > 1:
                adapters.train_only(model.unet, [name])
            with checkpointed(model.unet, config.checkpointing):
                with half:
                    loss = loss_of(step)
                optimiser.backward(loss)
            curves[name].append(optimiser.mean(loss.detach()))
        optimiser.step()
        on_step(step + 1, float(curves[next(reversed(losses))][-1]))
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < steps:
            if enough():
                break
            _checkpoint(writer, optimiser, curves, step + 1)
    optimiser.close()
    adapters.train_only(model.unet, ())
    return {name: [float(value) for value in curve] for name, curve in curves.items()}


def _checkpoint(writer: Writer, optimiser: Optimiser, curves: dict[AdapterName, list[Tensor]], step: int) -> None:
    """Weights, optimiser moments, loss curves and the step; the generators need no state, they are seeded by step."""
    tensors = {"step": torch.tensor(step), **optimiser.state()}
    if not optimiser.leads:
        return
    tensors |= {f"loss.{name}": torch.stack(curve) for name, curve in curves.items()}
    state = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    writer.save_checkpoint({"tune.safetensors": lambda: save(state)})


def _resume(writer: Writer, optimiser: Optimiser, curves: dict[AdapterName, list[Tensor]]) -> int:
    folder = writer.load_checkpoint() if optimiser.leads else None
    state = optimiser.restore(None if folder is None else load_file(folder / "tune.safetensors"))
    if state is None:
        return 0
    for name, curve in curves.items():
        curve.extend(state[f"loss.{name}"])
    return int(state["step"])
