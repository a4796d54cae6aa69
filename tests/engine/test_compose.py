"""The user's own results in place of stages', arguments as diffusers has them, and the code of `docs/compose.md`."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import recapture
from recapture.engine.config import override
from recapture.engine.errors import InputError
from recapture.engine.pipeline import Recapture
from recapture.engine.result import Result
from recapture.engine.video import probe

from .test_pipeline import HEIGHT, OPTIONS, WIDTH, reused, write_clip

PAGE = Path(__file__).parents[2] / "docs" / "compose.md"
STILL = np.full((6, HEIGHT, WIDTH), 4.0, np.float32)


class Doubled(recapture.EulerSampler):
    """Twice the noise levels."""

    version = "doubled"

    def sigmas(self, steps, sigma_max, sigma_min):
        return [2 * sigma for sigma in super().sigmas(steps, sigma_max, sigma_min)]


class FlatDepth:
    """A whole-clip model; counts its calls."""

    version = "1"
    calls = 0

    def __call__(self, frames):
        FlatDepth.calls += 1
        return np.full(frames.shape[:3], 4.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="module")
def engine(small_svd, tmp_path_factory) -> Recapture:
    return Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path_factory.mktemp("store"))


@pytest.fixture
def film(engine, clip) -> Callable[..., Result]:
    def run(camera="truck(0.1)", *, video=clip, **more) -> Result:
        return engine(video, camera, config=override(engine.default_config(), OPTIONS), **{"depth": STILL, **more})

    return run


def test_depth_is_an_array_a_function_or_a_class(film, tmp_path, clip, engine):
    np.save(tmp_path / "depth.npy", STILL)
    config = override(engine.default_config(), OPTIONS)
    files = engine(clip, "truck(0.1)", config=config, depth_dir=tmp_path, until="anchor")
    array = film(until="anchor")
    assert array.entries["depth"].digest == files.entries["depth"].digest
    shared = {"depth", "background", "intrinsics", "camera", "anchor"}
    assert reused(film(depth=lambda frames: STILL, until="anchor")) >= shared
    named = film(depth=f"{__name__}:FlatDepth", until="anchor")
    assert named.entries["depth"].digest == files.entries["depth"].digest
    calls = FlatDepth.calls
    assert "depth" in reused(film("truck(0.2)", depth=f"{__name__}:FlatDepth", until="anchor"))
    assert FlatDepth.calls == calls == 1
    assert "depth" not in reused(film(depth=STILL + 1, until="depth"))
    for wrong, match in [(STILL[:3], "one map per frame"), (-STILL, "no positive depth"), ("os:nothing", "cannot be")]:
        with pytest.raises(InputError, match=match):
            film(depth=wrong, until="depth")


def test_frames_are_a_clip(film, tmp_path):
    from_file = film(until="anchor")
    frames = from_file.source.copy()
    from_array = film(video=None, frames=frames, fps=12, until="anchor")
    assert np.array_equal(from_array.source, frames)
    assert np.array_equal(from_array.anchor, from_file.anchor)
    assert {"frames", "anchor"} <= reused(film(video=None, frames=frames.copy(), fps=12, until="anchor"))
    assert "frames" not in reused(film(video=None, frames=frames, fps=24, until="frames"))
    for more, match in [
        ({"video": None}, "give `video`, or `frames`"),
        ({"video": None, "frames": frames}, "with `fps`"),
        ({"video": None, "frames": frames / 255, "fps": 12}, "uint8"),
        ({"video": None, "frames": frames, "fps": 0}, "frames per second"),
    ]:
        with pytest.raises(InputError, match=match):
            film(until="frames", **more)


def test_an_anchor_of_ones_own_is_what_is_learned_and_delivered(film):
    drawn = film(until="anchor")
    color, mask = drawn.anchor.copy(), drawn.validity_mask.copy()
    mask[:, :, :12] = False
    color[~mask] = 0
    result = film(anchor=(color, mask))
    assert np.array_equal(result.validity_mask, mask)
    assert np.array_equal(result.frames[mask], color[mask])
    assert result.generated_share == pytest.approx((~mask).mean())
    again = film(anchor=(color.copy(), mask.copy()))
    assert reused(again) == {record.name for record in again.records}
    assert not reused(film(anchor=(color, drawn.validity_mask.copy()), until="condition")) & {"anchor", "condition"}
    with pytest.raises(InputError, match="bool"):
        film(anchor=(color, mask.astype(np.uint8)))
    with pytest.raises(InputError, match="6 frames of 64x48"):
        film(anchor=(color[:, :8], mask[:, :8]))


def test_tuned_adapters_load_again(film, tmp_path):
    first = film()
    first.save(tmp_path / "out", tuned=True)
    folder = tmp_path / "out" / "adapters"
    again = film(spatial_adapter=folder / "spatial", temporal_adapter=folder / "temporal")
    assert not reused(again) & {"spatial", "temporal", "sample"}
    assert np.array_equal(again.generated, first.generated)
    again.save(tmp_path / "again")
    with pytest.raises(InputError, match="no adapter in PEFT's layout"):
        film(temporal_adapter=tmp_path)


def test_a_sampler_of_ones_own_has_a_key_of_its_own(film):
    usual, own = film(), film(sampler=Doubled())
    assert not reused(own) & {"sample", "refine", "generate", "deliver"}
    assert not np.array_equal(own.generated, usual.generated)
    assert "deliver" in reused(film(sampler=Doubled()))


def test_arguments_are_as_in_diffusers(film, tmp_path):
    named = film(num_inference_steps=3, guidance_scale=2.0, height=32, width=48, seed=7, until="condition")
    options, size = named.config, named.context.size
    assert (options.sample.steps, options.sample.guidance, size, options.seed) == (3, (1.0, 2.0), (32, 48), 7)
    drawn = film(generator=torch.Generator().manual_seed(7), until="frames")
    assert drawn.config.seed == 7
    result = film()
    path = result.save_video(tmp_path / "video.mp4")
    assert probe(path).frame_count == len(result.frames)


def test_an_engine_moves_and_offloads(small_svd, clip, tmp_path):
    engine = Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path)
    assert engine.to("cpu", torch.bfloat16) is engine
    assert (engine.device.type, engine.dtype) == ("cpu", torch.bfloat16)
    engine.enable_model_cpu_offload()
    assert engine(clip, "static", until="frames").config.offload
    with pytest.raises(InputError, match="device"):
        engine.to("abacus")


def test_a_bar_shows_unless_it_is_switched_off(engine, clip, capsys):
    engine.set_progress_bar_config(disable=False)
    engine(clip, "static", until="frames")
    assert "100 %" in capsys.readouterr().err
    engine.set_progress_bar_config(disable=True)
    engine(clip, "static", until="frames")
    assert not capsys.readouterr().err


def test_a_revision_that_is_not_on_this_machine_is_refused_offline(tmp_path):
    with pytest.raises(recapture.ModelError, match="cannot fetch"):
        Recapture.from_pretrained("svd", revision="main", cache_dir=tmp_path, local_files_only=True, device="cpu")


def test_the_page_runs(small_svd, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 25
    write_clip(tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Recapture, "default_config", lambda self: override(recapture.RunConfig(model="tiny"), OPTIONS))
    names: dict[str, object] = {}
    exec(compile(code.replace('"tiny"', f'"{small_svd}"'), str(PAGE), "exec"), names)
    assert (tmp_path / "out" / "video.mp4").exists()
    assert (tmp_path / "again.mp4").exists()
