"""The Python face: `Recapture.from_pretrained("tiny")`, a call with a video and a camera, a result that can be saved."""

import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .cameras import Camera, camera_spec
from .config import RunConfig, check, check_device, quality_config
from .errors import Cancelled, InputError, ResourceError
from .graph.context import ProgressCallback, SamplingStep, StageContext, StepCallback
from .graph.executor import Executor, LocalExecutor
from .graph.request import RenderRequest, file_sha256
from .graph.stage import Stage
from .graph.warm_models import WarmModels
from .models.attention import require as require_attention
from .planning import memory
from .result import Result
from .stage_results import StageRecord
from .stages import STAGES, stages_until
from .store import Store, default_store
from .video import ClipInfo, Limits, admit, probe

_OUT_OF_MEMORY = (
    "out of memory; set `memory` to auto, or lower `condition.height` and `condition.width`, or `sample.decode_chunk`"
)

StepEndCallback = Callable[["Recapture", int, float, dict[str, Any]], dict[str, Any] | None]


def _edited_stages() -> set[str]:
    found: set[str] = set()
    for stage in STAGES:
        if stage.samples or found.intersection(stage.inputs):
            found.add(stage.name)
    return found


_EDITED = _edited_stages()
"""Stages whose result a step callback may change."""


class Recapture:
    """Films clips again from other cameras, with one set of warm models.

    >>> engine = Recapture.from_pretrained("tiny")
    >>> result = engine("clip.mp4", camera="arc(20deg)", seed=0)
    >>> result.save("out")
    """

    def __init__(self, models: WarmModels, *, store: Store, executor: Executor | None = None) -> None:
        """`executor` does the work; by default this process does everything."""
        self.models, self.store = models, store
        self._executor: Executor = executor or LocalExecutor(models=models)
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "tiny",
        *,
        device: str = "auto",
        torch_dtype: torch.dtype | None = None,
        store: str | Path | Store | None = None,
    ) -> "Recapture":
        """Find a model by name (`tiny`, `svd`, `svd-xt`), directory or hub repository.

        Args:
            device: `auto` takes a GPU if there is one; `cuda:1` also becomes torch's current device in this thread.
            torch_dtype: of the UNet; by default fp32 on a CPU and fp16 on a GPU.
            store: where stages are kept; by default a folder of the user's cache.

        Raises:
            ModelError: the model is unknown or cannot be downloaded.
            InputError: the device does not exist.
        """
        chosen = pick_device(device)
        if chosen.index is not None:
            torch.cuda.set_device(chosen)  # Triton's kernels start on the current device
        dtype = torch_dtype or (torch.float16 if chosen.type == "cuda" else torch.float32)
        opened = store if isinstance(store, Store) else Store(store or default_store())
        return cls(WarmModels(str(model), device=chosen, dtype=dtype), store=opened)

    def default_config(self, *, seed: int = 0) -> RunConfig:
        """The configuration of `standard` quality for this model."""
        return quality_config("standard", model=self.models.entry.name, seed=seed)

    def __call__(
        self,
        video: str | Path,
        camera: Camera,
        *,
        seed: int | None = None,
        config: RunConfig | None = None,
        until: str = STAGES[-1].name,
        depth_dir: Path | None = None,
        mask_dir: Path | None = None,
        clean_plate: Path | None = None,
        force: bool = False,
        limits: Limits | None = None,
        info: ClipInfo | None = None,
        callback_on_step_end: StepEndCallback | None = None,
        on_progress: ProgressCallback = lambda stage, done, total, detail: None,
        on_stage_start: Callable[[str, Result], None] = lambda name, result: None,
        on_stage_end: Callable[[StageRecord, Result], None] = lambda record, result: None,
    ) -> Result:
        """Film a video again.

        Args:
            video: path of the clip.
            camera: a preset expression (`arc(20deg)+zoom(1.1)`), a camera file, a path of poses (such as another
                result's `camera`), or a parsed camera.
            seed: of everything random; overrides the configuration's.
            config: all options; by default `default_config()`.
            until: name of the last stage to run (`anchor` for a preview).
            depth_dir: the user's own depth, instead of a network's.
            mask_dir: PNG masks of source pixels that may be used (white).
            clean_plate: picture of the empty scene from the clip's own, standing camera: fills holes with footage.
            force: continue where the path sees almost nothing of the clip.
            info: what `probe` says of this clip; the clip is then not probed here, and not decoded either if the store
                has its frames.
            callback_on_step_end: called after each sampling step with (self, step, sigma, values). `step` counts over
                the whole run; `values` holds `latents` [T, C, h, w], `stage` (`sample` or `refine`) and `window`. A
                returned `{"latents": ...}` replaces the latents; setting `self._interrupt` stops the run. Stages
                that call it, and those after them, are always run, and their results are not shared through the store.
            on_progress: called with (stage, done, total, details); may raise to stop.
            on_stage_start: called with a stage's name and the result so far before it runs.
            on_stage_end: called with a stage's record and the result so far, also if it was reused.

        Raises:
            InputError: the clip, the camera or an option cannot be used; nothing was run.
            Cancelled: stopped by a callback or Ctrl-C; what was finished stays in the store.
            ResourceError: out of memory, or the configuration's limit is too small; names the option.
        """
        started = time.monotonic()
        stages = stages_until(until)
        config = config or self.default_config()
        if seed is not None:
            config = replace(config, seed=seed)
        check(config)
        notes: list[str] = []
        if config.depth.model == "auto" and depth_dir is None:
            notes.append(self.models.depth_source("auto").sentence)
            config = self.models.settle(config)
        spec, limits = camera_spec(camera), limits or Limits()
        self._interrupt = False
        with tempfile.TemporaryDirectory(prefix="recapture-") as folder:
            clip = admit(video, Path(folder), limits)
            request = RenderRequest(
                clip=clip, clip_path=Path(video).absolute(), clip_name=Path(video).name, clip_sha256=file_sha256(clip),
                info=info or probe(clip, limits), limits=limits, camera=spec, config=config, depth_dir=depth_dir,
                mask_dir=mask_dir, clean_plate=clean_plate, force=force,
            )  # fmt: skip
            result = self._prepared(request, on_progress, callback_on_step_end)
            result.notes += notes
            edited = self.store if callback_on_step_end is None else _temporary_store(result)
            with _errors_with_an_option():
                for stage in stages:
                    store = edited if stage.name in _EDITED else self.store
                    self._run(stage, result, store, on_stage_start, on_stage_end)
        result.seconds = time.monotonic() - started
        return result

    def _prepared(
        self, request: RenderRequest, on_progress: ProgressCallback, callback: StepEndCallback | None
    ) -> Result:
        """A result without stages, its options settled and checked."""
        context = StageContext(
            request=request,
            models=self.models,
            executor=self._executor,
            on_progress=on_progress,
            on_step_end=None if callback is None else self._adapted(callback),
        )
        _refuse_early(context)
        if request.config.memory is None:
            return Result(context=context)
        fitted = memory.fit(context, self._executor.budget(), devices=self._executor.tune_devices)
        config = memory.settled(request.config, memory.asked(context), fitted.choice)
        return Result(context=replace(context, request=replace(request, config=config)), memory=fitted)

    def _run(
        self,
        stage: Stage,
        result: Result,
        store: Store,
        on_start: Callable[[str, Result], None],
        on_end: Callable[[StageRecord, Result], None],
    ) -> None:
        """Find a stage's result in the store or compute it, and add it to the run's."""
        context = result.context
        inputs, entry = stage.choose_inputs(context, {name: result.entries[name] for name in stage.reads}, store)
        reused = entry is not None
        if entry is None:
            on_start(stage.name, result)
            entry = self._executor.run_stage(stage, context, inputs, store, stage.key(context, inputs))
        for sentence in entry.meta["warnings"]:  # a reused stage still has something to say
            result.warn(sentence)
        result.entries[stage.name] = entry
        record = StageRecord(name=stage.name, about=stage.about, seconds=entry.seconds, reused=reused)
        result.records.append(record)
        on_end(record, result)

    def _adapted(self, callback: StepEndCallback) -> StepCallback:
        done = 0

        def on_step_end(step: SamplingStep, latents: torch.Tensor) -> torch.Tensor | None:
            nonlocal done
            values = {"latents": latents, "stage": step.stage, "window": step.window}
            returned = callback(self, done, step.sigma, values) or {}
            done += 1
            if self._interrupt:
                raise Cancelled("stopped by the callback")
            return returned.get("latents")

        return on_step_end


def pick_device(name: str) -> torch.device:
    """Raises InputError: the name is unknown, or there is no such device."""
    check_device(name)
    kind, _, number = name.partition(":")
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is available; set `device` to cpu", param="device")
    if number and int(number) >= torch.cuda.device_count():
        raise InputError(f"there is no {name}; this machine has {torch.cuda.device_count()} GPUs", param="device")
    return torch.device(name)


def _refuse_early(context: StageContext) -> None:
    """What can be known to fail later is refused now."""
    request = context.request
    require_attention(context.config.attention, context.device)
    _ = context.size, context.depth_digest, request.mask_digest, request.clean_plate_picture, context.multiview_source
    if request.frame_count < 2:
        raise InputError(
            f"{request.clip_name} has {request.info.frame_count} frames, from frame {context.config.decode.first_frame} "
            f"on {request.frame_count} would be used; at least 2 are needed",
            param="video",
        )


def _temporary_store(owner: Result) -> Store:
    """A store that is deleted with its owner."""
    folder = tempfile.mkdtemp(prefix="recapture-edited-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return Store(folder)


@contextmanager
def _errors_with_an_option() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Cancelled("interrupted; run the same command again and it goes on from here") from None
    except torch.OutOfMemoryError:
        raise ResourceError(f"the GPU is {_OUT_OF_MEMORY}", param="memory") from None
    except MemoryError:
        raise ResourceError(_OUT_OF_MEMORY, param="memory") from None
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # the message of torch's CPU allocator
            raise ResourceError(_OUT_OF_MEMORY, param="memory") from None
        raise
