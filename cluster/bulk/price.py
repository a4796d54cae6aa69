"""The price of a manifest in advance: from finished rows, or from plans of a few of its clips."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, which no checker sees.

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from ...engine.cameras import parse_camera
from ...engine.pipeline import Recapture
from ...engine.planning.estimate import make_plan
from ...engine.stages import STAGES
from ...engine.store.remote_path import AllowedRoots, RemotePath
from ...engine.video import Limits
from .engine_row_renderer import RowDefaults, config_of
from .manifest import Manifest, is_camera_file
from .results import Results, Scan

SAMPLES = 3
"""Clips that are planned where nothing is measured yet: the first, the last, one between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Cost of a manifest's remaining rows; unknown byte counts are None.

    Attributes:
        gpu_hours: of one worker's device, for all remaining rows.
        hours: on `workers` workers.
        stage_bytes_per_clip: in the stage store while the clip is in progress, and afterwards with `--keep all`.
        basis: what the numbers come from.
    """

    rows: int
    clips: int
    finished: int
    workers: int
    gpu_hours: float
    hours: float
    usd: float | None
    output_bytes: int | None
    stage_bytes_per_clip: int | None
    basis: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Cost:
    """Seconds and stage bytes of a clip's shared part, and of each path."""

    clip_s: float
    path_s: float
    clip_bytes: int
    path_bytes: int


def price(
    manifest: Manifest,
    out: RemotePath,
    scan: Scan,
    roots: AllowedRoots,
    model: str,
    defaults: RowDefaults | None = None,
    *,
    device: str = "auto",
    workers: int,
    usd_per_gpu_hour: float | None = None,
) -> Price:
    """Price the rows that are left. Without finished rows a few clips are looked at and drawn on this machine.

    Raises:
        InputError: a sampled row cannot be used.
    """
    left = [
        index for index, name in enumerate(manifest.row_ids) if scan.status.get(name) not in ("completed", "failed")
    ]
    clips = manifest.clips()
    left_clips = len({clips[index] for index in left})
    table = Results(out).table(scan)
    done = table.filter(pc.equal(table["status"], "completed"))
    output_bytes = clip_bytes = None
    if done.num_rows:
        row_s, row_bytes = pc.mean(done["gpu_seconds"]).as_py(), pc.mean(done["output_bytes"]).as_py()
        seconds, output_bytes = row_s * len(left), round(row_bytes * len(left))
        seen = len(set(done["input_uri"].to_pylist()))
        clip_bytes = round(pc.sum(done["stage_bytes"]).as_py() / seen)
        basis = f"{done.num_rows} finished rows"
    elif left:
        costs = _sample(manifest, left, roots, model, defaults or RowDefaults(), device)
        clip_s, path_s = (sum(getattr(cost, name) for cost in costs) / len(costs) for name in ("clip_s", "path_s"))
        seconds = clip_s * left_clips + path_s * len(left)
        paths = len(left) / left_clips
        clip_bytes = round(sum(cost.clip_bytes + paths * cost.path_bytes for cost in costs) / len(costs))
        basis = f"plans of {len(costs)} clips, timed on this machine"
    else:
        seconds, basis = 0.0, "nothing is left"
    return Price(
        rows=len(left),
        clips=left_clips,
        finished=len(manifest) - len(left),
        workers=workers,
        gpu_hours=seconds / 3600,
        hours=seconds / 3600 / workers,
        usd=None if usd_per_gpu_hour is None else seconds / 3600 * usd_per_gpu_hour,
        output_bytes=output_bytes,
        stage_bytes_per_clip=clip_bytes,
        basis=basis,
    )


def _sample(
    manifest: Manifest, left: list[int], roots: AllowedRoots, model: str, defaults: RowDefaults, device: str
) -> list[_Cost]:
    chosen = {left[0], left[len(left) // 2], left[-1]}
    by_clip = {manifest.row(index).input_uri: index for index in sorted(chosen)}
    with tempfile.TemporaryDirectory(prefix="recapture-price-") as folder:
        engine = Recapture.from_pretrained(model, device=device, store=Path(folder, "stages"))
        return [_plan(manifest, index, roots, engine, defaults, Path(folder)) for index in by_clip.values()][:SAMPLES]


def _plan(
    manifest: Manifest, index: int, roots: AllowedRoots, engine: Recapture, defaults: RowDefaults, folder: Path
) -> _Cost:
    row = manifest.row(index)
    place = roots.find(row.input_uri, param="manifest")
    clip = folder / f"clip-{index}"
    place.download(clip, Limits().max_bytes, param="manifest")
    camera = row.camera
    if is_camera_file(camera):
        place = roots.find(camera, param="manifest")
        target = folder / f"camera-{index}{Path(place.path).suffix.lower()}"
        place.download(target, 16 << 20, param="manifest")
        camera = str(target)
    config = config_of(engine, row, clip, defaults)
    preview = engine(clip, parse_camera(camera), config=config, until="anchor")
    plan = make_plan(preview)
    shared = {stage.name for stage in STAGES if stage.per_clip}
    (width, height), (columns, rows) = plan.clip_size, plan.working_size
    sizes = {name: entry.bytes for name, entry in preview.entries.items()}
    # Beyond the anchor the large arrays are the generated frames and the delivered ones with their matte.
    later = plan.frames * (3 * columns * rows + 4 * width * height)
    return _Cost(
        clip_s=sum(seconds for name, seconds in plan.stages_s.items() if name in shared),
        path_s=sum(seconds for name, seconds in plan.stages_s.items() if name not in shared),
        clip_bytes=sum(size for name, size in sizes.items() if name in shared),
        path_bytes=sum(size for name, size in sizes.items() if name not in shared) + later,
    )
