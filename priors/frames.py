"""Reads rendered clips and photographs, and makes augmented crops of them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np


def size_px(text: str) -> tuple[int, int]:
    """(height, width) of `576x1024`."""
    height, width = (int(part) for part in text.split("x"))
    return height, width


class ClipFolder:
    """The rendered clips of one split, memory-mapped; `refresh` sees clips that a renderer added meanwhile.

    `kind` is the folder below `data`: `clips`, or `stills`, whose frames are views of one scene in no order.
    """

    def __init__(self, data: Path, split: str, kind: str = "clips") -> None:
        self.folder = data / kind / split
        self.refresh()

    def refresh(self) -> None:
        self.names = sorted(path.stem for path in self.folder.glob("*.json"))
        if not self.names:
            raise ValueError(f"no clips in {self.folder}: run recapture.priors.render first")

    def rgb(self, name: str) -> np.ndarray:
        """[T, H, W, 3] uint8"""
        return np.load(self.folder / f"{name}.rgb.npy", mmap_mode="r")

    def depth(self, name: str) -> np.ndarray:
        """[T, H, W] float16, planar meters, inf = sky"""
        return np.load(self.folder / f"{name}.depth.npy", mmap_mode="r")

    def has_view(self, name: str) -> bool:
        return (self.folder / f"{name}.view.rgb.npy").exists()

    def view(self, name: str) -> np.ndarray:
        """[T, H, W, 3] uint8, the same moments from the clip's second path"""
        return np.load(self.folder / f"{name}.view.rgb.npy", mmap_mode="r")

    def K_px(self, name: str) -> np.ndarray:  # noqa: N802
        """[3, 3] in pixels, of all frames"""
        height, width = self.rgb(name).shape[1:3]
        focal = width / 2 / self.info(name)["tan_x"]
        return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])

    def info(self, name: str) -> dict:
        return json.loads((self.folder / f"{name}.json").read_text())


def photographs(data: Path, split: str, kinds: tuple[str, ...] = ("skies", "textures")) -> list[np.ndarray]:
    """Real pictures: the panoramas' middle band (little distortion) and the surface photographs."""
    root = data / "assets"
    if not (root / "index.json").exists():
        return []
    index = json.loads((root / "index.json").read_text())
    pictures = []
    for kind in kinds:
        for record in index[kind]:
            if record["split"] == split:
                image = cv2.imread(str(root / record["file"]))[..., ::-1]
                height = image.shape[0]
                pictures.append(image[height // 5 : height * 4 // 5] if kind == "skies" else image)
    return pictures


def random_crop(rng: np.random.Generator, image: np.ndarray, size: tuple[int, int], zoom: float = 2.0) -> np.ndarray:
    """A crop [h, w, 3] of `size` (h, w), taken up to `zoom` times larger and shrunk, mirrored half the time."""
    h, w = size
    limit = min(image.shape[0] / h, image.shape[1] / w, zoom)
    if limit < 1:
        scale = 1.02 * max(h / image.shape[0], w / image.shape[1])
        image = cv2.resize(np.ascontiguousarray(image), None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        limit = 1.0
    scale = rng.uniform(1, limit) if rng.random() < 0.5 else 1.0
    ch, cw = round(h * scale), round(w * scale)
    top, left = rng.integers(image.shape[0] - ch + 1), rng.integers(image.shape[1] - cw + 1)
    crop = np.ascontiguousarray(image[top : top + ch, left : left + cw])
    if scale > 1:
        crop = cv2.resize(crop, (w, h), interpolation=cv2.INTER_AREA)
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def recolor(rng: np.random.Generator, image: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Random gain, offset, gamma, saturation and color balance; float32 0..1 in and out, shape kept."""
    gain = 1 + strength * (rng.normal(0, 0.15) + rng.normal(0, 0.07, 3))
    image = np.clip(image * gain + strength * rng.normal(0, 0.05), 0, 1) ** np.exp(strength * rng.normal(0, 0.2))
    gray = image.mean(-1, keepdims=True)
    return np.clip(gray + (image - gray) * (1 + strength * rng.uniform(-0.6, 0.5)), 0, 1).astype(np.float32)
