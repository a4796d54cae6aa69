"""The command as a person meets it: what it prints, what it refuses, what it leaves behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

from recapture.cli.main import app, main
from recapture.engine.stages import STAGES

from ..engine.test_pipeline import HEIGHT, WIDTH, write_clip
from ..engine.video.clips import write_bomb, write_sound


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    def refused(self, *words: str) -> None:
        """One line at the end of standard error that says these words, a usage exit code, no traceback."""
        assert self.code == 2, self.err
        lines = self.err.strip().splitlines()
        assert [line.startswith("recapture: ") for line in lines] == [False] * (len(lines) - 1) + [True], self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in lines[-1], lines[-1]


@pytest.fixture
def recapture(monkeypatch, capsys) -> Callable[..., Answer]:
    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["recapture", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return Answer(code=int(stop.value.code or 0), out=captured.out, err=captured.err)

    return call


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "walk.mp4")


@pytest.fixture(scope="module")
def depth_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("depth")
    np.save(folder / "depth.npy", np.full((6, HEIGHT, WIDTH), 3.0, np.float32))
    return folder


@pytest.fixture
def quick(small_svd, depth_dir, tmp_path_factory) -> list[object]:
    """Options of a run that takes seconds."""
    return [
        "--model",
        small_svd,
        "--device",
        "cpu",
        "--depth-dir",
        depth_dir,
        "--store",
        tmp_path_factory.mktemp("store"),
        "--rank",
        2,
        "--steps",
        1,
        "--sample-steps",
        1,
        "--sdedit-steps",
        1,
    ]


def test_run_ends_in_five_lines_and_a_bundle(recapture, clip, quick, tmp_path):
    out = tmp_path / "out"
    answer = recapture("run", clip, "--camera", "truck(0.1)", "--out", out, *quick)
    assert answer.code == 0, answer.err
    lines = answer.out.strip().splitlines()
    assert [line.split()[0] for line in lines] == ["video", "report", "generated", "time", "next"]
    assert "reuses frames, depth, background, intrinsics, motion, source, spatial" in lines[-1]
    assert f"{out}-2" in lines[-1]
    assert "anchor sheet" in answer.err
    for name in ("video.mp4", "generated.mp4", "anchor.mp4", "mask.mp4", "report.html", "report.json", "camera.json"):
        assert (out / name).stat().st_size > 0
    assert (out / "anchor_sheet.png").exists()
    again = recapture("run", clip, "--camera", "truck(0.1)", "--out", out, *quick, "--json")
    assert json.loads(again.out)["stages"]
    third = recapture(
        "run",
        clip,
        "--camera",
        "truck(0.1)",
        "--out",
        tmp_path / "third",
        *quick[:8],
        "--config",
        out / "config.json",
        "--adapters",
    )
    assert third.code == 0, third.err
    for name in ("spatial", "temporal"):
        assert (tmp_path / "third" / "adapters" / name / "adapter_model.safetensors").stat().st_size > 0
    assert third.err.count("reused") == len(STAGES)  # the same configuration: every stage was there
    assert "Traceback" not in again.err


def test_quality_sets_what_was_not_typed(recapture, clip, quick, tmp_path):
    base = ("run", clip, "--camera", "truck(0.1)", "--frames", 3)
    draft = recapture(*base, "--out", tmp_path / "draft", *quick[:6], "--quality", "draft", "--sample-steps", 1)
    assert draft.code == 0, draft.err
    config = json.loads((tmp_path / "draft" / "config.json").read_text())["config"]
    assert config["tune"]["spatial_steps"] == config["tune"]["temporal_steps"] == config["refine"]["sigma"] == 0
    assert (config["sample"]["start"], config["sample"]["steps"]) == ("anchor", 1)
    said = json.loads((tmp_path / "draft" / "report.json").read_text())["command"]
    assert "--temporal-steps 0" in said
    paper = recapture(*base, "--out", tmp_path / "paper", *quick, "--quality", "paper")
    assert paper.code == 0, paper.err
    config = json.loads((tmp_path / "paper" / "config.json").read_text())["config"]
    assert (config["tune"]["schedule"], config["deliver"]["composite"]) == ("joint", "off")
    assert config["tune"]["rank"] == quick[quick.index("--rank") + 1]


def test_preview_and_dry_run_render_nothing(recapture, clip, quick, depth_dir, tmp_path):
    out = tmp_path / "preview"
    answer = recapture(
        "preview",
        clip,
        "--camera",
        "truck(0.1)",
        "--out",
        out,
        "--depth-dir",
        depth_dir,
        "--store",
        tmp_path / "s",
        "--json",
    )
    assert answer.code == 0, answer.err
    said = json.loads(answer.out)
    assert 0 < said["hole_share"] < 0.5
    assert Path(said["anchor_sheet"]).exists()
    plan = recapture(
        "run", clip, "--camera", "truck(0.1)", "--out", tmp_path / "none", *quick, "--overlap", 2, "--dry-run", "--json"
    )
    assert plan.code == 0, plan.err
    said = json.loads(plan.out)
    assert said["clip_size"] == [WIDTH, HEIGHT]
    assert said["windows"] == [[0, 3], [2, 5]]
    assert said["memory_bytes"] > 0
    assert said["seconds"] > 0
    assert not (tmp_path / "none").exists()
    text = recapture("run", clip, "--camera", "truck(0.1)", "--out", tmp_path / "none", *quick, "--dry-run")
    assert "nothing cropped" in text.out


def bad_clips(folder: Path) -> dict[str, tuple[Path, str]]:
    """Clips that cannot be used, and a word that their refusal must say."""
    good = write_clip(folder / "good.mp4")
    truncated = folder / "truncated.mp4"
    truncated.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    text = folder / "text.mp4"
    text.write_text("not a video")
    playlist = folder / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    disguised = folder / "disguised.mp4"
    disguised.write_bytes(playlist.read_bytes())
    image = folder / "image.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    empty = folder / "empty.mp4"
    empty.write_bytes(b"")
    return {
        "missing": (folder / "missing.mp4", "does not exist"),
        "folder": (folder, "folder"),
        "text": (text, "video"),
        "empty": (empty, "empty"),
        "truncated": (truncated, ""),
        "image": (image, "image"),
        "playlist": (playlist, "playlist"),
        "playlist in disguise": (disguised, "playlist"),
        "one frame": (write_clip(folder / "one.mp4", frames=1), "at least 2"),
    }


def test_clips_that_cannot_be_used(recapture, quick, tmp_path):
    for name, (path, word) in bad_clips(tmp_path).items():
        out = tmp_path / "out"
        answer = recapture("run", path, "--camera", "static", "--out", out, *quick)
        answer.refused()
        assert word in answer.err.lower(), (name, answer.err)
        assert not out.exists(), name


def test_clips_without_a_picture_and_bombs(recapture, quick, tmp_path):
    for path in (write_sound(tmp_path / "sound.mp4"), write_bomb(tmp_path / "bomb.mp4")):
        recapture("run", path, "--camera", "static", "--out", tmp_path / "out", *quick).refused()


def test_cameras_that_cannot_be_used(recapture, clip, quick, tmp_path):
    def camera_file(name: str, **changes: object) -> Path:
        frame = {"transform_matrix": np.eye(4).tolist()} | changes
        path = tmp_path / name
        path.write_text(json.dumps({"fl_x": 50, "fl_y": 50, "cx": 32, "cy": 24, "w": 64, "h": 48, "frames": [frame]}))
        return path

    nan = np.eye(4)
    nan[0, 3] = np.nan
    skewed = np.eye(4)
    skewed[0, 1] = 0.5
    malformed = tmp_path / "malformed.json"
    malformed.write_text("{")
    for camera, words in [
        ("swirl(20deg)", ["swirl"]),
        ("arc(20deg", ["--camera"]),
        ("arc(angle=fast)", ["--camera"]),
        (malformed, ["malformed.json"]),
        (tmp_path / "missing.json", ["missing.json"]),
        (camera_file("nan.json", transform_matrix=nan.tolist()), ["nan.json"]),
        (camera_file("skewed.json", transform_matrix=skewed.tolist()), ["skewed.json"]),
        ("pan(150deg, start=150deg)", ["sees nothing", "--force"]),
    ]:
        out = tmp_path / "out"
        recapture("run", clip, "--camera", camera, "--out", out, *quick).refused(*words)
        assert not out.exists()


def test_models_that_cannot_be_used(recapture, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for model, words in [
        ("gigantic", ["tiny, svd, svd-xt"]),
        (tmp_path, ["unet", "StableVideoDiffusionPipeline"]),
        ("svd", ["https://huggingface.co/stabilityai", "--model /path"]),
        ("someone/model", ["https://huggingface.co/someone/model"]),
    ]:
        recapture("run", clip, "--camera", "static", "--out", tmp_path / "out", "--model", model).refused(*words)


def test_options_out_of_bounds(recapture, clip, quick, tmp_path):
    for words, said in [
        (["--rank", 0], "--rank"),
        (["--schedule", "both"], "decoupled, joint"),
        (["--height", 64], "--width"),
        (["--height", 50, "--width", 64], "multiple of 16"),
        (["--frames", 1], "--frames: 1 is not a whole number from 2"),
        (["--quality", "best"], "--quality: 'best' is not one of 'draft', 'standard', 'paper'"),
        (["--quality", "draft", "--config", clip], "not both"),
        (["--config", clip], "not the config.json"),
        (["--device", "tpu"], "auto, cpu, cuda"),
        (["--attention", "flash"], "sdpa, xformers"),
        (["--attention", "xformers"], "no operator for cpu"),
        (["--depth-dir", tmp_path / "none"], "--depth-dir"),
    ]:
        recapture("run", clip, "--camera", "static", "--out", tmp_path / "out", *quick, *words).refused(said)
    answer = recapture("run", clip, "--camera", "static", "--out", tmp_path / "out", "--rnak", 3)
    answer.refused("--rnak")


def test_output_that_cannot_be_written(recapture, clip, quick, tmp_path):
    (tmp_path / "file").write_text("")
    answer = recapture("run", clip, "--camera", "static", "--out", tmp_path / "file" / "out", *quick)
    assert answer.code == 1
    assert answer.err.startswith("recapture: --out")
    answer = recapture(
        "run", clip, "--camera", "static", "--out", tmp_path / "out", *quick, "--store", tmp_path / "file" / "s"
    )
    assert answer.code == 1
    assert len(answer.err.strip().splitlines()) == 1


def test_errors_as_json(recapture, tmp_path, small_svd):
    answer = recapture(
        "run", tmp_path / "no.mp4", "--camera", "swirl", "--out", tmp_path / "out", "--model", small_svd, "--json"
    )
    assert answer.code == 2
    assert json.loads(answer.out)["error"]["param"] == "--camera"


def test_lists(recapture):
    presets = json.loads(recapture("presets", "--json").out)
    assert {"arc", "dolly_zoom", "static"} <= {preset["name"] for preset in presets}
    assert "arc" in recapture("presets").out
    models = json.loads(recapture("models", "list", "--json").out)
    assert [(model["kind"], model["name"]) for model in models if model["here"]] == [
        ("video", "tiny"),
        ("depth", "embedded"),
        ("multiview", "embedded"),
    ]
    assert {model["name"] for model in models} == {"tiny", "svd", "svd-xt", "embedded", "depth"}
    assert recapture("models", "list").out.count("not here: recapture models pull") == 3
    found = json.loads(recapture("doctor", "--json").out)
    assert found["packages"]["torch"]
    assert found["device"] in ("cpu", "cuda")
    assert "a run would use" in recapture("doctor").out
    assert found["depth"] == "Depth: embedded model (small). Better: recapture models pull depth"


def test_store_commands(recapture, clip, quick, depth_dir, tmp_path):
    store = tmp_path / "kept"
    recapture(
        "preview", clip, "--camera", "static", "--out", tmp_path / "p", "--depth-dir", depth_dir, "--store", store
    )
    kept = json.loads(recapture("store", "ls", "--store", store, "--json").out)
    assert {entry["stage"] for entry in kept} == {
        "frames",
        "depth",
        "background",
        "intrinsics",
        "motion",
        "camera",
        "anchor",
    }
    assert recapture("store", "verify", "--store", store).code == 0
    frames = next(store.glob("frames/*/*/frames.arrow"))
    frames.write_bytes(bytes(frames.stat().st_size))
    damaged = recapture("store", "verify", "--store", store)
    assert damaged.code == 1
    assert "frames" in damaged.out
    recapture("store", "gc", "--store", store, "--older-than", 0)
    assert json.loads(recapture("store", "ls", "--store", store, "--json").out) == []


def test_help_imports_nothing_heavy():
    code = (
        "import sys; import recapture.cli.main; "
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'av', 'pyarrow'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


COMMANDS = Path(__file__).parent / "golden" / "commands.json"


def test_commands_and_their_options_change_on_purpose_only():
    """`RECAPTURE_WRITE_GOLDEN=1 pytest tests/cli/test_cli.py` writes them anew: look at the difference then."""

    def flags(name: str, command: Any) -> Iterator[tuple[str, str]]:
        for inner, one in getattr(command, "commands", {}).items():
            yield from flags(f"{name} {inner}".strip(), one)
        words = [word for one in command.params for word in (*one.opts, *one.secondary_opts)]
        if not hasattr(command, "commands"):
            yield name, " ".join(sorted(words))

    said = dict(sorted(flags("", typer.main.get_command(app))))
    if os.environ.get("RECAPTURE_WRITE_GOLDEN"):
        COMMANDS.parent.mkdir(exist_ok=True)
        COMMANDS.write_text(json.dumps(said, indent=1) + "\n")
    assert said == json.loads(COMMANDS.read_text())
