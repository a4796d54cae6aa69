"""Depth over time and at full resolution, the user's own maps, and models in the transformers layout."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BeitConfig,
    DepthProConfig,
    DepthProForDepthEstimation,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
)

from recapture.engine.errors import ModelError
from recapture.engine.geometry import steady
from recapture.engine.geometry.depth_estimation import estimate_depth, predict_frame
from recapture.engine.geometry.depth_models import find_depth_model, load_depth_model
from recapture.engine.geometry.disparity import FAR_TO_NEAR
from recapture.engine.geometry.upsample import upsample
from recapture.engine.graph.frame_task import FrameBatch
from recapture.engine.store.arrays import ArrayWriter, read_array

from ..small_models import write_small_depth

H, W = 64, 96


class Drawn:
    """A depth network whose answers are given: what follows it is under test."""

    parameters = 0

    def __init__(self, maps: list[np.ndarray], *, relative: bool = False) -> None:
        self.maps, self.relative, self.asked = maps, relative, 0

    def predict(self, frames: torch.Tensor) -> tuple[torch.Tensor, float | None]:
        self.asked += 1
        return torch.from_numpy(self.maps[self.asked - 1])[None], None


def textured(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (H // 8, W // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


class Predicted:
    batch = 1

    def __init__(self, model: Drawn, frames: np.ndarray) -> None:
        self.model, self.frames = model, frames

    def __call__(self, run: object, frames: range) -> FrameBatch:
        return predict_frame(self.model, self.frames[frames.start])


def in_turn(work, count: int):
    return (work(None, range(t, t + 1)) for t in range(count))


def estimate(model, frames, tmp_path: Path, **options):
    writers = []

    def rows(shape):
        writers.append(ArrayWriter(tmp_path / "depth.arrow", shape_per_row=shape, dtype=np.float32))
        return writers[0]

    settings = {
        "smooth": True,
        "structure": False,
        "empty_scene": None,
        "look": None,
        "scratch": tmp_path,
        "on_frame": lambda done: None,
    } | options
    summary = estimate_depth(in_turn, Predicted(model, frames), len(frames), rows, **settings)
    return read_array(tmp_path / "depth.arrow"), summary


def test_flicker_of_scale_and_noise_is_reduced_where_nothing_moves(tmp_path):
    rng = np.random.default_rng(0)
    truth = np.linspace(2, 6, H, dtype=np.float32)[:, None].repeat(W, 1)
    scale = np.exp(rng.normal(0, 0.1, 12)).astype(np.float32)
    maps = [truth * s * np.exp(rng.normal(0, 0.02, truth.shape)).astype(np.float32) for s in scale]
    frames = np.stack([textured()] * 12)
    depth, summary = estimate(Drawn(maps), frames, tmp_path)

    def flicker(stack: np.ndarray) -> float:
        return float(np.abs(np.diff(np.log(stack), axis=0)).mean())

    assert flicker(depth) < 0.25 * flicker(np.stack(maps))
    assert abs(summary.median - np.median(truth)) < 0.5
    assert depth.dtype == np.float32


def test_a_slow_change_of_scale_is_motion_and_stays():
    maps = [np.full((H, W), np.log(4 - 0.1 * t), np.float32) for t in range(12)]
    image = textured()
    drifts = [0.0, *(steady.drift(maps[t - 1], maps[t], image, image) for t in range(1, 12))]
    correction = steady.scale_corrections(drifts)
    assert np.abs(correction).max() < 0.03


def test_sky_stays_infinite_and_unknown_stays_unknown(tmp_path):
    depth = np.full((H, W), 3.0, np.float32)
    depth[:20] = np.inf
    result, summary = estimate(Drawn([depth] * 4), np.stack([textured()] * 4), tmp_path)
    assert np.isinf(result[:, :18]).all()
    assert np.isfinite(result[:, 22:]).all()
    assert summary.median == pytest.approx(3.0, rel=1e-3)


def test_relative_disparity_gets_one_scale_and_shift_for_the_clip(tmp_path):
    ramp = np.linspace(100, 900, H, dtype=np.float32)[:, None].repeat(W, 1)
    maps = [ramp, ramp * 0.5 + 20]
    depth, _ = estimate(Drawn(maps, relative=True), np.stack([textured()] * 2), tmp_path, smooth=False)
    low, high = np.percentile(np.stack(maps)[:, ::4, ::4], [1, 99])
    assert depth[0][ramp >= high].max() <= 1.001
    near, far = depth[0].min(), depth.max()
    assert FAR_TO_NEAR * 0.9 < far / near < 4 * FAR_TO_NEAR
    same = np.isclose(maps[1], 400, atol=4)
    assert np.allclose(depth[1][same].mean(), depth[0][np.isclose(maps[0], 400, atol=8)].mean(), rtol=0.05)
    assert low < high


def test_where_the_sky_is_seen_disparity_has_a_zero(tmp_path):
    """One frame sees the sky; the other, of the same clip, is on the same scale."""
    true = np.linspace(2, 80, H, dtype=np.float32)[::-1, None].repeat(W, 1)
    ground = 7 / true
    open_air = ground.copy()
    open_air[:10] = 0.001  # noise of the network's
    maps = [open_air, ground]
    depth, _ = estimate(Drawn(maps, relative=True), np.stack([textured()] * 2), tmp_path, smooth=False, structure=False)
    assert np.isinf(depth[0, :10]).all()
    scale = true[-1, 0] / depth[1, -1, 0]
    assert np.allclose(depth[1] * scale, true, rtol=1e-4)
    assert np.allclose(depth[0, 10:], depth[1, 10:])
    nothing, _ = estimate(
        Drawn([np.zeros((H, W), np.float32)] * 2, relative=True), np.stack([textured()] * 2), tmp_path
    )
    assert np.isfinite(nothing).all()


def test_upsampled_steps_lie_on_the_edges_of_the_picture():
    frames = np.zeros((1, 64, 96, 3), np.uint8)
    frames[:, :, 45:] = 255  # not on the coarse grid
    depth = np.full((1, 16, 24), 2.0, np.float32)
    depth[..., 11:] = 8.0
    fine = upsample(depth, frames, depth_tolerance=0.05)
    assert np.allclose(fine[..., :45], 2.0)
    assert np.allclose(fine[..., 45:], 8.0)
    off = depth.copy()
    off[..., 11] = 2.0  # the map's step lies 3 pixels beside the picture's edge
    assert np.array_equal(upsample(off, frames, depth_tolerance=0.05), fine)
    depth[..., :4, :] = np.inf
    assert np.isinf(upsample(depth, frames, depth_tolerance=0.05)[..., :12, :]).all()
    same = np.zeros((1, 16, 24, 3), np.uint8)
    assert upsample(depth, same, depth_tolerance=0.05) is depth


def test_upsampling_keeps_planes_and_makes_no_depth_between_two():
    def board(height: int, width: int) -> np.ndarray:
        """A floor that recedes to 60 m, and a board before it."""
        y, x = np.mgrid[:height, :width] + 0.5
        floor = 1 / (0.016 + 0.2 * y / height)
        return np.where((x > 0.31 * width) & (x < 0.55 * width) & (y < 0.8 * height), 3.0, floor).astype(np.float32)

    true, rng = board(96, 144), np.random.default_rng(0)
    frame = np.where(true[..., None] == 3, (200, 60, 40), (60, 110, 180)) + rng.normal(0, 12, (96, 144, 3))
    for h, w in ((32, 48), (48, 72), (120, 180)):  # coarser than the picture, and finer
        fine = upsample(board(h, w)[None], frame.clip(0, 255).astype(np.uint8)[None], depth_tolerance=0.05)[0]
        off = np.abs(np.log(fine / true))[2:]  # above the map's first row nothing says how the floor goes on
        assert (off > 0.02).mean() < 0.002
        assert not ((fine > 3.2) & (fine < 0.9 * true))[2:].any()
        assert np.median(off) < 1e-3


def test_unknown_depth_stays_unknown_where_nothing_is_near():
    depth = np.full((1, 16, 24), 2.0, np.float32)
    depth[:, :, :12] = np.nan
    fine = upsample(depth, np.zeros((1, 64, 96, 3), np.uint8), depth_tolerance=0.05)
    assert np.isnan(fine[..., :32]).all()
    assert np.allclose(fine[..., 60:], 2.0)


def save_model(folder: Path, network, **processor) -> Path:
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def depth_models(tmp_path_factory) -> dict[str, Path]:
    """Random weights in the exact class layouts, a few hundred kB each."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("depth-models")
    found = {
        "relative": write_small_depth(root / "relative"),
        "metric": write_small_depth(root / "metric", depth_estimation_type="metric", max_depth=20),
    }
    small = {
        "model_type": "dinov2",
        "image_size": 32,
        "patch_size": 8,
        "num_hidden_layers": 2,
        "intermediate_size": 32,
        "hidden_size": 16,
        "num_attention_heads": 2,
    }
    config = DepthProConfig(
        patch_size=32,
        fusion_hidden_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[10, 8],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.2],
        scaled_images_feature_dims=[12, 12],
        use_fov_model=True,
        patch_model_config=small,
        image_model_config=small,
        fov_model_config=small,
    )
    found["pro"] = save_model(root / "pro", DepthProForDepthEstimation(config), size={"height": 64, "width": 64})
    beit = BeitConfig(
        image_size=32,
        patch_size=16,
        num_hidden_layers=4,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        use_relative_position_bias=True,
        use_absolute_position_embeddings=False,
    )
    config = ZoeDepthConfig(
        backbone_config=beit,
        neck_hidden_sizes=[16] * 4,
        fusion_hidden_size=16,
        bottleneck_features=16,
        num_attractors=[16, 8, 4, 1],
        bin_embedding_dim=16,
        patch_transformer_hidden_size=16,
        patch_transformer_intermediate_size=32,
        num_patch_transformer_layers=1,
        patch_transformer_num_attention_heads=2,
        bin_configurations=[{"n_bins": 16, "min_depth": 0.001, "max_depth": 10.0}],
    )
    zoe = {"size": {"height": 32, "width": 48}, "ensure_multiple_of": 32}
    found["zoe"] = save_model(root / "zoe", ZoeDepthForDepthEstimation(config), **zoe)
    return found


def test_metric_directories_of_other_kinds(depth_models):
    frames = torch.rand(2, 3, 64, 96)
    for name, has_fov in [("pro", True), ("zoe", False)]:
        model = load_depth_model(find_depth_model(str(depth_models[name])), torch.device("cpu"))
        depth, fov = model.predict(frames)
        assert not model.relative
        assert (fov is not None) == has_fov
        assert torch.isfinite(depth).all()
        assert bool((depth >= 0).all())
        assert torch.allclose(model.predict(frames[:1])[0], depth[:1], rtol=1e-4)


def test_depth_anything_directories(depth_models):
    frames = torch.rand(2, 3, 64, 96)
    for name, relative in [("relative", True), ("metric", False)]:
        source = find_depth_model(str(depth_models[name]))
        model = load_depth_model(source, torch.device("cpu"))
        depth, fov = model.predict(frames)
        assert model.relative == relative
        assert depth.shape[0] == 2
        assert depth.shape[1] % 14 == depth.shape[2] % 14 == 0
        assert fov is None
        assert torch.allclose(model.predict(frames[:1])[0], depth[:1], atol=1e-5)
    assert (
        find_depth_model(str(depth_models["relative"])).digest != find_depth_model(str(depth_models["metric"])).digest
    )


def test_models_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="embedded, depth, a directory"):
        find_depth_model("nonsense")
    with pytest.raises(ModelError, match=r"config\.json"):
        find_depth_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="'bert' model"):
        find_depth_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "zoedepth"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_depth_model(find_depth_model(str(tmp_path)), torch.device("cpu"))
    with pytest.raises(ModelError, match=r"huggingface\.co/owner/model"):
        find_depth_model("owner/model")
