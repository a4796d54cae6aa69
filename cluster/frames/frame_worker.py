"""One warm process on a device: it does frames and whole stages with models that it loads once."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from ...engine.errors import Cancelled, ClusterError
from ...engine.graph.context import StageContext
from ...engine.graph.device_memory import DeviceBudget
from ...engine.graph.executor import LocalExecutor
from ...engine.graph.frame_task import FrameTask
from ...engine.graph.request import RenderRequest
from ...engine.graph.stage import Inputs, compute_stage
from ...engine.pipeline import Recapture
from ...engine.stages import STAGES
from ...engine.store.arrays import ArrayWriter

Event = tuple[str, int, int, Mapping[str, Any]]
"""Stage, units done, units in all, details."""


@ray.remote(concurrency_groups={"watch": 1})  # pyright: ignore[reportCallIssue]
class FrameWorker:
    """Work runs one call at a time; the group `watch` is answered meanwhile."""

    def prepare(
        self, model: str, store: str, threads: int, dtype: torch.dtype | None, wanted: Mapping[str, str]
    ) -> str:
        """Find the model and the store; returns the machine's address.

        Args:
            threads: of an operation on the CPU: another number may give other last bits.
            wanted: the driver's digests of the model's weights, and the name of a file that it left in the store.

        Raises:
            ClusterError: this machine has other weights under that name, or does not see the driver's store.
        """
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        torch.set_num_threads(threads)
        self._engine = Recapture.from_pretrained(model, torch_dtype=dtype, store=store)
        self._events: list[Event] = []
        self._stopped = False
        here = ray.util.get_node_ip_address()
        models = self._engine.models
        if (models.unet_digest, models.encoder_digest) != (wanted["unet"], wanted["encoders"]):
            raise ClusterError(f"{here} has other weights under the name {model}", param="model")
        if not (self._engine.store.root / wanted["mark"]).exists():
            raise ClusterError(
                f"{here} does not see the store {store}; it must be a folder that every machine mounts", param="store"
            )
        return here

    def do_frames(self, order: tuple[RenderRequest, FrameTask], batches: Sequence[range], folder: Path) -> list[str]:
        """Do the task for these batches; each array of the results becomes a file. Returns the arrays' names."""
        request, task = order
        context = self._context(request)
        folder.mkdir(parents=True)
        with ExitStack() as stack:
            writers: dict[str, ArrayWriter] = {}
            for indices in batches:
                for name, rows in task(context, indices).items():
                    if name not in writers:
                        path = folder / f"{name}.arrow"
                        writers[name] = stack.enter_context(
                            ArrayWriter(path, shape_per_row=rows.shape[1:], dtype=rows.dtype)
                        )
                    writers[name].append(np.ascontiguousarray(rows))
        return list(writers)

    def run_stage(self, stage: str, request: RenderRequest, inputs: Inputs, key: str) -> None:
        """Compute a whole stage and publish it to the store."""
        context = self._context(request)
        with self._engine.store as store:
            compute_stage(next(each for each in STAGES if each.name == stage), context, inputs, store, key)

    def budget(self) -> tuple[str, DeviceBudget]:
        """The device, by a name that workers on it share, and what this process may take of it."""
        device = ray.get_gpu_ids() if torch.cuda.is_available() else "cpu"
        return f"{ray.util.get_node_ip_address()} {device}", self._engine.models.budget()

    def loads(self) -> int:
        """How often the video model was loaded."""
        return self._engine.models.loads

    @ray.method(concurrency_group="watch")
    def happened(self) -> list[Event]:
        """Progress since the last call."""
        events, self._events = self._events, []
        return events

    @ray.method(concurrency_group="watch")
    def stop(self) -> None:
        """End the running stage at its next step."""
        self._stopped = True

    @ray.method(concurrency_group="watch")
    def pid(self) -> int:
        return os.getpid()

    def _context(self, request: RenderRequest) -> StageContext:
        """A request of the driver's with the models of this process; its progress waits to be asked for."""
        self._stopped = False
        models = self._engine.models
        return StageContext(
            request=request, models=models, executor=LocalExecutor(models=models), on_progress=self._note
        )

    def _note(self, stage: str, done: int, total: int, detail: Mapping[str, Any]) -> None:
        if self._stopped:
            raise Cancelled("stopped by the driver")
        self._events.append((stage, done, total, detail))
