"""The multiview route: rays, attention across views, what is believed, what stays real, and which models are let in."""

import json
import shutil
import textwrap
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from recapture.engine.config import override
from recapture.engine.errors import ModelError
from recapture.engine.hub import EMBEDDED
from recapture.engine.models.multiview import (
    UNCERTAIN,
    DirectoryMultiview,
    NovelView,
    chosen_route,
    find_multiview_model,
    input_channels,
    load_multiview_model,
    predict,
    ray_map,
    synthesized_anchor,
)
from recapture.engine.models.temporal_bypass import temporal_bypass
from recapture.engine.models.video import load_network
from recapture.engine.pipeline import Recapture
from recapture.engine.report.collect import visible_psnr
from recapture.engine.video import VideoWriter
from recapture.priors.train_multiview import build_unet, spatial_weights

from ..small_models import small_unet, write_small_multiview, write_small_svd

CPU = torch.device("cpu")
K_PX = np.array([[100.0, 0, 64], [0, 100, 48], [0, 0, 1]])
COUNT, HEIGHT, WIDTH = 5, 96, 128


def turned(degrees: float) -> np.ndarray:
    """An arc's pose about the point at depth 4: turned and moved so that it stays in the middle."""
    angle = np.radians(degrees)
    c2w = np.eye(4)
    c2w[:3, :3] = [[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]]
    c2w[:3, 3] = np.array([0, 0, 4]) - c2w[:3, :3] @ np.array([0, 0, 4])
    return c2w


@pytest.fixture(scope="session")
def small_multiview(small_svd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_multiview(tmp_path_factory.mktemp("multiview"), small_svd)


def view(seed: int = 0, covered: float = 0.5) -> NovelView:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, : round(WIDTH * covered)] = True
    picture = torch.rand(3, HEIGHT, WIDTH, generator=draw)
    return NovelView(
        source=torch.rand(3, HEIGHT, WIDTH, generator=draw),
        source_K_px=K_PX,
        c2w=turned(30),
        K_px=K_PX,
        unit=4.0,
        points=picture * mask,
        covered=mask,
    )


def test_rays_meet_where_the_cameras_look() -> None:
    size, cells = (97, 129), (97, 129)
    K_px = np.array([[100.0, 0, 64.5], [0, 100, 48.5], [0, 0, 1]])
    given, asked = (ray_map(K_px, c2w, size, cells, 4.0).numpy() for c2w in (np.eye(4), turned(40)))
    assert np.allclose(given[:3, 48, 64], [0, 0, 1])
    assert np.allclose(given[3:], 0)
    assert np.allclose(np.linalg.norm(asked[:3], axis=0), 1, atol=1e-6)
    # The point at depth 4 (one unit) lies on both middle rays: p x d is the ray's moment.
    assert np.allclose(np.cross([0, 0, 1], asked[:3, 48, 64]), asked[3:, 48, 64], atol=1e-6)
    larger = turned(40)
    larger[:3, 3] *= 7
    assert np.allclose(ray_map(K_px, larger, size, cells, 28.0).numpy(), asked, atol=1e-6)


def test_it_begins_as_the_video_models_single_frames() -> None:
    torch.manual_seed(1)
    video = small_unet(extra_channels=5).eval()
    unet = build_unet(video.config).eval()
    unet.load_state_dict(spatial_weights(video))
    unet.set_attn_processor(AttnProcessor2_0())  # without attention across the views each picture is alone
    noisy, known, image_embeds = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 1, 16)
    mask, added_time_ids = torch.ones(2, 1, 8, 8), torch.tensor([[6, 127, 0.02]] * 2)
    level = torch.tensor([0.3, -0.5])
    with torch.no_grad(), temporal_bypass(video):
        told = torch.cat([noisy, torch.zeros_like(noisy), known, mask], 1)[:, None]
        expected = video(told, level, image_embeds, added_time_ids=added_time_ids).sample[:, 0]
        inputs = torch.cat([noisy, known, mask, torch.randn(2, 6, 8, 8)], 1)
        assert inputs.shape[1] == input_channels(4)
        assert torch.allclose(
            unet(inputs, level, image_embeds).sample, expected, atol=1e-3
        )  # another epsilon in the norms


def test_the_asked_view_attends_to_the_given_one(small_multiview: Path) -> None:
    unet = DirectoryMultiview(small_multiview, CPU).unet
    draw = torch.Generator().manual_seed(0)
    noisy, source, known = (torch.randn(2, 4, 8, 8, generator=draw) for _ in range(3))
    rays, image_embeds = torch.randn(2, 2, 6, 8, 8, generator=draw), torch.randn(2, 1, 16, generator=draw)

    def output(source: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return predict(unet, noisy, torch.ones(2), source, known, torch.ones(2, 8, 8), rays, image_embeds)

    other = source.clone()
    other[0] = torch.randn(4, 8, 8, generator=draw)
    before, after = output(source), output(other)
    assert not torch.allclose(before[0], after[0], atol=1e-4)
    assert torch.allclose(before[1], after[1], atol=1e-5)  # requests do not mix


def test_a_seed_is_a_picture_of_the_asked_size(small_multiview: Path) -> None:
    model = DirectoryMultiview(small_multiview, CPU)
    first, again, other = model(view(), 3), model(view(), 3), model(view(), 4)
    assert first.shape == (3, HEIGHT, WIDTH)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Flat:
    """An adapter that paints one tone, another one for odd seeds."""

    license, noncommercial, version = "CC0", False, "1"

    def __init__(self, device: torch.device, tone: float = 0.5, apart: float = 0.0) -> None:
        self.tone, self.apart = tone, apart

    def __call__(self, view: NovelView, seed: int) -> torch.Tensor:
        return torch.full_like(view.points, self.tone + self.apart * (seed % 2))


def test_only_what_two_seeds_agree_on_is_believed() -> None:
    gray = view()
    gray.points[:, :, : WIDTH // 2] = 0.5
    sure = synthesized_anchor(Flat(CPU), gray, seed=0)
    assert sure["validity_mask"].all()
    assert (sure["color"] == 128).all()
    torn = synthesized_anchor(Flat(CPU, apart=2 * UNCERTAIN), gray, seed=0)
    assert np.array_equal(torn["validity_mask"], gray.covered.numpy())
    assert (torn["color"][:, WIDTH - 1] == 128).all()  # what is not confident is a hole, but better than black


def test_a_picture_that_misses_the_real_pixels_is_not_believed() -> None:
    gray = view()
    gray.points[:, :, : WIDTH // 2] = 0.5
    wrong = synthesized_anchor(Flat(CPU, tone=0.9), gray, seed=0)
    assert np.array_equal(wrong["validity_mask"], gray.covered.numpy())
    assert (wrong["color"][:, : WIDTH // 2] == 128).all()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Depth and a video of a box before a wall."""
    folder = tmp_path_factory.mktemp("clip")
    rng = np.random.default_rng(5)
    wall = rng.integers(90, 166, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    depth = np.full((COUNT, HEIGHT, WIDTH), 8.0, np.float32)
    with VideoWriter(folder / "clip.mp4", width=WIDTH, height=HEIGHT, rate=Fraction(12), crf=0) as video:
        for t in range(COUNT):
            frame = wall.copy()
            frame[30:80, 30 + t : 70 + t], depth[t, 30:80, 30 + t : 70 + t] = (250, 240, 20), 3.0
            video.write(frame)
    (folder / "depth").mkdir()
    np.save(folder / "depth" / "depth.npy", depth)
    return folder


@pytest.fixture(scope="module")
def engine(small_svd, tmp_path_factory) -> Recapture:
    return Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path_factory.mktemp("store"))


def film(engine: Recapture, clip: Path, camera: str, until: str = "anchor", **anchor):
    config = override(
        engine.default_config(),
        {
            "anchor": {"locked": False, **anchor},
            "condition": {"height": 64, "width": 96, "augmentations": 2},
            "tune": {"spatial_steps": 1, "temporal_steps": 1},
            "sample": {"steps": 1},
            "refine": {"sigma": 0.0},
        },
    )
    return engine(clip / "clip.mp4", camera, config=config, until=until, depth_dir=clip / "depth")


@pytest.fixture
def flat_adapter(tmp_path, monkeypatch) -> str:
    (tmp_path / "flat_model.py").write_text(
        "import torch\n\n\nclass Gray:\n"
        "    license, noncommercial, version = 'research only', True, '1'\n\n"
        "    def __init__(self, device):\n        pass\n\n"
        "    def __call__(self, view, seed):\n        return torch.full_like(view.points, 0.5)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "flat_model:Gray"


def test_real_pixels_stay_and_synthesized_ones_are_never_footage(engine, clip, flat_adapter) -> None:
    wide = "arc(45deg)"
    points = film(engine, clip, wide, until="deliver")
    synthesized = film(
        engine, clip, wide, until="deliver", route="multiview", multiview=flat_adapter, allow_noncommercial=True
    )
    assert np.array_equal(synthesized.provenance, points.provenance)
    assert np.array_equal(
        np.array(synthesized.anchor)[points.validity_mask], np.array(points.anchor)[points.validity_mask]
    )
    gained = synthesized.validity_mask & ~points.validity_mask
    assert gained.sum() > 1000
    shares = synthesized.entries["anchor"].json("coverage")
    assert shares["synthesized"] == pytest.approx(gained.mean((1, 2)).tolist())
    assert synthesized.hole_share == points.hole_share  # holes are what nobody filmed
    assert np.array_equal(np.array(synthesized.generated_mask) == 0, np.array(points.generated_mask) == 0)
    assert (np.array(synthesized.generated_mask)[gained] == 255).all()
    report = synthesized.save(clip / "out").parent
    facts = json.loads((report / "report.json").read_text())
    assert facts["anchor"]["route"] == "multiview"
    # What is measured against footage is measured against footage alone.
    counted = SimpleNamespace(
        generated=synthesized.generated, anchor=synthesized.anchor, provenance=synthesized.validity_mask
    )
    found = facts["measures"]["generated_psnr_visible_db"]
    assert found == pytest.approx(visible_psnr(synthesized))
    assert found != pytest.approx(visible_psnr(counted), abs=1e-3)
    assert facts["measures"]["worst_boundaries"]
    for each in facts["measures"]["worst_boundaries"]:
        near = each["size"] // 2 + 4
        rows, columns = (slice(max(0, each[axis] - near), each[axis] + near + 1) for axis in ("y", "x"))
        assert {False, True} == set((synthesized.provenance[each["frame"]][rows, columns] > 0).flat)
    assert [model["license"] for model in facts["models"] if model["role"] == "multiview"] == ["research only"]


def test_auto_takes_points_for_small_turns_and_imagines_behind_wide_ones(engine, clip, small_multiview) -> None:
    for camera, expected in (("arc(4deg)", "points"), ("arc(60deg)", "multiview")):
        result = film(engine, clip, camera, route="auto", multiview=str(small_multiview))
        coverage = result.entries["anchor"].json("coverage")
        route, why = chosen_route(result.camera, result.hole_share)
        assert coverage["route"] == route == expected, why
        named = {"multiview": str(small_multiview)} if expected == "multiview" else {}
        asked = film(engine, clip, camera, route=expected, **named)
        assert asked.entries["anchor"].digest == result.entries["anchor"].digest  # what follows is not done again


def test_a_forbidding_license_is_asked_about(flat_adapter) -> None:
    with pytest.raises(ModelError, match=r"non-commercial use only \(research only\).*`anchor.allow_noncommercial`"):
        find_multiview_model(flat_adapter)
    found = find_multiview_model(flat_adapter, allow_noncommercial=True)
    assert found.license == "research only"
    assert load_multiview_model(found, CPU)(view(), 0).shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "no multiview model 'nothing'; give embedded, a directory"),
        ("no_such_module:Model", "cannot be imported"),
        ("json:JSONDecoder", "does not say its license, noncommercial, version"),
        ("./mine.py:Model", "cannot be imported"),
        (":Model", "cannot be imported"),
    ],
)
def test_what_is_no_multiview_model_is_refused(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        find_multiview_model(name)


def test_a_directory_says_what_it_lacks(small_svd, tmp_path) -> None:
    with pytest.raises(ModelError, match="does not give 'license'"):
        find_multiview_model(str(write_small_multiview(tmp_path / "a", small_svd, license=None)))
    with pytest.raises(ModelError, match="lacks vae, image_encoder"):
        find_multiview_model(str(write_small_multiview(tmp_path / "b", tmp_path)))
    whole = write_small_multiview(tmp_path / "whole", small_svd)
    about = json.loads((whole / "multiview.json").read_text())
    for written, said in (([about], "no multiview model"), (about | {"steps": 0}, "asks for 0 steps")):
        (whole / "multiview.json").write_text(json.dumps(written))
        with pytest.raises(ModelError, match=said):
            find_multiview_model(str(whole))
    (whole / "multiview.json").write_text(json.dumps(about))
    shutil.rmtree(whole / "unet")
    with pytest.raises(ModelError, match="a directory with multiview"):
        find_multiview_model(str(whole))
    other = write_small_svd(tmp_path / "svd", latent_channels=8)
    with pytest.raises(ModelError, match="with this VAE 23 and 8 are needed"):
        DirectoryMultiview(write_small_multiview(tmp_path / "c", other), CPU)


def test_the_embedded_model_is_told_by_the_video_models_own_vae() -> None:
    found = find_multiview_model("embedded")
    assert not found.noncommercial
    assert "Apache" in found.license
    model = load_multiview_model(found, CPU)
    assert model(view(covered=0.7), 0).shape == (3, HEIGHT, WIDTH)
    video = load_network(UNetSpatioTemporalConditionModel, EMBEDDED / "tiny" / "unet", torch.float32)
    assert model.unet.config.cross_attention_dim == video.config.cross_attention_dim


def test_the_worked_example_is_an_adapter_that_works(clip, engine, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    model = load_multiview_model(find_multiview_model("billboard:Billboard"), CPU)
    still = replace(view(), c2w=np.eye(4))
    assert torch.allclose(model(still, 0), still.source, atol=1e-5)
    # A wall at the unit's depth is what it believes the world to be: a sideways step moves it by f t / z pixels.
    moved = np.eye(4)
    moved[0, 3] = 0.4
    shift = round(K_PX[0, 0] * 0.4 / 4.0)
    assert torch.allclose(model(replace(still, c2w=moved), 0)[..., :-shift], still.source[..., shift:], atol=1e-4)
    wide = film(engine, clip, "arc(25deg)", route="multiview", multiview="billboard:Billboard")
    assert np.mean(wide.entries["anchor"].json("coverage")["synthesized"]) > 0.01


def test_the_docs_show_the_example_as_it_is() -> None:
    root = Path(__file__).parents[2]
    code = (root / "examples" / "billboard.py").read_text()
    shown = textwrap.indent(code[code.index("class Billboard") :].rstrip(), "  ")
    assert shown in (root / "docs" / "multiview.md").read_text()
