"""Runs the pipeline over ground truth and scores every row of the table; what is finished stays finished.

OUT/rows.parquet       one line a row and path: means over 14 and over the last 13 frames, metrics of the clip, seconds
OUT/frames.parquet     one line a frame
OUT/summary.md         means over paths with bootstrap intervals
OUT/index.html         the same with pictures
OUT/finished/, work/   scores by key, and the shots as clips: a rerun goes on from there
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..engine.cameras import parse_camera
from ..engine.config import RunConfig, override
from ..engine.models.multiview import multiview_source
from ..engine.pipeline import Recapture
from ..engine.result import Result
from ..engine.stage_results import load_source_camera
from ..engine.stages import STAGES
from ..engine.store import canonical_json
from ..engine.video import VideoWriter
from .dataset import Shot, ShotEntry
from .rows import ROWS, VARIED, Overrides, TableRow
from .score import METRICS_VERSION, Scorer
from .shot_files import DepthFit, field_of_view_deg, fit_scale, source_errors, write_camera, write_clip, write_depth
from .variations import Variation, merged
from .vbench import run_vbench

DepthKind = Literal["true", "reduced", "estimated"]
PosesKind = Literal["true", "estimated"]
REDUCED = 2
"""A side of `reduced` depth is this many times shorter than the clip's, about as a network's map of a 720p clip is."""
PICTURED = (0, 4, 9, 13)
"""Frames whose pictures are kept for the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """One line of the table for one shot. `vary` is `knob=value`, or empty."""

    row: TableRow
    depth: str
    vary: str
    config: Overrides


@dataclass(kw_only=True)
class Evaluation:
    """What is to be run.

    Attributes:
        base: options of every row, which each row changes as it says.
        rows: names out of `rows.ROWS`.
        depths: which depth the pipeline is given.
        vary: each is tried alone against the base, for the rows of `rows.VARIED`.
        poses: of the source camera that the pipeline is given; estimated are given none.
        vbench_python: interpreter of an environment with the package `vbench`, to run it on every line's video.
        on_line: called with each finished line.
    """

    engine: Recapture
    entries: list[ShotEntry]
    out: Path
    scorer: Scorer
    base: RunConfig
    rows: Iterable[str] = tuple(ROWS)
    depths: Iterable[DepthKind] = ("true", "estimated")
    vary: list[Variation] = field(default_factory=list)
    on_line: Callable[[dict[str, Any], bool], None] = lambda line, reused: None
    vbench_python: Path | None = None
    poses: PosesKind = "true"

    def jobs(self) -> Iterator[Rendering]:
        """The lines of one shot, in the order of the table."""
        chosen = [ROWS[name] for name in self.rows]
        for row in chosen:
            if not row.depth:
                yield Rendering(row=row, depth="none", vary="", config=row.config)
        for depth in self.depths:
            for row in chosen:
                if row.depth:
                    yield Rendering(row=row, depth=depth, vary="", config=row.config)
            for variation in self.vary:
                for row in chosen:
                    if row.name in VARIED:
                        config = merged(row.config, variation.config)
                        yield Rendering(row=row, depth=depth, vary=variation.name, config=config)

    def run(self) -> list[dict[str, Any]]:
        """Score every line and write the tables; returns the lines.

        Raises:
            InputError: an option that a row or a `--vary` needs does not exist.
        """
        self.base = self.engine.models.settle(self.base)
        for job in self.jobs():  # refused before anything runs
            override(self.base, job.config)
        for folder in ("finished", "work", "pictures"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        lines = []
        for entry in self.entries:
            shot = _ShotAtWork(self, entry)
            for job in self.jobs():
                line, reused = shot.line(job)
                lines.append(line)
                self.on_line(line, reused)
        if self.vbench_python is not None:
            scores = run_vbench(self.vbench_python, {line["pictures"]: self.out / line["video"] for line in lines})
            for line in lines:
                line |= {f"vbench_{name}": value for name, value in scores[line["pictures"]].items()}
        frames = [frame for line in lines for frame in line.pop("frames")]
        write_table(lines, self.out / "rows.parquet")
        write_table(frames, self.out / "frames.parquet")
        return lines


class _ShotAtWork:
    """One shot's files and lines; the shot itself is read when first needed."""

    def __init__(self, evaluation: Evaluation, entry: ShotEntry) -> None:
        self.evaluation, self.entry = evaluation, entry
        self.folder = evaluation.out / "work" / entry.scene / entry.path
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def shot(self) -> Shot:
        return self.entry.load()

    @cached_property
    def digest(self) -> str:
        """sha256 over everything of the shot."""
        total = hashlib.sha256()
        for name in ("source", "depth", "truth", "visible", "known", "K_px", "source_c2w", "target_c2w"):
            total.update(np.ascontiguousarray(getattr(self.shot, name)).tobytes())
        return total.hexdigest()

    @cached_property
    def clip(self) -> Path:
        path = self.folder.parent / f"{self.entry.path}.mkv"
        write_clip(self.shot.source, self.shot.fps, path)
        return path

    @cached_property
    def camera(self) -> Path:
        path = self.folder / "camera.json"
        write_camera(self.shot, path)
        return path

    @cached_property
    def source_camera(self) -> Path:
        path = self.folder / "source_camera.json"
        write_camera(self.shot, path, of="source")
        return path

    @cached_property
    def estimated(self) -> tuple[Path, DepthFit]:
        """A folder with the network's depth at the true scale, and the fit that brought it there."""
        result = self.engine_run(self.evaluation.base, None, until="depth")
        depth = result.depth
        rows, columns = depth.shape[1:]
        true = np.stack([cv2.resize(d, (columns, rows), interpolation=cv2.INTER_NEAREST) for d in self.shot.depth])
        fit = fit_scale(depth, true)
        return write_depth(depth * fit.scale, self.folder / "depth_estimated"), fit

    @cached_property
    def true_depth(self) -> Path:
        return write_depth(self.shot.depth, self.folder / "depth_true")

    @cached_property
    def reduced_depth(self) -> Path:
        """The true depth of one pixel in `REDUCED` along each side, as an ideal network of that size gives it."""
        height, width = self.shot.depth.shape[1:]
        size = (width // REDUCED, height // REDUCED)
        small = [cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST) for depth in self.shot.depth]
        return write_depth(np.stack(small), self.folder / "depth_reduced")

    def engine_run(self, config: RunConfig, depth_dir: Path | None, *, until: str) -> Result:
        run = self.evaluation
        config = override(config, {"depth": {"fov_deg": field_of_view_deg(self.shot), "kind": "depth"}})
        source = self.source_camera if run.poses == "true" else None
        camera = parse_camera(str(self.camera), source_camera=source)
        return run.engine(self.clip, camera, config=config, until=until, depth_dir=depth_dir, force=True)

    def key(self, job: Rendering, config: RunConfig) -> str:
        """What a line depends on: the shot, the options, the weights, the stages and the metrics."""
        models = self.evaluation.engine.models
        value: dict[str, Any] = {
            "shot": self.digest,
            "row": job.row.name,
            "depth": job.depth,
            "poses": self.evaluation.poses,
            "metrics": METRICS_VERSION,
        }
        value["optional"] = [*self.evaluation.scorer.names, *(["video"] if self.evaluation.vbench_python else [])]
        if job.row.until is not None:
            value |= {"config": config.to_json(), "stages": {stage.name: stage.version for stage in STAGES}}
            value["depth_weights"] = models.depth_source(config.depth.model).digest
            value["device"] = models.device.type
            if (source := multiview_source(config.anchor)) is not None:
                value["multiview"] = source.digest
            if job.row.until != "anchor":
                value["weights"] = [models.unet_digest, models.encoder_digest]
        return hashlib.sha256(canonical_json(value)).hexdigest()[:32]

    def line(self, job: Rendering) -> tuple[dict[str, Any], bool]:
        """The finished line (with its frames), and whether it was there before."""
        run = self.evaluation
        config = override(run.base, job.config)
        path = run.out / "finished" / f"{self.key(job, config)}.json"
        if path.exists():
            line = json.loads(path.read_text())
            # A variation that equals the base is the same work under another name.
            for part in (line, *line["frames"]):
                part["vary"] = job.vary
            return line, True
        result, fit, seconds = None, None, 0.0
        if job.row.until is not None:
            depth_dir = self.reduced_depth if job.depth == "reduced" else self.true_depth
            if job.depth == "estimated":
                depth_dir, fit = self.estimated
            result = self.engine_run(config, depth_dir, until=job.row.until)
            seconds = sum(record.seconds for record in result.records)
        frames, covered = job.row.picture(self.shot, result)
        line: dict[str, Any] = {
            "scene": self.entry.scene,
            "path": self.entry.path,
            "kind": self.entry.kind,
            "row": job.row.name,
            "depth": job.depth,
            "vary": job.vary,
            "poses": run.poses,
            "seconds": round(seconds, 2),
            "coverage": float(covered.mean()),
            "depth_scale": fit and fit.scale,
            "depth_abs_rel": fit and fit.abs_rel,
        }
        if result is not None and run.poses == "estimated":
            found = load_source_camera(result.entries).c2w
            line |= {name: finite(value) for name, value in source_errors(found, self.shot.source_c2w).items()}
        seams = [] if result is None or job.row.until != "generate" else [w.start for w in result.windows[1:]]
        per_frame, per_clip = run.scorer(frames, self.shot, covered, seams)
        line |= {name: finite(value) for name, value in per_clip.items()}
        place = {name: line[name] for name in ("scene", "path", "kind", "row", "depth", "vary")}
        line["frames"] = [
            place | {"frame": t} | {name: finite(value) for name, value in frame.items()}
            for t, frame in enumerate(per_frame)
        ]
        line["pictures"] = self.keep_pictures(job, frames)
        if run.vbench_python is not None:
            line["video"] = str(Path(line["pictures"]).with_suffix(".mp4"))
            height, width = frames.shape[1:3]
            rate = Fraction(self.shot.fps).limit_denominator(1001)
            with VideoWriter(run.out / line["video"], width=width, height=height, rate=rate, crf=4) as video:
                for frame in frames:
                    video.write(frame)
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(line))
        os.replace(aside, path)
        return line, False

    def keep_pictures(self, job: Rendering, frames: np.ndarray) -> str:
        """Saves a few frames side by side as WebP; returns the path relative to OUT."""
        name = hashlib.sha256(f"{self.entry.name} {job.row.name} {job.depth} {job.vary}".encode()).hexdigest()[:16]
        path = self.evaluation.out / "pictures" / f"{name}.webp"
        strip = np.concatenate([frames[t] for t in PICTURED if t < len(frames)], axis=1)
        cv2.imwrite(str(path), np.ascontiguousarray(strip[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, 82])
        truth = self.evaluation.out / "pictures" / f"{self.entry.scene}-{self.entry.path}.webp"
        if not truth.exists():
            strip = np.concatenate([self.shot.truth[t] for t in PICTURED if t < len(frames)], axis=1)
            cv2.imwrite(str(truth), np.ascontiguousarray(strip[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, 82])
        return f"pictures/{name}.webp"


def finite(value: float | None) -> float | None:
    """None for what is not defined (an empty mask): JSON and Parquet have no NaN that every reader agrees on."""
    return None if value is None or not math.isfinite(value) else float(value)


def write_table(lines: list[dict[str, Any]], path: Path) -> None:
    """A Parquet file of the lines, whole or not at all; a column that a line lacks is null there."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    aside = path.with_suffix(".part")
    pq.write_table(pa.table({name: [line.get(name) for line in lines] for name in names}), aside)
    os.replace(aside, path)
