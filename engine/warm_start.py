"""Warm start: a new path's temporal adapter begins as that of the nearest path that the clip was tuned for.

Tuning stops as soon as the held-out masked loss, relative to that of the untuned model on the same anchor, is as low as
the other path's was at its end. The result it starts from is part of its key in the store.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cameras import CameraPath
from .graph.context import StageContext
from .graph.stage import Inputs, OptionalInput
from .stage_results import load_camera_path
from .store import Entry, Store

_SIZES = ("rank", "schedule")
"""Options that adapters must share to be exchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """The tuned path that a temporal adapter starts from.

    Attributes:
        digest: of its temporal stage's result.
        distance: `path_distance` to the new path.
        relative_loss: its held-out loss over the untuned model's.
        adapter: folder of its temporal adapter.
    """

    digest: str
    distance: float
    relative_loss: float
    adapter: Path

    def to_json(self) -> dict[str, Any]:
        """What the result says of it."""
        return {"entry": self.digest, "distance": self.distance, "reached": self.relative_loss}


def path_distance(a: CameraPath, b: CameraPath, depth: float) -> float:
    """How far apart two paths of one clip are: turn (radians) + way (in `depth`s) + zoom (ln), mean over frames."""
    turn = np.einsum("tij,tij->t", a.c2w[:, :3, :3], b.c2w[:, :3, :3])
    angle = np.arccos(np.clip((turn - 1) / 2, -1, 1))
    way = np.linalg.norm(a.c2w[:, :3, 3] - b.c2w[:, :3, 3], axis=-1) / depth
    zoom = np.abs(np.log(a.K_px[:, 0, 0] / a.width) - np.log(b.K_px[:, 0, 0] / b.width))
    return float(np.mean(angle + way + zoom))


def adapter_compatibility(context: StageContext, inputs: Inputs) -> dict[str, Any]:
    """What a temporal adapter was tuned for: adapters with equal records can be exchanged."""
    options = {name: getattr(context.config.tune, name) for name in _SIZES}
    return {
        "source": inputs["source"].digest,
        "spatial": inputs["spatial"].digest,
        "unet": context.models.unet_digest,
    } | options


def _nearest_tuned_paths(context: StageContext, inputs: Inputs, store: Store) -> list[Entry]:
    """Paths of the same clip whose temporal adapter fits this run's model, nearest first."""
    if not context.config.tune.warm_start:
        return []
    fits, frames = adapter_compatibility(context, inputs), len(load_camera_path(inputs))
    found = []
    for info in store.entries():
        if info.stage != "temporal" or "temporal/adapter_model.safetensors" not in info.files:
            continue
        entry = store.get(info.stage, info.key)
        tuning = {} if entry is None else entry.json("tuning")
        measured = tuning.get("held_out")
        if (
            entry is None
            or not measured
            or tuning.get("of") != fits
            or len(CameraPath.from_json(tuning["path"])) != frames
        ):
            continue
        found.append((_start_from(entry, inputs).distance, entry.digest, entry))
    return [entry for _, _, entry in sorted(found, key=lambda one: one[:2])]


def _start_from(entry: Entry, inputs: Inputs) -> WarmStart:
    tuning, depth = entry.json("tuning"), inputs["depth"].json("summary")["median"]
    return WarmStart(
        digest=entry.digest,
        distance=path_distance(load_camera_path(inputs), CameraPath.from_json(tuning["path"]), depth),
        relative_loss=tuning["held_out"]["spatial+temporal"] / tuning["held_out"]["none"],
        adapter=entry.path / "temporal",
    )


WARM_START = OptionalInput(
    name="warm_start",
    reads=("depth",),
    find=_nearest_tuned_paths,
    # A run that stops early checks every so many steps whether it may.
    config=lambda context, entry: {"from": entry.digest, "asked_every": context.config.tune.checkpoint_every},
)


def warm_start_of(inputs: Inputs) -> WarmStart | None:
    """What the temporal stage starts from; None is from nothing."""
    return _start_from(inputs[WARM_START.name], inputs) if WARM_START.name in inputs else None
