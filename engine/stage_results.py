"""What stages read of the stages before them: entries of the store as the tensors and adapters that the work needs."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .cameras import CameraPath, SourceView
from .diffusion.sampler import Condition
from .diffusion.tuner import SourceBank
from .geometry.background import Plate
from .graph.context import Run
from .graph.stage import Inputs
from .models import adapters
from .store import Entry


def source_view(inputs: Inputs) -> SourceView:
    """The clip as cameras see it, from the entries of frames, depth and intrinsics."""
    lens, summary = inputs["intrinsics"].json("intrinsics"), inputs["depth"].json("summary")
    return SourceView(
        K_px=np.array(lens["K_px"]),
        width=lens["width"],
        height=lens["height"],
        times_s=np.array(inputs["frames"].json("clip")["times_s"]),
        median_depth=summary["median"],
        subject_depth=summary["subject"],
    )


def path_of(inputs: Inputs) -> CameraPath:
    return CameraPath.from_json(inputs["camera"].json("camera")["path"])


def plate_of(inputs: Inputs) -> Plate | None:
    """The static background, None where the source camera moves."""
    entry = inputs["background"]
    if not entry.json("background")["locked"]:
        return None
    color, depth, confidence = (entry.array(name)[0] for name in ("color", "depth", "confidence"))
    return Plate(color=color, depth=depth, confidence=confidence)


def tuned_adapters(inputs: Inputs) -> dict[adapters.AdapterName, Path]:
    """Folders of the adapters that were tuned; the joint schedule tunes the spatial one in the temporal stage."""
    stages = [inputs[name] for name in ("spatial", "temporal") if name in inputs]
    return {name: entry.path / name for entry in stages for name in adapters.ADAPTERS if (entry.path / name).is_dir()}


def load_adapters(run: Run, inputs: Inputs) -> None:
    """Put the tuned adapters into the model; one that was not tuned stays at zero."""
    run.fresh_adapters()
    for name, folder in tuned_adapters(inputs).items():
        adapters.load(run.model.unet, name, folder, read=run.models.read_adapter)


def tensor(run: Run, entry: Entry, name: str) -> Tensor:
    return torch.from_numpy(entry.array(name).copy()).to(run.device)


def source_bank(run: Run, inputs: Inputs) -> SourceBank:
    entry = inputs["source"]
    latents, prompts, tokens = (tensor(run, entry, name) for name in ("latents", "prompts", "tokens"))
    frame = torch.tensor(entry.json("bank")["frame"])
    return SourceBank(latents=latents, prompts=prompts, tokens=tokens, frame=frame, ids=tensor(run, entry, "ids"))


def told_of(run: Run, inputs: Inputs) -> Condition:
    entry = inputs["condition"]
    latents, mask, prompts, tokens = (tensor(run, entry, name) for name in ("latents", "mask", "prompts", "tokens"))
    return Condition(latents=latents, mask=mask, prompts=prompts, tokens=tokens, ids=tensor(run, entry, "ids"))
