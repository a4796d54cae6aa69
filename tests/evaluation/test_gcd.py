"""The reader of the original Kubric-4D, on a small set of its layout that is ray-traced here.

The scene: a floor, a sky dome of finite radius (as Kubric's), and a box that slides a little every frame. Its pictures,
depths and cameras are computed from the geometry alone, none of it with the reader's code.
"""

import json
import shutil
from pathlib import Path

import cv2
import imageio.v2 as imageio
import numpy as np
import pytest

from recapture.engine.errors import InputError
from recapture.engine.imaging.metrics import psnr
from recapture.evaluation.dataset import Shot
from recapture.evaluation.gcd import read_gcd

WIDTH, HEIGHT = 144, 96  # of the views; clips are drawn at 2/3 of that, as from 576x384 to 384x256
CLIP = (64, 96)
FRAMES, START, SKIP, ON_DISK = 3, 1, 2, 6
DOME_M = 26.0
BOX_SIZE_M = np.array([2.0, 5.0, 4.0])

# The release's own poses: 4 views from 45 degrees, 12 from 5 degrees, all 15 m from (0, 0, 1).
POSES = [(90.0 * v, 45.0, 15.0) for v in range(4)] + [(30.0 * (v + 0.5), 5.0, 15.0) for v in range(12)]
ROWS = {
    "sample_00": {"spherical_start": [15.0, 5.0, 15.0], "spherical_end": [50.0, 20.0, 13.5]},
    "sample_01": {"spherical_start": [15.0, 5.0, 15.0], "spherical_end": [-55.0, 12.0, 16.0]},
}


def camera_axes(azimuth_deg: float, elevation_deg: float, radius_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Columns right, down, forward [3, 3], and the position [3]."""
    a, e = np.radians([azimuth_deg, elevation_deg])
    position = radius_m * np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)]) + [0, 0, 1]
    forward = np.array([0, 0, 1]) - position
    forward /= np.linalg.norm(forward)
    right = np.cross([0.0, 0.0, -1.0], forward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward], 1), position


def box(frame: int) -> tuple[np.ndarray, np.ndarray]:
    low = np.array([1.5, -3.5 + 0.5 * frame, 0.0])
    return low, low + BOX_SIZE_M


def trace(origin: np.ndarray, directions: np.ndarray, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Distance [...] along unit directions [..., 3] to the first surface, and its color [..., 3]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        floor = np.where(directions[..., 2] < 0, -origin[2] / directions[..., 2], np.inf)
        low, high = box(frame)
        slabs = np.sort(np.stack([(low - origin) / directions, (high - origin) / directions]), 0)
        enter, leave = slabs[0].max(-1), slabs[1].min(-1)
    boxed = np.where((enter < leave) & (enter > 0), enter, np.inf)
    along = directions @ origin
    dome = -along + np.sqrt(along**2 - origin @ origin + DOME_M**2)
    distance = np.minimum(np.minimum(floor, dome), boxed)
    p = origin + distance[..., None] * directions
    waves = {
        "floor": (0.30 * p[..., 0] + 0.2, 0.25 * p[..., 1], 0.20 * (p[..., 0] + p[..., 1])),
        "dome": (0.15 * p[..., 1], 0.18 * p[..., 2] + 1, 0.12 * p[..., 0]),
        "box": (1.1 * p[..., 1] + 2, 1.3 * p[..., 2], 0.9 * p[..., 0] + 1.0 * p[..., 2]),
    }
    colors = {name: np.stack([128 + 100 * np.sin(wave) for wave in parts], -1) for name, parts in waves.items()}
    colors["box"] *= [1.0, 0.55, 0.3]
    result = np.where((distance == floor)[..., None], colors["floor"], colors["dome"])
    return distance, np.where((distance == boxed)[..., None], colors["box"], result)


def directions_of(axes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Unit directions [h, w, 3] through the pixel centers of a lens with the focal length of the sensor's width."""
    h, w = size
    v, u = np.mgrid[:h, :w] + 0.5
    rays = np.stack([u / w - 0.5, (v - h / 2) / w, np.ones((h, w))], -1) @ axes.T
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def quaternion_wxyz(R: np.ndarray) -> np.ndarray:
    """By the eigenvector of the largest eigenvalue (Bar-Itzhack 2000)."""
    (a, b, c), (d, e, f), (g, h, i) = R
    K = np.array(
        [
            [a - e - i, b + d, c + g, h - f],
            [b + d, e - a - i, f + h, c - g],
            [c + g, f + h, i - a - e, d - b],
            [h - f, c - g, d - b, a + e + i],
        ]
    )
    x, y, z, w = np.linalg.eigh(K)[1][:, -1]
    return np.array([w, x, y, z])


def write_scene(scene: Path) -> None:
    """What export_kub_mv.py leaves of a scene, less the layers that are not read."""
    for view, pose in enumerate(POSES):
        axes, position = camera_axes(*pose)
        folder = scene / f"frames_p0_v{view}"
        folder.mkdir(parents=True)
        for frame in range(ON_DISK):
            distance, color = trace(position, directions_of(axes, (HEIGHT, WIDTH)), frame)
            rgba = np.concatenate([np.rint(color), np.full((HEIGHT, WIDTH, 1), 255)], -1).astype(np.uint8)
            cv2.imwrite(str(folder / f"rgba_{frame:05d}.png"), rgba[..., [2, 1, 0, 3]])
            tiff = imageio.imwrite("<bytes>", distance[..., None].astype(np.float32), format="tiff")  # as Kubric does
            (folder / f"depth_{frame:05d}.tiff").write_bytes(tiff)
        blender = axes * [1, -1, -1]  # looks along -z, y up
        document = {
            "scene": {"resolution": [WIDTH, HEIGHT], "frame_rate": 24, "num_frames": ON_DISK},
            "camera": {
                "focal_length": 32.0,
                "sensor_width": 32.0,
                "positions": [position.tolist()] * ON_DISK,
                "quaternions": [quaternion_wxyz(blender).tolist()] * ON_DISK,
                "K": [[1.0, 0, -0.5], [0, -WIDTH / HEIGHT, -0.5], [0, 0, -1]],
            },
        }
        (scene / f"{scene.name}_p0_v{view}.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/scn02900/... and controls.json."""
    folder = tmp_path_factory.mktemp("kubric")
    write_scene(folder / "data" / "scn02900")
    rows = {name: {"frame_start": START, "frame_skip": SKIP, **row} for name, row in ROWS.items()}
    (folder / "controls.json").write_text(json.dumps({"scn02900": rows, "scn02901": rows}))
    return folder


@pytest.fixture(scope="module")
def shots(release: Path) -> dict[str, Shot]:
    entries = read_gcd(release / "data", release / "controls.json", frames=FRAMES, width=CLIP[1])
    return {entry.path: entry.load() for entry in entries}


@pytest.fixture
def copy(release: Path, tmp_path: Path) -> Path:
    """The set again, to be damaged."""
    return Path(shutil.copytree(release, tmp_path / "copy"))


def path_pose(row: str, t: int) -> tuple[np.ndarray, np.ndarray]:
    start, end = (np.array(ROWS[row][key]) for key in ("spherical_start", "spherical_end"))
    return camera_axes(*(start + (end - start) * t / (FRAMES - 1)))


def traced(row: str, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Target frame t as it should be: uint8 colors, planar z, and world points [h, w, 3]."""
    axes, position = path_pose(row, t)
    directions = directions_of(axes, CLIP)
    distance, color = trace(position, directions, START + t * SKIP)
    points = position + distance[..., None] * directions
    return np.rint(color).astype(np.uint8), (points - position) @ axes[:, 2], points


def seen_from_source(points: np.ndarray, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether points [h, w, 3] are inside the source camera's picture, and how much farther than the first surface on
    their line of sight they are (1 is that surface itself)."""
    axes, position = camera_axes(*ROWS["sample_00"]["spherical_start"])
    offset = points - position
    reach = np.linalg.norm(offset, axis=-1)
    x, y, z = np.moveaxis(offset @ axes, -1, 0)
    inside = (z > 0) & (np.abs(x / z) < 0.5) & (np.abs(y / z) < 0.5 * HEIGHT / WIDTH)
    return inside, reach / trace(position, offset / reach[..., None], frame)[0]


def away_from_edges(mask: np.ndarray, pixels: int = 1) -> np.ndarray:
    """Where everything within `pixels` of a pixel has its value."""
    kernel = np.ones((2 * pixels + 1,) * 2, np.uint8)
    grown, shrunk = (op(mask.astype(np.uint8), kernel) for op in (cv2.dilate, cv2.erode))
    return grown == shrunk


def test_entries_are_the_rows_of_scenes_that_are_there(release: Path) -> None:
    entries = read_gcd(release / "data", release / "controls.json", frames=FRAMES)
    assert [(entry.name, entry.kind) for entry in entries] == [
        ("scn02900/sample_00", "moderate"),
        ("scn02900/sample_01", "large"),
    ]


def test_cameras_follow_the_protocol(shots: dict[str, Shot]) -> None:
    shot = shots["sample_00"]
    assert shot.fps == 24 / SKIP
    np.testing.assert_allclose(shot.K_px, [[96, 0, 48], [0, 96, 32], [0, 0, 1]])
    for row, each in shots.items():
        for t in range(FRAMES):
            axes, position = path_pose(row, t)
            np.testing.assert_allclose(each.target_c2w[t, :3], np.c_[axes, position], atol=1e-9)
            np.testing.assert_allclose(each.source_c2w[t], each.target_c2w[0], atol=1e-9)


def test_clips_are_of_one_size_and_type(shots: dict[str, Shot]) -> None:
    for shot in shots.values():
        assert shot.source.shape == shot.truth.shape == (FRAMES, *CLIP, 3)
        assert shot.source.dtype == shot.truth.dtype == np.uint8
        assert shot.depth.shape == shot.visible.shape == shot.known.shape == (FRAMES, *CLIP)
        assert (shot.depth.dtype, shot.visible.dtype, shot.known.dtype) == (np.float32, np.bool_, np.bool_)
        assert np.isfinite(shot.depth).all()
        assert not (shot.visible & ~shot.known).any()


def test_source_is_the_view_it_starts_at(shots: dict[str, Shot], release: Path) -> None:
    shot = shots["sample_00"]
    for t in range(FRAMES):
        path = release / f"data/scn02900/frames_p0_v4/rgba_{START + t * SKIP:05d}.png"
        view = cv2.resize(cv2.imread(str(path))[..., ::-1], CLIP[::-1], interpolation=cv2.INTER_AREA)
        assert psnr(shot.source[t], view) > 30
    assert (shot.truth[0] == shot.source[0]).all()
    assert shot.known[0].mean() > 0.98
    assert shot.visible[0][shot.known[0]].all()


def test_source_depth_is_planar_z(shots: dict[str, Shot]) -> None:
    """Its own 3 % tells planar z from the files' distance: they differ by up to 17 % in the corners."""
    _, z, _ = traced("sample_00", 0)
    assert np.median(np.abs(shots["sample_00"].depth[0] / z - 1)) < 0.005
    assert (np.abs(shots["sample_00"].depth[0] / z - 1) < 0.03).mean() > 0.95


@pytest.mark.parametrize("row", sorted(ROWS))
def test_truth_is_the_scene_from_the_target(shots: dict[str, Shot], row: str) -> None:
    """Half a pixel off or 1 % in depth shows in the median; what is left is edges and the floor's far end."""
    shot = shots[row]
    for t in range(FRAMES):
        expected, _, _ = traced(row, t)
        known = shot.known[t]
        assert known.mean() > 0.95
        assert psnr(shot.truth[t], expected, known) > 27
        assert np.median(np.abs(shot.truth[t][known].astype(float) - expected[known]).mean(-1)) < 0.7
        axes, position = path_pose(row, t)
        _, next_moment = trace(position, directions_of(axes, CLIP), START + (t + 1) * SKIP)
        moved = known & (np.abs(next_moment - expected).max(-1) > 30)
        assert psnr(shot.truth[t], expected, moved) > psnr(shot.truth[t], next_moment, moved) + 5


@pytest.mark.parametrize("row", sorted(ROWS))
def test_visible_leaves_out_what_the_box_hides(shots: dict[str, Shot], row: str) -> None:
    shot, t = shots[row], FRAMES - 1
    _, _, points = traced(row, t)
    inside, ratio = seen_from_source(points, START + t * SKIP)
    expected = inside & (ratio < 1.001)
    sure = shot.known[t] & away_from_edges(expected)
    assert (shot.visible[t] == expected)[sure].mean() > 0.96  # the far floor changes by over 3 % within a pixel
    behind_the_box = sure & inside & (ratio > 1.06)
    assert behind_the_box.sum() > 100
    assert shot.visible[t][behind_the_box].mean() < 0.01
    assert not shot.visible[t][sure & ~inside].any()


def test_points_missing_from_every_view_are_not_known(copy: Path) -> None:
    """Nothing was hit to the left of the world's middle: what the target sees of it must not be scored."""
    for path in copy.glob("data/scn02900/frames_p0_v*/depth_*.tiff"):
        distance = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        axes, position = camera_axes(*POSES[int(path.parent.name.removeprefix("frames_p0_v"))])
        points = position + distance[..., None] * directions_of(axes, distance.shape)
        distance[points[..., 1] < 0] = 1e10  # what Blender gives where nothing is
        cv2.imwrite(str(path), distance)
    shot = read_gcd(copy / "data", copy / "controls.json", frames=FRAMES, width=CLIP[1])[0].load()
    _, _, points = traced("sample_00", FRAMES - 1)
    hidden = points[..., 1] < 0
    inner = away_from_edges(hidden, 2)
    assert shot.known[-1][inner & ~hidden].mean() > 0.95
    assert shot.known[-1][inner & hidden].mean() < 0.35  # the far side shows through where the near one is gone


@pytest.mark.parametrize(
    "lost", ["scn02900_p0_v7.json", "frames_p0_v15", "frames_p0_v0/depth_00005.tiff", "frames_p0_v0/rgba_00001.png"]
)
def test_a_set_of_another_layout_is_refused_by_name(copy: Path, lost: str) -> None:
    path = copy / "data/scn02900" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=f"{lost} is missing") as caught:
        read_gcd(copy / "data", copy / "controls.json", frames=FRAMES)
    assert caught.value.param == "gcd"


def test_the_folder_above_is_refused(release: Path) -> None:
    with pytest.raises(InputError, match=r"holds none of the 2 scenes of controls.json: a folder with scn02900/"):
        read_gcd(release, release / "controls.json")


def test_files_are_read_late_and_refused_by_name(copy: Path) -> None:
    scene = copy / "data/scn02900"
    (scene / "frames_p0_v3/depth_00003.tiff").write_bytes(b"no tiff")
    (scene / "scn02900_p0_v9.json").write_text('{"scene": {}}')
    entry = read_gcd(copy / "data", copy / "controls.json", frames=FRAMES)[0]
    with pytest.raises(InputError, match=r"scn02900_p0_v9\.json .*camera\.quaternions"):
        entry.load()
    shutil.copy(scene / "scn02900_p0_v8.json", scene / "scn02900_p0_v9.json")
    with pytest.raises(InputError, match=r"frames_p0_v3/depth_00003\.tiff is not a 144x96 TIFF of floats"):
        entry.load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is no control file"),
        ('{"scene_000000": {"sample_00": {"frame_start": 20, "frame_skip": 2, "fps": 5}}}', "ParallelDomain-4D"),
        (json.dumps({"scn02900": {"s": {"frame_start": 0, "frame_skip": 0, **ROWS["sample_00"]}}}), "out of range"),
        (
            json.dumps(
                {
                    "scn02900": {
                        "s": {"frame_start": 0, "frame_skip": 1, "spherical_start": [0, 5], "spherical_end": [0, 5]}
                    }
                }
            ),
            "scn02900/s",
        ),
    ],
)
def test_other_control_files_are_refused(release: Path, tmp_path: Path, text: str, message: str) -> None:
    controls = tmp_path / "controls.json"
    controls.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_gcd(release / "data", controls)
    assert caught.value.param == "controls"
