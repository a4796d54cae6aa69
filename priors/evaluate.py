"""Measures the embedded weights on held-out pictures, each beside trivial predictors, and prints tables.

    python -m recapture.priors.evaluate --data DIR --real CLIP.mp4 --only vae unet --out priors/results/video.json

Rendered frames are those of the held-out split: other objects, textures and skies than the training set.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableVideoDiffusionPipeline
from torch import Tensor

from ..engine.geometry.depth_estimation import EmptyScene, estimate_depth, predict_frame
from ..engine.geometry.depth_models import DepthModel, EmbeddedDepth
from ..engine.geometry.depth_network import DepthNet
from ..engine.geometry.steady import to_log
from ..engine.graph.frame_task import FrameBatch, FrameTask, batches
from ..engine.store.arrays import ArrayWriter, read_array
from .frames import ClipFolder
from .latents import NOISE_AUGMENTATION, PROMPT_PX, SIZES_PX, fit
from .train_unet import Latents, VideoPrior, velocity

WEIGHTS = Path(__file__).parents[1] / "engine" / "weights"
SIGMA_BANDS = ((0.05, 0.3), (0.3, 1.0), (1.0, 3.0), (3.0, 10.0), (10.0, 50.0))
SIZE = (256, 384)

Row = dict[str, str | float]


def psnr(a: Tensor, b: Tensor) -> float:
    """Of images in 0..1, in dB."""
    return -10 * math.log10(max(F.mse_loss(a, b).item(), 1e-12))


def to_tensor(frames: np.ndarray) -> Tensor:
    """[N, H, W, 3] uint8 -> [N, 3, H, W] in 0..1"""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255


def real_frames(paths: Iterable[Path], per_clip: int = 6) -> np.ndarray:
    """Evenly spread frames of real clips, cut to SIZE: [N, H, W, 3] uint8."""
    chosen = []
    for path in paths:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            total = stream.frames or 100
            for k, frame in enumerate(container.decode(stream)):
                if k % max(1, total // per_clip) == 0:
                    chosen.append(fit_center(frame.to_ndarray(format="rgb24")))
    return np.stack(chosen)


def fit_center(image: np.ndarray) -> np.ndarray:
    """The center of `image` in the aspect of SIZE, resized to SIZE."""
    h, w = SIZE
    scale = max(h / image.shape[0], w / image.shape[1])
    shape = (max(w, round(image.shape[1] * scale)), max(h, round(image.shape[0] * scale)))
    image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
    top, left = (image.shape[0] - h) // 2, (image.shape[1] - w) // 2
    return image[top : top + h, left : left + w]


@torch.no_grad()
def vae_rows(vae, frames: Tensor, what: str) -> list[Row]:
    """Mean PSNR of encoding and decoding single frames, and of an 8x reduction enlarged again."""
    ours, blur = [], []
    for frame in frames.split(1):
        latents = vae.encode(frame * 2 - 1).latent_dist.mode()
        output = vae.decode(latents, num_frames=1).sample / 2 + 0.5
        small = F.interpolate(frame, scale_factor=1 / 8, mode="area")
        ours.append(psnr(output.clamp(0, 1), frame))
        blur.append(psnr(F.interpolate(small, size=frame.shape[-2:], mode="bicubic").clamp(0, 1), frame))
    return [
        {"model": "vae", "data": what, "predictor": "ours", "psnr_db": np.mean(ours), "frames": len(frames)},
        {"model": "vae", "data": what, "predictor": "8x blur", "psnr_db": np.mean(blur), "frames": len(frames)},
    ]


def depth_errors(log_depth: np.ndarray, depth: np.ndarray) -> tuple[float, float]:
    """abs-rel after the best median scale, and the standard deviation of the log error; surfaces only."""
    valid = np.isfinite(depth)
    error = log_depth[valid] - np.log(depth[valid].clip(0.1))
    scaled = np.exp(error - np.median(error))
    return float(np.abs(scaled - 1).mean()), float(error.std())


@torch.no_grad()
def depth_rows(net: DepthNet, frames: Tensor, depths: np.ndarray, what: str) -> list[Row]:
    """The network against one depth for the image, and a ramp whose slope is the best one for all images together."""
    height = depths.shape[1]
    v = np.linspace(0, 1, height)
    slopes = []
    for depth in depths:
        valid = np.isfinite(depth)
        slopes.append(np.polyfit(np.broadcast_to(v[:, None], depth.shape)[valid], np.log(depth[valid].clip(0.1)), 1)[0])
    ramp = np.broadcast_to((np.mean(slopes) * v)[:, None], depths.shape[1:])
    predictors: dict[str, Callable[[int], np.ndarray]] = {
        "ours": lambda k: net(frames[k : k + 1]).log_depth[0].numpy(),
        "constant": lambda k: np.zeros(depths.shape[1:]),
        "vertical ramp": lambda k: ramp,
    }
    rows: list[Row] = []
    for name, predict in predictors.items():
        errors = np.array([depth_errors(predict(k), depth) for k, depth in enumerate(depths)])
        rows.append({"model": "depth", "data": what, "predictor": name, "frames": len(depths)})
        rows[-1] |= {"abs_rel": errors[:, 0].mean(), "si_log": errors[:, 1].mean()}
    if np.isinf(depths).any():
        sky = np.concatenate([net(f).sky_logit.numpy() > 0 for f in frames.split(1)])
        truth = np.isinf(depths)
        rows[0]["sky_iou"] = float((sky & truth).sum() / (sky | truth).sum())
    return rows


def prior_of(pipeline: StableVideoDiffusionPipeline) -> VideoPrior:
    prior = VideoPrior()
    prior.unet, prior.image_encoder = pipeline.unet, pipeline.image_encoder
    return prior.eval()


@torch.no_grad()
def guided_rows(pipeline: StableVideoDiffusionPipeline, latents: Path, count: int) -> list[Row]:
    """Loss of F by noise level on held-out pairs, of a network that also takes the anchor, told it or not.

    The rival `anchor + gaussian` weighs the hole-filled anchor against the noisy latents as well as the statistics of
    its error allow, which it is told: one for the cells that are real, one for the holes.
    """
    prior, pairs = prior_of(pipeline), Latents(latents, pipeline.vae.config.scaling_factor, seed=0, pairs_only=True)
    batches = [pairs.draw(1, 14, False) for _ in range(count)]
    errors: dict[bool, list[Tensor]] = {True: [], False: []}
    for batch in batches:
        anchor, real = batch.guide[:, :, :-1], batch.guide[:, :, -1] > 0
        for kind in errors:
            errors[kind].append((batch.clean - anchor).square().movedim(2, -1)[real == kind])
    real_var, hole_var = (torch.cat(errors[kind]).mean(0).view(1, 1, -1, 1, 1) for kind in (True, False))
    rows: list[Row] = []
    for low, high in SIGMA_BANDS:
        losses: dict[str, list[float]] = {}
        for index, batch in enumerate(batches):
            s = low * (high / low) ** ((index + 0.5) / count)
            generator, sigma = torch.Generator().manual_seed(1000 + index), torch.tensor([s])
            noise = torch.randn(batch.clean.shape, generator=generator)
            noisy, target = batch.clean + s * noise, velocity(batch.clean, noise, sigma)
            told = noisy, sigma, batch.prompt, prior.token(batch.images), batch.fps
            var = torch.where(batch.guide[:, :, -1:] > 0, real_var, hole_var)
            d = (var * noisy + s * s * batch.guide[:, :, :-1]) / (var + s * s)
            outputs = {
                "ours, told the anchor": prior(*told, batch.guide),
                "ours, not told": prior(*told),
                "anchor + gaussian": (noisy / (s * s + 1) - d) * math.sqrt(s * s + 1) / s,
            }
            for name, output in outputs.items():
                losses.setdefault(name, []).append(F.mse_loss(output, target).item())
        for name, values in losses.items():
            rows.append({"model": "unet", "data": "rendered pairs", "predictor": name, "clips": count})
            rows[-1] |= {"sigma": f"{low:g}-{high:g}", "loss": np.mean(values)}
    return rows


@torch.no_grad()
def unet_rows(pipeline: StableVideoDiffusionPipeline, clips: ClipFolder, count: int) -> list[Row]:
    """Loss of F by noise level on held-out clips. The rivals are told the data's statistics:

    `gaussian` is the best predictor that knows each channel's mean and variance; `first frame` repeats the (clean)
    first frame; `first frame + gaussian` weighs it against the noisy latents as well as their statistics allow.
    """
    prior = prior_of(pipeline)
    vae, scaling = pipeline.vae, pipeline.vae.config.scaling_factor
    data = []
    for index, name in enumerate(clips.names[:count]):
        rng = np.random.default_rng(index)
        frames = to_tensor(fit(rng, np.asarray(clips.rgb(name)), SIZES_PX[index % 2])) * 2 - 1
        generator = torch.Generator().manual_seed(index)
        noised = frames[:1] + NOISE_AUGMENTATION * torch.randn(frames[:1].shape, generator=generator)
        latents = torch.cat([vae.encode(f).latent_dist.mode() for f in torch.cat([frames, noised]).split(5)])
        first = F.interpolate(frames[:1], size=(PROMPT_PX, PROMPT_PX), mode="bicubic", antialias=True)
        image = ((first / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)
        data.append(
            (latents[None, :-1] * scaling, latents[-1:], image, torch.tensor([clips.info(name)["fps"]]).float())
        )
    cells = torch.cat([clean.transpose(1, 2).flatten(2) for clean, *_ in data], 2)  # [1, C, cells of all clips]
    mean, var = cells.mean(2).view(1, 1, -1, 1, 1), cells.var(2).view(1, 1, -1, 1, 1)
    changes = torch.cat([(clean - clean[:, :1]).transpose(1, 2).flatten(2) for clean, *_ in data], 2)
    change_var = changes.square().mean(2).view(1, 1, -1, 1, 1)
    rows: list[Row] = []
    for low, high in SIGMA_BANDS:
        losses: dict[str, list[float]] = {}
        for index, (clean, prompt, image, fps) in enumerate(data):
            generator = torch.Generator().manual_seed(1000 + index)
            position = (index + 0.5) / len(data)
            s = low * (high / low) ** position
            sigma, noise = torch.tensor([s]), torch.randn(clean.shape, generator=generator)
            noisy, target = clean + s * noise, velocity(clean, noise, torch.tensor([s]))
            first = clean[:, :1].expand_as(clean)
            denoised = {
                "gaussian": (var * noisy + s * s * mean) / (var + s * s),
                "first frame": first,
                "first frame + gaussian": (change_var * noisy + s * s * first) / (change_var + s * s),
            }
            outputs = {"ours": prior(noisy, sigma, prompt, prior.token(image), fps)}
            for name, d in denoised.items():
                outputs[name] = (noisy / (s * s + 1) - d) * math.sqrt(s * s + 1) / s
            for name, output in outputs.items():
                losses.setdefault(name, []).append(F.mse_loss(output, target).item())
        for name, values in losses.items():
            rows.append({"model": "unet", "data": "rendered", "predictor": name, "clips": len(data)})
            rows[-1] |= {"sigma": f"{low:g}-{high:g}", "loss": np.mean(values)}
    return rows


def engine_depth(model: DepthModel, frames: np.ndarray, *, smooth: bool, structure: bool) -> np.ndarray:
    """Depth [T, h, w] of a clip [T, H, W, 3] as the engine estimates it, steadied over time and structured or not."""

    def each(work: FrameTask, count: int) -> Iterator[FrameBatch]:
        return (work(None, frames) for frames in batches(count, work.batch))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "depth.arrow"
        estimate_depth(
            each,
            PredictClip(model, frames),
            len(frames),
            lambda shape: ArrayWriter(path, shape_per_row=shape, dtype=np.float32),
            smooth=smooth,
            structure=structure,
            empty_scene=EmptyScene(frames, None, None, 0.05),
            look=lambda picture: predict_frame(model, picture),
            scratch=Path(folder),
            on_frame=lambda done: None,
        )
        return read_array(path).copy()


@dataclass(frozen=True)
class PredictClip:
    """The depth network on frames that are in memory."""

    model: DepthModel
    clip: np.ndarray
    batch = 1

    def __call__(self, context: object, indices: range) -> FrameBatch:
        return predict_frame(self.model, self.clip[indices.start])


def flicker_rows(model: DepthModel, folder: Path, what: str) -> list[Row]:
    """How much depth moves where nothing does: the mean change of log depth from frame to frame on static pixels.

    Static is what lies at one true depth, within 0.1 %, over the whole clip of a standing camera.
    """
    changes: dict[str, list[float]] = {"frame by frame": [], "steadied": [], "structured": []}
    for scene in sorted(folder.glob("scene_*")):
        frames, truth = scene_source(scene)
        static = np.isfinite(truth).all(0) & (truth.max(0) <= 1.001 * truth.min(0))
        for name in changes:
            smooth, structure = name != "frame by frame", name == "structured"
            log_depth = to_log(engine_depth(model, frames, smooth=smooth, structure=structure))
            log_depth = np.stack(
                [cv2.resize(d, static.shape[::-1], interpolation=cv2.INTER_NEAREST) for d in log_depth]
            )
            changes[name].append(float(np.abs(np.diff(log_depth, axis=0))[:, static].mean()))
    return [
        {"model": "depth", "data": what, "predictor": name, "flicker": np.mean(values), "clips": len(values)}
        for name, values in changes.items()
    ]


def scene_source(scene: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames [T, H, W, 3] uint8 and depth [T, H, W] of a scene laid out as `source/{rgb,depth.npz}`."""
    archive = np.load(scene / "source" / "depth.npz")
    frames = [cv2.imread(str(path))[..., ::-1] for path in sorted((scene / "source" / "rgb").glob("*.png"))]
    return np.stack(frames), archive[archive.files[0]].astype(np.float32)


def kubric_frames(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Every fifth source frame and its depth of all scenes."""
    frames, depths = zip(*(scene_source(scene) for scene in sorted(folder.glob("scene_*"))), strict=True)
    return np.concatenate([part[::5] for part in frames]), np.concatenate([part[::5] for part in depths])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the rendered held-out clips")
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="real video files, for the VAE")
    parser.add_argument("--scenes", type=Path, help="folder of scenes with true depth (scene_N/source)")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--clips", type=int, default=12, help="held-out clips for the UNet")
    parser.add_argument("--latents", type=Path, help="folder that latents.py wrote, for the guided UNet")
    parser.add_argument("--only", nargs="*", default=["vae", "depth", "unet", "guided"])
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    clips = ClipFolder(args.data, "held_out")
    frames = to_tensor(np.stack([clips.rgb(name)[7] for name in clips.names]))
    rows: list[Row] = []
    if {"vae", "unet", "guided"} & set(args.only):
        pipeline = StableVideoDiffusionPipeline.from_pretrained(args.weights / "tiny", torch_dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
    if "vae" in args.only:
        rows += vae_rows(pipeline.vae, frames, "rendered")
        if args.real:
            rows += vae_rows(pipeline.vae, to_tensor(real_frames(args.real)), "real")
    if "unet" in args.only:
        rows += unet_rows(pipeline, clips, args.clips)
    if "guided" in args.only:
        rows += guided_rows(pipeline, args.latents / "held_out", args.clips)
    if "depth" in args.only:
        net = DepthNet.from_pretrained(args.weights / "depth")
        depths = np.stack([clips.depth(name)[7].astype(np.float32) for name in clips.names])
        rows += depth_rows(net, frames, depths, "rendered")
        if args.scenes:
            scene_frames, scene_depths = kubric_frames(args.scenes)
            rows += depth_rows(net, to_tensor(scene_frames), scene_depths, "kubric4d sources")
            rows += flicker_rows(
                EmbeddedDepth(args.weights / "depth", torch.device("cpu")), args.scenes, "kubric4d sources, static"
            )
    rows = [{k: round(float(v), 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
