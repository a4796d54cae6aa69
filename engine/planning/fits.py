"""What a run takes of graphics cards of usual sizes: the planner's word for Stable Video Diffusion, without its weights."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cameras import parse_expression
from ..config import quality_config
from ..errors import ResourceError
from ..given import clip_info
from ..graph.context import StageContext
from ..graph.device_memory import DeviceBudget
from ..graph.executor import LocalExecutor
from ..graph.request import RenderRequest
from ..graph.warm_models import WarmModels
from ..models.stable_video import FRAMES, StableVideo, write_configs
from ..video import Limits
from . import memory
from .memory import GIB, MemoryPlan

CARDS_GB = (12, 16, 24, 48, 80, 141)
_DRIVER_GIB = 0.5
"""What a CUDA context takes of a card before a run allocates anything. A guess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One card and one model, in GiB.

    Attributes:
        limit: what the plan may reach there: nine tenths of the card less the driver's part.
        plan: what is chosen there; None where nothing fits.
    """

    model: StableVideo
    card_gb: int
    limit: float
    plan: MemoryPlan | None

    @property
    def tune(self) -> float | None:
        """Peak of the larger of the two tuning stages."""
        return self._peak("spatial", "temporal")

    @property
    def sample(self) -> float | None:
        return self._peak("sample", "refine")

    @property
    def decode(self) -> float | None:
        return self._peak("generate")

    @property
    def lowered(self) -> str:
        """What is chosen below the defaults, in words."""
        return "does not fit" if self.plan is None else ", ".join(self.plan.lowered) or "nothing"

    def to_json(self) -> dict[str, Any]:
        peaks = {name: getattr(self, name) for name in ("tune", "sample", "decode")}
        choice = None if self.plan is None else asdict(self.plan.choice)
        about = {"model": self.model, "card_gb": self.card_gb, "limit_gib": round(self.limit, 2)}
        return {
            **about,
            **{f"{name}_gib": peak for name, peak in peaks.items()},
            "choice": choice,
            "lowered": self.lowered,
        }

    def _peak(self, *stages: str) -> float | None:
        return None if self.plan is None else round(max(self.plan.peaks[stage] for stage in stages) / GIB, 1)


def fits(models: tuple[StableVideo, ...] = ("svd", "svd-xt"), cards_gb: tuple[int, ...] = CARDS_GB) -> Iterator[Fit]:
    """The plans of a window of 1024x576 in bf16, at `standard` quality, card by card."""
    for model in models:
        with tempfile.TemporaryDirectory(prefix="recapture-fits-") as folder:
            context = _window_of(write_configs(model, Path(folder)), FRAMES[model])
            for card in cards_gb:
                total = card * GIB
                budget = DeviceBudget(
                    device="cuda", dtype=torch.bfloat16, free=int(total - _DRIVER_GIB * GIB), total=total
                )
                try:
                    made = memory.fit(context, budget, exact=True)
                except ResourceError:
                    made = None
                yield Fit(model=model, card_gb=card, limit=budget.usable / GIB, plan=made)


def _window_of(folder: Path, frames: int) -> StageContext:
    """A run of one window that is planned and never begun."""
    pictures = np.broadcast_to(np.zeros((), np.uint8), (frames, 576, 1024, 3))
    models = WarmModels(str(folder), device=torch.device("cpu"), dtype=torch.float32)
    request = RenderRequest(
        clip=folder,
        clip_path=folder,
        clip_name="",
        clip_sha256="",
        info=clip_info(pictures, 7.0),
        limits=Limits(),
        camera=parse_expression("static"),
        config=models.settle(quality_config("standard", model=models.entry.name)),
    )
    return StageContext(request=request, models=models, executor=LocalExecutor(models=models))
