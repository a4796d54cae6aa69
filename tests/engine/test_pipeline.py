"""The stages in order on a real (tiny) model: what is reused, what resumes, what each option does."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from recapture.engine.config import RunConfig, override
from recapture.engine.errors import CameraError, Cancelled, InputError, ModelError, VideoError
from recapture.engine.imaging.composite import composite
from recapture.engine.pipeline import Recapture
from recapture.engine.result import Result
from recapture.engine.stages import STAGES
from recapture.engine.video import VideoWriter

from ..small_models import write_small_svd

HEIGHT, WIDTH = 48, 64
OPTIONS = {
    "condition": {"augmentations": 6},
    "tune": {"rank": 2, "spatial_steps": 2, "temporal_steps": 4, "checkpoint_every": 2},
    "sample": {"steps": 2, "overlap": 2},
    "refine": {"steps": 2},
}


def write_clip(path: Path, frames: int = 6) -> Path:
    """A bright square that walks before a textured wall."""
    rng = np.random.default_rng(0)
    wall = rng.integers(60, 160, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    with VideoWriter(path, width=WIDTH, height=HEIGHT, rate=Fraction(12), crf=4) as video:
        for t in range(frames):
            picture = wall.copy()
            picture[16:36, 10 + 3 * t : 26 + 3 * t] = (230, 200, 40)
            video.write(picture)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "walk.mp4")


@pytest.fixture(scope="module")
def depth_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("depth")
    depth = np.full((6, HEIGHT, WIDTH), 4.0, np.float32)
    for t in range(6):
        depth[t, 16:36, 10 + 3 * t : 26 + 3 * t] = 2.0
    np.save(folder / "depth.npy", depth)
    return folder


@pytest.fixture(scope="module")
def engine(small_svd, tmp_path_factory) -> Recapture:
    return Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path_factory.mktemp("store"))


@pytest.fixture
def film(engine, clip, depth_dir) -> Callable[..., Result]:
    def run(camera="truck(0.1)", *, options=OPTIONS, engine=engine, clip=clip, **more) -> Result:
        config = override(engine.default_config(), options)
        return engine(clip, camera, config=config, depth_dir=depth_dir, **more)

    return run


def reused(result: Result) -> set[str]:
    return {record.name for record in result.records if record.reused}


def adapter_bytes(result: Result, stage: str, name: str) -> bytes:
    return (result.entries[stage].path / name / "adapter_model.safetensors").read_bytes()


def test_every_stage_runs_once_and_the_next_path_shares_the_clips_stages(film):
    first = film("truck(0.1)")
    assert first.frames.shape == first.source.shape == (6, HEIGHT, WIDTH, 3)
    assert first.windows == [range(0, 4), range(2, 6)]
    assert 0 < first.hole_share < 0.5
    # Soft edges cover a part of some pixels of the holes.
    assert 0.9 * first.hole_share < first.generated_share <= first.hole_share
    assert reused(film("truck(0.1)")) == {record.name for record in first.records}
    second = film("truck(-0.1)")
    assert reused(second) >= {"frames", "depth", "intrinsics", "source", "spatial"}
    assert not reused(second) & {"camera", "anchor", "condition", "temporal", "sample", "refine", "generate", "deliver"}


def test_options_rerun_only_what_they_touch(film):
    film()
    changed = {**OPTIONS, "refine": {"steps": 3}}
    fresh = {r.name for r in film(options=changed).records} - reused(film(options={**OPTIONS, "refine": {"steps": 4}}))
    assert fresh == {"refine", "generate", "deliver"}


def test_same_seed_same_bytes_other_seed_others(small_svd, film, tmp_path):
    result = film()
    other_store = Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path)
    again = film(engine=other_store)
    assert not reused(again)
    assert {n: e.digest for n, e in again.entries.items()} == {n: e.digest for n, e in result.entries.items()}
    assert not np.array_equal(film(seed=5).generated, result.generated)


def test_an_interrupted_tuning_resumes_to_the_same_bits(small_svd, film, tmp_path):
    whole = film()

    def stop_at(step: int):
        def progress(stage, done, total, detail):
            if stage == "temporal" and done == step:
                raise Cancelled("stop")

        return progress

    broken = Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path)
    with pytest.raises(Cancelled):
        film(engine=broken, on_progress=stop_at(3))
    steps = []
    resumed = film(
        engine=broken,
        on_progress=lambda stage, done, total, detail: steps.append(done) if stage == "temporal" else None,
    )
    assert steps == [3, 4]  # the checkpoint is of step 2
    assert adapter_bytes(resumed, "temporal", "temporal") == adapter_bytes(whole, "temporal", "temporal")
    tuning = "tuning"
    assert resumed.entries["temporal"].json(tuning) == whole.entries["temporal"].json(tuning)


@pytest.mark.parametrize("schedule", ["decoupled", "joint"])
def test_what_is_not_tuned_is_not_prepared(film, schedule):
    untuned = {**OPTIONS, "tune": {**OPTIONS["tune"], "spatial_steps": 0, "temporal_steps": 0, "schedule": schedule}}
    draft = film(options=untuned)
    assert draft.entries["source"].json("bank")["frame"] == []
    assert draft.entries["temporal"].json("tuning")["held_out"] == {}
    assert draft.frames.shape == draft.source.shape
    assert not {"frames", "depth", "anchor", "condition"} - reused(film())  # and the source's frames are encoded now


def test_joint_tunes_the_spatial_adapter_alike(film):
    """The temporal pass never moves the spatial adapter, so both schedules end at the same one."""
    steps = {"rank": 2, "spatial_steps": 3, "temporal_steps": 3}
    joint = film(options={**OPTIONS, "tune": {**steps, "schedule": "joint"}})
    decoupled = film(options={**OPTIONS, "tune": steps})
    assert adapter_bytes(joint, "temporal", "spatial") == adapter_bytes(decoupled, "spatial", "spatial")
    assert adapter_bytes(joint, "temporal", "temporal") != adapter_bytes(decoupled, "temporal", "temporal")


def test_tuning_lowers_the_held_out_masked_loss(film):
    options = {**OPTIONS, "tune": {"rank": 4, "spatial_steps": 0, "temporal_steps": 60, "lr": 5e-3}}
    tuning = film(options=options).entries["temporal"].json("tuning")
    assert tuning["held_out"]["temporal"] < 0.99 * tuning["held_out"]["none"]
    assert tuning["held_out"]["spatial"] == tuning["held_out"]["none"]  # it was not tuned
    assert len(tuning["losses"]["temporal"]) == 60


def test_static_camera_gives_the_source_back(film):
    result = film("static", options={**OPTIONS, "motion": {"relative_to": "source"}})
    assert result.validity_mask.all()
    assert np.array_equal(result.anchor, result.source)
    assert np.array_equal(result.frames, result.source)
    assert result.generated_share == 0


def test_composite_off_delivers_the_pure_model_output(film):
    result = film(options={**OPTIONS, "deliver": {"composite": "off"}})
    assert result.generated_share == 1
    assert not np.array_equal(result.frames, film().frames)


def test_every_real_pixel_is_delivered_as_it_is(film):
    result = film()
    assert np.array_equal(result.generated_mask == 0, result.validity_mask)
    assert np.array_equal(result.generated_mask, 255 - result.alpha)
    assert np.array_equal(result.alpha == 255, result.validity_mask)
    assert 0.4 < result.validity_mask.mean() < 1
    assert np.array_equal(result.frames[result.validity_mask], result.anchor[result.validity_mask])


def test_texture_is_copied_into_generated_pixels_alone(film):
    plain, textured = film(), film(options={**OPTIONS, "deliver": {"fill": "texture"}})
    assert plain.textured_share == 0
    assert 0 < textured.textured_share <= 1
    assert not textured.texture[textured.generated_mask == 0].any()
    same = textured.generated_mask == 0
    assert np.array_equal(textured.frames[same], plain.frames[same])
    assert not np.array_equal(textured.frames, plain.frames)


def test_what_fills_a_hole_lies_behind_a_soft_edge():
    mask, alpha = np.ones((1, 8, 12), bool), np.full((1, 8, 12), 255, np.uint8)
    mask[..., 4:], alpha[..., 4:], alpha[..., 4] = False, 0, 102
    ink, wall = torch.zeros(1, 3, 8, 12), torch.full((1, 3, 8, 12), 0.5)
    row = composite(wall, ink, mask, alpha, feather_px=0)[0, 0, 4]
    assert torch.allclose(row, torch.tensor([0.0] * 4 + [0.3] + [0.5] * 7))


def test_a_hole_meets_its_rim_and_is_the_generated_picture_inside():
    mask = np.ones((1, 40, 60), bool)
    mask[0, 5:35, 10:50] = False
    anchor = torch.linspace(0.2, 0.8, 60).expand(1, 3, 40, 60) * torch.from_numpy(mask)[:, None]
    texture = (0.5 + 0.2 * torch.sin(torch.arange(60) / 2)).expand(1, 3, 40, 60)
    hard, soft = (composite(texture, anchor, mask, feather_px=px) for px in (0, 4))
    assert torch.equal(soft[:, :, 15:25, 20:40], hard[:, :, 15:25, 20:40])  # deep inside
    steps = [(picture[:, :, 5, 10:50] - anchor[:, :, 4, 10:50]).abs().mean() for picture in (hard, soft)]
    assert steps[1] < 0.5 * steps[0]


@pytest.mark.parametrize("options", [{"start": "noise"}, {"start": "anchor", "guidance": (1.0, 1.0)}])
def test_ways_to_start(film, options):
    result = film(options={**OPTIONS, "sample": {**OPTIONS["sample"], **options}})
    assert result.generated.shape[0] == 6


def test_guided_model_with_other_latents_runs_by_the_same_call(film, tmp_path):
    folder = write_small_svd(tmp_path / "guided", latent_channels=6, extra_channels=7, frames=3)
    guided = Recapture.from_pretrained(folder, device="cpu", store=tmp_path / "store")
    assert guided.models.shape.guided
    assert film(engine=guided).frames.shape == (6, HEIGHT, WIDTH, 3)


def test_warm_models_are_loaded_once(engine, film):
    film("truck(0.1)")
    loads = engine.models.loads
    film("truck(0.12)")
    assert engine.models.loads == loads


def test_step_callback_sees_and_replaces_latents_and_interrupts(film):
    seen = []

    def callback(pipe, step, sigma, values):
        seen.append((step, values["stage"], values["window"]))
        return {"latents": values["latents"] * 0}

    film(seed=11, callback_on_step_end=callback)
    places = [(stage, window) for stage in ("sample", "refine") for window in (0, 1) for _ in range(2)]
    assert seen == [(step, *place) for step, place in enumerate(places)]

    def interrupt(pipe, step, sigma, tensors):
        pipe._interrupt = True
        return {}

    with pytest.raises(Cancelled):
        film(seed=12, callback_on_step_end=interrupt)


def test_what_a_step_callback_changes_stays_with_its_result(film):
    clean = film(seed=13)
    calls = []

    def dark(pipe, step, sigma, values):
        calls.append(step)
        return {"latents": values["latents"] * 0}

    def edited() -> Result:
        calls.clear()
        return film(seed=13, callback_on_step_end=dark)

    first = edited()
    assert len(calls) == 8  # the store has these stages already
    assert {"sample", "refine", "generate", "deliver"} == {record.name for record in first.records} - reused(first)
    assert not np.array_equal(first.generated, clean.generated)
    assert np.array_equal(edited().generated, first.generated)
    again = film(seed=13)
    assert reused(again) == {record.name for record in again.records}
    assert np.array_equal(again.generated, clean.generated)
    folder = first.entries["sample"].path
    assert not folder.is_relative_to(clean.entries["sample"].path.parents[2])
    assert folder.exists()
    del first
    gc.collect()
    assert not folder.exists()


def test_a_camera_is_text_a_file_or_poses(film, tmp_path):
    first = film("truck(0.1)")
    file = tmp_path / "camera.json"
    file.write_text(first.camera.to_json())
    for camera in (first.camera, file, str(file)):
        again = film(camera)
        assert np.array_equal(again.camera.c2w, first.camera.c2w)
        assert reused(again) >= {"anchor", "temporal", "deliver"}
    with pytest.raises(CameraError, match="6 poses, the clip has 3 frames"):
        film(first.camera, options={**OPTIONS, "decode": {"max_frames": 3}}, until="camera")
    with pytest.raises(CameraError, match="no such camera file"):
        film(tmp_path / "missing.json")


def test_until_names_a_stage_and_later_arrays_say_that_they_are_missing(film):
    with pytest.raises(InputError, match="no stage 'ancor'; the stages are frames, depth"):
        film(until="ancor")
    preview = film(until="anchor")
    assert preview.records[-1].name == "anchor"
    for name in ("frames", "generated", "generated_mask", "generated_share"):
        with pytest.raises(AttributeError, match="stopped after anchor"):
            getattr(preview, name)


def test_trimmed_clip(film):
    result = film(options={**OPTIONS, "decode": {"first_frame": 1, "max_frames": 3}})
    whole = film()
    assert np.array_equal(result.source, whole.source[1:4])
    assert result.windows == [range(0, 3)]


def test_source_mask_leaves_pixels_out(film, tmp_path):
    import cv2

    for t in range(6):
        picture = np.full((HEIGHT, WIDTH), 255, np.uint8)
        picture[:, :20] = 0
        cv2.imwrite(str(tmp_path / f"{t:03}.png"), picture)
    result = film("static", mask_dir=tmp_path, options={**OPTIONS, "motion": {"relative_to": "source"}})
    assert not result.validity_mask[:, :, :20].any()
    assert result.validity_mask[:, :, 20:].all()


def test_a_path_that_sees_nothing_is_refused_unless_forced(film):
    with pytest.raises(CameraError, match="sees nothing"):
        film("pan(150deg, start=150deg)")
    assert film("pan(150deg, start=150deg)", force=True).warnings


def test_refusals_come_before_work(engine, clip, depth_dir, tmp_path):
    started = []

    def call(**more):
        options = {"camera": "static", "depth_dir": depth_dir, **more}
        engine(clip, options.pop("camera"), on_stage_start=lambda name, result: started.append(name), **options)

    size = override(engine.default_config(), {"condition": {"height": 50, "width": 64}})
    for error, match, more in [
        (CameraError, "preset", {"camera": "swirl(3)"}),
        (InputError, "multiple of 16", {"config": size}),
        (InputError, "does not exist", {"depth_dir": tmp_path / "none"}),
        (InputError, "holds no PNG masks", {"mask_dir": tmp_path}),
    ]:
        with pytest.raises(error, match=match):
            call(**more)
    assert not started
    with pytest.raises(InputError, match="1 would be used"):
        call(config=override(engine.default_config(), {"decode": {"first_frame": 5}}))
    short = write_clip(tmp_path / "one.mp4", frames=1)
    with pytest.raises((VideoError, InputError), match="at least 2"):
        engine(short, "static", depth_dir=depth_dir)


def test_config_round_trip_and_bounds():
    config = override(RunConfig(), {"sample": {"guidance": (1.0, 2.0)}, "tune": {"rank": 8}})
    assert RunConfig.from_json(config.to_json()) == config
    for section, name, value in [
        ("tune", "rank", 0),
        ("tune", "schedule", "both"),
        ("sample", "steps", 0),
        ("condition", "height", 64),
        ("deliver", "composite", "maybe"),
    ]:
        with pytest.raises(InputError):
            override(RunConfig(), {section: {name: value}})
    with pytest.raises(InputError, match="no option sped"):
        override(RunConfig(), {"tune": {"sped": 1}})
    with pytest.raises(InputError, match=r"no field tune\.sped"):
        RunConfig.from_json({"tune": {"sped": 1}})


def test_stages_read_only_what_came_before():
    seen: set[str] = set()
    for stage in STAGES:
        assert set(stage.inputs) <= seen, stage.name
        assert not stage.per_clip or all(other.per_clip for other in STAGES if other.name in stage.inputs)
        seen.add(stage.name)


def test_engine_imports_without_ray_triton_deepspeed():
    code = """
import sys
for name in ("ray", "triton", "deepspeed", "xformers"):
    sys.modules[name] = None
import recapture.engine, recapture.engine.pipeline, recapture.kernels.splat
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_model_is_told_is_part_of_the_keys(film):
    """The motion bucket changes no latent: it must still reach every stage that is told it."""
    film()
    other = film(options={**OPTIONS, "condition": {**OPTIONS["condition"], "motion_bucket": 60}})
    assert not reused(other) & {"source", "condition", "spatial", "temporal", "sample", "refine"}


def test_force_does_not_silence_a_later_run(film):
    film("pan(140deg, start=140deg)", force=True)
    with pytest.raises(CameraError, match="sees nothing"):
        film("pan(140deg, start=140deg)")


def test_a_warm_start_begins_from_the_nearest_path_and_stops_where_that_one_got_to(small_svd, film, tmp_path):
    engine = Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path)
    tune = {**OPTIONS["tune"], "temporal_steps": 8, "lr": 1e-2}
    cold, warm = {**OPTIONS, "tune": tune}, {**OPTIONS, "tune": {**tune, "warm_start": True}}
    near, far = film("truck(0.1)", engine=engine, options=cold), film("truck(-0.3)", engine=engine, options=cold)
    result = film("truck(0.11)", engine=engine, options=warm)
    tuning = result.entries["temporal"].json("tuning")
    assert tuning["warm_start"]["entry"] == near.entries["temporal"].digest != far.entries["temporal"].digest
    assert tuning["held_out"]["spatial+temporal"] <= tuning["warm_start"]["reached"] * tuning["held_out"]["none"]
    assert tuning["steps"] == len(tuning["losses"]["temporal"]) < tune["temporal_steps"]
    # A rerun finds its own result, whatever was tuned since; a cold result of the path is as good.
    film("truck(0.11)", engine=engine, options={**cold, "tune": {**tune, "temporal_steps": 7}})
    assert "temporal" in reused(film("truck(0.11)", engine=engine, options=warm))
    assert "temporal" in reused(film("truck(0.1)", engine=engine, options=warm))


def test_a_warm_start_takes_no_adapter_that_does_not_fit(small_svd, film, tmp_path):
    engine = Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path)
    film("truck(0.1)", engine=engine)
    other_rank = {**OPTIONS, "tune": {**OPTIONS["tune"], "rank": 3, "warm_start": True}}
    assert (
        film("truck(0.11)", engine=engine, options=other_rank).entries["temporal"].json("tuning")["warm_start"] is None
    )


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
def test_weights_that_are_pickled_are_never_loaded(part, small_svd, tmp_path):
    canary, model = tmp_path / "canary", tmp_path / "model"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    shutil.copytree(small_svd, model)
    (weights,) = (model / part).glob("*.safetensors")
    weights.unlink()
    name = "pytorch_model.bin" if part == "image_encoder" else "diffusion_pytorch_model.bin"
    torch.save({"weight": Evil()}, model / part / name)
    with pytest.raises((OSError, ModelError)):
        Recapture.from_pretrained(model, device="cpu", store=tmp_path / "store").models.video(2)
    assert not canary.exists()
