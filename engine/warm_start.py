"""Warm start: a new path's temporal adapter begins as that of the nearest path which the clip was tuned for.

It stops as soon as its held-out masked loss, over that of the untuned model on the same anchor, is where the neighbour's
was in the end. What it began from is part of its key in the store.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cameras import CameraPath
from .graph.context import Run
from .graph.stage import Inputs
from .stage_results import path_of
from .store import Entry, Store

_SIZES = ("rank", "schedule")
"""Options that adapters must share to be exchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A path that the clip was tuned for.

    Attributes:
        digest: of its temporal stage's result.
        distance: `path_distance` to the new path.
        reached: its held-out loss over the untuned model's.
        adapter: folder of its temporal adapter.
    """

    digest: str
    distance: float
    reached: float
    adapter: Path

    def to_json(self) -> dict[str, Any]:
        return {"entry": self.digest, "distance": self.distance, "reached": self.reached}


def path_distance(a: CameraPath, b: CameraPath, depth: float) -> float:
    """How far two paths of one clip are apart: turn (radians) + way (in `depth`s) + zoom (ln), mean over frames."""
    turn = np.einsum("tij,tij->t", a.c2w[:, :3, :3], b.c2w[:, :3, :3])
    angle = np.arccos(np.clip((turn - 1) / 2, -1, 1))
    way = np.linalg.norm(a.c2w[:, :3, 3] - b.c2w[:, :3, 3], axis=-1) / depth
    zoom = np.abs(np.log(a.K_px[:, 0, 0] / a.width) - np.log(b.K_px[:, 0, 0] / b.width))
    return float(np.mean(angle + way + zoom))


def neighbours(store: Store, run: Run, inputs: Inputs) -> list[Neighbour]:
    """Paths of the same clip whose temporal adapter fits this run's model, nearest first."""
    fits = record_of(run, inputs)
    path, depth = path_of(inputs), inputs["depth"].json("summary")["median"]
    found = []
    for info in store.entries():
        if info.stage != "temporal" or "temporal/adapter_model.safetensors" not in info.files:
            continue
        entry = store.get(info.stage, info.key)
        tuning = {} if entry is None else entry.json("tuning")
        if entry is None or tuning.get("of") != fits:
            continue
        other = CameraPath.from_json(tuning["path"])
        if len(other.c2w) == len(path.c2w):
            found.append(
                Neighbour(
                    digest=entry.digest, distance=path_distance(path, other, depth),
                    reached=tuning["held_out"]["spatial+temporal"] / tuning["held_out"]["none"],
                    adapter=entry.path / "temporal",
                )
            )  # fmt: skip
    return sorted(found, key=lambda one: (one.distance, one.digest))


def record_of(run: Run, inputs: Inputs) -> dict[str, Any]:
    """What a temporal adapter was tuned for: adapters with equal records can be exchanged."""
    options = {name: getattr(run.config.tune, name) for name in _SIZES}
    return {
        "source": inputs["source"].digest,
        "spatial": inputs["spatial"].digest,
        "unet": run.models.unet_digest,
    } | options


def choose(candidates: list[Neighbour], published: Callable[[Neighbour | None], Entry | None]) -> Neighbour | None:
    """The neighbour that a result is already there for (None: begun cold), so that a rerun reuses it; else the nearest."""
    for candidate in [None, *candidates]:
        if published(candidate) is not None:
            return candidate
    return candidates[0] if candidates else None
