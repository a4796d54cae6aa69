"""Camera files: golden files both ways, one scene through every format, refusals."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recapture.engine.cameras import FORMATS, CameraPath, read_cameras, write_cameras
from recapture.engine.cameras.formats import strict
from recapture.engine.cameras.rigid import matrix_from_quaternion, rigid
from recapture.engine.errors import CameraError, OutputError

GOLDEN = Path(__file__).parent / "golden"
FILES = {"json": "camera.json", "colmap": "colmap", "colmap-bin": "colmap-bin", "nerfstudio": "transforms.json"}

# The path of every golden file: a 3-4-5 turn, the axes permuted, and half a turn.
PATH = CameraPath(
    c2w=np.array(
        [
            [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
            [[0.8, 0, 0.6, 1], [0, 1, 0, 0], [-0.6, 0, 0.8, 0], [0, 0, 0, 1]],
            [[0, 0, 1, 0], [1, 0, 0, -2], [0, 1, 0, 0.5], [0, 0, 0, 1]],
            [[-1, 0, 0, 0.25], [0, -1, 0, 0.5], [0, 0, 1, -4], [0, 0, 0, 1]],
        ]
    ),
    K_px=np.array([[[f, 0, 320], [0, f, 136], [0, 0, 1]] for f in (500, 550, 600, 650)]),
    width=640,
    height=272,
    times_s=np.array([0.0, 0.04, 0.1, 0.14]),
)


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir()} if path.is_dir() else {"": path.read_bytes()}


def numbers_and_words(data: bytes) -> tuple[list[str], list[float]]:
    words = re.findall(r"[^\s,:\[\]{}\"]+", data.decode())
    numeric = re.compile(r"-?[0-9.]+(e-?[0-9]+)?")
    return [w for w in words if not numeric.fullmatch(w)], [float(w) for w in words if numeric.fullmatch(w)]


def test_every_format_has_a_golden_file() -> None:
    assert set(FILES) == {name for name, known in FORMATS.items() if known.write}  # others: test_matching.py


@pytest.mark.parametrize("fmt", FILES)
def test_golden_file_is_read(fmt: str) -> None:
    track = read_cameras(GOLDEN / FILES[fmt])
    np.testing.assert_allclose(track.c2w, PATH.c2w, atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(track.c2w[:, :3, :3]), 1.0)
    np.testing.assert_array_equal(track.K_px, PATH.K_px)
    assert (track.width, track.height) == (640, 272)
    if fmt == "json":
        np.testing.assert_array_equal(track.times_s, PATH.times_s)


@pytest.mark.parametrize("fmt", FILES)
def test_golden_file_is_written(fmt: str, tmp_path: Path) -> None:
    out = tmp_path / FILES[fmt]
    write_cameras(out, fmt, PATH)
    written, golden = contents(out), contents(GOLDEN / FILES[fmt])
    assert written.keys() == golden.keys()
    for name in golden:
        if fmt == "colmap-bin":
            assert len(written[name]) == len(golden[name])
        else:
            assert numbers_and_words(written[name])[0] == numbers_and_words(golden[name])[0]
            np.testing.assert_allclose(
                numbers_and_words(written[name])[1], numbers_and_words(golden[name])[1], atol=1e-14
            )
    np.testing.assert_allclose(read_cameras(out).c2w, PATH.c2w, atol=1e-14)


def test_own_format_is_written_to_the_byte(tmp_path: Path) -> None:
    write_cameras(tmp_path / "camera.json", "json", PATH)
    assert (tmp_path / "camera.json").read_bytes() == (GOLDEN / "camera.json").read_bytes()


# One scene, projected from the raw numbers of each file by that format's own definition.


def pixels_of_own(points: np.ndarray) -> np.ndarray:
    frames = json.loads((GOLDEN / "camera.json").read_text())["frames"]
    found = []
    for frame in frames:
        camera = (np.linalg.inv(frame["c2w"]) @ np.c_[points, np.ones(len(points))].T)[:3]
        uvw = np.array(frame["K_px"]) @ camera
        found.append((uvw[:2] / uvw[2]).T)
    return np.array(found)


def pixels_of_colmap(points: np.ndarray) -> np.ndarray:
    cameras = {}
    for line in (GOLDEN / "colmap" / "cameras.txt").read_text().splitlines():
        if not line.startswith("#"):
            cameras[line.split()[0]] = [float(v) for v in line.split()[4:]]
    found = []
    for line in (GOLDEN / "colmap" / "images.txt").read_text().splitlines():
        if line.startswith("#") or not line:
            continue
        words = line.split()
        w, *v = (float(x) for x in words[1:5])
        # q p q* = p + 2 w (v x p) + 2 v x (v x p)
        turn = np.cross(v, points)
        x, y, z = (points + 2 * w * turn + 2 * np.cross(v, turn) + [float(t) for t in words[5:8]]).T
        fx, fy, cx, cy = cameras[words[8]]
        found.append(np.stack([fx * x / z + cx, fy * y / z + cy], -1))
    return np.array(found)


def pixels_of_nerfstudio(points: np.ndarray) -> np.ndarray:
    found = []
    for frame in json.loads((GOLDEN / "transforms.json").read_text())["frames"]:
        # An OpenGL camera looks along -z with y up.
        x, y, z, _ = np.linalg.inv(frame["transform_matrix"]) @ np.c_[points, np.ones(len(points))].T
        found.append(np.stack([frame["cx"] + frame["fl_x"] * x / -z, frame["cy"] - frame["fl_y"] * y / -z], -1))
    return np.array(found)


def test_one_scene_gives_the_same_pixels_in_every_format() -> None:
    points = np.random.default_rng(0).uniform([-3, -3, 4.3], [3, 3, 10.3], (20, 3))
    want = pixels_of_own(points)
    np.testing.assert_allclose(pixels_of_colmap(points), want, atol=1e-6)
    np.testing.assert_allclose(pixels_of_nerfstudio(points), want, atol=1e-6)
    for name in FILES.values():
        track = read_cameras(GOLDEN / name)
        assert track.K_px is not None
        w2c = np.linalg.inv(track.c2w)
        camera = np.einsum("nij,pj->npi", w2c[:, :3, :3], points) + w2c[:, None, :3, 3]
        uvw = np.einsum("nij,npj->npi", track.K_px, camera)
        np.testing.assert_allclose(uvw[..., :2] / uvw[..., 2:], want, atol=1e-6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(1, 12), far=st.sampled_from([1e-3, 1.0, 1e4]))
def test_random_motions_survive_every_format(tmp_path: Path, seed: int, frames: int, far: float) -> None:
    rng = np.random.default_rng(seed)
    path = CameraPath(
        c2w=rigid(matrix_from_quaternion(rng.normal(size=(frames, 4))), far * rng.normal(size=(frames, 3))),
        K_px=np.array([[[f, 0, 50.5], [0, 1.1 * f, 40.25], [0, 0, 1]] for f in rng.uniform(50, 500, frames)]),
        width=100,
        height=80,
        times_s=np.cumsum(rng.uniform(0.01, 1, frames)),
    )
    for fmt, name in FILES.items():
        write_cameras(tmp_path / name, fmt, path)
        track = read_cameras(tmp_path / name)
        np.testing.assert_allclose(track.c2w, path.c2w, atol=1e-6 * max(far, 1), rtol=0)
        np.testing.assert_allclose(track.K_px, path.K_px, rtol=1e-12)


# What the readers accept ---------------------------------------------------------------------------------------------


def colmap_folder(folder: Path, cameras: str, images: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cameras.txt").write_text(cameras)
    (folder / "images.txt").write_text(images)
    return folder


SIMPLE = "1 SIMPLE_PINHOLE 640 272 500 320 136\n"
IMAGE = "{id} 1 0 0 0 {id} 0 0 1 frame_{id}.png\n\n"


def test_colmap_takes_images_by_name_and_skips_points(tmp_path: Path) -> None:
    images = "# a comment\n" + "".join(f"{i} 1 0 0 0 {-i} 0 0 1 frame {i}.png\n1.5 2.5 -1 3 4 17\n" for i in (10, 2, 1))
    track = read_cameras(colmap_folder(tmp_path / "model", SIMPLE, images) / "images.txt")
    np.testing.assert_array_equal(track.c2w[:, 0, 3], [1, 2, 10])


def test_colmap_models(tmp_path: Path) -> None:
    for line in (
        "1 SIMPLE_PINHOLE 640 272 500 320 136",
        "1 PINHOLE 640 272 500 500 320 136",
        "1 SIMPLE_RADIAL 640 272 500 320 136 0",
        "1 RADIAL 640 272 500 320 136 0 0",
        "1 OPENCV 640 272 500 500 320 136 0 0 0 0.0",
    ):
        track = read_cameras(colmap_folder(tmp_path / "model", line, IMAGE.format(id=1)))
        np.testing.assert_array_equal(track.K_px, PATH.K_px[:1])


def test_colmap_cameras_of_several_sizes(tmp_path: Path) -> None:
    cameras = SIMPLE + "2 PINHOLE 1280 544 1000 1000 640 272\n"
    images = IMAGE.format(id=1) + "2 1 0 0 0 0 0 0 2 frame_2.png\n\n"
    track = read_cameras(colmap_folder(tmp_path / "model", cameras, images))
    np.testing.assert_array_equal(track.K_px, PATH.K_px[[0, 0]])


def write_json(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def transforms(**changes: object) -> dict[str, object]:
    frame = {"file_path": "a.png", "transform_matrix": np.diag([1.0, -1, -1, 1]).tolist()}
    return {"fl_x": 500, "fl_y": 500, "cx": 320, "cy": 136, "w": 640, "h": 272, "frames": [frame], **changes}


def test_nerfstudio_lens_of_the_head(tmp_path: Path) -> None:
    track = read_cameras(write_json(tmp_path / "t.json", transforms()))
    np.testing.assert_array_equal(track.c2w, [np.eye(4)])
    np.testing.assert_array_equal(track.K_px, PATH.K_px[:1])
    document = transforms(camera_angle_x=2 * np.arctan(320 / 500))
    del document["fl_x"], document["fl_y"], document["cx"], document["cy"]
    track = read_cameras(write_json(tmp_path / "t.json", document))
    np.testing.assert_allclose(track.K_px, PATH.K_px[:1])


def test_nerfstudio_applied_transform_is_undone(tmp_path: Path) -> None:
    applied = np.array([[1.0, 0, 0, 0.3], [0, 0, 1, -2], [0, -1, 0, 4]])
    document = json.loads((GOLDEN / "transforms.json").read_text())
    document |= {"applied_transform": applied.tolist(), "applied_scale": 0.5}
    for frame in document["frames"]:
        moved = np.vstack([applied, [0, 0, 0, 1]]) @ frame["transform_matrix"]
        moved[:3, 3] *= 0.5
        frame["transform_matrix"] = moved.tolist()
    np.testing.assert_allclose(read_cameras(write_json(tmp_path / "t.json", document)).c2w, PATH.c2w, atol=1e-12)


def test_nerfstudio_frames_go_by_their_names(tmp_path: Path) -> None:
    frames = [{"file_path": f"f_{i}.png", "transform_matrix": np.eye(4).tolist()} for i in (10, 9)]
    frames[0]["transform_matrix"][0][3] = 7.0
    track = read_cameras(write_json(tmp_path / "t.json", {"frames": frames}))
    np.testing.assert_array_equal(track.c2w[:, 0, 3], [0, 7])
    assert track.K_px is None


def test_rotations_of_few_digits_are_made_exact(tmp_path: Path) -> None:
    turn = matrix_from_quaternion(np.array([[0.9, 0.2, 0.3, 0.1]])).round(4)
    document = {"frames": [{"transform_matrix": rigid(turn, np.zeros((1, 3)))[0].tolist()}]}
    R = read_cameras(write_json(tmp_path / "t.json", document)).c2w[0, :3, :3]
    np.testing.assert_allclose(R.T @ R, np.eye(3), atol=1e-14)


# What they refuse ----------------------------------------------------------------------------------------------------


def own(**changes: object) -> dict[str, object]:
    return json.loads((GOLDEN / "camera.json").read_text()) | changes


def own_frame(**changes: object) -> dict[str, object]:
    document = own()
    document["frames"][2] |= changes
    return document


def pose(**changes: float) -> list[list[float]]:
    matrix = np.eye(4)
    for key, value in changes.items():
        matrix[int(key[1]), int(key[2])] = value
    return matrix.tolist()


BAD_JSON = [
    ("", "line 1, column 1: not JSON"),
    ('{"schema": "recapture.camera_path", }', "line 1, column 37: not JSON"),
    ("[1, 2]", "not a camera file of a known format|expected a JSON object"),
    ("{}", "neither this project's camera JSON"),
    ("[" * 100_000, "not JSON that a camera file could hold"),
    ('{"frames": ' + "9" * 5000 + "}", "not JSON that a camera file could hold"),
    ('{"frames": 1, "frames": 2}', "'frames' is given twice"),
    (own(version=2), "version 2 of the schema is not known"),
    (own(axes="opengl"), "axes must be 'opencv'"),
    (own(reference="moon"), "reference must be"),
    (own(reference=[]), "reference must be"),
    (own(unit="feet"), "unit must be"),
    (own(extra=1), "unknown field 'extra'"),
    (own(width=0), "width: expected a whole number of pixels"),
    (own(height=10.5), "height: expected a whole number"),
    (own(frames=[]), "1 to 100000 poses, not 0"),
    (own(frames={}), "expected a list of objects"),
    (own_frame(roll=1), "frame 2: unknown field 'roll'"),
    (own_frame(c2w=[[1]]), "frame 2: c2w: expected 4 rows of 4 numbers"),
    (own_frame(c2w=pose(_00="1")), "frame 2: c2w"),
    (own_frame(c2w=pose(_00=float("nan"))), "NaN is not a number"),
    (own_frame(c2w=pose(_03=float("inf"))), "Infinity is not a number"),
    (own_frame(c2w=pose(_00=2)), "frame 2: the pose's 3x3 part is not a rotation"),
    (own_frame(c2w=pose(_01=0.1)), "frame 2: the pose's 3x3 part is not a rotation"),
    (own_frame(c2w=pose(_11=-1)), "frame 2: the pose is mirrored"),
    (own_frame(c2w=pose(_30=1)), "frame 2: the pose's last row must be 0 0 0 1, not 1 0 0 1"),
    (own_frame(c2w=pose(_03=1e300)), "frame 2: the pose has a number beyond"),
    (own_frame(time_s=0.04), "frame 2: its time is not later"),
    (own_frame(time_s=True), "frame 2: time_s: expected a number, not True"),
    (own_frame(K_px=[[500, 1, 320], [0, 500, 136], [0, 0, 1]]), "frame 2: intrinsics must be"),
    (own_frame(K_px=[[-500, 0, 320], [0, 500, 136], [0, 0, 1]]), "frame 2: intrinsics must be"),
    (own_frame(K_px=[[1e300, 0, 320], [0, 500, 136], [0, 0, 1]]), "frame 2: intrinsics must be"),
    (transforms(camera_model="OPENCV_FISHEYE"), "camera_model 'OPENCV_FISHEYE' is not a pinhole"),
    (transforms(w=None), "frame 0: w: expected a number, not None"),
    (transforms(fl_x="500"), "frame 0: fl_x: expected a number, not '500'"),
    (transforms(fl_x=10**400), "fl_x: a number is too large"),
    (transforms(applied_scale=0), "applied_scale must be"),
    (transforms(applied_transform=np.diag([1.0, 1, -1, 1]).tolist()), "applied_transform: the pose is mirrored"),
    (transforms(frames=[{}]), "frame 0: transform_matrix: expected 4 rows"),
]


@pytest.mark.parametrize(("document", "message"), BAD_JSON)
def test_bad_json_is_refused(tmp_path: Path, document: object, message: str) -> None:
    path = tmp_path / "bad.json"
    if isinstance(document, str):
        path.write_text(document)
    elif message == "frame 2: c2w":
        document["frames"][2]["c2w"][0][0] = "1"
        write_json(path, document)
    else:
        write_json(path, document)
    with pytest.raises(CameraError, match=message) as caught:
        read_cameras(path)
    assert "bad.json" in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_COLMAP = [
    ("1 PINHOLE 640 272 500 320 136\n", IMAGE.format(id=1), r"cameras.txt: line 1: PINHOLE has 4 parameters, not 3"),
    ("1 FOV 640 272 1 1 1 1 1\n", IMAGE.format(id=1), r"line 1: camera model 'FOV' is not accepted"),
    (SIMPLE + SIMPLE, "", "line 2: camera 1 is given twice"),
    ("1\n", "", "line 1: expected CAMERA_ID"),
    ("1 SIMPLE_PINHOLE 0 272 500 320 136\n", "", "line 1: a picture of 0x272"),
    ("1 SIMPLE_PINHOLE 640 272 nan 320 136\n", "", "line 1: expected a finite number, not 'nan'"),
    (SIMPLE, "", "images.txt: a camera file has 1 to 100000 poses, not 0"),
    (SIMPLE, "# c\n1 1 0 0\n", "images.txt: line 2: expected IMAGE_ID"),
    (SIMPLE, "1 1 0 0 0 0 0 inf 1 a.png\n", "line 1: expected a finite number, not 'inf'"),
    (SIMPLE, "1 0 0 0 0 0 0 0 1 a.png\n", "line 1: its quaternion has the length 0"),
    (SIMPLE, "1 1e200 0 0 0 0 0 0 1 a.png\n", "line 1: its quaternion has the length inf"),
    (SIMPLE, "1 1 0 0 0 1e300 0 0 1 a.png\n", "line 1: the pose has a number beyond"),
    (SIMPLE, "1 1 0 0 0 0 0 0 2 a.png\n", "line 1: camera 2 is not in the cameras file"),
    (SIMPLE, IMAGE.format(id=1) * 2, "line 3: image 1 is given twice"),
    (SIMPLE, "1 1 0 0 0 0 0 0 1 a.png\n2 1 0 0 0 0 0 0 1 b.png\n", "line 2: expected the points of the image above"),
    (SIMPLE, "x 1 0 0 0 0 0 0 1 a.png\n", "line 1: expected a whole number, not 'x'"),
]


@pytest.mark.parametrize(("cameras", "images", "message"), BAD_COLMAP)
def test_bad_colmap_text_is_refused(tmp_path: Path, cameras: str, images: str, message: str) -> None:
    with pytest.raises(CameraError, match=message):
        read_cameras(colmap_folder(tmp_path / "model", cameras, images))


def test_pictures_of_several_shapes_are_refused(tmp_path: Path) -> None:
    cameras = SIMPLE + "2 SIMPLE_PINHOLE 640 480 500 320 240\n"
    images = IMAGE.format(id=1) + "2 1 0 0 0 0 0 0 2 frame_2.png\n\n"
    with pytest.raises(CameraError, match="line 3: a picture of 640x480 has another shape"):
        read_cameras(colmap_folder(tmp_path / "model", cameras, images))


def binary_copy(folder: Path) -> Path:
    folder.mkdir()
    for name, data in contents(GOLDEN / "colmap-bin").items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin"])
def test_every_cut_of_a_binary_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = binary_copy(tmp_path / "model")
    whole = (folder / name).read_bytes()
    for length in range(len(whole)):
        (folder / name).write_bytes(whole[:length])
        with pytest.raises(CameraError, match=name):
            read_cameras(folder)
    (folder / name).write_bytes(whole + b"x")
    with pytest.raises(CameraError, match="1 bytes too many"):
        read_cameras(folder)


def test_a_binary_count_beyond_the_cap_is_refused(tmp_path: Path) -> None:
    folder = binary_copy(tmp_path / "model")
    (folder / "images.bin").write_bytes(struct.pack("<Q", 2**60))
    with pytest.raises(CameraError, match="1 to 100000 poses"):
        read_cameras(folder)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), value=st.binary(min_size=1, max_size=8), fmt=st.sampled_from(list(FILES)))
def test_damaged_files_are_cameras_or_camera_errors(tmp_path: Path, place: int, value: bytes, fmt: str) -> None:
    golden = contents(GOLDEN / FILES[fmt])
    names = sorted(n for n in golden if "points" not in n)
    name = names[place % len(names)]
    data = bytearray(golden[name])
    at = place % len(data)
    data[at : at + len(value)] = value
    target = tmp_path / FILES[fmt]
    for other, content in golden.items():
        if other:
            target.mkdir(exist_ok=True)
        (target / other if other else target).write_bytes(bytes(data) if other == name else content)
    try:
        track = read_cameras(target)
    except CameraError:
        return
    assert np.isfinite(track.c2w).all()


def test_no_camera_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CameraError, match="no such camera file"):
        read_cameras(tmp_path / "none.json")
    with pytest.raises(CameraError, match="not a camera file of a known format"):
        read_cameras(tmp_path)
    (tmp_path / "images.txt").write_text("")
    with pytest.raises(CameraError, match=r"cameras\.txt: no such camera file"):
        read_cameras(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    with pytest.raises(CameraError, match="Known: this project's own"):
        read_cameras(tmp_path / "a.mp4")
    (tmp_path / "latin.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(CameraError, match=r"not UTF-8 text \(byte 2\)"):
        read_cameras(tmp_path / "latin.json")
    monkeypatch.setattr(strict, "MAX_BYTES", 100)
    with pytest.raises(CameraError, match="larger than"):
        read_cameras(GOLDEN / "camera.json")
    with pytest.raises(CameraError, match="not a file"):
        read_cameras(Path("/dev/zero"))


def test_writing_fails_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="no camera format 'usd' to write; known: json, colmap"):
        write_cameras(tmp_path / "x", "usd", PATH)
    with pytest.raises(OutputError, match="cannot be written"):
        write_cameras(tmp_path / "missing" / "x.json", "json", PATH)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_cameras(tmp_path / "file" / "x", "colmap", PATH)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
