"""A source camera that moves: found, its world kept, its other frames drawn into holes."""

from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from recapture.engine.anchor.other_frames import OtherFrames, Own, World
from recapture.engine.cameras import AgreedDepth, CameraPath, SourceView, in_one_world, parse_camera
from recapture.engine.errors import CameraError
from recapture.engine.geometry.moving import moving_masks
from recapture.engine.geometry.odometry import LostCamera, camera_motion
from recapture.engine.geometry.source_camera import find_source_camera

H, W, N, FOCAL = 120, 160, 10, 150.0
K_PX = np.array([[FOCAL, 0, W / 2], [0, FOCAL, H / 2], [0, 0, 1.0]])
WALL, BOX = 8.0, 4.0


@dataclass
class Filmed:
    """A wall behind a box, both textured, filmed along c2w; a disc may fly before the wall."""

    frames: np.ndarray
    depth: np.ndarray
    flying: np.ndarray


def texture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.normal(0, 1, (600, 800, 3)).astype(np.float32), (0, 0), s) for s in (1.5, 5, 20)]
    return np.clip(128 + 45 * sum(layer / layer.std() for layer in layers) / 1.7, 0, 255).astype(np.float32)


TEXTURES = [texture(seed) for seed in range(3)]


def film(c2w: np.ndarray, *, flies: bool = False) -> Filmed:
    """Ray by ray: planes z = WALL everywhere and z = BOX in a square, a disc at z = 6 that moves sideways."""
    y, x = np.mgrid[:H, :W] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(K_PX).T
    frames, depths, flying = [], [], []
    for t, pose in enumerate(c2w):
        direction, origin = rays @ pose[:3, :3].T, pose[:3, 3]
        color, depth = np.zeros((H, W, 3), np.float32), np.full((H, W), np.inf)
        own = np.zeros((H, W), bool)
        surfaces = [(WALL, 0, None), (BOX, 1, (-1.2, 0.2, 0.9))] + (
            [(6.0, 2, (-1 + 0.25 * t, -0.8, 0.5))] if flies else []
        )
        for plane, which, part in surfaces:
            z = (plane - origin[2]) / direction[..., 2]
            point = origin + direction * z[..., None]
            inside = np.ones((H, W), bool)
            shift = 0.0
            if part is not None:
                inside = (np.abs(point[..., :2] - part[:2]) < part[2]).all(-1)
                shift = part[0] if which == 2 else 0.0
            where = inside & (z > 0) & (z < depth)
            at = ((point[..., 0] - shift) * 40 + 400).astype(np.float32), (point[..., 1] * 40 + 300).astype(np.float32)
            color[where] = cv2.remap(TEXTURES[which], *at, cv2.INTER_LINEAR)[where]
            depth[where] = z[where]
            own[where] = which == 2
        frames.append(color.round().astype(np.uint8))
        depths.append(depth)
        flying.append(own)
    return Filmed(np.stack(frames), np.stack(depths).astype(np.float32), np.stack(flying))


def walk(sideways: float = 1.5, turn_deg: float = 6.0) -> np.ndarray:
    """Poses of a camera that goes right, shakes and turns, float64 [N, 4, 4]; the first is the world's."""
    s = np.linspace(0, 1, N)
    c2w = np.tile(np.eye(4), (N, 1, 1))
    turns = np.stack([1.5 * np.sin(7 * s), turn_deg * s, 2 * np.sin(5 * s)], -1)
    c2w[:, :3, :3] = Rotation.from_euler("xyz", turns, degrees=True).as_matrix()
    c2w[:, :3, 3] = np.stack([sideways * s, 0.1 * sideways * np.sin(9 * s), 0.3 * sideways * s], -1)
    return c2w


def rotation_deg(a: np.ndarray, b: np.ndarray) -> float:
    return max(
        float(np.degrees(Rotation.from_matrix(x.T @ y).magnitude()))
        for x, y in zip(a[:, :3, :3], b[:, :3, :3], strict=True)
    )


@pytest.fixture(scope="module")
def walked() -> Filmed:
    return film(walk(), flies=True)


def test_poses_are_found_from_frames_and_depth(walked: Filmed):
    found = camera_motion(walked.frames, walked.depth, K_PX)
    true = walk()
    length = np.linalg.norm(np.diff(true[:, :3, 3], axis=0), axis=1).sum()
    assert rotation_deg(found.c2w, true) < 0.3
    assert np.linalg.norm(found.c2w[:, :3, 3] - true[:, :3, 3], axis=1).max() < 0.02 * length
    assert not found.turns_only
    assert np.abs(found.log_scale).max() < 0.01


def test_scales_of_the_frames_are_found_too(walked: Filmed):
    factor = np.exp(0.1 * np.sin(np.arange(N))).astype(np.float32)
    factor /= factor[0]
    found = camera_motion(walked.frames, walked.depth * factor[:, None, None], K_PX)
    assert np.allclose(found.log_scale, -np.log(factor), atol=0.02)
    agreed = AgreedDepth(walked.depth * factor[:, None, None], found.log_scale)
    assert np.allclose(agreed[3:5], walked.depth[3:5], rtol=0.02)
    assert agreed[np.arange(N), 5, 7].shape == (N,)
    assert agreed[4].shape == (H, W)
    assert len(agreed) == N


def test_a_camera_that_only_turns_stays_where_it_is():
    c2w = walk(sideways=0.0, turn_deg=12.0)
    filmed = film(c2w)
    wrong = filmed.depth * np.float32(1.3) + np.linspace(0, 1, W, dtype=np.float32)  # depth as wrong as an estimate's
    found = camera_motion(filmed.frames, wrong, K_PX)
    assert found.turns_only
    assert not found.c2w[:, :3, 3].any()
    assert rotation_deg(found.c2w, c2w) < 0.3


def test_a_cut_is_no_motion(walked: Filmed):
    frames = walked.frames.copy()
    frames[6:] = np.random.default_rng(5).integers(0, 255, frames[6:].shape, np.uint8)
    with pytest.raises(LostCamera, match="frame 6"):
        camera_motion(frames, walked.depth, K_PX)


def test_what_flies_is_told_from_what_stands(walked: Filmed):
    masks = moving_masks(walked.frames, walked.depth, K_PX, walk(), np.zeros(N))
    middle = slice(2, N - 2)
    found, true = masks[middle], walked.flying[middle]
    assert (found & true).sum() > 0.6 * true.sum()
    assert (found & ~true).sum() < 0.02 * (~true).sum()


def test_a_camera_that_hardly_moves_counts_as_standing_still():
    filmed = film(walk(sideways=0.01, turn_deg=0.0))
    still = np.tile(np.eye(4), (N, 1, 1))
    found = find_source_camera(filmed.frames, filmed.depth, K_PX, still=False, given=still)
    assert found.kind == "still"
    assert not found.moves
    assert "stands still" in found.sentence


def test_blank_frames_give_a_reason():
    found = find_source_camera(
        np.full((3, H, W, 3), 90, np.uint8), np.full((3, H, W), WALL, np.float32), K_PX, still=False, given=None
    )
    assert found.kind == "lost"
    assert "nothing to follow" in found.sentence
    assert np.array_equal(found.c2w, np.tile(np.eye(4), (3, 1, 1)))


VIEW = SourceView(K_px=K_PX, width=W, height=H, times_s=np.arange(N) / 12, median_depth=WALL, subject_depth=WALL)


def test_a_preset_stays_in_the_world_or_rides_along():
    source = walk()
    still, said = in_one_world(parse_camera("static"), VIEW, source, "", None)
    assert np.allclose(source @ still.c2w, np.eye(4), atol=1e-12)
    assert "stays in the world" in said[0]
    rides, said = in_one_world(parse_camera("static"), VIEW, source, "", "source")
    assert np.array_equal(rides.c2w, np.tile(np.eye(4), (N, 1, 1)))
    assert not said
    _, said = in_one_world(parse_camera("static"), VIEW, None, "a cut", None)
    assert "rides on the source camera" in said[0]
    with pytest.raises(CameraError, match="a cut") as refused:
        in_one_world(parse_camera("static"), VIEW, None, "a cut", "world")
    assert refused.value.param == "relative_to"


def test_other_frames_fill_what_a_moment_does_not_show(walked: Filmed):
    source, t = walk(), N - 1
    still, _ = in_one_world(parse_camera("static"), VIEW, source, "", "world")
    assert isinstance(still, CameraPath)
    others = OtherFrames(
        walked.frames, walked.depth, np.broadcast_to(K_PX, (N, 3, 3)), still, World(c2w=source, moving=walked.flying)
    )
    nothing = Own(
        color=torch.zeros(3, H, W), depth=torch.full((H, W), torch.nan), covered=torch.zeros(H, W, dtype=torch.bool)
    )
    found = others.fill(t, nothing, 0.05, None)
    mask = found.mask.numpy()
    assert mask.mean() > 0.95
    truth = film(np.eye(4)[None]).frames[0]
    off = np.abs(found.color.permute(1, 2, 0).numpy() * 255 - truth)[mask].mean(-1)
    assert np.median(off) < 3
    assert (off > 40).mean() < 0.02
    provenance = found.provenance.numpy()
    assert provenance[mask].min() >= 54
    assert provenance[mask].max() < 254
    assert not provenance[~mask].any()


def test_a_path_builds_on_the_source_motion():
    source = walk()
    shaken = source.copy()
    shaken[:, 1, 3] += 0.2 * (-1.0) ** np.arange(N)
    shaken = np.linalg.inv(shaken[0]) @ shaken

    def in_the_world(text: str) -> np.ndarray:
        path, _ = in_one_world(parse_camera(text), VIEW, shaken, "", None)
        return shaken @ path.c2w

    assert np.allclose(in_the_world("source"), shaken, atol=1e-12)
    assert np.allclose(in_the_world("stabilize(0)"), shaken, atol=1e-12)
    beside = np.linalg.inv(shaken) @ in_the_world("source + offset(right=0.5, up=0.25)")
    assert np.allclose(beside[:, :3, 3], (0.5 * WALL, -0.25 * WALL, 0), atol=1e-9)
    steady = in_the_world("stabilize(0.1)")
    jerk = [np.abs(np.diff(poses[:, :3, 3], 2, axis=0)).max() for poses in (steady, shaken)]
    assert jerk[0] < 0.1 * jerk[1]
    assert np.allclose(np.linalg.det(steady[:, :3, :3]), 1)
