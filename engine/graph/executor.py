"""Who does a run's work: this process, or the workers of a cluster."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..diffusion.tuner import AdamW, DataShard, OptimizerFactory
from ..store import Entry, Store
from .context import StageContext, StageServices
from .device_memory import DeviceBudget
from .frame_task import FrameBatch, FrameTask, batches
from .stage import Inputs, Stage, compute_stage
from .warm_models import WarmModels


class Executor(StageServices, Protocol):
    """Does whole stages, and frames for the stages that go frame by frame."""

    @property
    def tune_devices(self) -> int:
        """Devices that share the batch of each tuning step."""
        ...

    def budget(self) -> DeviceBudget:
        """What a run may take of each device."""
        ...

    def run_stage(self, stage: Stage, context: StageContext, inputs: Inputs, store: Store, key: str) -> Entry:
        """Compute a stage's result and publish it under its key."""
        ...


@dataclass(frozen=True, kw_only=True)
class LocalExecutor:
    """This process does everything.

    Attributes:
        data_shard: the part of each tuning batch that is this process's, where several tune together.
    """

    models: WarmModels
    data_shard: DataShard = (0, 1)
    make_optimizer: OptimizerFactory = AdamW
    tune_devices: int = 1

    def budget(self) -> DeviceBudget:
        """What this process may take of its device."""
        return self.models.budget()

    def map_frames(self, context: StageContext, task: FrameTask, count: int, *, scratch: Path) -> Iterator[FrameBatch]:
        """See `StageServices`: one call after the other."""
        for indices in batches(count, task.batch):
            yield task(context, indices)

    def run_stage(self, stage: Stage, context: StageContext, inputs: Inputs, store: Store, key: str) -> Entry:
        """See `Executor`."""
        return compute_stage(stage, context, inputs, store, key)
