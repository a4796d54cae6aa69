"""Stable Video Diffusion at its full size with random weights, end to end: seconds and peak memory of each stage.

A short run of the engine itself: a step of each adapter, two sampling steps with guidance, a step of SDEdit, the
decoding. Beside each stage's peak stands what the planner says of it.
"""

import ctypes
import tempfile
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch

from ..engine.config import RunConfig, override
from ..engine.models.stable_video import StableVideo, write_random
from ..engine.pipeline import Recapture
from ..engine.planning.memory import GIB
from ..engine.result import Result
from ..engine.stage_results import StageRecord
from .timing import Row, device_name, versions

_POLL_S = 0.02


def rows(
    *,
    model: StableVideo | Path = "svd",
    size: tuple[int, int] = (256, 384),
    device: str = "cpu",
    options: dict[str, dict[str, Any]] | None = None,
    folder: Path | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """A row for each stage that runs a network of the video model.

    Args:
        model: one of the two whose weights are drawn here, or a directory.
        size: working (height, width); the clip has the same.
        options: of the configuration, by section, over those of the short run.
        folder: keeps the random weights (4.5 GB) for the next time.
        on_row: gets each row as its stage ends.
    """
    with tempfile.TemporaryDirectory(prefix="recapture-full-size-") as scratch:
        place = model if isinstance(model, Path) else _weights(model, folder or Path(scratch) / "weights")
        config = override(RunConfig(model=str(place)), _short(size))
        config = override(config, options or {})
        engine = Recapture.from_pretrained(place, device=device, store=Path(scratch) / "store")
        return _measured(engine, config, size, "random weights" if place is not model else place.name, on_row)


def _short(size: tuple[int, int]) -> dict[str, dict[str, Any]]:
    return {
        "condition": {"augmentations": 2, "height": size[0], "width": size[1]},
        "tune": {"spatial_steps": 1, "temporal_steps": 1, "held_out": 0},
        "sample": {"steps": 2},
        "refine": {"steps": 1},
        "anchor": {"locked": False},
    }


def _weights(model: StableVideo, folder: Path) -> Path:
    return folder if (folder / "scheduler").is_dir() else write_random(model, folder)


def _measured(
    engine: Recapture, config: RunConfig, size: tuple[int, int], weights: str, on_row: Callable[[Row], None]
) -> list[Row]:
    frames, depth = moving_texture(engine.models.shape.frames, size)
    found: list[Row] = []

    def on_stage_end(record: StageRecord, result: Result) -> None:
        plan = result.memory
        if plan is None or record.name not in plan.work:
            return
        peak, planned = gauge.peak(), plan.peaks[record.name]
        row: Row = {
            "op": "full_size",
            "implementation": record.name,
            "device": device_name(engine.device.type),
            "threads": torch.get_num_threads() if engine.device.type == "cpu" else None,
            "shape": f"{len(frames)}x{size[0]}x{size[1]}",
            "weights": weights,
            "dtype": plan.dtype,
            "checkpointing": plan.choice.checkpointing,
            "offload": plan.choice.offload,
            "decode_chunk": plan.choice.decode_chunk,
            "seconds": round(record.seconds, 2),
            "peak_gib": round(peak / GIB, 3),
            "planned_gib": round(planned / GIB, 3),
            "planned_over_peak": round(planned / peak, 3),
            "versions": versions(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        found.append(row)
        on_row(row)

    with _CudaGauge() if engine.device.type == "cuda" else _CpuGauge() as gauge:
        engine(
            frames=frames, fps=7.0, depth=depth, camera="truck(0.1)", config=config, until="generate",
            on_stage_start=lambda name, result: gauge.restart(), on_stage_end=on_stage_end,
            on_progress=lambda *_: None,
        )  # fmt: skip
    return found


def moving_texture(count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A clip, uint8 [count, H, W, 3], of a texture that moves on, and its depth [count, H, W], a slope."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (size[0] // 8, size[1] // 8 + count, 3), dtype=np.uint8)
    wide = np.repeat(np.repeat(coarse, 8, axis=0), 8, axis=1)
    frames = np.stack([wide[:, 8 * t : 8 * t + size[1]] for t in range(count)])
    slope = np.broadcast_to(np.linspace(4, 2, size[0], dtype=np.float32)[:, None], size)
    return frames, np.repeat(slope[None], count, axis=0)


class _Gauge(Protocol):
    """Bytes that this process holds of a device, at most, since `restart`."""

    def restart(self) -> None: ...

    def peak(self) -> int: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class _CudaGauge:
    def restart(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class _CpuGauge:
    """Anonymous memory of this process beyond what it had at first, looked at by a thread. Linux with glibc only."""

    def __init__(self) -> None:
        self._first = self._most = _anonymous_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def restart(self) -> None:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # the last stage's freed memory is not this one's
        self._most = 0

    def peak(self) -> int:
        return max(self._most, _anonymous_bytes()) - self._first

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            self._most = max(self._most, _anonymous_bytes())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))
