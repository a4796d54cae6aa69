"""Tuning of one clip by several devices: Ray Train starts a process each, all run the stage, the first publishes it.

The batch of each step, draws of noise and windows, is shared out evenly, and the gradients are averaged by DeepSpeed.
A process that dies takes the group with it; the next group goes on from the last checkpoint in the store.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from ...engine.config import RunConfig as EngineConfig
from ...engine.errors import ClusterError, InputError, RecaptureError
from ...engine.graph.context import StageContext
from ...engine.graph.executor import LocalExecutor
from ...engine.graph.request import RenderRequest
from ...engine.graph.stage import Inputs, Stage, compute_stage
from ...engine.pipeline import Recapture
from ...engine.stages import STAGES
from ...engine.store import Store
from ..session import require
from .deepspeed_optimizer import Settings, Zero

_NO_MEMORY = "can't allocate memory"
"""How torch's CPU allocator says it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How several devices tune one clip.

    Attributes:
        devices: processes, one a device.
        settings: DeepSpeed's JSON (`zero.read_settings`).
        gpu: whether each takes a GPU.
        retries: groups that may die before the run fails.
    """

    devices: int
    settings: Settings
    gpu: bool
    retries: int = 3

    def takes(self, stage: Stage, config: EngineConfig) -> bool:
        """Whether the stage is one that tunes."""
        steps = {"spatial": config.tune.spatial_steps, "temporal": config.tune.temporal_steps}
        return steps.get(stage.name, 0) > 0

    def check(self, config: EngineConfig) -> None:
        """Refuse what cannot be shared.

        Raises:
            InputError: names the option.
        """
        tune = config.tune
        if config.dtype == "fp16":
            raise InputError("several devices tune in bf16 or fp32: fp16 needs a scaled loss", param="dtype")
        if tune.schedule == "joint":
            raise InputError(
                "several devices tune one adapter at a time; set `tune.schedule` to decoupled", param="tune_devices"
            )
        for param, batch, steps in (
            ("tune.spatial_batch", tune.spatial_batch, tune.spatial_steps),
            ("tune.temporal_batch", tune.temporal_batch, tune.temporal_steps),
        ):
            if steps and batch % self.devices:
                raise InputError(
                    f"a batch of {batch} cannot be shared evenly by {self.devices} devices; give a multiple",
                    param=param,
                )

    def run_stage(
        self, stage: Stage, request: RenderRequest, inputs: Inputs, store: Store, key: str, recipe: dict[str, Any]
    ) -> None:
        """Compute a tuning stage on all devices; its result is in the store afterwards.

        Args:
            request: as another process can take it.
            recipe: model, store, threads and dtype for `Recapture.from_pretrained` there.

        Raises:
            InputError: the cluster has fewer devices.
            RecaptureError: the stage's own, of whichever process had it; memory that is out is raised as it came.
            ClusterError: the processes died more often than `retries`.
        """
        require(gpus=self.devices * self.gpu, cpus=self.devices)
        order = {"stage": stage.name, "request": request, "inputs": inputs, "key": key}
        order |= {"settings": self.settings, **recipe}
        try:
            with store.scratch("train") as folder:
                self._launch(order, stage.name, folder)
        except (TrainingFailedError, RayError) as error:
            raise failure_of(error, self.devices) from error

    def _launch(self, order: dict[str, Any], name: str, folder: Path) -> None:
        """Run `_train` in all processes; `folder` is for what Ray Train keeps of it."""
        TorchTrainer(
            _train,
            train_loop_config=order,
            torch_config=TorchConfig(backend="nccl" if self.gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=self.devices,
                use_gpu=self.gpu,
                resources_per_worker={"CPU": 1, **({"GPU": 1} if self.gpu else {})},
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=self.retries),
            ),
        ).fit()


def failure_of(error: Exception, devices: int) -> Exception:
    """What to raise for a tuning that failed for good.

    When one process fails, the others lose their peer: of all their errors only one says why.
    """
    failures = dict(sorted(error.worker_failures.items())) if isinstance(error, WorkerGroupError) else {}
    for failure in failures.values():
        if isinstance(failure, RecaptureError | MemoryError | torch.OutOfMemoryError) or _NO_MEMORY in str(failure):
            return failure
    said = "; ".join(f"process {rank}: {_line(failure)}" for rank, failure in failures.items()) or _line(error)
    return ClusterError(f"tuning on {devices} devices failed: {said}; `ray logs` on their machines says more")


def _line(error: Exception) -> str:
    """What an error says, in a line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _train(order: dict[str, Any]) -> None:
    """What each process does."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(order["threads"])
    if torch.cuda.is_available():
        torch.cuda.set_device(get_device())
    train = ray.train.get_context()
    engine = Recapture.from_pretrained(order["model"], torch_dtype=order["dtype"], store=order["store"])
    rank = train.get_world_rank()
    executor = LocalExecutor(
        models=engine.models,
        data_shard=(rank, train.get_world_size()),
        make_optimizer=partial(Zero, settings=order["settings"]),
    )
    context = StageContext(request=order["request"], models=engine.models, executor=executor)
    stage = next(each for each in STAGES if each.name == order["stage"])
    with engine.store as store:
        if rank == 0:
            compute_stage(stage, context, order["inputs"], store, order["key"])
        else:  # the same work for its gradients; nothing of it is published
            with store.begin(stage.name, order["key"]) as writer:
                stage.compute(context, order["inputs"], writer)
