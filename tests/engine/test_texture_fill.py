"""Texture for holes: sharp like the footage, of the right surface, at rest in the world."""

import cv2
import numpy as np
import pytest

from recapture.engine.imaging.hole_depth import hole_depth, lifted
from recapture.engine.imaging.metrics import psnr
from recapture.engine.imaging.texture_fill import FrameView, TextureFill

H, W, FOCAL, WALL, NEAR = 96, 128, 120.0, 10.0, 4.0
K_PX = np.array([[FOCAL, 0, W / 2], [0, FOCAL, H / 2], [0, 0, 1.0]])
STEP_PX = 3
"""What the wall moves from frame to frame."""


def wall(seed: int = 0) -> np.ndarray:
    """A large textured picture, float32 [H, 3 W, 3]: noise of some pixels' size over a tone that changes slowly."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(0, 1, (H, 3 * W)).astype(np.float32), (0, 0), 1.0)
    tone = 110 + 30 * np.sin(np.arange(3 * W) / 40)
    return np.repeat((tone + 18 * noise / noise.std())[..., None], 3, -1).astype(np.float32)


def shot(count: int = 4, *, near: bool = False) -> tuple[list[np.ndarray], list[FrameView], np.ndarray, np.ndarray]:
    """Truth, views, c2w and K of a camera that moves along a wall, a hole at rest on it; the model's picture is soft.

    With `near` a thing of loud colors stands at the hole's left rim, at rest in the picture.
    """
    big, rng = wall(), np.random.default_rng(1)
    loud = rng.integers(0, 255, (40, 24, 3)).astype(np.float32)
    truth, views, c2w = [], [], []
    for t in range(count):
        picture = big[:, W + STEP_PX * t : 2 * W + STEP_PX * t].copy()
        generated = cv2.GaussianBlur(picture, (0, 0), 3).round().astype(np.uint8)
        hole = np.zeros((H, W), bool)
        left = 56 if near else 60 - STEP_PX * t
        hole[30:66, left : left + 28] = True
        depth, front = np.full((H, W), WALL, np.float32), np.zeros((H, W), bool)
        if near:
            picture[28:68, 32:56], depth[28:68, 32:56], front[28:68, 52:56] = loud, NEAR, True
        color = np.where(hole[..., None], 0, picture).round().clip(0, 255).astype(np.uint8)
        depth[hole] = np.nan
        truth.append(picture)
        views.append(FrameView(color=color, real=~hole, depth=depth, front=front, generated=generated))
        pose = np.eye(4)
        pose[0, 3] = STEP_PX * t * WALL / FOCAL
        c2w.append(pose)
    return truth, views, np.stack(c2w), np.repeat(K_PX[None], count, 0)


def filled(
    views: list[FrameView], c2w: np.ndarray, K_px: np.ndarray, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    fill = TextureFill(views.__getitem__, c2w, K_px, scale=1.4, seed=seed)
    return [fill(t, soft(view)) for t, view in enumerate(views)]


def soft(view: FrameView) -> np.ndarray:
    return np.where(view.real[..., None], view.color, view.generated).astype(np.float32)


def sharpness(picture: np.ndarray, mask: np.ndarray) -> float:
    inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    gray = cv2.cvtColor(picture.round().clip(0, 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    return float(np.square(cv2.Laplacian(gray, cv2.CV_64F)[inner]).mean())


def test_holes_become_as_sharp_as_footage_and_footage_stays():
    truth, views, c2w, K_px = shot()
    for t, (picture, share) in enumerate(filled(views, c2w, K_px)):
        hole = ~views[t].real
        assert np.array_equal(picture[~hole], soft(views[t])[~hole])
        assert not share[~hole].any()
        assert share[hole].mean() > 0.4
        before, after, true = (sharpness(each, hole) for each in (soft(views[t]), picture, truth[t]))
        assert before < 0.1 * true
        assert 0.3 * true < after < 1.5 * true
        # The model's picture misses the detail alone; detail of the same strength at another place misses it twice.
        bytes_of = [each.round().clip(0, 255).astype(np.uint8) for each in (soft(views[t]), picture, truth[t])]
        assert psnr(bytes_of[1], bytes_of[2], hole) > psnr(bytes_of[0], bytes_of[2], hole) - 3.1


def test_a_nearer_thing_is_never_copied_into_what_lies_behind_it():
    _, views, c2w, K_px = shot(near=True)
    for t, (picture, share) in enumerate(filled(views, c2w, K_px)):
        hole = ~views[t].real
        assert share[hole].mean() > 0.2
        added = (picture - soft(views[t]))[hole]
        assert np.abs(added).max() > 5
        assert np.ptp(added, axis=-1).max() < 6, "the wall is gray, the thing in front is not"


def test_the_fill_lies_still_in_the_world():
    _, views, c2w, K_px = shot()
    added = [picture - soft(view) for (picture, _), view in zip(filled(views, c2w, K_px), views, strict=True)]
    for t in range(1, len(views)):
        here, there = added[t][:, : W - STEP_PX], added[t - 1][:, STEP_PX:]
        inside = ~views[t].real[:, : W - STEP_PX]
        change = np.abs(here - there)[inside].mean()
        assert change < 0.1 * np.abs(there)[inside].mean()


def test_the_same_seed_gives_the_same_bits():
    _, views, c2w, K_px = shot(2)
    first, second, other = (filled(views, c2w, K_px, seed)[1][0] for seed in (0, 0, 1))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("known", [False, True], ids=["no footage", "no hole"])
def test_nothing_to_do_leaves_the_picture(known: bool):
    _, views, c2w, K_px = shot(2)
    views = [
        view._replace(real=np.full((H, W), known), depth=np.full((H, W), WALL if known else np.nan, np.float32))
        for view in views
    ]
    for t, (picture, share) in enumerate(filled(views, c2w, K_px)):
        assert np.array_equal(picture, soft(views[t]))
        assert not share.any()


def test_a_floor_goes_on_in_a_hole_and_what_stands_on_it_does_not():
    rows = np.arange(H) + 0.5
    floor = np.broadcast_to(FOCAL * 1.5 / np.maximum(rows - H / 3, 0.5)[:, None], (H, W))
    true = np.log(np.minimum(floor, 60)).astype(np.float32)
    real = np.ones((H, W), bool)
    real[60:, 70:] = False  # to the frame's corner
    real[50:70, 30:50] = False
    seen = np.where(real, true, np.nan).astype(np.float32)
    seen[40:70, 20:30], front = np.log(3.0), np.zeros((H, W), bool)
    front[40:70, 26:30] = True
    found = hole_depth(seen, front, real)
    assert found is not None
    assert np.abs(found - true)[~real].max() < 0.1
    assert hole_depth(np.full((H, W), np.nan, np.float32), front, np.zeros((H, W), bool)) is None


def test_points_are_lifted_to_where_they_project_from():
    pose = np.eye(4)
    pose[:3, 3] = 1, 2, 3
    point = lifted(np.full((H, W), np.log(5.0), np.float32), K_PX, pose)[10, 20]
    seen = K_PX @ (point - pose[:3, 3])
    assert np.allclose(seen / seen[2], (20.5, 10.5, 1), atol=1e-4)
    assert seen[2] == pytest.approx(5, rel=1e-5)
