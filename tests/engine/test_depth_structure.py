"""What is done to a depth model's map before a new camera sees it: borders, planes, upright things, a still background."""

import cv2
import numpy as np
import pytest

from recapture.engine.geometry import still
from recapture.engine.geometry.planes import find_planes, flatten, solve_slopes
from recapture.engine.geometry.ramps import resolve_ramps
from recapture.engine.geometry.steady import SKY, temporal_mean, temporal_median
from recapture.engine.geometry.structure import structured
from recapture.engine.geometry.things import straighten

H, W = 176, 320


def room() -> tuple[np.ndarray, np.ndarray]:
    """A floor that ends at a wall: log depth [H, W], and a picture in which each has its own color and grain."""
    rng = np.random.default_rng(0)
    y = np.arange(H)[:, None].repeat(W, 1)
    floor = 0.9 / np.maximum(y - 60, 1e-3)
    depth = np.where(y > 90, floor * 30 / 0.9, 1.0) * 4
    picture = np.where((y > 90)[..., None], (150, 120, 90), (170, 190, 200)) + rng.normal(0, 4, (H, W, 3))
    return np.log(depth).astype(np.float32), picture.clip(0, 255).astype(np.uint8)


def with_post(log_depth: np.ndarray, picture: np.ndarray, left: int = 140, right: int = 165, bottom: int = 150):
    """A dark post on the floor, upright: one distance."""
    log_depth, picture = log_depth.copy(), picture.copy()
    rows, columns = slice(30, bottom + 1), slice(left, right)
    log_depth[rows, columns] = log_depth[bottom, 0]
    picture[rows, columns] = (40, 60, 45)
    return log_depth, picture


def between(log_depth: np.ndarray) -> float:
    """Share of the pixels beside a step that lie at neither depth."""
    window = np.ones((1, 15), np.uint8)
    near, far = cv2.erode(log_depth, window), cv2.dilate(log_depth, window)
    beside = far - near > 0.1
    share = (log_depth - near) / np.maximum(far - near, 1e-6)
    return float(((share > 0.2) & (share < 0.8) & beside).sum() / beside.sum())


def test_a_soft_border_becomes_a_step_on_the_edge_of_the_picture():
    truth, picture = with_post(*room())
    soft = cv2.GaussianBlur(truth, (0, 0), 3)
    hard = resolve_ramps(picture, soft)
    rows = slice(40, 80)  # before the wall
    assert between(soft[rows]) > 0.25
    assert between(hard[rows]) < 0.05
    assert np.mean(np.abs(hard[rows] - truth[rows]) > 0.1) < 0.01


def test_a_floor_and_a_receding_wall_keep_their_slopes():
    floor, picture = room()
    assert np.abs(resolve_ramps(picture, floor) - floor).max() < 0.05
    receding = np.log(1 / np.linspace(1.0, 0.2, W, dtype=np.float32))[None].repeat(H, 0)
    gray = np.full((H, W, 3), 120, np.uint8)
    assert np.abs(resolve_ramps(gray, receding) - receding)[:, 20:-20].max() < 0.05


def test_nearly_flat_surfaces_become_flat_and_keep_together():
    truth, _ = room()
    y, x = np.mgrid[0:H, 0:W]
    billows = 0.05 * np.sin(x / 25) * np.cos(y / 20)
    flat = flatten((truth + billows).astype(np.float32), np.ones((H, W), bool))
    inside = np.s_[8:-8, 8:-8]
    assert np.abs((flat - truth)[inside] - np.median(flat - truth)).mean() < 0.3 * np.abs(billows).mean()
    # No crack opens where floor and wall meet: no step is larger than the floor's own largest.
    assert np.abs(np.diff(flat, axis=0)).max() < 1.3 * np.abs(np.diff(truth, axis=0)).max()


def test_planes_are_found_by_seed_and_nothing_is_flat_where_nothing_is():
    truth, _ = room()
    everywhere = np.ones((H, W), bool)
    first, second = (find_planes(truth, everywhere, seed=3) for _ in range(2))
    assert len(first) == 2
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    rough = np.random.default_rng(0).normal(0, 0.5, (H, W)).astype(np.float32)
    assert np.allclose(flatten(rough, everywhere), rough, atol=1e-5)


@pytest.mark.parametrize("size", [(20, 30), (21, 33)])
def test_slopes_of_a_map_give_the_map_back(size):
    held = np.random.default_rng(0).normal(0, 1, size)
    solved = solve_slopes(np.diff(held, axis=1), np.diff(held, axis=0), held)
    assert np.abs(solved - held).max() < 1e-9


def lean_deg(log_depth: np.ndarray, rows: slice, column: int) -> float:
    """Angle from the vertical of what stands in a column, for a lens as wide as its distance."""
    depth = np.exp(log_depth[rows, column].astype(np.float64))
    height = np.arange(rows.start, rows.stop) * depth.mean() / W
    return float(np.degrees(np.arctan(abs(np.polyfit(height, depth, 1)[0]))))


def test_a_leaning_post_stands_upright_at_its_foot():
    truth, picture = with_post(*room())
    leaning = truth.copy()
    leaning[30:151, 140:165] += np.linspace(0.35, 0, 121, dtype=np.float32)[:, None]
    upright = structured(picture, cv2.GaussianBlur(leaning, (0, 0), 3))
    rows = slice(40, 140)
    assert lean_deg(leaning, rows, 152) > 20
    assert lean_deg(upright, rows, 152) < 3
    assert np.abs(upright[rows, 145:160] - truth[145, 152]).max() < 0.15
    assert np.abs((upright - truth)[5:25, 10:100]).max() < 0.05


def test_a_wide_low_thing_is_not_stood_on_end():
    log_depth, _ = room()
    bed = log_depth.copy()
    bed[110:150, 60:190] -= 0.3
    assert np.array_equal(straighten(bed)[110:150], bed[110:150])


def test_sky_and_unknown_depth_pass_through_structure():
    log_depth, picture = room()
    log_depth[:40] = SKY
    log_depth[100:110, 50:60] = np.nan
    out = structured(picture, log_depth)
    assert (out[:36] == SKY).all()
    assert np.isnan(out[100:110, 50:60]).all()
    assert np.isfinite(out).sum() == out.size - 100
    nothing = np.full((H, W), SKY, np.float32)
    assert np.array_equal(structured(picture, nothing), nothing)
    assert np.isnan(structured(picture, np.full((H, W), np.nan, np.float32))).all()


def test_a_median_over_time_keeps_borders_hard_and_drops_a_bad_frame():
    truth, picture = with_post(*room())
    maps = [truth, truth, truth + 0.2, truth, truth]
    middle = temporal_median(2, 5, maps.__getitem__, lambda t: picture)
    assert np.abs(middle - truth).mean() < 0.01
    assert between(middle) <= between(truth)


def walker(t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A passer-by in frame t: picture, log depth as a model blurs it (the head leans into the wall), and mask."""
    log_depth, picture = room()
    mask = np.zeros((H, W), bool)
    left = 60 + 12 * t
    mask[40:146, left : left + 30] = True
    picture = np.where(mask[..., None], (200, 60, 50), picture).astype(np.uint8)
    lean = np.linspace(0.9, 0, 106)[:, None] * (log_depth[40, 0] - log_depth[145, 0])
    person = log_depth.copy()
    person[40:146, left : left + 30] = log_depth[145, 0] + lean
    return picture, cv2.GaussianBlur(person, (0, 0), 6).astype(np.float32), mask


def background() -> still.Background:
    log_depth, picture = room()
    return still.Background(color=picture, log_depth=log_depth, known=np.ones((H, W), bool))


def test_what_moves_before_a_still_background_has_its_outline_and_stands_at_its_foot():
    empty = background()
    picture, blurred, mask = walker(3)
    log_depth = still.shifted(blurred + 0.3, still.scale_shift(picture, blurred + 0.3, empty))
    (thing,) = still.moving_things(picture, log_depth, empty)
    assert (thing.mask & mask).sum() / (thing.mask | mask).sum() > 0.93
    assert thing.distance == pytest.approx(empty.log_depth[145, 0], abs=0.03)
    out = still.placed([thing], log_depth, empty)
    assert np.array_equal(out[~thing.mask], empty.log_depth[~thing.mask])
    assert np.abs(out[45:140, 100:122] - empty.log_depth[145, 0]).max() < 0.1


def test_sky_in_the_mask_of_a_thing_does_not_send_it_away():
    log_depth, picture = room()
    log_depth[:60] = SKY
    empty = still.Background(color=picture, log_depth=log_depth, known=np.ones((H, W), bool))
    seen, blurred, _ = walker(3)
    blurred[:60] = SKY  # the model takes the head for sky
    (thing,) = still.moving_things(seen, blurred, empty)
    head = still.placed([thing], blurred, empty)[45:60, 100:122]
    assert np.abs(head - thing.distance).max() < 0.2


def test_a_shadow_lies_on_the_ground_and_leaves_in_the_wind_stay_where_they_are():
    empty = background()
    picture = empty.color.copy()
    picture[120:150, 50:150] = picture[120:150, 50:150] * 0.7
    assert not still.moving_things(picture, empty.log_depth, empty)
    leaves = empty.color.copy()
    leaves[20:60, 200:260] = np.random.default_rng(1).integers(0, 255, (40, 60, 3))
    assert not still.moving_things(leaves, empty.log_depth - 0.01, empty)


def test_a_thing_is_steady_over_time_and_survives_being_written_down():
    empty = background()
    frames = []
    for t in range(3):
        picture, blurred, _ = walker(t)
        found = still.moving_things(picture, blurred, empty)
        found = [still.Thing(thing.mask, thing.distance + 0.1 * (t == 1)) for thing in found]
        labels, distances = still.labeled(found, (H, W))
        again = still.unlabeled(labels, distances)
        assert [thing.distance for thing in again] == pytest.approx([thing.distance for thing in found])
        frames.append(again)
    (middle,) = still.steadied(frames[1], [frames[0], frames[2]])
    assert abs(middle.distance - frames[0][0].distance) < 0.04


def test_a_mean_of_sky_is_sky_to_the_last_bit():
    """Rounded down it would count as a surface, and stretch the scene to it."""
    rng = np.random.default_rng(0)
    images = [rng.integers(100, 130, (48, 64, 3), np.uint8) for _ in range(5)]
    sky = np.full((48, 64), SKY, np.float32)
    assert np.array_equal(temporal_mean(2, 5, lambda t: sky, images.__getitem__), sky)
