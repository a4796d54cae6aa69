"""The Python face: `Recapture.from_pretrained("tiny")`, a call with a video and a camera, a result that can be saved."""

import gc
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ..kernels.backends import installed
from .cameras import Camera, camera_spec
from .catalog import MODELS, repository_folder
from .config import DecodeConfig, RunConfig, check, check_device, override, quality_config
from .diffusion.sampler import Sampler
from .errors import Cancelled, InputError, ResourceError
from .given import (
    DepthFunction,
    Replacement,
    array_digest,
    clip_info,
    given_adapter,
    given_anchor,
    given_depth,
    given_frames,
)
from .graph.context import ProgressCallback, SamplingStep, StageContext, StepCallback
from .graph.executor import Executor, LocalExecutor
from .graph.request import RenderRequest, file_sha256
from .graph.stage import Stage
from .graph.warm_models import WarmModels
from .models.adapters import AdapterName
from .models.attention import require as require_attention
from .models.precision import dtype_of
from .planning import memory
from .progress_bar import progress_bar
from .result import Result
from .stage_results import StageRecord
from .stages import STAGES, stages_until
from .store import Store, default_store
from .user_files.adapter import adapter_rank
from .video import ClipInfo, Limits, admit, probe

_OUT_OF_MEMORY = (
    "out of memory; lower `memory`, `condition.height` and `condition.width`, or `sample.decode_chunk`, or use fewer "
    "frames (`decode.max_frames`)"
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
        self._offload = False
        self._bar_options: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "tiny",
        *,
        device: str = "auto",
        torch_dtype: torch.dtype | None = None,
        store: str | Path | Store | None = None,
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> "Recapture":
        """Find a model by name (`tiny`, `svd`, `svd-xt`), directory or hub repository.

        Args:
            device: `auto` takes a GPU if there is one; `cuda:1` also becomes torch's current device in this thread.
            torch_dtype: of the UNet, where the configuration's `dtype` is auto; by default fp32 on a CPU, and on a GPU
                bf16 if it computes in that, else fp16.
            store: where stages are kept; by default a folder of the user's cache.
            variant: of a hub repository's weights, such as `fp16`.
            revision: branch, tag or commit of a hub repository.
            cache_dir: folder of downloads from the hub.
            token: of the hub.
            local_files_only: use the downloads that are there, and no network.

        Raises:
            ModelError: the model is unknown or cannot be downloaded.
            InputError: the device does not exist.
        """
        chosen = pick_device(device)
        if chosen.index is not None:
            torch.cuda.set_device(chosen)  # Triton's kernels start on the current device
        dtype = torch_dtype or dtype_of("auto", chosen)
        opened = store if isinstance(store, Store) else Store(store or default_store())
        if variant or revision or cache_dir or token or local_files_only:
            model = repository_folder(
                str(model), variant=variant, revision=revision, cache_dir=cache_dir, token=token,
                local_files_only=local_files_only,
            )  # fmt: skip
        return cls(WarmModels(str(model), device=chosen, dtype=dtype), store=opened)

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return self.models.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the UNet, unless a configuration names another."""
        return self.models.dtype

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move to another device, or to another precision of the UNet; models are loaded anew when next used.

        Raises:
            InputError: the device does not exist, or the workers of a cluster do the work.
        """
        if not isinstance(self._executor, LocalExecutor):
            raise InputError("the devices of a cluster's workers are theirs", param="device")
        chosen = self.device if device is None else pick_device(str(device))
        name = self.models.entry.name if self.models.entry.name in MODELS else str(self.models.folder)
        self.models = WarmModels(name, device=chosen, dtype=dtype or self.dtype)
        self._executor = LocalExecutor(models=self.models)
        return self

    def enable_model_cpu_offload(self) -> None:
        """Keep the VAE and the image encoder off the GPU while the UNet works, in all later calls."""
        self._offload = True

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of the progress bar (`tqdm`'s), such as `disable=True`."""
        self._bar_options = options

    def default_config(self, *, seed: int = 0) -> RunConfig:
        """The configuration of `standard` quality for this model."""
        return quality_config("standard", model=self.models.entry.name, seed=seed)

    def __call__(
        self,
        video: str | Path | None = None,
        camera: Camera | None = None,
        *,
        seed: int | None = None,
        config: RunConfig | None = None,
        until: str = STAGES[-1].name,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | None = None,
        frames: np.ndarray | None = None,
        fps: float | None = None,
        depth: np.ndarray | DepthFunction | str | None = None,
        anchor: tuple[np.ndarray, np.ndarray] | None = None,
        spatial_adapter: str | Path | None = None,
        temporal_adapter: str | Path | None = None,
        sampler: Sampler | None = None,
        depth_dir: Path | None = None,
        mask_dir: Path | None = None,
        clean_plate: Path | None = None,
        force: bool = False,
        limits: Limits | None = None,
        info: ClipInfo | None = None,
        callback_on_step_end: StepEndCallback | None = None,
        on_progress: ProgressCallback | None = None,
        on_stage_start: Callable[[str, Result], None] = lambda name, result: None,
        on_stage_end: Callable[[StageRecord, Result], None] = lambda record, result: None,
    ) -> Result:
        """Render a video again from another camera path.

        Args:
            video: path of the clip.
            camera: a preset expression (`arc(20deg)+zoom(1.1)`), a camera file, a path of poses (such as another
                result's `camera`), or a parsed camera.
            seed: of everything random; overrides the configuration's.
            config: all options; by default `default_config()`.
            until: name of the last stage to run (`anchor` for a preview).
            num_inference_steps: denoising steps per window, `sample.steps` of the configuration.
            guidance_scale: at a window's last frame; it rises to there from 1.
            height: working height of the model, with `width`, in its multiples.
            generator: its initial seed is the run's seed.
            frames: the clip as uint8 [N, H, W, 3] with `fps`, instead of `video`.
            depth: array [N, h, w] in any one unit, one map per frame used; a function that makes it of the frames; a class
                `package.module:Class` whose instance is such a function and whose `version` names its weights; or the
                name of a depth model.
            anchor: color (uint8 [N, H, W, 3]) and validity mask (bool [N, H, W]) of an anchor video of your own.
            spatial_adapter: folder of a tuned adapter in PEFT's layout, instead of tuning one; likewise
            temporal_adapter: which belongs to one path of one clip.
            sampler: chooses noise levels and takes the steps between them.
            depth_dir: the user's own depth, instead of a network's: a folder, or one file with all maps.
            mask_dir: PNG masks of source pixels that may be used (white): a folder, or one PNG for all frames.
            clean_plate: picture of the empty scene from the clip's own, standing camera: fills holes with footage.
            force: continue where the path sees almost nothing of the clip.
            info: what `probe` says of this clip; the clip is then not probed here, and not decoded either if the store
                has its frames.
            callback_on_step_end: called after each sampling step with (self, step, sigma, values). `step` counts over
                the whole run; `values` holds `latents` [T, C, h, w], `stage` (`sample` or `refine`) and `window`. A
                returned `{"latents": ...}` replaces the latents; setting `self._interrupt` stops the run. Stages
                that call it, and those after them, are always run, and their results are not shared through the store.
            on_progress: called with (stage, done, total, details), in place of the progress bar; may raise to stop.
            on_stage_start: called with a stage's name and the result so far before it runs.
            on_stage_end: called with a stage's record and the result so far, also if it was reused.

        Raises:
            InputError: the clip, the camera or an option cannot be used; nothing was run.
            Cancelled: stopped by a callback or Ctrl-C; what was finished stays in the store.
            ResourceError: out of memory, or the configuration's limit is too small; names the option.
        """
        started = time.monotonic()
        stages = stages_until(until)
        given: dict[str, Replacement] = {}
        if depth is not None and not (isinstance(depth, str) and ":" not in depth):
            given["depth"] = given_depth(depth)
        if anchor is not None:
            given["anchor"] = given_anchor(*anchor)
            camera = "static" if camera is None else camera
        if camera is None:
            raise InputError("give a preset expression, a camera file, poses, or an anchor", param="camera")
        folders: dict[AdapterName, str | Path | None] = {"spatial": spatial_adapter, "temporal": temporal_adapter}
        tuned: dict[AdapterName, Path] = {name: Path(folder) for name, folder in folders.items() if folder is not None}
        rank = next((adapter_rank(*each) for each in tuned.items()), None)
        given |= {name: given_adapter(name, folder) for name, folder in tuned.items()}
        config = _with_arguments(
            config or self.default_config(),
            {
                "": {
                    "seed": generator.initial_seed() % 2**31 if generator is not None and seed is None else seed,
                    "offload": True if self._offload else None,
                },
                "depth": {"model": depth if isinstance(depth, str) and ":" not in depth else None},
                "condition": {"height": height, "width": width},
                "tune": {"rank": rank},
                "sample": {
                    "steps": num_inference_steps,
                    "guidance": None if guidance_scale is None else (1.0, float(guidance_scale)),
                },
            },
        )
        notes: list[str] = []
        if config.depth.model == "auto" and depth_dir is None and "depth" not in given:
            notes.append(self.models.depth_source("auto").sentence)
            config = self.models.settle(config)
        spec, limits = camera_spec(camera), limits or Limits()
        self._interrupt = False
        with tempfile.TemporaryDirectory(prefix="recapture-") as folder:
            about = _clip_of(video, frames, fps, Path(folder), limits, info, config.decode)
            if frames is not None:
                given["frames"] = given_frames(np.asarray(frames), about["clip_sha256"])
            request = RenderRequest(
                **about, limits=limits, camera=spec, config=config, depth_dir=depth_dir, mask_dir=mask_dir,
                clean_plate=clean_plate, force=force, given=tuple(given), sampler=sampler,
            )  # fmt: skip
            with progress_bar(stages, on_progress, self._bar_options) as on_progress, _errors_with_an_option():
                planned = any(stage.name in memory.PLANNED for stage in stages)
                result = self._prepared(request, on_progress, callback_on_step_end, planned=planned)
                result.notes += notes
                edited = self.store if callback_on_step_end is None else _temporary_store(result)

                def run(stage: Stage) -> None:
                    store = edited if stage.name in _EDITED else self.store
                    self._run(stage, given.get(stage.name), result, store, on_stage_start, on_stage_end)

                self._run_all(stages, result, run)
        result.seconds = time.monotonic() - started
        return result

    def _prepared(
        self,
        request: RenderRequest,
        on_progress: ProgressCallback,
        callback: StepEndCallback | None,
        *,
        planned: bool,
    ) -> Result:
        """A result without stages, its options checked; `planned`, also settled for the device."""
        context = StageContext(
            request=request,
            models=self.models,
            executor=self._executor,
            on_progress=on_progress,
            on_step_end=None if callback is None else self._adapted(callback),
        )
        _refuse_early(context)
        if not planned:
            return Result(context=context)
        context, budget = memory.in_precision(context, self._executor.budget())
        if request.config.memory is None:
            return Result(context=context)
        fitted = memory.fit(context, budget, devices=self._executor.tune_devices)
        return Result(context=memory.settle(context, fitted), memory=fitted)

    def _run_all(self, stages: list[Stage], result: Result, run: Callable[[Stage], None]) -> None:
        """Run the stages; the first that runs out of memory is begun again once, with less."""
        position, lowered = 0, False
        while position < len(stages):
            try:
                run(stages[position])
            except Exception as error:
                if lowered or not _is_out_of_memory(error):
                    raise
            else:
                position += 1
                continue
            # Here the error is gone, and with it what its frames held.
            lowered = True
            position = self._lower(stages, position, result)

    def _lower(self, stages: list[Stage], position: int, result: Result) -> int:
        """Settle the run for less memory than the stage at a position took; the stage to go on with."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        failed, size = stages[position].name, result.context.size
        context, budget = memory.in_precision(result.context, self._executor.budget())
        less = memory.lower(context, budget, failed, devices=self._executor.tune_devices)
        result.context, result.memory = memory.settle(context, less), less
        result.warn(f"the stage {failed} ran out of memory, and went on with less: {', '.join(less.lowered)}")
        if less.choice.size != size:  # what was made at the other size is made again
            position = next(i for i, stage in enumerate(stages) if stage.name in memory.PLANNED)
            result.records = [record for record in result.records if record.name not in memory.PLANNED]
        return position

    def _run(
        self,
        stage: Stage,
        replacement: Replacement | None,
        result: Result,
        store: Store,
        on_start: Callable[[str, Result], None],
        on_end: Callable[[StageRecord, Result], None],
    ) -> None:
        """Find a stage's result in the store or compute it, and add it to the run's."""
        context = result.context
        known = {name: result.entries[name] for name in stage.reads}
        stage = stage if replacement is None else replacement(stage, known)
        inputs, entry = stage.choose_inputs(context, known, store)
        reused = entry is not None
        if entry is None:
            on_start(stage.name, result)
            entry = self._executor.run_stage(stage, context, inputs, store, stage.key(context, inputs))
        result.notes += [sentence for sentence in entry.meta.get("notes", ()) if sentence not in result.notes]
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
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("no Apple GPU is available; set `device` to cpu", param="device")
    if number and int(number) >= torch.cuda.device_count():
        raise InputError(f"there is no {name}; this machine has {torch.cuda.device_count()} GPUs", param="device")
    return torch.device(name)


def _refuse_early(context: StageContext) -> None:
    """What can be known to fail later is refused now."""
    request = context.request
    require_attention(context.config.attention, context.device)
    if context.config.deliver.fill == "texture" and not installed("numba"):
        raise InputError("texture needs numba: pip install 'recapture[engine]', or use model", param="deliver.fill")
    request.check_files()
    _ = context.size, request.depth_digest, request.mask_digest, context.multiview_source
    if "depth" not in request.given:
        _ = context.depth_digest


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is the device's or main memory's end; torch's CPU and MPS allocators only say so in words."""
    said = ("can't allocate memory", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )


def _with_arguments(config: RunConfig, given: dict[str, dict[str, Any]]) -> RunConfig:
    """The configuration with arguments of the call in place of its options; None leaves an option as it is."""
    sections = {name: {k: v for k, v in values.items() if v is not None} for name, values in given.items()}
    config = override(config, sections)
    check(config)
    return config


def _clip_of(
    video: str | Path | None,
    frames: np.ndarray | None,
    fps: float | None,
    folder: Path,
    limits: Limits,
    info: ClipInfo | None,
    used: DecodeConfig,
) -> dict[str, Any]:
    """What a request says of its clip: a file that is copied to `folder`, or frames."""
    if frames is not None:
        if video is not None or fps is None:
            raise InputError("give `video`, or `frames` with `fps`", param="fps" if video is None else "frames")
        name, frames = Path("frames"), np.asarray(frames)
        about = {"info": clip_info(frames, fps), "clip_sha256": array_digest(frames)}
        return {"clip": name, "clip_path": name, "clip_name": str(name), **about}
    if video is None:
        raise InputError("give `video`, or `frames` with `fps`", param="video")
    clip, path = admit(video, folder, limits), Path(video)
    if info is None:
        info = probe(clip, limits, name=path.name, first_frame=used.first_frame, max_frames=used.max_frames)
    about = {"info": info, "clip_sha256": file_sha256(clip)}
    return {"clip": clip, "clip_path": path.absolute(), "clip_name": path.name, **about}


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
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        raise ResourceError(_OUT_OF_MEMORY, param="memory") from None
