"""The Python face: `Recapture.from_pretrained("tiny")`, a call with a video and a camera, a result that can be saved."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..kernels.backends import installed
from .cameras import CameraPath, CameraSpec, parse_camera
from .config import RunConfig, check, check_device, quality_config
from .errors import Cancelled, InputError, ResourceError
from .graph.context import Models, Progress, Run
from .graph.executor import FrameMap, in_process
from .graph.stage import Inputs, Perform, Stage, perform
from .models.attention import require as require_attention
from .planning import memory
from .planning.memory import Room
from .stage_results import path_of
from .stages import STAGES, windows_of
from .store import Entry, Store, default_store, stage_key
from .video import ClipInfo, Limits, admit, probe
from .warm_start import Neighbour, choose, neighbours

TEXTURED = 26
"""A tenth of the copied detail: from here on a generated pixel counts as one that has it."""
_OUT_OF_MEMORY = (
    "out of memory; set `memory` to auto, or lower `condition.height` and `condition.width`, or `sample.decode_chunk`"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """How one stage of a run went.

    Attributes:
        seconds: of work; for a reused stage, what was saved.
    """

    name: str
    about: str
    seconds: float
    reused: bool


@dataclass(kw_only=True)
class Result:
    """A finished run (or its first part, after `preview`). Arrays are memory-mapped from the store."""

    run: Run
    entries: dict[str, Entry]
    records: list[StageRecord] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def source(self) -> np.ndarray:
        """uint8 [N, H, W, 3]"""
        return self.entries["frames"].array("frames")

    @property
    def frames(self) -> np.ndarray:
        """Delivered frames, uint8 [N, H, W, 3]."""
        return self.entries["deliver"].array("frames")

    @property
    def generated(self) -> np.ndarray:
        """Pure model output at the working size, uint8 [N, h, w, 3]."""
        return self.entries["generate"].array("frames")

    @property
    def anchor(self) -> np.ndarray:
        """uint8 [N, H, W, 3]; in the holes black, or a multiview model's guess."""
        return self.entries["anchor"].array("color")

    @property
    def mask(self) -> np.ndarray:
        """bool [N, H, W], True where the anchor is to be believed: real footage, or imagined by a multiview model that is
        sure of it (`evidence` tells them apart)."""
        return self.entries["anchor"].array("mask")

    @property
    def alpha(self) -> np.ndarray:
        """uint8 [N, H, W]: 255 where the anchor is covered, else how much of the pixel a near thing's soft edge covers."""
        return self.entries["anchor"].array("alpha")

    @property
    def evidence(self) -> np.ndarray:
        """uint8 [N, H, W]: 255 where the anchor's pixel is of the same moment's frame, 1 to 254 where other frames of a
        locked-off clip show it (the confidence in it), 0 in holes."""
        return self.entries["anchor"].array("evidence")

    @property
    def matte(self) -> np.ndarray:
        """uint8 [N, H, W], 255 where the delivered pixel is generated."""
        return self.entries["deliver"].array("matte")

    @property
    def texture(self) -> np.ndarray:
        """uint8 [N, H, W], how much detail copied from the clip a generated pixel has; 255 is all of it."""
        return self.entries["deliver"].array("texture")

    @property
    def camera(self) -> CameraPath:
        return path_of(self.entries)

    @property
    def hole_share(self) -> float:
        """Share of the anchor's pixels that no source pixel covers."""
        return float(np.mean(self.entries["anchor"].json("coverage")["holes"]))

    @cached_property
    def generated_share(self) -> float:
        """Share of the delivered picture that comes from the model."""
        return float(np.mean([frame.mean(dtype=np.float64) / 255 for frame in self.matte]))

    @cached_property
    def textured_share(self) -> float:
        """Share of the delivered picture that comes from the model and has detail copied from the clip."""
        return float(np.mean([(frame >= TEXTURED).mean() for frame in self.texture]))

    @property
    def windows(self) -> list[range]:
        return windows_of(self.run, len(self.source))

    def save(self, folder: str | Path, *, passes: bool = False, tuned: bool = False) -> Path:
        """Write the bundle into a folder; returns the video's path.

        Args:
            passes: also lossless PNG sequences, matte and depth.
            tuned: also the tuned adapters, in PEFT's layout.
        """
        from .report.bundle import write_bundle

        return write_bundle(self, Path(folder), passes=passes, tuned=tuned)


class Recapture:
    """Films clips again from other cameras, with one set of warm models.

    >>> engine = Recapture.from_pretrained("tiny")
    >>> result = engine("clip.mp4", camera="arc(20deg)", seed=0)
    >>> result.save("out")
    """

    def __init__(
        self,
        models: Models,
        *,
        store: Store,
        perform: Perform = perform,
        map_frames: FrameMap = in_process,
        room: Callable[[], Room] | None = None,
        tune_devices: int = 1,
    ) -> None:
        """`perform` and `map_frames` say who does the work, `room` what memory they have, and `tune_devices` how many of
        them share the tuning; by default this process does everything."""
        self.models, self.store = models, store
        self._room, self._tune_devices = room or models.room, tune_devices
        self._perform, self._map_frames = perform, map_frames
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
            device: `auto` takes a GPU if there is one; `cuda:1` is also made torch's current device in this thread.
            torch_dtype: of the UNet; fp32 on a CPU and fp16 on a GPU unless said.
            store: where stages are kept; by default a folder of the user's cache.

        Raises:
            ModelError: the model is not to be had.
            InputError: the device is not there.
        """
        chosen = pick_device(device)
        if chosen.index is not None:
            torch.cuda.set_device(chosen)  # Triton's kernels start on the current device
        dtype = torch_dtype or (torch.float16 if chosen.type == "cuda" else torch.float32)
        opened = store if isinstance(store, Store) else Store(store or default_store())
        return cls(Models(str(model), device=chosen, dtype=dtype), store=opened)

    def default_config(self, *, seed: int = 0) -> RunConfig:
        """The configuration of `standard` quality for this model."""
        return quality_config("standard", model=self.models.entry.name, seed=seed)

    def __call__(
        self,
        video: str | Path,
        camera: str | CameraSpec,
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
        callback_on_step_end: Callable[["Recapture", int, float, dict[str, Any]], dict[str, Any]] | None = None,
        on_progress: Progress | None = None,
        on_stage: Callable[[StageRecord | str, Result], None] = lambda record, result: None,
    ) -> Result:
        """Film a video again.

        Args:
            video: path of the clip.
            camera: a preset expression (`arc(20deg)+zoom(1.1)`), a camera file, or a parsed camera.
            seed: of everything random; overrides the configuration's.
            config: all options; `default_config()` if absent.
            until: name of the last stage to run (`anchor` for a preview).
            depth_dir: the user's own depth, instead of a network's.
            mask_dir: PNG masks of source pixels that may be used (white).
            clean_plate: picture of the empty scene from the clip's own, standing camera: fills holes with footage.
            force: go on where the path sees next to nothing of the clip.
            info: what `probe` said of this clip; it is then not looked at here, and not decoded either if the store
                has its frames.
            callback_on_step_end: as in diffusers: called after each sampling step with (self, step, sigma,
                {"latents": ...}); what it returns replaces the latents; setting `self._interrupt` stops the run.
            on_progress: called with (stage, done, total, details); may raise to stop.
            on_stage: called with a stage's name before it runs and its record after.

        Raises:
            InputError: the clip, the camera or an option cannot be used; nothing was run.
            Cancelled: stopped by a callback or Ctrl-C; what was finished stays in the store.
            ResourceError: out of memory, or the configuration's limit is too small; names the knob.
        """
        config = config or self.default_config()
        if seed is not None:
            config = replace(config, seed=seed)
        check(config)
        notes: list[str] = []
        if config.depth.model == "auto" and depth_dir is None:
            notes.append(self.models.depth_source("auto").sentence)
            config = self.models.settle(config)
        spec = parse_camera(camera) if isinstance(camera, str) else camera
        self._interrupt = False
        started = time.monotonic()
        limits = limits or Limits()
        with tempfile.TemporaryDirectory(prefix="recapture-") as folder:
            clip = admit(video, Path(folder), limits)
            run = Run(
                clip=clip, clip_path=Path(video).absolute(), clip_name=Path(video).name, info=info or probe(clip, limits),
                limits=limits, camera=spec, config=config,
                models=self.models, depth_dir=depth_dir, mask_dir=mask_dir, clean_plate=clean_plate, force=force,
                notes=notes, map_frames=self._map_frames,
            )  # fmt: skip
            if on_progress is not None:
                run.on_progress = on_progress
            if callback_on_step_end is not None:
                run.on_step_end = self._adapt(callback_on_step_end)
            _refuse_early(run)
            if config.memory is not None:
                run.memory = memory.fit(run, self._room(), devices=self._tune_devices)
                run.config = memory.settled(config, memory.asked(run), run.memory.choice)
            result = Result(run=run, entries={})
            with _errors_with_a_knob():
                for record in self._execute(run, result, until, on_stage):
                    result.records.append(record)
        result.seconds = time.monotonic() - started
        return result

    def _execute(
        self, run: Run, result: Result, until: str, on_stage: Callable[[StageRecord | str, Result], None]
    ) -> Iterator[StageRecord]:
        for stage in STAGES:
            inputs: Inputs = {name: result.entries[name] for name in stage.inputs}
            if stage.name == "temporal" and run.config.tune.warm_start:
                run.neighbour = self._neighbour(run, stage, result.entries)
            key = _key(run, stage, inputs)
            entry = self.store.get(stage.name, key)
            reused = entry is not None
            if entry is None:
                on_stage(stage.name, result)
                entry = self._perform(stage, run, inputs, self.store, key)
            for sentence in entry.meta["warnings"]:  # a reused stage still has something to say
                run.warn(sentence)
            result.entries[stage.name] = entry
            record = StageRecord(name=stage.name, about=stage.about, seconds=entry.seconds, reused=reused)
            on_stage(record, result)
            yield record
            if stage.name == until:
                return

    def _neighbour(self, run: Run, temporal: Stage, entries: Mapping[str, Entry]) -> Neighbour | None:
        def published(candidate: Neighbour | None) -> Entry | None:
            run.neighbour = candidate
            return self.store.get(temporal.name, _key(run, temporal, entries))

        return choose(neighbours(self.store, run, entries), published)

    def _adapt(self, callback: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
        def on_step_end(stage: str, step: int, sigma: float, latents: torch.Tensor) -> torch.Tensor | None:
            returned = callback(self, step, sigma, {"latents": latents}) or {}
            if self._interrupt:
                raise Cancelled("stopped by the callback")
            return returned.get("latents")

        return on_step_end


def _key(run: Run, stage: Stage, entries: Mapping[str, Entry]) -> str:
    return stage_key(
        stage=stage.name,
        version=stage.version,
        config=stage.config(run),
        inputs={name: entries[name].digest for name in stage.inputs},
        weights=stage.weights(run),
    )


def pick_device(name: str) -> torch.device:
    """Raises InputError: unknown, or asked for and not there."""
    check_device(name)
    kind, _, number = name.partition(":")
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is available; set `device` to cpu", param="device")
    if number and int(number) >= torch.cuda.device_count():
        raise InputError(f"there is no {name}; this machine has {torch.cuda.device_count()} GPUs", param="device")
    return torch.device(name)


def _refuse_early(run: Run) -> None:
    """What can be known to fail later is refused now."""
    require_attention(run.config.attention, run.device)
    if run.config.deliver.fill == "texture" and not installed("numba"):
        raise InputError("texture needs numba: pip install 'recapture[engine]', or use model", param="deliver.fill")
    _ = run.size, run.depth_digest, run.mask_digest, run.clean_plate_picture, run.multiview_source
    if run.frame_count < 2:
        raise InputError(
            f"{run.clip_name} has {run.info.frame_count} frames, from frame {run.config.decode.first_frame} on "
            f"{run.frame_count} would be used; at least 2 are needed",
            param="video",
        )


@contextmanager
def _errors_with_a_knob() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Cancelled("interrupted; run the same command again and it goes on from here") from None
    except torch.OutOfMemoryError:
        raise ResourceError(f"the GPU is {_OUT_OF_MEMORY}", param="memory") from None
    except MemoryError:
        raise ResourceError(_OUT_OF_MEMORY, param="memory") from None
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # how torch's CPU allocator says it
            raise ResourceError(_OUT_OF_MEMORY, param="memory") from None
        raise
