"""An optimizer for several processes that share each step's batch: torch's AdamW, driven by DeepSpeed.

Up to stage 2, DeepSpeed receives the adapters' parameters alone. It never sees the frozen network, whose precision does not
matter. Stage 3 shards the whole network, so it works on a copy; only the adapters are gathered again.
"""

import copy
import json
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from ...engine.config import TuneConfig
from ...engine.diffusion.tuner import adamw, by_key
from ...engine.errors import InputError
from ...engine.models import adapters
from ...engine.models.adapters import AdapterName
from ...engine.models.video import VideoModel

Settings = dict[str, Any]
"""DeepSpeed's own JSON."""

_OURS = {
    "optimizer": "the optimizer is AdamW, its options are `tune.lr` and the configuration's",
    "scheduler": "the learning rate is constant",
    "fp16": "the model's precision decides",
    "bf16": "the model's precision decides",
    "gradient_accumulation_steps": "give a larger batch and more devices instead",
    "train_batch_size": "the batch is `tune.temporal_batch` and the configuration's",
}
_MOMENTS = ("exp_avg", "exp_avg_sq")


def read_settings(path: Path | None) -> Settings:
    """DeepSpeed's configuration of a file, or stage 0.

    Raises:
        InputError: the file is not a JSON object, or sets something that the run decides.
    """
    try:
        given = {} if path is None else json.loads(path.read_text())
        if not isinstance(given, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as DeepSpeed's JSON ({error})", param="deepspeed") from None
    for name, why in _OURS.items():
        if name in given:
            raise InputError(f"{path} sets {name!r}: {why}", param="deepspeed")
    fixed = {"train_micro_batch_size_per_gpu": 1, "steps_per_print": 1 << 30}
    return {"zero_optimization": {"stage": 0}, **given, **fixed}


def _whole(gathered: Tensor | None) -> Tensor:
    """DeepSpeed returns None for a parameter that it does not manage; it manages each of ours."""
    assert gathered is not None
    return gathered


class Zero:
    """See `Optimizer`. Made in each process of an initialized `torch.distributed` group, at the same time."""

    def __init__(
        self,
        model: VideoModel,
        config: TuneConfig,
        parameters: dict[AdapterName, list[nn.Parameter]],
        *,
        settings: Settings,
    ) -> None:
        self.is_main_process = dist.get_rank() == 0
        self._model, self._whole = model, model.unet
        self._stage = int(settings["zero_optimization"].get("stage", 0))
        if self._stage == 3:
            if model.dtype != torch.float32:
                raise InputError("stage 3 needs a model in fp32; stages 0 to 2 take any", param="deepspeed")
            model.unet = copy.deepcopy(model.unet)
            parameters = {name: list(adapters.adapter_parameters(model.unet, name).values()) for name in parameters}
        self._parameters = parameters
        self._adamw = adamw(parameters, config, model.device)
        every = nn.ParameterList(p for part in parameters.values() for p in part)
        self._engine, *_ = deepspeed.initialize(
            model=model.unet if self._stage == 3 else every,
            optimizer=self._adamw,
            config=copy.deepcopy(settings),
            dist_init_required=False,
        )

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> None:
        self._engine.step()

    def mean(self, loss: Tensor) -> Tensor:
        total = loss.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    def state(self) -> dict[str, Tensor]:
        steps = {float(state["step"]) for state in self._adamw.state.values() if "step" in state}
        (step,) = steps
        found: dict[str, Tensor] = {}
        for key, parameter in by_key(self._parameters):
            found[f"{key}.step"] = torch.tensor(step)
            if self._stage == 0:
                found[key] = parameter.detach()
                found |= {f"{key}.{name}": self._adamw.state[parameter][name] for name in _MOMENTS}
            else:
                found[key] = _whole(safe_get_full_fp32_param(parameter))
                found |= {f"{key}.{name}": _whole(safe_get_full_optimizer_state(parameter, name)) for name in _MOMENTS}
        return found

    def restore(self, state: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        shared = [state]
        dist.broadcast_object_list(shared, src=0)
        state = shared[0]
        if state is None:
            return None
        self._set_weights(state)
        step = next(value for name, value in state.items() if name.endswith(".step"))
        if self._stage == 0:
            for key, parameter in by_key(self._parameters):
                moments = {name: state[f"{key}.{name}"].to(parameter.device) for name in _MOMENTS}
                self._adamw.state[parameter] = {"step": step.clone(), **moments}
            return state
        zero: Any = self._engine.optimizer
        # Before the first step there are no moments yet, in the form of one flat piece a process.
        for piece in zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups:
            self._adamw.state[piece] = {"step": step.clone(), **{name: torch.zeros_like(piece) for name in _MOMENTS}}
        if self._stage < 3:
            zero._lazy_init_hp_params_optimizer_state()
        for key, parameter in by_key(self._parameters):
            safe_set_full_fp32_param(parameter, state[key].to(self._model.device))
            for name in _MOMENTS:
                safe_set_full_optimizer_state(parameter, state[f"{key}.{name}"].to(self._model.device), name)
        return state

    def _set_weights(self, state: dict[str, Tensor]) -> None:
        """The values that the network computes with until the first step."""
        every = [parameter for _, parameter in by_key(self._parameters)]
        with deepspeed.zero.GatheredParameters(every, modifier_rank=0, enabled=self._stage == 3):
            for key, parameter in by_key(self._parameters):
                parameter.data.copy_(state[key])

    def close(self) -> None:
        if self._stage == 3:
            for name, part in self._parameters.items():
                whole = adapters.adapter_parameters(self._whole, name).values()
                with deepspeed.zero.GatheredParameters(part):
                    for target, tuned in zip(whole, part, strict=True):
                        target.data.copy_(tuned.data)
            self._model.unet = self._whole
        self._engine.destroy()
