"""Tune the two adapters on one clip: the spatial one on source frames, the temporal one on the masked anchor.

Every step draws from a generator seeded by (seed, pass, step), so a resumed run continues bit for bit. Nothing here
calls the VAE or the image encoder: what they make is in the banks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
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
from .conditioning import AnchorConditioning, SourceBank
from .edm import training_sigmas

_PASSES: dict[AdapterName, int] = {"spatial": 1, "temporal": 2}
_HELD_OUT = 1 << 40
"""Steps from here on are the draws of the held-out loss; training never reaches them."""


DataShard = tuple[int, int]
"""(rank, of): which part of each step's batch a process takes; (0, 1) is all of it."""


def shard_slice(batch: int, data_shard: DataShard) -> slice:
    """A process's part of a batch."""
    rank, of = data_shard
    return slice(batch * rank // of, batch * (rank + 1) // of)


class Tuner:
    """Draws, losses and steps of both passes; one instance a tuning stage."""

    def __init__(self, model: VideoModel, config: TuneConfig, seed: int, data_shard: DataShard = (0, 1)) -> None:
        """`data_shard` is the part of each step's batch that is this process's."""
        self.model, self.config, self.seed, self.data_shard = model, config, seed, data_shard

    def spatial_loss(self, bank: SourceBank, step: int) -> Tensor:
        """L_spatial: plain diffusion loss of single augmented source frames, temporal layers skipped."""
        draw = self._generator("spatial", step)
        mine = shard_slice(self.config.spatial_batch, self.data_shard)
        index = torch.randint(len(bank.latents), (self.config.spatial_batch,), generator=draw)
        clean = bank.latents[index][:, None]  # [B, 1, C, h, w]
        noisy, sigma = self._noised(clean, draw)
        image_latents, image_embeds = bank.image_latents[index], bank.image_embeds[index]
        if self.config.spatial_prompt == "other" and len(bank.frame.unique()) > 1:
            other = torch.stack([self._other(bank, int(i), draw) for i in index])
            image_latents, image_embeds = bank.image_latents[other], bank.image_embeds[other]
        else:
            image_latents, image_embeds = torch.zeros_like(image_latents), torch.zeros_like(image_embeds)
        noisy, sigma, clean, image_latents, image_embeds = (
            each[mine] for each in (noisy, sigma, clean, image_latents, image_embeds)
        )
        with temporal_bypass(self.model.unet), adapters.enabled(self.model.unet, ["spatial"]):
            predicted = self.model.predict(
                noisy, sigma, image_latents, image_embeds, bank.added_time_ids.expand(len(noisy), -1)
            )
        return masked_loss(predicted, noisy, clean, sigma)

    def temporal_loss(self, anchor: AnchorConditioning, step: int) -> Tensor:
        """L_temp: masked diffusion loss of random windows of the anchor, each one's image prompt its first frame."""
        batch = self.config.temporal_batch
        draws = range(step * batch, (step + 1) * batch)[shard_slice(batch, self.data_shard)]
        return self._masked(anchor, draws, ("spatial", "temporal"))

    @torch.no_grad()
    def held_out(self, anchor: AnchorConditioning, chosen: tuple[AdapterName, ...]) -> float:
        """Masked loss with these adapters on, over fixed noise that training never sees."""
        losses = [self._masked(anchor, [_HELD_OUT + i], chosen) for i in range(self.config.held_out)]
        return float(torch.stack(losses).mean())

    def _masked(self, anchor: AnchorConditioning, draws: Sequence[int], chosen: tuple[AdapterName, ...]) -> Tensor:
        """Mean over windows, one a draw."""
        size = min(self.model.shape.frames, len(anchor.latents))
        windows = []
        for number in draws:
            draw = self._generator("temporal", number)
            start = int(torch.randint(len(anchor.latents) - size + 1, (1,), generator=draw))
            frames = slice(start, start + size)
            clean = anchor.latents[frames][None]
            image_latents, image_embeds = anchor.image_latents[start][None], anchor.image_embeds[start][None]
            windows.append(
                (clean, anchor.latent_mask[frames][None], *self._noised(clean, draw), image_latents, image_embeds)
            )
        clean, mask, noisy, sigma, image_latents, image_embeds = (
            torch.cat(parts) for parts in zip(*windows, strict=True)
        )
        with adapters.enabled(self.model.unet, chosen):
            predicted = self.model.predict(
                noisy, sigma, image_latents, image_embeds, anchor.added_time_ids.expand(len(clean), -1), clean, mask
            )
        return masked_loss(predicted, noisy, clean, sigma, mask, normalization=self.config.normalization)

    def _generator(self, kind: AdapterName, step: int) -> torch.Generator:
        # Large odd multipliers keep (seed, pass, step) from colliding.
        mixed = (
            self.seed * 0x9E3779B97F4A7C15 + _PASSES[kind] * 0xBF58476D1CE4E5B9 + step * 0x94D049BB133111EB
        ) % 2**63
        return torch.Generator().manual_seed(mixed)

    def _noised(self, clean: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        sigma = training_sigmas(len(clean), self.config.sigma_mean, self.config.sigma_std, draw).to(clean.device)
        noise = torch.randn(clean.shape, generator=draw).to(clean.device)
        return clean + sigma.view(-1, 1, 1, 1, 1) * noise, sigma

    @staticmethod
    def _other(bank: SourceBank, index: int, draw: torch.Generator) -> Tensor:
        choices = (bank.frame != bank.frame[index]).nonzero().flatten().cpu()
        return choices[torch.randint(len(choices), (), generator=draw)]


_SCALE = ("scale", "_growth_tracker")
"""Of a gradient scaler's state, what changes."""


class Optimizer(Protocol):
    """AdamW over the parameters that are tuned, in one process or spread over several."""

    is_main_process: bool
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


OptimizerFactory = Callable[[VideoModel, TuneConfig, dict[AdapterName, list[nn.Parameter]]], Optimizer]


class AdamW:
    """The optimizer of one process. In fp16 the loss is scaled, or most of its gradients would round to nothing."""

    is_main_process = True

    def __init__(
        self, model: VideoModel, config: TuneConfig, parameters: dict[AdapterName, list[nn.Parameter]]
    ) -> None:
        self._parameters = parameters
        self._optimizer = adamw(parameters, config, model.device)
        self._scaler = torch.amp.GradScaler(model.device.type, enabled=model.dtype == torch.float16)

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss).backward()

    def step(self) -> None:
        self._scaler.step(self._optimizer)  # skips a step whose scaled gradients overflow
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    def mean(self, loss: Tensor) -> Tensor:
        return loss

    def state(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for key, parameter in by_key(self._parameters):
            found[key] = parameter.detach()
            found |= {f"{key}.{name}": value for name, value in self._optimizer.state[parameter].items()}
        scale = self._scaler.state_dict()
        return found | {f"scaler.{name}": torch.tensor(scale[name]) for name in _SCALE if scale}

    def restore(self, state: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        if not state:
            return state
        for key, parameter in by_key(self._parameters):
            parameter.data.copy_(state[key])
            if f"{key}.step" in state:  # the first steps may all have been skipped
                self._optimizer.state[parameter] = {
                    name: state[f"{key}.{name}"].to(parameter.device if name != "step" else "cpu")
                    for name in ("step", "exp_avg", "exp_avg_sq")
                }
        if self._scaler.is_enabled() and f"scaler.{_SCALE[0]}" in state:
            scale = {name: state[f"scaler.{name}"].item() for name in _SCALE}
            self._scaler.load_state_dict({**self._scaler.state_dict(), **scale})
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
    should_stop: Callable[[], bool] = lambda: False,
    make_optimizer: OptimizerFactory = AdamW,
) -> dict[AdapterName, list[float]]:
    """Minimize the losses, each by its own adapter alone, checkpointing as configured.

    Args:
        losses: a function of the step for each adapter that is tuned. In the joint schedule there are two: each step
            runs both, and since no gradient of the temporal pass may reach the spatial adapter, each backward pass has
            only its own adapter's parameters open.
        on_step: called with (steps done, loss of the last pass).
        should_stop: asked every `checkpoint_every` steps; True ends the tuning early.
        make_optimizer: makes the optimizer.

    Returns:
        Loss of every step that was taken, by adapter.
    """
    parameters: dict[AdapterName, list[nn.Parameter]] = {
        name: list(adapters.adapter_parameters(model.unet, name).values()) for name in losses
    }
    adapters.train_only(model.unet, losses)
    for part in parameters.values():
        for parameter in part:
            parameter.grad = None  # an earlier tuning may have ended in the middle of a step
    optimizer = make_optimizer(model, config, parameters)
    curves: dict[AdapterName, list[Tensor]] = {name: [] for name in losses}  # on the device: no wait for a number
    first = _resume(writer, optimizer, curves)
    # fp32 adapters on half-precision weights: autocast casts at each product, the optimizer keeps full precision.
    half = torch.autocast(model.device.type, dtype=model.dtype) if model.dtype != torch.float32 else nullcontext()
    for step in range(first, steps):
        for name, loss_of in losses.items():
            if len(losses) > 1:
                adapters.train_only(model.unet, [name])
            with checkpointed(model.unet, config.checkpointing):
                with half:
                    loss = loss_of(step)
                optimizer.backward(loss)
            curves[name].append(optimizer.mean(loss.detach()))
        optimizer.step()
        on_step(step + 1, float(curves[next(reversed(losses))][-1]))
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < steps:
            if should_stop():
                break
            _checkpoint(writer, optimizer, curves, step + 1)
    optimizer.close()
    adapters.train_only(model.unet, ())
    return {name: [float(value) for value in curve] for name, curve in curves.items()}


def _checkpoint(writer: Writer, optimizer: Optimizer, curves: dict[AdapterName, list[Tensor]], step: int) -> None:
    """Weights, optimizer moments, loss curves and the step; the generators need no state, they are seeded by step."""
    tensors = {"step": torch.tensor(step), **optimizer.state()}
    if not optimizer.is_main_process:
        return
    tensors |= {f"loss.{name}": torch.stack(curve) for name, curve in curves.items()}
    state = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    writer.save_checkpoint({"tune.safetensors": lambda: save(state)})


def _resume(writer: Writer, optimizer: Optimizer, curves: dict[AdapterName, list[Tensor]]) -> int:
    folder = writer.load_checkpoint() if optimizer.is_main_process else None
    state = optimizer.restore(None if folder is None else load_file(folder / "tune.safetensors"))
    if state is None:
        return 0
    for name, curve in curves.items():
        curve.extend(state[f"loss.{name}"])
    return int(state["step"])
