"""Soft edges: taken apart into two layers, and drawn from elsewhere without a rim of the other surface's color."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from recapture.engine.anchor.matte import split_layers
from recapture.engine.anchor.render import draw_anchor

H, W, NEAR, FAR, FOCAL = 96, 160, 2.0, 8.0, 100.0
INK, WALL = np.array([0.75, 0.15, 0.1]), np.array([0.2, 0.45, 0.7])


def disk(center: float, radius: float = 26.0, blur: tuple[int, int] = (1, 1)) -> np.ndarray:
    """Coverage [H, W] of a disk, antialiased, blurred along y and x."""
    scale = 8
    y, x = (np.mgrid[: H * scale, : W * scale] + 0.5) / scale
    inside = (np.hypot(y - H / 2, x - center) < radius).astype(np.float32)
    return cv2.blur(cv2.resize(inside, (W, H), interpolation=cv2.INTER_AREA), blur[::-1])


def scene(alpha: np.ndarray, *, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]: the disk before a wall."""
    picture = alpha[..., None] * INK + (1 - alpha[..., None]) * WALL
    picture += np.random.default_rng(seed).normal(0, noise, picture.shape)
    return (255 * picture.clip(0, 1)).round().astype(np.uint8)


def depth_of(alpha: np.ndarray) -> np.ndarray:
    return np.where(alpha > 0.5, NEAR, FAR).astype(np.float32)


def drawn(frame: np.ndarray, depth: np.ndarray, move: float) -> dict[str, np.ndarray]:
    """The anchor of one frame from a camera `move` to the right: a surface moves left by FOCAL move / z pixels."""
    K_px = np.array([[[FOCAL, 0, W / 2], [0, FOCAL, H / 2], [0, 0, 1]]])
    w2c = np.eye(4)[None].copy()
    w2c[0, 0, 3] = -move
    path = SimpleNamespace(w2c=w2c, K_px=K_px, height=H, width=W)
    part = draw_anchor(
        frame[None],
        depth[None],
        range(1),
        K_px,
        path,
        plate=None,
        depth_tolerance=0.05,
        valid=None,
        device=torch.device("cpu"),
    )
    return {name: values[0] for name, values in part.items()}


def test_the_layers_give_the_frame_back_and_a_still_camera_sees_it() -> None:
    frame = np.random.default_rng(3).integers(0, 256, (H, W, 3), dtype=np.uint8)  # no edge of it is where a step is
    depth = depth_of(disk(80.3))
    depth[:20] = np.inf
    depth[-5:] = np.nan
    layers = split_layers(frame, depth, depth_tolerance=0.05)
    share = layers.alpha[..., None]
    assert ((share > 0) & (share < 1)).mean() > 0.01
    assert np.abs(255 * (share * layers.near_color + (1 - share) * layers.color) - frame).max() < 0.01
    still = drawn(frame, depth, 0.0)
    assert np.array_equal(still["validity_mask"], ~np.isnan(depth))
    assert np.array_equal(still["color"][:-5], frame[:-5])
    assert (still["alpha"][:-5] == 255).all()


@pytest.mark.parametrize(("blur", "beside"), [((1, 1), 0), ((3, 3), 0), ((1, 5), 0), ((1, 1), 1), ((3, 3), -1)])
def test_shares_and_colors_are_those_of_the_mixture(blur: tuple[int, int], beside: int) -> None:
    """Also where the depth's step lies some pixels beside the picture's edge."""
    alpha = disk(80.3, blur=blur)
    depth = depth_of(disk(80.3, radius=26.0 + beside))
    layers = split_layers(scene(alpha, noise=0.008), depth, depth_tolerance=0.05)
    found = np.where(np.isnan(layers.near_depth), layers.depth < 1.5 * NEAR, layers.alpha)
    assert np.abs(found - alpha).max() < 0.35
    assert (
        np.abs(found - alpha)[cv2.dilate((np.abs(alpha - 0.5) < 0.5).astype(np.uint8), np.ones((3, 3))) > 0].mean()
        < 0.06
    )
    soft = (layers.alpha > 0.15) & (layers.alpha < 0.85)
    assert soft.sum() > 50
    assert np.abs(layers.near_color[soft] - INK).mean() < 0.08
    assert np.abs(layers.color[soft] - WALL).mean() < 0.08
    assert np.allclose(layers.depth[soft], FAR)
    assert np.allclose(layers.near_depth[soft], NEAR)


@pytest.mark.parametrize("blur", [(1, 1), (3, 3), (1, 5)])
def test_no_rim_travels_with_an_edge_and_none_stays_behind(blur: tuple[int, int]) -> None:
    alpha = disk(80.3, blur=blur)
    found = drawn(scene(alpha, noise=0.008), depth_of(alpha), 0.4)  # the disk moves 20 pixels, the wall 5
    moved = disk(60.3, blur=blur)
    truth = 255 * (moved[..., None] * INK + (1 - moved[..., None]) * WALL)
    off = np.abs(found["color"] - truth).max(-1)[:, : W - 5]
    seen = found["validity_mask"][:, : W - 5]
    assert np.quantile(off[seen], 0.999) < 40  # a wrong rim is off by 80 to 150
    hole = ~cv2.erode(found["validity_mask"].astype(np.uint8), np.ones((5, 5))).astype(bool)[:, : W - 5]
    beside = seen & hole & (np.arange(W - 5) > 93)  # the wall at the hole's far side
    assert beside.sum() > 40
    assert np.quantile(off[beside], 0.95) < 25
    assert off[beside].max() < 40  # a rim of the disk is off by 100
    # What opens is a hole, from the soft edge on.
    opened = (disk(75.3, blur=blur)[:, : W - 5] > 0.5) & (moved[:, : W - 5] < 0.1)
    assert seen[opened].mean() < 0.05
    soft = ~found["validity_mask"] & (found["alpha"] > 30)
    assert soft.sum() > 20
    assert np.abs(found["color"][soft] / 255 - INK).mean() < 0.08
    assert np.abs(found["alpha"][soft] / 255 - moved[soft]).mean() < 0.15


def test_islands_and_pinholes_go() -> None:
    frame, depth = scene(np.zeros((H, W))), np.full((H, W), FAR, np.float32)
    depth[40, 50:52] = np.nan  # a hole of two pixels, one of twelve, and an island of one in a large hole
    depth[60:63, 30:34] = np.nan
    depth[:, 100:] = np.nan
    depth[30, 120] = FAR
    found = drawn(frame, depth, 0.0)
    assert found["validity_mask"][38:43, 48:54].all()
    assert np.abs(found["color"][40, 50:52] / 255 - WALL).max() < 0.01
    assert not found["validity_mask"][60:63, 30:34].any()
    assert not found["validity_mask"][:, 100:].any()
    assert np.array_equal(found["provenance"] == 255, found["validity_mask"])
    assert found["covered"] == pytest.approx(found["validity_mask"].mean())
