"""A camera from a file against a clip: source camera, scale, times, intrinsics."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from recapture.engine.cameras import CameraPath, SourceView, parse_camera, read_cameras, write_cameras
from recapture.engine.cameras.rigid import inverse, rigid, rot_x, rot_y, rotation_angle_deg
from recapture.engine.errors import CameraError

KUBRIC = Path(os.environ.get("KUBRIC4D", Path(__file__).parents[4] / "shared" / "kubric4d"))


def make_view(frames: int = 5, *, width: int = 640, height: int = 272, times_s: np.ndarray | None = None) -> SourceView:
    return SourceView(
        K_px=np.array([[500.0, 0, 320], [0, 510, 136], [0, 0, 1]]),
        width=width,
        height=height,
        times_s=np.arange(frames) / 24 if times_s is None else times_s,
        median_depth=4.0,
        subject_depth=3.0,
    )


def absolute(path: Path, c2w: np.ndarray, focal: float | list[float] = 0, **head: object) -> Path:
    """A file of absolute poses; `focal` in pixels of 640x272, 0 for none."""
    focals = np.broadcast_to(focal, len(c2w))
    frames: list[dict[str, object]] = [{"c2w": pose.tolist()} for pose in c2w]
    for frame, f in zip(frames, focals, strict=True):
        if f:
            frame["K_px"] = [[float(f), 0, 320], [0, float(f), 136], [0, 0, 1]]
    for i, t in enumerate(head.pop("times", [])):
        frames[i]["time_s"] = t
    document = {
        "schema": "recapture.camera_path",
        "version": 1,
        "axes": "opencv",
        "reference": "world",
        "unit": "file",
        "width": 640,
        "height": 272,
        **head,
        "frames": frames,
    }
    path.write_text(json.dumps(document))
    return path


def some_world(frames: int = 5) -> np.ndarray:
    """A moving camera somewhere in a world, [frames, 4, 4]."""
    a = np.linspace(0.3, 0.9, frames)
    return rigid(rot_y(a) @ rot_x(0.2 * a), np.stack([a, 2 - a, 3 * a], -1))


def test_the_first_pose_is_the_source(tmp_path: Path) -> None:
    world = some_world()
    path = parse_camera(str(absolute(tmp_path / "a.json", world))).resolve(make_view())
    want = np.linalg.inv(world[0]) @ world
    want[:, :3, 3] *= 4.0  # one file unit is the clip's median depth
    np.testing.assert_allclose(path.c2w, want, atol=1e-12)
    np.testing.assert_array_equal(path.K_px, np.broadcast_to(make_view().K_px, (5, 3, 3)))


def test_path_scale_sets_the_unit(tmp_path: Path) -> None:
    file = str(absolute(tmp_path / "a.json", some_world()))
    a, b = parse_camera(file).resolve(make_view()), parse_camera(file, path_scale=2.0).resolve(make_view())
    np.testing.assert_allclose(a.c2w[:, :3, 3], 2 * b.c2w[:, :3, 3])
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(CameraError) as caught:
            parse_camera(file, path_scale=bad)
        assert caught.value.param == "path_scale"


def test_a_source_camera_standing_or_moving(tmp_path: Path) -> None:
    world, source = some_world(), some_world()[::-1]
    file = str(absolute(tmp_path / "a.json", world))
    moving = absolute(tmp_path / "moving.json", source)
    path = parse_camera(file, source_camera=moving, path_scale=1.0).resolve(make_view())
    np.testing.assert_allclose(path.c2w, np.linalg.inv(source) @ world, atol=1e-12)
    standing = absolute(tmp_path / "standing.json", source[:1])
    spec = parse_camera(file, source_camera=standing, path_scale=1.0)
    np.testing.assert_allclose(spec.resolve(make_view()).c2w, np.linalg.inv(source[0]) @ world, atol=1e-12)
    assert spec.warnings(make_view()) == []


def test_a_source_camera_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    world = some_world()
    file = str(absolute(tmp_path / "a.json", world, 500))
    relative = absolute(tmp_path / "r.json", world, reference="source")
    tall = absolute(tmp_path / "tall.json", world, 500, height=640)
    for source, message in (
        (tmp_path / "none.json", "no such camera file"),
        (relative, "absolute poses"),
        (tall, "its pictures are 640x640"),
    ):
        with pytest.raises(CameraError, match=message) as caught:
            parse_camera(file, source_camera=source)
        assert caught.value.param == "source_camera"
    with pytest.raises(CameraError, match="already relative"):
        parse_camera(str(relative), source_camera=Path(file))


def test_lens_changes_are_relative_to_the_first_pose(tmp_path: Path) -> None:
    spec = parse_camera(str(absolute(tmp_path / "a.json", some_world(), [800, 800, 800, 800, 1600])))
    path = spec.resolve(make_view())
    np.testing.assert_array_equal(path.K_px[:4], np.broadcast_to(make_view().K_px, (4, 3, 3)))
    np.testing.assert_allclose(path.K_px[4], [[1000, 0, 320], [0, 1020, 136], [0, 0, 1]])


def test_lenses_are_relative_to_the_source_camera(tmp_path: Path) -> None:
    file = str(absolute(tmp_path / "a.json", some_world(), 1000))
    source = absolute(tmp_path / "s.json", some_world()[:1], 500)
    path = parse_camera(file, source_camera=source).resolve(make_view())
    np.testing.assert_allclose(path.K_px[:, 0, 0], 1000)
    np.testing.assert_allclose(path.K_px[:, 1, 1], 1020)
    # A clip whose intrinsics are the source camera's gets the file's exactly, at any size.
    view = SourceView(
        K_px=np.array([[250.0, 0, 160], [0, 250, 68], [0, 0, 1]]),
        width=320,
        height=136,
        times_s=np.arange(5.0),
        median_depth=1.0,
        subject_depth=1.0,
    )
    path = parse_camera(file, source_camera=source).resolve(view)
    np.testing.assert_allclose(path.K_px[0], [[500, 0, 160], [0, 500, 68], [0, 0, 1]])


def test_poses_between_the_files(tmp_path: Path) -> None:
    turn = rigid(rot_y(np.radians([0.0, 40.0])), np.array([[0, 0, 0], [2.0, 0, 0]]))
    spec = parse_camera(str(absolute(tmp_path / "a.json", turn, [500, 1000])), path_scale=1.0)
    view = make_view(5)
    path = spec.resolve(view)
    np.testing.assert_allclose(rotation_angle_deg(path.c2w[:, :3, :3]), [0, 10, 20, 30, 40], atol=1e-5)
    np.testing.assert_allclose(path.c2w[:, 0, 3], [0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(path.K_px[:, 0, 0], [500, 625, 750, 875, 1000])
    assert spec.warnings(view) == [
        "the camera file has 2 poses and no times for the clip's 5 frames: spread evenly over the clip"
    ]


def test_files_with_times_go_by_the_clips_clock(tmp_path: Path) -> None:
    poses = rigid(np.broadcast_to(np.eye(3), (2, 3, 3)), np.array([[0, 0, 0], [1.0, 0, 0]]))
    file = absolute(tmp_path / "a.json", poses, unit="scene", times=[1.0, 3.0])
    view = make_view(times_s=np.array([0.0, 1.0, 1.5, 3.0, 4.0]))
    spec = parse_camera(str(file))
    np.testing.assert_allclose(spec.resolve(view).c2w[:, 0, 3], [0, 0, 0.25, 1, 1])
    other, outside = spec.warnings(view)
    assert "interpolated between its 2 poses" in other
    assert "covers 1 to 3 s, the clip 0 to 4 s: 2 frames hold" in outside


def test_one_pose_stands_still(tmp_path: Path) -> None:
    spec = parse_camera(str(absolute(tmp_path / "a.json", some_world()[:1])))
    np.testing.assert_allclose(spec.resolve(make_view()).c2w, np.broadcast_to(np.eye(4), (5, 4, 4)), atol=1e-12)
    assert spec.warnings(make_view()) == ["the camera file has one pose: the camera stands still"]


def test_another_shape_warns(tmp_path: Path) -> None:
    spec = parse_camera(str(absolute(tmp_path / "a.json", some_world(), 500)))
    assert "scaled per axis" in spec.warnings(make_view(width=640, height=480))[0]


@pytest.mark.parametrize("preset", ["arc(20deg, start=-5deg)+zoom(1.3, start=1.1)", "dolly(0.2)"])
def test_a_runs_camera_json_is_the_same_camera(tmp_path: Path, preset: str) -> None:
    path = parse_camera(preset).resolve(make_view())
    write_cameras(tmp_path / "camera.json", "json", path)
    spec = parse_camera(str(tmp_path / "camera.json"))
    again = spec.resolve(make_view())
    for name in ("c2w", "K_px", "times_s"):
        np.testing.assert_array_equal(getattr(again, name), getattr(path, name))
    assert spec.warnings(make_view()) == []


def test_an_exported_path_comes_back_through_colmap(tmp_path: Path) -> None:
    path = parse_camera("arc(20deg)+zoom(1.3)").resolve(make_view())
    write_cameras(tmp_path / "model", "colmap", path)
    again = parse_camera(str(tmp_path / "model"), path_scale=1.0).resolve(make_view())
    np.testing.assert_allclose(again.c2w, path.c2w, atol=1e-12)
    np.testing.assert_allclose(again.K_px, path.K_px, rtol=1e-12)


def test_the_key_is_of_the_content(tmp_path: Path) -> None:
    a = absolute(tmp_path / "a.json", some_world(), 500)
    b = absolute(tmp_path / "b.json", some_world(), 500)
    c = absolute(tmp_path / "c.json", some_world()[::-1], 500)
    key = parse_camera(str(a)).to_json()
    assert parse_camera(str(b)).to_json() == key
    others = [
        parse_camera(str(c)),
        parse_camera(str(a), path_scale=2.0),
        parse_camera(str(a), source_camera=b),
    ]
    assert len({key, *(spec.to_json() for spec in others)}) == 4


def test_a_preset_wins_over_a_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    absolute(Path("arc"), some_world())
    assert '"preset"' in parse_camera("arc").to_json()
    assert '"file"' in parse_camera("./arc").to_json()


@pytest.mark.skipif(not (KUBRIC / "scene_1" / "cameras.json").exists(), reason="the kubric4d scenes are not here")
@pytest.mark.parametrize("target", ["target_moderate", "target_large"])
def test_kubric4d_cameras(tmp_path: Path, target: str) -> None:
    for scene in sorted(KUBRIC.glob("scene_*")):
        cameras = json.loads((scene / "cameras.json").read_text())
        source, moved = (np.array(cameras["views"][name]["c2w"]) for name in ("source", target))
        view = SourceView(
            K_px=np.array(cameras["K"]),
            width=cameras["width"],
            height=cameras["height"],
            times_s=np.arange(len(moved)) / cameras["fps"],
            median_depth=15.0,
            subject_depth=15.0,
        )
        size = {"width": view.width, "height": view.height, "unit": "scene"}
        file = absolute(tmp_path / "moved.json", moved, **size)
        fixed = absolute(tmp_path / "source.json", source[:1], **size)
        path = parse_camera(str(file), source_camera=fixed).resolve(view)
        np.testing.assert_allclose(path.c2w, np.linalg.inv(source) @ moved, atol=2e-6)
        # Both look at one point: it lies on both optical axes, at the path's own radius.
        radius = np.array(cameras["views"][target]["spherical"])[:, 2]
        seen = inverse(path.c2w) @ np.array([0, 0, cameras["views"]["source"]["spherical"][0][2], 1.0])
        np.testing.assert_allclose(seen[:, :2], 0, atol=1e-4)
        np.testing.assert_allclose(seen[:, 2], radius, atol=1e-4)


def test_the_documentations_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[3] / "docs" / "cameras.md").read_text()
    monkeypatch.chdir(tmp_path)
    (own,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    Path("own.json").write_text(own)
    path = parse_camera("own.json").resolve(make_view(times_s=np.array([0.0, 1.0, 2.0])))
    np.testing.assert_allclose(path.c2w[:, 0, 3], [0, 0.2, 0.4])
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(program, {})
    assert len(read_cameras(Path("shot")).c2w) == 24


def test_a_path_is_one_size(tmp_path: Path) -> None:
    path = parse_camera(str(absolute(tmp_path / "a.json", some_world(), 500))).resolve(make_view())
    assert isinstance(path, CameraPath)
    assert (path.width, path.height, len(path)) == (640, 272, 5)
