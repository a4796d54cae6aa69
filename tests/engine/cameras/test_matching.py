"""Foreign camera files against a clip: which pose is which frame's, whose camera, how long a unit is, which lens."""

import json
from pathlib import Path

import numpy as np
import pytest

from recapture.engine.cameras import SourceView, parse_camera, read_cameras
from recapture.engine.cameras.rig import cameras_of
from recapture.engine.cameras.track import ClipPart
from recapture.engine.errors import CameraError

GL = np.diag([1.0, -1.0, -1.0, 1.0])


def view(first=0, count=12, total=12) -> SourceView:
    return SourceView(
        K_px=np.array([[100.0, 0, 32], [0, 100, 18], [0, 0, 1]]), width=64, height=36,
        times_s=(first + np.arange(count)) / 24, median_depth=4.0, subject_depth=3.0,
        part=ClipPart(first_frame=first, clip_frames=total),
    )  # fmt: skip


def at(x: float) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = x
    return pose


def transforms(path: Path, xs, names=None, head=None, **frame) -> str:
    names = names or [f"images/frame_{i + 1:05}.png" for i in range(len(xs))]
    frames = [
        {"file_path": n, "transform_matrix": (at(x) @ GL).tolist(), **frame} for n, x in zip(names, xs, strict=True)
    ]
    head = {"w": 64, "h": 36, "fl_x": 80} if head is None else head
    path.write_text(json.dumps({**head, "frames": frames}))
    return str(path)


def colmap(folder: Path, xs, names, *, of=None, points=(), model="PINHOLE 64 36 80 80 32 18") -> str:
    folder.mkdir()
    ids = of or [1] * len(xs)
    (folder / "cameras.txt").write_text("".join(f"{i} {model}\n" for i in sorted(set(ids))))
    rows = [f"{i + 1} 1 0 0 0 {-x} 0 0 {c} {n}\n\n" for i, (x, c, n) in enumerate(zip(xs, ids, names, strict=True))]
    (folder / "images.txt").write_text("".join(rows))
    (folder / "points3D.txt").write_text("".join(f"{i} {x} {y} {z} 1 1 1 0.5\n" for i, (x, y, z) in enumerate(points)))
    return str(folder)


def positions(camera: str, of: SourceView, **more) -> np.ndarray:
    """x of each frame's pose in the file's units."""
    return parse_camera(camera, path_scale=1.0, **more).resolve(of).c2w[:, 0, 3]


def test_frames_that_were_lost_are_interpolated_by_number(tmp_path):
    kept = [0, 5, 6, 7, 8, 9, 10, 11]
    names = [f"frame_{i + 1:04}.jpg" for i in kept]
    file = colmap(tmp_path / "lost", [0.1 * i for i in kept], names)
    np.testing.assert_allclose(positions(file, view()), 0.1 * np.arange(12), atol=1e-12)
    said = " ".join(parse_camera(file).warnings(view()))
    assert "8 poses" in said
    assert "frames 1-4 interpolated" in said


@pytest.mark.parametrize("base", [0, 1])
def test_frames_lost_at_the_ends_are_held(tmp_path, base):
    kept = list(range(3, 10))
    names = [f"{i + base}.png" for i in kept] if base else [f"{i}.png" for i in range(7)]
    xs = [0.1 * i for i in kept] if base else [0.1 * i for i in range(7)]
    found = positions(transforms(tmp_path / "t.json", xs, names), view())
    wanted = np.clip(np.arange(12), 3, 9) * 0.1 - 0.3 if base else np.clip(np.arange(12), 0, 6) * 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_a_part_of_the_clip_takes_its_part_of_the_poses(tmp_path):
    part = view(first=12, count=6, total=24)
    whole = transforms(tmp_path / "whole.json", [0.1 * i for i in range(24)])
    np.testing.assert_allclose(positions(whole, part), 0.1 * np.arange(12, 18))
    own = transforms(tmp_path / "own.json", [0.1 * i for i in range(12, 18)], [f"f_{i}.png" for i in range(13, 19)])
    hold = transforms(tmp_path / "hold.json", [0.0])
    from_whole, from_own = (positions(hold, part, source_camera=file) for file in (whole, own))
    np.testing.assert_allclose(from_whole, from_own, atol=1e-12)
    assert not parse_camera(whole).warnings(part)


@pytest.mark.parametrize(("count", "names"), [(5, None), (6, None), (4, ["a", "b", "c", "d"])])
def test_a_few_poses_are_spread_over_the_clip(tmp_path, count, names):
    file = transforms(tmp_path / "t.json", np.linspace(0, 1, count), names)
    np.testing.assert_allclose(positions(file, view()), np.linspace(0, 1, 12), atol=1e-12)
    assert "spread evenly" in parse_camera(file).warnings(view())[0]


def test_numbers_beyond_the_clip_still_space_the_poses(tmp_path):
    numbers = [1000, 1010, 1020, 1050]
    file = transforms(tmp_path / "t.json", [0, 0.2, 0.4, 1.0], [f"shot.{n}.png" for n in numbers])
    np.testing.assert_allclose(positions(file, view()), np.linspace(0, 1, 12), atol=1e-12)


RIGS = {
    "folders": [f"{c}/{i:04}.jpg" for c in ("left", "right") for i in range(6)],
    "numbered folders": [f"cam{c}/images/{i:04}.jpg" for c in (0, 1) for i in range(6)],
    "words": [f"{c}_{i:04}.jpg" for c in ("left", "right") for i in range(6)],
    "numbers": [f"cam{c}_{i:04}.jpg" for c in (1, 2) for i in range(6)],
}


@pytest.mark.parametrize("kind", RIGS)
def test_a_rig_is_one_camera_by_name(tmp_path, kind):
    names = RIGS[kind]
    file = colmap(tmp_path / "rig", [0.1 * i for i in range(6)] * 2, names, of=[1] * 6 + [2] * 6)
    cameras = sorted(cameras_of(names))
    with pytest.raises(CameraError, match=rf"has the images of 2 cameras: {cameras[0]} \(6 images\), {cameras[1]}"):
        parse_camera(file)
    with pytest.raises(CameraError, match="there is no camera 'middle': "):
        parse_camera(f"{file}#middle")
    found = positions(f"{file}#{cameras[1]}", view(count=6, total=6))
    np.testing.assert_allclose(found, 0.1 * np.arange(6), atol=1e-12)


@pytest.mark.parametrize(
    "names",
    [
        [f"frame_{i}.png" for i in range(12)],
        [f"{1341846313 + i // 6}.{123456 + 31007 * i}.png" for i in range(12)],
        [f"{i:04}/rgb.png" for i in range(12)],
        ["a.png", "b.png", "c1.png", "d2.png"],
    ],
)
def test_one_camera_is_no_rig(names):
    assert len(cameras_of(names)) == 1


@pytest.mark.parametrize("depth", [20.0, 0.1])
def test_a_scale_far_from_the_clips_is_said_with_the_number_to_give(tmp_path, depth):
    points = [(0.1 * i, 0, depth) for i in range(-10, 10)]
    file = colmap(tmp_path / "far", [0.25 * i for i in range(12)], [f"{i}.jpg" for i in range(12)], points=points)
    said = " ".join(parse_camera(file).warnings(view()))
    assert f"set `path_scale` to {4 / depth:.3g}" in said
    assert "path_scale" not in " ".join(parse_camera(file, path_scale=0.2).warnings(view()))


def test_a_scale_near_the_clips_is_left_alone(tmp_path):
    points = [(0.1 * i, 0, 1.2) for i in range(-10, 10)]
    file = colmap(tmp_path / "near", [0.1, 0.2], ["0.jpg", "1.jpg"], points=points)
    assert "path_scale" not in " ".join(parse_camera(file).warnings(view()))


def test_points_of_a_binary_model(tmp_path):
    import struct

    from recapture.engine.cameras.formats.colmap_points import read_points

    rows = [struct.pack("<Q3d3BdQ", i, i, 0, 20, 1, 1, 1, 0.5, 2) + struct.pack("<4i", 1, 2, 3, 4) for i in range(15)]
    file = tmp_path / "points3D.bin"
    file.write_bytes(struct.pack("<Q", 15) + b"".join(rows))
    assert np.array_equal(read_points(file), [(i, 0, 20) for i in range(15)])
    file.write_bytes(struct.pack("<Q", 1 << 60) + rows[0])
    assert len(read_points(file)) == 0


@pytest.mark.parametrize("kind", ["nerfstudio", "colmap"])
def test_distortion_is_left_out_and_said(tmp_path, kind):
    xs = [0.1 * i for i in range(12)]
    if kind == "colmap":
        names = [f"{i}.jpg" for i in range(12)]
        file = colmap(tmp_path / "c", xs, names, model="OPENCV 64 36 80 80 32 18 0.01 -0.02 0.001 0")
    else:
        head = {"w": 64, "h": 36, "fl_x": 80, "camera_model": "OPENCV", "k1": 0.0128, "p2": 0.0003}
        file = transforms(tmp_path / "t.json", xs, head=head)
    np.testing.assert_allclose(positions(file, view()), xs, atol=1e-12)
    assert "lens distortion" in parse_camera(file).warnings(view())[0]


def test_nerfs_own_files_have_an_angle_and_no_size(tmp_path):
    xs = [0.1 * i for i in range(12)]
    names = [f"./train/r_{i}" for i in range(12)]
    file = transforms(tmp_path / "transforms_train.json", xs, names, head={"camera_angle_x": 0.69})
    assert read_cameras(file).K_px is None
    np.testing.assert_allclose(positions(file, view()), xs, atol=1e-12)
    document = json.loads(Path(file).read_text())
    document["frames"][3]["camera_angle_x"] = 0.5
    Path(file).write_text(json.dumps(document))
    with pytest.raises(CameraError, match="its lens changes: `w` and `h` are needed"):
        read_cameras(file)


def test_a_path_from_nerfstudios_viewer(tmp_path):
    path = [{"camera_to_world": (at(0.1 * i) @ GL).ravel().tolist(), "fov": 50 - i, "aspect": 1.78} for i in range(12)]
    document = {"camera_type": "perspective", "render_height": 1080, "render_width": 1920, "fps": 24, "seconds": 0.5}
    file = tmp_path / "camera_path.json"
    file.write_text(json.dumps({**document, "keyframes": [], "camera_path": path}))
    track = read_cameras(file)
    np.testing.assert_allclose(track.c2w[:, 0, 3], 0.1 * np.arange(12))
    assert track.K_px is not None
    assert track.K_px[0, 1, 1] == pytest.approx(540 / np.tan(np.radians(25)))
    resolved = parse_camera(str(file), path_scale=1.0).resolve(view())
    assert resolved.K_px[-1, 1, 1] > 1.2 * resolved.K_px[0, 1, 1]
    file.write_text(json.dumps({**document, "keyframes": [{}]}))
    with pytest.raises(CameraError, match="generate the path in the viewer"):
        read_cameras(file)
    path[2]["camera_to_world"] = [1, 2]
    file.write_text(json.dumps({**document, "camera_path": path}))
    with pytest.raises(CameraError, match="camera_path 2: camera_to_world must be 16 numbers"):
        read_cameras(file)


def test_the_folder_around_a_model_names_the_model(tmp_path):
    (tmp_path / "scene" / "sparse").mkdir(parents=True)
    colmap(tmp_path / "scene" / "sparse" / "0", [0.0, 0.1], ["0.jpg", "1.jpg"])
    for folder in ("scene", "scene/sparse"):
        with pytest.raises(CameraError, match=r"name one: .*scene/sparse/0"):
            read_cameras(tmp_path / folder)
