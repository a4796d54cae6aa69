"""The static background of a locked-off clip: found, trusted where it may be, drawn into the holes, and never invented."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("diffusers")

from recapture.engine.config import override
from recapture.engine.errors import InputError
from recapture.engine.geometry.background import background_plate, clean_plate, hidden, stands_still
from recapture.engine.pipeline import Recapture
from recapture.engine.video import VideoWriter, write_png

COUNT, HEIGHT, WIDTH = 12, 96, 128
WALL_DEPTH, BOX_DEPTH = 8.0, 4.0


def wall() -> np.ndarray:
    rng = np.random.default_rng(5)
    return cv2.resize(rng.integers(40, 216, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8), (WIDTH, HEIGHT))


def scene(*, sway: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Frames [N, H, W, 3] and depth [N, H, W]: a box walks before a wall, another stands; the camera may sway (px)."""
    frames, depths = [], []
    for t in range(COUNT):
        picture, depth = wall(), np.full((HEIGHT, WIDTH), WALL_DEPTH, np.float32)
        for left in (8 + 7 * t, 100):
            picture[40:80, left : left + 20], depth[40:80, left : left + 20] = (250, 240, 20), BOX_DEPTH
        shift = np.array([[1, 0, sway * t], [0, 1, 0]], np.float32)
        frames.append(cv2.warpAffine(picture, shift, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT))
        depths.append(depth)
    return np.stack(frames), np.stack(depths)


def test_a_locked_camera_is_told_from_a_moving_one() -> None:
    assert stands_still(scene()[0])
    assert not stands_still(scene(sway=0.3)[0])
    assert not stands_still(np.full((5, HEIGHT, WIDTH, 3), 128, np.uint8))  # nothing to tell by


def test_noise_is_no_motion() -> None:
    frames = scene()[0].astype(np.float32) + np.random.default_rng(0).normal(0, 4, (COUNT, HEIGHT, WIDTH, 3))
    assert stands_still(frames.clip(0, 255).astype(np.uint8))


def test_the_plate_is_the_wall_and_what_never_moved() -> None:
    frames, depth = scene()
    plate = background_plate(frames, depth, depth_tolerance=0.05)
    walked = np.s_[40:80, 8:98]
    assert np.array_equal(plate.color[walked], wall()[walked])
    assert (plate.depth[walked] == WALL_DEPTH).all()
    assert (plate.depth[40:80, 100:120] == BOX_DEPTH).all()  # nobody saw behind the box that stands
    assert (plate.confidence[walked] > 0.9).all()


def test_what_flickers_is_not_trusted() -> None:
    frames, depth = scene()
    rng = np.random.default_rng(1)
    frames[:, :20] = rng.integers(0, 256, (COUNT, 20, WIDTH, 3))
    assert background_plate(frames, depth, depth_tolerance=0.05).confidence[:20].mean() < 0.2


def test_only_what_stands_before_the_background_hides_it() -> None:
    frames, depth = scene()
    plate = background_plate(frames, depth, depth_tolerance=0.05)
    behind = hidden(plate, frames[3], depth[3], depth_tolerance=0.05)
    box = np.zeros((HEIGHT, WIDTH), bool)
    box[40:80, 29:49] = True
    assert behind[box].all()
    assert not behind[~cv2.dilate(box.astype(np.uint8), np.ones((5, 5))).astype(bool)].any()
    nearer = depth[3] * 0.8  # the estimate jumps, but the picture says that this is the background
    assert not hidden(plate, plate.color, nearer, depth_tolerance=0.05).any()


def test_a_clean_plate_gets_the_clips_own_scale() -> None:
    frames, depth = scene()
    found = background_plate(frames, depth, depth_tolerance=0.05)
    predicted = np.full((HEIGHT // 2, WIDTH // 2), 2.0, np.float32)  # the wall, in units of the network's own
    plate = clean_plate(wall(), found, predicted)
    assert np.allclose(plate.depth, WALL_DEPTH, rtol=1e-5)
    assert np.array_equal(plate.color, wall())


@pytest.fixture(scope="module")
def shot(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shot")
    frames, depth = scene()
    with VideoWriter(folder / "clip.mp4", width=WIDTH, height=HEIGHT, rate=Fraction(12), crf=0) as video:
        for frame in frames:
            video.write(frame)
    (folder / "depth").mkdir()
    np.save(folder / "depth" / "depth.npy", depth)
    return folder


@pytest.fixture(scope="module")
def engine(small_svd, tmp_path_factory) -> Recapture:
    return Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path_factory.mktemp("store"))


def anchor_of(engine: Recapture, shot: Path, locked: bool | None, **options):
    config = override(engine.default_config(), {"anchor": {"locked": locked}})
    camera = "truck(0.25, ease=linear)"
    depth = shot / "depth"
    return engine(shot / "clip.mp4", camera, config=config, until="anchor", depth_dir=depth, **options)


def test_holes_behind_what_walks_become_footage(engine, shot) -> None:
    found, without = anchor_of(engine, shot, None), anchor_of(engine, shot, False)
    assert found.hole_share < without.hole_share
    other = (found.provenance > 0) & (found.provenance < 255)
    own = found.provenance == 255
    assert (own != without.validity_mask).mean() < 1e-3  # a pinhole between own footage and other is closed
    assert np.array_equal(found.provenance > 0, found.validity_mask)
    assert np.array_equal(
        np.array(found.anchor)[own & without.validity_mask], np.array(without.anchor)[own & without.validity_mask]
    )
    # The truck moves every surface by f t / z pixels: what the wall shows at the end is known exactly.
    t = COUNT - 1
    shift = found.camera.K_px[t, 0, 0] * found.camera.c2w[t, 0, 3] / WALL_DEPTH
    moved = cv2.warpAffine(wall(), np.array([[1, 0, -shift], [0, 1, 0]]), (WIDTH, HEIGHT))
    assert other[t].sum() > 50
    assert np.abs(found.anchor[t][other[t]].astype(int) - moved[other[t]]).mean() < 12
    shares = found.entries["anchor"].json("coverage")["other_frames"]
    assert shares[t] == pytest.approx(other[t].mean(), abs=1e-6)


def test_a_clean_plate_shows_what_no_frame_did(engine, shot, tmp_path) -> None:
    write_png(tmp_path / "plate.png", wall())
    with_plate = anchor_of(engine, shot, None, clean_plate=tmp_path / "plate.png")
    found = anchor_of(engine, shot, None)
    gained = with_plate.validity_mask & ~found.validity_mask  # behind the box that stood all the time
    assert gained.sum() > 50


def test_a_clean_plate_of_another_shape_is_refused(engine, shot, tmp_path) -> None:
    write_png(tmp_path / "plate.png", wall()[:, :64])
    with pytest.raises(InputError, match="shapes must agree"):
        anchor_of(engine, shot, None, clean_plate=tmp_path / "plate.png")
    with pytest.raises(InputError, match="cannot be read"):
        anchor_of(engine, shot, None, clean_plate=tmp_path / "none.png")
