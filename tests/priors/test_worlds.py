"""The readers of the game's worlds, the places for stills, and the depth network's losses and rulers, at tiny size."""

import json
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from recapture.engine.geometry.depth_network import DepthPrediction
from recapture.priors.rasterizer import Rasterizer
from recapture.priors.rooms import floating_place, room_place, yard_place
from recapture.priors.rulers import in_between, off_plane
from recapture.priors.scenes import Assets, box
from recapture.priors.spm import read_spm
from recapture.priors.stills import render_place
from recapture.priors.train_depth import beside_steps, depth_loss
from recapture.priors.views import height_at, world_place
from recapture.priors.worlds import Licenses, allowed, convert_track, drive_line, euler

SQUARE = np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]], np.float32)
COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: everybody
License: GPL-3+

Files: data/tracks/meadow/*
 data/library/stone/*
Copyright: 2020 A. Maker <maker@example.org>
License: CC-BY-4.0 and CC0

Files: data/tracks/meadow/secret.png
Copyright: nobody
License: GPL-2
"""


def spm(textures: list[str], *, flags: int = 1, skinned: bool = False, scale: float = 1.0) -> bytes:
    """A square on the ground for each texture, in the game's format."""
    data = b"SP" + bytes([8 + skinned, flags]) + struct.pack("<6f", *[0] * 6) + struct.pack("<H", len(textures))
    for name in textures:
        data += bytes([len(name)]) + name.encode() + b"\0"
    data += struct.pack("<HH", 1, len(textures))
    for material in range(len(textures)):
        data += struct.pack("<IIH", 4, 6, material)
        for k, corner in enumerate(SQUARE * scale):
            data += corner.tobytes() + struct.pack("<I", 511 << 10)  # normal +y
            if flags & 2:
                data += b"\x80" if k % 2 else b"\xff\x10\x20\x30"
            if textures[material]:
                data += np.array([k % 2, k // 2], "<f2").tobytes()
            data += bytes(4) * bool(flags & 4 and textures[material]) + bytes(16) * skinned
        data += bytes([0, 1, 2, 0, 2, 3])
    return data


@pytest.mark.parametrize(("flags", "skinned"), [(1, False), (3, False), (5, False), (7, True)])
def test_meshes_of_every_layout_are_read(tmp_path: Path, flags: int, skinned: bool) -> None:
    path = tmp_path / "square.spm"
    path.write_bytes(spm(["grass.png", ""], flags=flags, skinned=skinned))
    textured, plain = read_spm(path)
    assert (textured.texture, plain.texture) == ("grass.png", "")
    np.testing.assert_array_equal(textured.corners[0, :, :3], SQUARE[:3])
    np.testing.assert_allclose(textured.corners[..., 3:6], np.broadcast_to([0, 1, 0], (2, 3, 3)), atol=1e-6)
    np.testing.assert_array_equal(textured.corners[1, 2, 6:], [1, 1])


def test_meshes_that_are_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "square.spm"
    for data, reason in (
        (b"OB" + bytes(40), "no SPM header"),
        (spm(["a"])[:-9], "cannot be read"),
        (spm(["a"]) + b"x", "1 bytes"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=reason):
            read_spm(path)


def test_licenses_are_looked_up_file_by_file() -> None:
    licenses = Licenses(COPYRIGHT)
    assert licenses.of("data/tracks/meadow/a.spm") == ("CC-BY-4.0 and CC0", ["2020 A. Maker"])
    assert licenses.of("data/tracks/meadow/secret.png")[0] == "GPL-2"
    assert licenses.of("data/textures/wall.png")[0] == "GPL-3+"
    verdicts = {
        "CC0": True,
        "GPL-3+": False,
        "CC-BY-SA": True,
        "GPL and CC-BY-SA": False,
        "GPL-2+ OR CC-BY-SA": True,
        "": False,
    }
    assert {name: allowed(name) for name in verdicts} == verdicts


@pytest.fixture
def game(tmp_path: Path) -> Path:
    """A game with one track: a meadow, two stones of a library, glass, and what is not licensed."""
    root = tmp_path / "game"
    for folder in ("tracks/meadow", "library/stone", "textures"):
        (root / folder).mkdir(parents=True)
    track = root / "tracks" / "meadow"
    (track / "ground.spm").write_bytes(spm(["grass.png"], scale=50))
    (track / "pane.spm").write_bytes(spm(["pane.png"]))
    (track / "poster.spm").write_bytes(spm(["secret.png"]))
    (root / "library" / "stone" / "fine.spm").write_bytes(spm(["grass.png"]))
    (root / "library" / "stone" / "coarse.spm").write_bytes(spm(["grass.png"]))
    for name in ("grass.png", "pane.png", "secret.png"):
        cv2.imwrite(str(track / name), np.full((8, 8, 4), 99, np.uint8))
    (track / "materials.xml").write_text('<materials><material name="pane.png" shader="alphablend"/></materials>')
    (track / "scene.xml").write_text(
        '<scene><track model="ground.spm"><static-object model="pane.spm"/><static-object model="poster.spm"/>'
        '<static-object model="poster.spm" interaction="physics-only"/></track>'
        '<library name="stone" xyz="3 0 5" hpr="0 0 90" scale="2 2 2"/><library name="gone"/></scene>'
    )
    (root / "library" / "stone" / "node.xml").write_text(
        '<scene><lod><group name="s"><static-object model="coarse.spm" lod_distance="90"/>'
        '<static-object model="fine.spm" lod_distance="30"/></group></lod>'
        '<object model="coarse.spm" lod_instance="true" lod_group="s" xyz="1 0 0"/></scene>'
    )
    (track / "quads.xml").write_text(
        '<quads><quad p0="0 0 0" p1="2 0 0" p2="2 0 4" p3="0 0 4"/><quad p0="0:3" p1="0:2" p2="2 0 8" p3="0 0 8"/></quads>'
    )
    return root


def test_a_track_becomes_a_world(game: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recapture.priors.worlds.LEAST_TRIANGLES", 1)
    record = convert_track(game / "tracks" / "meadow", game, Licenses(COPYRIGHT), tmp_path)
    assert record["credits"] == {"CC-BY-4.0 and CC0": ["2020 A. Maker"]}
    # The pane is see-through; the stone has no licensed texture of that name beside it and loses nothing but that.
    assert (record["triangles"], record["left_out"]) == (6, 2)
    data = np.load(tmp_path / "meadow.npz")
    np.testing.assert_allclose(data["drive"], [[1, 0, -2], [1, 0, -6]])
    grass = data["triangles_0"].reshape(-1, 3, 8)
    assert data["texture_0"].shape == (8, 8, 3)  # opaque, for its material is
    assert np.abs(grass[..., [0, 2]]).max() == 50
    assert not any(name in data for name in ("texture_1", "texture_2"))
    untextured = np.concatenate([data[f"triangles_{k}"] for k in range(1, 3) if f"triangles_{k}" in data]).reshape(
        -1, 3, 8
    )
    stone = untextured[np.abs(untextured[..., 4]).max(1) < 0.5]  # turned by 90 degrees about z: no longer level
    # (1, 0, 0) in the node, doubled and turned about z, stands 2 above (3, 0, 5); z is mirrored.
    np.testing.assert_allclose(stone[..., :3].reshape(-1, 3).mean(0), [3, 2, -5], atol=1e-5)


def test_a_track_without_a_license_is_left_out(game: Path, tmp_path: Path) -> None:
    free_of_all = Licenses("Files: *\nCopyright: everybody\nLicense: GPL-3+\n")
    assert convert_track(game / "tracks" / "meadow", game, free_of_all, tmp_path) is None


def test_angles_turn_about_x_then_y_then_z() -> None:
    np.testing.assert_allclose(euler(np.array([90.0, 0, 0])) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(euler(np.array([90.0, 90, 0])) @ [0, 1, 0], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(euler(np.array([90.0, 90, 90])) @ [0, 1, 0], [0, 1, 0], atol=1e-12)
    assert drive_line(Path("nowhere")).shape == (0, 3)


def triangles_of_floor() -> np.ndarray:
    """[4, 3, 8]: a floor of 10 m at height 0 and a roof at height 3 over its half."""
    floor = SQUARE[[0, 1, 2, 0, 2, 3]] * 5
    roof = SQUARE[[0, 1, 2, 0, 2, 3]] * [2.5, 0, 5] + [2.5, 3, 0]
    corners = np.zeros((12, 8), np.float32)
    corners[:, :3], corners[:, 4] = np.concatenate([floor, roof]), 1
    return corners.reshape(4, 3, 8)


def test_the_ground_is_the_highest_surface_below() -> None:
    corners = triangles_of_floor()[..., :3]
    assert height_at(corners, 2.0, 1.0, below=2.0) == pytest.approx(0)
    assert height_at(corners, 2.0, 1.0, below=9.0) == pytest.approx(3)
    assert height_at(corners, -2.0, 1.0, below=9.0) == pytest.approx(0)
    assert height_at(corners, 7.0, 1.0, below=9.0) is None


@pytest.fixture
def assets(tmp_path: Path) -> Assets:
    """One world, one thing, one person, one texture and one sky."""
    root = tmp_path / "assets"
    for folder in ("meshes", "textures", "skies", "worlds"):
        (root / folder).mkdir(parents=True)
    sizes = {"thing": [0.4, 0.5, 0.3], "person": [0.5, 1.7, 0.3]}
    for name, size in sizes.items():
        block = box(np.array(size), 1.0)
        np.savez(root / "meshes" / f"{name}.npz", triangles_0=block, color_0=np.array([0.5, 0.2, 0.2], np.float32))
    rng = np.random.default_rng(0)
    cv2.imwrite(str(root / "textures" / "t.jpg"), rng.integers(0, 255, (32, 32, 3), np.uint8))
    cv2.imwrite(str(root / "skies" / "s.jpg"), np.full((32, 64, 3), 200, np.uint8))
    meshes = [
        {"file": f"meshes/{name}.npz", "person": name == "person", "size_m": size, "split": "train"}
        for name, size in sizes.items()
    ]
    index = {"meshes": meshes, "textures": [{"file": "textures/t.jpg", "split": "train"}]}
    index["skies"] = [{"file": "skies/s.jpg", "split": "train"}]
    (root / "index.json").write_text(json.dumps(index))
    np.savez(
        root / "worlds" / "w.npz",
        triangles_0=triangles_of_floor()[:2].reshape(-1, 8),
        drive=np.zeros((0, 3)),
        texture_0=np.full((4, 4, 3), 120, np.uint8),
    )
    (root / "worlds" / "index.json").write_text(json.dumps([{"file": "worlds/w.npz", "split": "train"}]))
    return Assets(root, "train")


@pytest.mark.parametrize("maker", [world_place, room_place, yard_place, floating_place])
def test_places_come_from_their_seed_and_stand_on_the_ground(assets: Assets, maker) -> None:
    for seed in range(4):
        place, again = (maker(np.random.default_rng(seed), assets, 2) for _ in range(2))
        assert len(place.objects) == len(place.models)
        for view, twin in zip(place.views, again.views, strict=True):
            np.testing.assert_array_equal(view.c2w, twin.c2w)
            np.testing.assert_allclose(view.c2w[:3, :3] @ view.c2w[:3, :3].T, np.eye(3), atol=1e-9)
            assert view.c2w[1, 3] > 0.1
            assert 0.15 < view.tan_x < 1.2
        for surfaces, matrix in zip(place.objects, place.models, strict=True):
            for surface in surfaces:
                assert np.isfinite(surface.triangles).all()
                assert np.isfinite(matrix).all()


@pytest.mark.parametrize("maker", [world_place, room_place, yard_place, floating_place])
def test_places_are_drawn(assets: Assets, maker) -> None:
    pytest.importorskip("moderngl")
    rasterizer = Rasterizer(48, 32)
    shown = 0
    for seed in range(6):
        rgb, depth, lenses = render_place(rasterizer, maker(np.random.default_rng(seed), assets, 1))
        assert len(rgb) == len(depth) == len(lenses)
        shown += len(rgb)
        assert (depth > 0).all()
    assert shown


def step_scene() -> torch.Tensor:
    """Depth [1, 64, 96]: a floor below, a wall behind, a post before it, some sky."""
    rows = torch.arange(64.0)[:, None].expand(64, 96)
    depth = torch.where(rows > 32, 30 / (rows - 28).clamp(min=1), torch.full_like(rows, 8.0))
    depth[:, 40:48] = 2.0
    depth[:6] = torch.inf
    return depth[None]


def test_the_loss_prefers_steps_that_are_steps_and_planes_that_are_flat() -> None:
    depth = step_scene()
    target, sky = depth.clamp(max=200).log(), torch.where(torch.isinf(depth), 9.0, -9.0)
    smeared = torch.nn.functional.avg_pool2d(target[:, None], 9, 1, 4, count_include_pad=False)[:, 0]
    wavy = target + 0.1 * torch.sin(torch.arange(96) / 6.0)
    truth, scaled, rims, bent = (
        depth_loss(DepthPrediction(log_depth, sky), depth) for log_depth in (target, target + 0.7, smeared, wavy)
    )
    for part in ("silog", "absolute", "edges", "planes"):  # blind to one scale per picture
        torch.testing.assert_close(scaled[part], truth[part], atol=1e-3, rtol=0)
    assert truth["edges"] < 1e-5
    assert truth["planes"] < 1e-5
    assert rims["edges"] > 0.02
    assert bent["planes"] > 0.01
    assert rims["loss"] > truth["loss"] + 0.1
    assert bent["loss"] > truth["loss"] + 0.01


def test_beside_steps_marks_both_sides_of_a_step_and_no_slope() -> None:
    mask = beside_steps(step_scene().clamp(max=200).log())[0]
    assert mask[50, 38:50].any()
    assert mask[20, 39]
    assert mask[20, 40]
    assert not mask[20, 20]
    assert not mask[60, 10]


def test_rulers_tell_a_step_from_a_ramp_and_a_plane_from_a_bowl() -> None:
    width = 320
    step = np.where(np.arange(width) < 160, 0.0, 1.0)[None].repeat(180, 0)
    ramp = np.clip((np.arange(width) - 154) / 12, 0, 1)[None].repeat(180, 0)
    assert in_between(step, 180 / 320) == 0
    assert in_between(ramp, 180 / 320) > 0.2
    y, x = np.mgrid[0:100, 0:100] / 100
    plane, bowl = -np.log(0.2 + 0.3 * x + 0.1 * y), -np.log(0.2 + 0.3 * x + 0.3 * (y - 0.5) ** 2)
    points = [[10, 10], [90, 10], [50, 50], [10, 90], [90, 90]]
    assert off_plane(plane, points) < 0.01
    assert off_plane(bowl, points) > 0.03
