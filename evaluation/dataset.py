"""Ground truth: clips with a view of the same scene from another path. Reads sets laid out like kubric4d.

scene_N/cameras.json                 width, height, fps, K, and c2w [T, 4, 4] of every view
scene_N/source/{rgb/NNN.png, depth.npz}
scene_N/target_*/{rgb/NNN.png, visible.npz, and seen.npz where the source camera moves}
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..engine.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A clip with true depth, and its scene from one other path.

    Attributes:
        source: uint8 [T, H, W, 3].
        depth: float32 [T, H, W], planar z of the source in scene units, inf = sky.
        truth: uint8 [T, H, W, 3], the scene from the target path.
        visible: bool [T, H, W], target pixels that the source frame of the same moment shows.
        known: bool [T, H, W], target pixels whose truth is known; all that is scored lies in it.
        seen: bool [T, H, W], visible, or standing still and shown by the source frame of any moment.
        K_px: float64 [3, 3] of both cameras, in pixels of (W, H).
        source_c2w, target_c2w: float64 [T, 4, 4], OpenCV axes.
    """

    source: np.ndarray
    depth: np.ndarray
    truth: np.ndarray
    visible: np.ndarray
    known: np.ndarray
    seen: np.ndarray
    K_px: np.ndarray
    source_c2w: np.ndarray
    target_c2w: np.ndarray
    fps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotEntry:
    """A shot by name, not yet read. `kind` groups the paths of a table (moderate, large)."""

    scene: str
    path: str
    kind: str
    load: Callable[[], Shot]

    @property
    def name(self) -> str:
        """Scene and path, as the tables name them."""
        return f"{self.scene}/{self.path}"


def read_dataset(folder: Path) -> list[ShotEntry]:
    """Every target path of every scene, in order of their names.

    Raises:
        InputError: no scene is there, or one lacks a file.
    """
    scenes = sorted(path.parent for path in folder.glob("*/cameras.json"))
    if not scenes:
        raise InputError(f"{folder} holds no scene: SCENE/cameras.json was looked for", param="dataset")
    entries = []
    for scene in scenes:
        for needed in ("source/rgb", "source/depth.npz"):
            if not (scene / needed).exists():
                raise InputError(f"{scene / needed} is missing", param="dataset")
        targets = sorted(path.parent for path in scene.glob("target_*/visible.npz"))
        if not targets:
            raise InputError(f"{scene} has no target_*/ with visible.npz", param="dataset")
        for target in targets:
            entries.append(
                ShotEntry(
                    scene=scene.name,
                    path=target.name,
                    kind=target.name.removeprefix("target_"),
                    load=lambda scene=scene, target=target: _read_shot(scene, target),
                )
            )
    return entries


def _read_shot(scene: Path, target: Path) -> Shot:
    try:
        cameras = json.loads((scene / "cameras.json").read_text())
        poses = [np.array(cameras["views"][view]["c2w"], np.float64) for view in ("source", target.name)]
        K_px, fps = np.array(cameras["K"], np.float64), float(cameras["fps"])
        depth = _only_array(scene / "source" / "depth.npz").astype(np.float32)
        visible = _mask(target / "visible.npz", depth.shape)
        seen = _mask(target / "seen.npz", depth.shape) if (target / "seen.npz").exists() else visible
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{scene} cannot be read ({error})", param="dataset") from None
    source, truth = read_frames(scene / "source" / "rgb"), read_frames(target / "rgb")
    shape = source.shape[:3]
    if truth.shape != source.shape or depth.shape != shape or any(pose.shape != (shape[0], 4, 4) for pose in poses):
        raise InputError(f"{target}: frames, depth and cameras are not of one length and size", param="dataset")
    return Shot(
        source=source,
        depth=depth,
        truth=truth,
        visible=visible,
        known=np.ones(shape, bool),
        seen=seen,
        K_px=K_px,
        source_c2w=poses[0],
        target_c2w=poses[1],
        fps=fps,
    )


def _mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of that shape, stored as it is or by np.packbits."""
    packed = _only_array(path)
    if packed.dtype == np.uint8 and packed.shape != shape:
        packed = np.unpackbits(packed.ravel())[: np.prod(shape)].reshape(shape)
    return packed.astype(bool)


def read_frames(folder: Path) -> np.ndarray:
    """PNG frames in the order of their names, uint8 [T, H, W, 3].

    Raises:
        InputError: none there, one is damaged or of another size.
    """
    frames = []
    for path in sorted(folder.glob("*.png")):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None or (frames and image.shape != frames[0].shape):
            raise InputError(f"{path} is damaged or of another size than the first", param="dataset")
        frames.append(image[..., ::-1])
    if not frames:
        raise InputError(f"{folder} holds no PNG frames", param="dataset")
    return np.stack(frames)


def _only_array(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        return archive[archive.files[0]]
