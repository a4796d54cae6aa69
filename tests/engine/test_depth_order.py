"""Maps that are large where things are near are found out, by what passes or by an estimate."""

import cv2
import numpy as np
import pytest

from recapture.engine.errors import InputError
from recapture.engine.geometry.depth_order import refuse_backwards, runs_backwards, share_behind

N, H, W = 8, 96, 160


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray]:
    """A red square that passes before a textured wall: frames uint8 [N, H, W, 3] and depth [N, H, W]."""
    coarse = np.random.default_rng(1).integers(0, 255, (12, 20, 3), dtype=np.uint8)
    wall = cv2.resize(coarse, (W, H), interpolation=cv2.INTER_CUBIC) // 2
    frames, depth = np.stack([wall] * N), np.full((N, H, W), 6.0, np.float32)
    for t in range(N):
        frames[t, 30:60, 10 + 14 * t : 40 + 14 * t] = (230, 30, 20)
        depth[t, 30:60, 10 + 14 * t : 40 + 14 * t] = 2.0
    return frames, depth


def flat(picture: np.ndarray) -> np.ndarray:
    return np.where(np.arange(W) % 2 == 0, 1.0, 2.0)[None].repeat(H, 0).astype(np.float32)


def by_color(picture: np.ndarray) -> np.ndarray:
    return np.where(picture[..., 0] > 200, 1.0, 3.0).astype(np.float32)


def test_what_passes_is_near(scene):
    frames, depth = scene
    assert runs_backwards(depth.__getitem__, frames, flat) is None
    assert runs_backwards((1 / depth).__getitem__, frames, flat) == "certain"
    holed = np.where(np.arange(W) % 3 == 0, np.nan, 1 / depth)
    assert runs_backwards(holed.__getitem__, frames, flat) == "certain"


def test_a_slow_thing_is_judged_where_it_passes_seldom(scene):
    """In the middle of its way it hides the wall for most of the time."""
    frames, depth = np.stack([scene[0][0]] * N), np.full((N, H, W), 6.0, np.float32)
    frames[:, 30:60, 10:40] = frames[:, 30:60, 90:120]
    for t in range(N):
        frames[t, 30:70, 30 + 9 * t : 70 + 9 * t] = (230, 30, 20)
        depth[t, 30:70, 30 + 9 * t : 70 + 9 * t] = 2.0
    assert share_behind(frames, depth) == 0.0
    assert share_behind(frames, 1 / depth) == 1.0


def test_a_thing_that_rests_and_then_leaves_proves_nothing(scene):
    frames, depth = (np.concatenate([part[:1]] * 7) for part in scene)
    frames[6:, 30:60, 10:40], depth[6:, 30:60, 10:40] = scene[0][0][30:60, 60:90], 6.0
    assert runs_backwards(depth.__getitem__, frames, by_color) == "likely"


def test_a_moving_camera_leaves_it_to_the_estimate(scene):
    frames, depth = scene
    moved = np.stack([np.roll(frame, 5 * t, axis=1) for t, frame in enumerate(frames)])
    turned = np.stack([np.roll(one, 5 * t, axis=1) for t, one in enumerate(depth)])
    assert runs_backwards(turned.__getitem__, moved, by_color) is None
    assert runs_backwards((1 / turned).__getitem__, moved, by_color) == "likely"


def test_proof_is_refused_and_suspicion_is_said():
    said: list[str] = []
    refuse_backwards(None, "own", said.append)
    assert not said
    refuse_backwards("likely", "own", said.append)
    assert "set `depth.kind` to disparity" in said[0]
    with pytest.raises(InputError, match=r"depth_dir: in own, what passes .* lies behind it"):
        refuse_backwards("certain", "own", said.append)
