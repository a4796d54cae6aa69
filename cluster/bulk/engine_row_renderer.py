"""Rows by the engine: one warm `Recapture` a worker runs every stage of a clip in its process."""

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ...engine.cameras import parse_camera
from ...engine.config import RunConfig, override, quality_config
from ...engine.models.multiview import find_multiview_model
from ...engine.options import by_section
from ...engine.pipeline import Recapture
from ...engine.stages import STAGES
from ...engine.store import canonical_json
from ...engine.store.remote_path import AllowedRoots, open_remote_path
from ...engine.video import probe
from .manifest import Row, options_of
from .outcome import RowResult
from .render import BrokenDevice, RowRenderer
from .single_flight import LeaseClient, SingleFlightStore

Keep = Literal["results", "adapters", "all"]

_WITHOUT_PIXELS = {"": {"memory": None, "offload": False}, "tune": {"checkpointing": "none"}}
"""Options that change nothing that is seen, at their values in a pipeline's digest."""


@dataclass(frozen=True, kw_only=True)
class RowDefaults:
    """What a run gives its rows where they say nothing.

    Attributes:
        options: values by the configuration's path, such as `tune.warm_start`.
    """

    quality: str = "standard"
    options: dict[str, Any] = field(default_factory=dict)

    def config(self, model: str, options: dict[str, Any], quality: str | None = None) -> RunConfig:
        """The model's configuration, with these options and a row's, by path, on top.

        Raises:
            InputError: a value is not accepted.
        """
        base = quality_config(quality or self.quality, model=model)
        return override(base, by_section({**self.options, **options}))


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """Settings from which a worker's process makes its renderer. It travels to the worker, so it holds no open resources.

    Attributes:
        device: as `Recapture.from_pretrained` takes it.
        stages: URI of the stage store.
        roots: URIs that rows may lie below, the output's own among them.
        keep: `adapters` and `all` write the tuned adapters beside the video; what becomes of the stages is the driver's.
        threads: of torch on a CPU worker.
        defaults: what rows get where they say nothing.
    """

    model: str
    device: str
    stages: str
    roots: tuple[str, ...]
    keep: Keep = "results"
    threads: int | None = None
    defaults: RowDefaults = field(default_factory=RowDefaults)

    def make(self, leases: LeaseClient) -> RowRenderer:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        store = SingleFlightStore(open_remote_path(self.stages, param="store"), leases=leases)
        engine = Recapture.from_pretrained(self.model, device=self.device, store=store)
        row_engine = RecaptureRowEngine(engine, self.defaults, tuned=self.keep == "adapters")
        return RowRenderer(row_engine, store, AllowedRoots(self.roots))


def pipeline_digest(engine: Recapture, defaults: RowDefaults) -> str:
    """sha256 over what decides a row's pixels besides the row: stages, weights and the model's own options."""
    models = engine.models
    config = override(models.settle(defaults.config(models.entry.name, {})), _WITHOUT_PIXELS)
    parts = {
        "stages": {stage.name: stage.version for stage in STAGES},
        "weights": [models.unet_digest, models.encoder_digest],
        "multiview": find_multiview_model("embedded").digest,
        "depth": models.depth_source(config.depth.model).digest,
        "config": {**config.to_json(), "model": ""},  # a model's name is not its weights
    }
    return hashlib.sha256(canonical_json(parts)).hexdigest()


def pipeline_of(model: str, defaults: RowDefaults) -> str:
    """`pipeline_digest` on a machine that renders nothing; loads no network.

    Raises:
        ModelError: the model is not found or not accessible.
    """
    with tempfile.TemporaryDirectory(prefix="recapture-") as folder:
        return pipeline_digest(Recapture.from_pretrained(model, device="cpu", store=folder), defaults)


class RecaptureRowEngine:
    """A `RowEngine` by one warm engine."""

    def __init__(self, engine: Recapture, defaults: RowDefaults, *, tuned: bool) -> None:
        self._engine, self._defaults, self._tuned = engine, defaults, tuned
        self.pipeline = pipeline_digest(engine, defaults)

    @property
    def loads(self) -> int:
        return self._engine.models.loads

    def __call__(self, row: Row, clip: Path, camera: str, bundle: Path) -> RowResult:
        try:
            result = self._engine(clip, parse_camera(camera), config=config_of(self._engine, row, clip, self._defaults))
        except torch.AcceleratorError as error:
            raise BrokenDevice(str(error)) from error
        result.save(bundle, tuned=self._tuned)
        worked = [record for record in result.records if not record.reused]
        return RowResult(
            status="completed",
            metrics=_metrics(json.loads((bundle / "report.json").read_bytes())),
            stage_seconds={record.name: record.seconds for record in worked},
            reused=tuple(record.name for record in result.records if record.reused),
            entries=tuple((entry.stage, entry.key) for entry in result.entries.values()),
            stage_bytes=sum(result.entries[record.name].bytes for record in worked),
        )


def config_of(engine: Recapture, row: Row, clip: Path, defaults: RowDefaults) -> RunConfig:
    """All options of a row: the model's preset, the run's, the row's own on top, its part of the clip in frames."""
    quality, options = options_of(row.options)
    config = defaults.config(engine.models.entry.name, {**options, "seed": row.seed}, quality)
    if row.start_s is None and row.end_s is None:
        return config
    rate = probe(clip, max_frames=1).rate  # the caps are for the row's part, once that is known
    first = round((row.start_s or 0.0) * rate)
    count = None if row.end_s is None else max(2, round(row.end_s * rate) - first)
    return override(config, {"decode": {"first_frame": first, "max_frames": count}})


def _metrics(report: dict[str, Any]) -> dict[str, float]:
    """The report's numbers that are worth a column; those that do not exist for a row are left out."""
    measures = report["measures"]
    found = {
        "frames": report["clip"]["frames"],
        "hole_share": report["shares"]["holes"],
        "generated_share": report["shares"]["generated"],
        "psnr_visible_db": measures["generated_psnr_visible_db"],
        "flicker": measures["flicker"]["delivered"],
        "temporal_steps": report["tuning"]["steps"]["temporal"],
        "held_out": report["tuning"]["held_out"].get("spatial+temporal"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}
