"""The camera of a video, found again where it is known."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("skimage")  # what the evaluation needs

from recapture.engine.cameras.rigid import inverse, rigid, rot_x, rot_y
from recapture.evaluation import camera_error
from recapture.evaluation.camera_error import CameraErrors, camera_errors
from recapture.kernels.splat import splat

H, W = 160, 224
K = np.array([[200.0, 0, W / 2], [0, 200.0, H / 2], [0, 0, 1]])


def texture(seed: int) -> np.ndarray:
    """Blobs of many sizes, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.normal(0, 1, (H, W, 3)), (0, 0), sigma) * sigma for sigma in (1, 2, 4, 8)]
    picture = np.sum(layers, 0)
    return np.clip(128 + 70 * picture / picture.std(), 0, 255).astype(np.uint8)


def poses(turns_deg: list[float], across: list[float]) -> np.ndarray:
    """c2w [T, 4, 4]: turned left and down a little, moved right, up and forward."""
    turn, t = np.radians(turns_deg), np.array(across)
    return rigid(rot_y(-turn) @ rot_x(turn / 3), np.stack([t, -0.3 * t, 0.5 * t], -1))


def relief() -> np.ndarray:
    """Planar depth [H, W]: a slanted wall with a box before it."""
    depth = 5 + 0.004 * np.arange(W)[None] + np.zeros((H, 1))
    depth[40:110, 60:130] = 3.5
    return depth


def filmed(source: np.ndarray, depth: np.ndarray, c2w: np.ndarray, target_K: np.ndarray = K) -> np.ndarray:
    """Source [T, H, W, 3] from other cameras; holes gray."""
    cameras = [torch.from_numpy(np.repeat(x[None], len(c2w), 0)) for x in (K, target_K)]
    drawn = splat(
        torch.from_numpy(source).permute(0, 3, 1, 2),
        torch.from_numpy(depth.astype(np.float32)),
        cameras[0],
        torch.from_numpy(inverse(c2w)),
        cameras[1],
        (H, W),
    )
    picture = torch.where(drawn.mask[:, None], drawn.color, 128.0)
    return picture.round().byte().permute(0, 2, 3, 1).numpy()


PATH = poses([0, 3, 8], [0, 0.3, 0.8])
SOURCE = np.stack([texture(seed) for seed in range(3)])
DEPTH = np.repeat(relief()[None], 3, 0)
OUTPUT = filmed(SOURCE, DEPTH, PATH)


def measured(**changes: np.ndarray) -> CameraErrors:
    return camera_errors(**{"source": SOURCE, "output": OUTPUT, "depth": DEPTH, "c2w": PATH, "K_px": K, **changes})


def test_a_clip_that_follows_its_path_has_next_to_no_error():
    errors = measured()
    assert errors.computed == 1
    assert (errors.rotation_deg < 0.1).all()
    assert (errors.translation_share < 0.01).all()
    assert (errors.inliers > 50).all()


def test_a_plane_warped_by_its_homography_agrees():
    """No splat made these frames, and the source is not sampled where it makes them."""
    distance, normal = 4.0, np.array([0.0, 0, 1])
    w2c = inverse(PATH)
    frames = []
    for t in range(3):
        homography = K @ (w2c[t, :3, :3] + w2c[t, :3, 3:] * normal / distance) @ np.linalg.inv(K)
        to_corner = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV counts from the center of a pixel
        frames.append(cv2.warpPerspective(SOURCE[t], np.linalg.inv(to_corner) @ homography @ to_corner, (W, H)))
    errors = measured(output=np.stack(frames), depth=np.full((3, H, W), distance))
    assert errors.computed == 1
    assert (errors.rotation_deg < 0.2).all()
    assert (errors.translation_share < 0.02).all()


def test_another_camera_than_the_one_asked_for_is_told_and_how_far_it_is_off():
    asked = PATH.copy()
    asked[:, :3, :3] = rot_y(np.radians([4.0, 4.0, 4.0])) @ PATH[:, :3, :3]
    asked[:, 0, 3] += 0.2
    errors = measured(c2w=asked)
    assert errors.computed == 1
    assert errors.rotation_deg == pytest.approx([4, 4, 4], abs=0.3)
    assert errors.translation == pytest.approx([0.2, 0.2, 0.2], abs=0.03)
    farthest = np.linalg.norm(asked[:, :3, 3], axis=-1).max()
    assert errors.translation_share == pytest.approx(errors.translation / farthest)


def test_a_camera_that_never_moved_misses_the_whole_path():
    path = poses([0, 40, 110], [0, 4, 4])  # in the end nothing of the scene is in sight
    errors = measured(output=SOURCE, c2w=path)
    assert errors.computed == 1
    turned = [float(np.degrees(np.arccos((np.trace(R) - 1) / 2))) for R in path[:, :3, :3]]
    assert errors.rotation_deg == pytest.approx(turned, abs=0.3)
    assert errors.translation_share[1:] == pytest.approx([1, 1], abs=0.02)


def test_frames_of_something_else_have_no_camera():
    other = np.stack([texture(10), np.zeros((H, W, 3), np.uint8), OUTPUT[2]])
    errors = measured(output=other)
    assert np.isnan(errors.rotation_deg).tolist() == [True, True, False]
    assert np.isnan(errors.translation_share).tolist() == [True, True, False]
    assert errors.inliers[0] == errors.inliers[1] == 0
    assert errors.computed == pytest.approx(1 / 3)


def test_too_few_matches_are_no_camera(monkeypatch: pytest.MonkeyPatch):
    most = measured().inliers.max()
    monkeypatch.setattr(camera_error, "LEAST_INLIERS", most + 1)
    monkeypatch.setattr(camera_error, "LEAST_INLIERS_DIRECT", most + 1)
    assert measured(output=OUTPUT[[0, 0, 2]]).computed == 0


def test_a_zoom_is_no_camera_error():
    zoomed = np.array([[260.0, 0, W / 2], [0, 260.0, H / 2], [0, 0, 1]])
    output = filmed(SOURCE, DEPTH, PATH, zoomed)
    assert (measured(output=output, output_K_px=zoomed).rotation_deg < 0.1).all()
    wrong = measured(output=output)
    assert (wrong.translation[1:] > 0.5).all()  # a longer lens looks like a camera farther forward


def test_sky_and_holes_in_the_depth_are_no_points():
    depth = DEPTH.copy()
    depth[:, :100] = np.inf
    depth[:, -10:] = np.nan
    errors = measured(output=filmed(SOURCE, depth, PATH), depth=depth)
    assert errors.computed == 1
    assert (errors.rotation_deg < 0.1).all()
    nothing = measured(depth=np.full_like(DEPTH, np.inf))
    assert nothing.computed == 0


def test_a_path_that_only_turns_has_no_share():
    path = poses([0, 3, 8], [0, 0, 0])
    errors = measured(output=filmed(SOURCE, DEPTH, path), c2w=path)
    assert (errors.translation < 0.02).all()
    assert np.isnan(errors.translation_share).all()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("source", lambda: {"source": SOURCE.astype(np.float32)}),
        ("output", lambda: {"output": OUTPUT[:2]}),
        ("depth", lambda: {"depth": DEPTH[:, 1:]}),
        ("c2w", lambda: {"c2w": PATH[:, :3]}),
        ("c2w", lambda: {"c2w": np.full_like(PATH, np.nan)}),
        ("output_K_px", lambda: {"output_K_px": np.eye(4)}),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused_by_name(name: str, change: Callable[[], dict[str, np.ndarray]]):
    with pytest.raises(ValueError, match=name):
        measured(**change())
