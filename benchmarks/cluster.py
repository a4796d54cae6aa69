"""What Ray costs: frame work by one and two workers against this process, its start, and the tuning loop against a bare one.

Targets: one worker at most 1.05 times this process's time, two at least 0.85 of twice its speed, at most 5 % of the raw
bytes through Ray; the tuning loop at most 1.05 times a bare diffusers and peft loop of the same arithmetic, without
a call of the VAE or the image encoder.
"""

import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from ..cluster.frames.ray_executor import RayExecutor, ray_executor
from ..cluster.session import connect
from ..engine.config import TuneConfig
from ..engine.diffusion.conditioning import AnchorConditioning
from ..engine.diffusion.edm import training_sigmas
from ..engine.diffusion.tuner import Tuner, adamw, tune
from ..engine.frame_tasks import DrawAnchor, EncodeAnchor, PredictDepth
from ..engine.graph.context import StageServices
from ..engine.graph.executor import LocalExecutor
from ..engine.graph.frame_task import FrameTask
from ..engine.graph.warm_models import WarmModels
from ..engine.models import adapters
from ..engine.models.video import VideoModel
from ..engine.pipeline import Recapture
from ..engine.result import Result
from ..engine.store import Store
from ..engine.video import VideoWriter
from ..kernels.masked_loss import masked_loss
from .timing import Row, compare, one_thread

WIDTH, HEIGHT = 480, 272
_STEPS = 6
"""Tuning steps a call."""


def rows(part: str, quick: bool) -> list[Row]:
    """Rows of `tuning`, `start` or `frames`; `quick` is fewer frames and repetitions."""
    measure = {"tuning": _tuning_rows, "start": _start_rows, "frames": _frame_rows}[part]
    with tempfile.TemporaryDirectory(prefix="recapture-bench-") as folder, one_thread():
        return measure(Path(folder), quick)


def _frame_rows(folder: Path, quick: bool) -> list[Row]:
    """Depth, anchor and encoding of a clip: two workers are there throughout, the rival of one uses one of them."""
    count = 16 if quick else 48
    engine = Recapture.from_pretrained("tiny", device="cpu", store=folder / "store")
    result = engine(_clip(folder / "clip.mp4", count), "truck(0.1)", until="anchor")
    tasks = _tasks(result)
    scratch = folder / "scratch"
    scratch.mkdir()

    def all_by(executor: StageServices) -> Callable[[], Any]:
        def run() -> None:
            for task in tasks:
                for _ in executor.map_frames(result.context, task, count, scratch=scratch):
                    pass

        return run

    with (
        connect(None, cpus=3),
        ray_executor(engine.models, engine.store, count=1) as one,
        ray_executor(engine.models, engine.store, count=2) as two,
    ):
        rivals = {
            "in process": all_by(LocalExecutor(models=engine.models)),
            "1 worker": all_by(one),
            "2 workers": all_by(two),
        }
        made = compare(
            "cluster_frames",
            f"{count} frames {WIDTH}x{HEIGHT}",
            rivals,
            baseline="in process",
            device="cpu",
            repeats=3 if quick else 7,
            warmup=1,
            budget_s=240,
        )
        raw = count * WIDTH * HEIGHT * 3
        for row, executor in zip(made[1:], (one, two), strict=True):
            worker_count, before = len(executor.ask("pid")), _stored_bytes()
            all_by(executor)()
            shipped = _stored_bytes() - before
            row |= {"efficiency": round(row["speedup"] / worker_count, 3), "shipped_bytes": shipped}
            row |= {"raw_bytes": raw, "shipped_share": round(shipped / raw, 5)}
    return made


def _stored_bytes() -> int:
    """Bytes that Ray has ever put into the cluster's object stores, by its own count.

    What is smaller than 100 kB goes with the call instead, and no array does: results are names of files.
    """
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return get_memory_info_reply(state).store_stats.cumulative_created_bytes


def _tasks(result: Result) -> list[FrameTask]:
    entries = result.entries
    return [
        PredictDepth(frames=entries["frames"]),
        DrawAnchor(inputs=entries),
        EncodeAnchor(anchor=entries["anchor"], batch=result.config.condition.micro_batch),
    ]


def _start_rows(folder: Path, quick: bool) -> list[Row]:
    """Seconds before the first work: Ray alone, and with a worker that has found its model."""

    def started() -> None:
        with connect(None, cpus=1):
            ray.cluster_resources()

    def ready() -> None:
        with tempfile.TemporaryDirectory() as folder, connect(None, cpus=1):
            models = WarmModels("tiny", device=torch.device("cpu"), dtype=torch.float32)
            with ray_executor(models, Store(folder), count=1) as executor:
                assert isinstance(executor, RayExecutor)

    rivals = {"ray": started, "ray and a worker": ready}
    return compare("cluster_start", "local", rivals, baseline="ray", device="cpu", repeats=1 if quick else 3, warmup=0)


def _tuning_rows(folder: Path, quick: bool) -> list[Row]:
    """Temporal steps of the embedded model on a window of 8 frames, 64x96 pixels."""
    models = WarmModels("tiny", device=torch.device("cpu"), dtype=torch.float32)
    model = models.video(16)
    conditioning = _condition(model, 8, 8, 12)
    config = TuneConfig(checkpoint_every=1000)
    calls: list[str] = []
    for name in ("vae", "image_encoder"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    tuner = Tuner(model, config, 0)
    store = Store(folder / "tuning")

    def ours() -> None:
        with store.begin("temporal", "0" * 64) as out:
            tune(
                model,
                config,
                out,
                _STEPS,
                {"temporal": lambda step: tuner.temporal_loss(conditioning, step)},
                lambda done, loss: None,
            )

    rivals = {"bare loop": lambda: _bare(model, config, conditioning), "tune": ours}
    shape = f"{_STEPS} steps of 8 frames 8x12 cells"
    made = compare(
        "tuning_loop",
        shape,
        rivals,
        baseline="bare loop",
        device="cpu",
        repeats=5 if quick else 15,
        warmup=1,
        budget_s=120,
    )
    made[1] |= {"encoder_calls": len(calls), "ratio": round(1 / made[1]["speedup"], 3)}
    return made


def _bare(model: VideoModel, config: TuneConfig, conditioning: AnchorConditioning) -> None:
    """What one would write with diffusers and peft alone: the same draws, the same loss, the same optimizer."""
    adapters.train_only(model.unet, ["temporal"])
    optimizer = adamw(
        {"temporal": [p for p in model.unet.parameters() if p.requires_grad]}, config, torch.device("cpu")
    )
    clean, mask = conditioning.latents[None], conditioning.latent_mask[None]
    for step in range(_STEPS):
        draw = torch.Generator().manual_seed(step)
        sigma = training_sigmas(1, config.sigma_mean, config.sigma_std, draw)
        noisy = clean + sigma.view(-1, 1, 1, 1, 1) * torch.randn(clean.shape, generator=draw)
        parts = [noisy / torch.sqrt(sigma**2 + 1), conditioning.image_latents[:1, None].expand_as(noisy)]
        if model.shape.guided:
            parts += [clean, mask[:, :, None]]
        predicted = model.unet(
            torch.cat(parts, 2),
            0.25 * torch.log(sigma),
            conditioning.image_embeds[:1],
            conditioning.added_time_ids[None],
        ).sample
        loss = masked_loss(predicted, noisy, clean, sigma, mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())


def _condition(model: VideoModel, frames: int, height: int, width: int) -> AnchorConditioning:
    draw = torch.Generator().manual_seed(0)
    shape = (frames, model.shape.latent_channels, height, width)
    width_of_token = model.unet.config.cross_attention_dim
    return AnchorConditioning(
        latents=torch.randn(shape, generator=draw),
        latent_mask=(torch.rand(frames, height, width, generator=draw) < 0.7).float(),
        image_latents=torch.randn(shape, generator=draw),
        image_embeds=torch.randn(frames, 1, width_of_token, generator=draw),
        added_time_ids=torch.tensor([23.0, 127.0, 0.02]),
    )


def _clip(path: Path, frames: int) -> Path:
    """A bright square that walks before a textured wall."""
    rng = np.random.default_rng(0)
    wall = rng.integers(60, 160, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with VideoWriter(path, width=WIDTH, height=HEIGHT, rate=Fraction(24), crf=4) as video:
        for t in range(frames):
            picture = wall.copy()
            picture[90:210, 40 + 5 * t : 140 + 5 * t] = (230, 200, 40)
            video.write(picture)
    return path
