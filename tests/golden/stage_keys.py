"""What must not change while code only moves: the key of each stage over many configurations.

    python -m tests.golden.stage_keys              checks, and prints what differs
    python -m tests.golden.stage_keys --update     writes `stage_keys.json`
    python -m tests.golden.stage_keys --digests    also runs a small clip with the embedded model, and prints the sha256
                                                   of each stage's result: compare two commits on one machine

A key is made of a stage's name, version and options, of weights and of the digests of its inputs. Here the key of an
input stands for its digest, and the name of a network for that of its weights: all keys of a configuration are known
without running anything, and stay as they are when the embedded model is trained again.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from recapture.client.schema import Options, Resample
from recapture.cluster.bulk.engine_row_renderer import RowDefaults, config_of
from recapture.cluster.bulk.manifest import Row
from recapture.engine.cameras import parse_camera
from recapture.engine.config import RunConfig, override, quality_config
from recapture.engine.graph.context import StageContext
from recapture.engine.graph.executor import LocalExecutor
from recapture.engine.graph.request import RenderRequest, file_sha256
from recapture.engine.pipeline import Recapture
from recapture.engine.stages import STAGES
from recapture.engine.video import ClipInfo, Limits, VideoWriter
from recapture.engine.video.clip import UNSPECIFIED, ColorTags
from recapture.engine.warm_start import WARM_START
from recapture.serve.jobs.options import resampled, run_config

Weights = Callable[[StageContext], str | None]

KEYS = Path(__file__).parent / "stage_keys.json"
WIDTH, HEIGHT, FRAMES, RATE = 96, 64, 6, Fraction(12)
INFO = ClipInfo(
    width=WIDTH,
    height=HEIGHT,
    coded_width=WIDTH,
    coded_height=HEIGHT,
    rotation_deg=0,
    sample_aspect=Fraction(1),
    rate=RATE,
    time_base=Fraction(1, 12288),
    duration_s=FRAMES / 12,
    declared_frames=FRAMES,
    container="mp4",
    codec="h264",
    pix_fmt="yuv420p",
    color=ColorTags(primaries=UNSPECIFIED, transfer=UNSPECIFIED, matrix=UNSPECIFIED, full_range=False),
    has_audio=False,
    focal_px=None,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A configuration, and what a run takes besides it and its clip; the files are those of `write_files`."""

    config: RunConfig
    camera: str = "arc(20deg)"
    depth_dir: bool = False
    mask_dir: bool = False
    clean_plate: bool = False
    warm: bool = False
    force: bool = False


def cases(engine: Recapture) -> dict[str, Case]:
    """By name, configurations as the command, the Python face, bulk rows and requests make them."""
    standard, plain = engine.default_config(), quality_config("standard", model="a/model")
    row = Row(
        index=0,
        row_id="row",
        clip_id="clip",
        input_uri="clip.mp4",
        start_s=None,
        end_s=None,
        camera="truck(0.1)",
        output_uri="out",
        seed=7,
        options='{"tune": {"rank": 4}, "decode": {"first_frame": 1}}',
        priority=0,
    )
    request = Options(
        quality="paper",
        rank=8,
        spatial_steps=10,
        temporal_steps=10,
        guidance=1.5,
        height=64,
        width=128,
        locked=True,
        sdedit_sigma=0.5,
        composite="on",
    )
    asked = run_config("tiny", request, 3, {})
    return {
        "standard": Case(config=standard),
        "draft": Case(config=quality_config("draft", model="tiny", seed=1)),
        "paper": Case(config=quality_config("paper", model="tiny")),
        "another model": Case(config=plain),
        "another model, joint": Case(config=quality_config("paper", model="a/model", seed=5)),
        "camera file": Case(
            config=standard, camera=str(KEYS.parents[1] / "engine" / "cameras" / "golden" / "camera.json")
        ),
        "sum of presets": Case(config=replace(standard, seed=9), camera="arc(-18deg)+zoom(1.1)"),
        "depth folder": Case(config=override(standard, {"decode": {"first_frame": 2}}), depth_dir=True),
        "masks": Case(config=standard, mask_dir=True, force=True),
        "clean plate": Case(config=override(standard, {"anchor": {"locked": True}}), clean_plate=True),
        "multiview": Case(config=override(standard, {"anchor": {"route": "multiview"}})),
        "multiview by path": Case(config=override(standard, {"anchor": {"route": "auto", "depth_tolerance": 0.1}})),
        "warm start": Case(config=override(standard, {"tune": {"warm_start": True}}), warm=True),
        "xformers": Case(config=replace(plain, attention="xformers")),
        "lowered": Case(
            config=override(
                replace(plain, offload=True), {"tune": {"checkpointing": "full"}, "sample": {"decode_chunk": 2}}
            )
        ),
        "bulk row": Case(config=config_of(engine, row, Path(), RowDefaults()), camera=row.camera),
        "bulk row, warm": Case(
            config=config_of(engine, row, Path(), RowDefaults(options={"tune.warm_start": True})),
            camera=row.camera,
            warm=True,
        ),
        "request": Case(config=asked),
        "resample": Case(config=resampled(asked, Resample(seed=11, sample_steps=3, sdedit_steps=2), depth="embedded")),
    }


def write_files(folder: Path) -> None:
    """The files of every case. `clip` is no video: what is asked here is its sha256 alone."""
    (folder / "clip").write_bytes(b"clip")
    for name in ("depth", "masks"):
        (folder / name).mkdir()
        (folder / name / "frame_0.png").write_bytes(name.encode())
    cv2.imwrite(str(folder / "plate.png"), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))


def keys_of(case: Case, engine: Recapture, folder: Path) -> dict[str, str]:
    """Stage -> key."""
    files, models = {name: folder / name for name in ("clip", "depth", "masks", "plate.png")}, engine.models
    request = RenderRequest(
        clip=files["clip"],
        clip_path=files["clip"],
        clip_name="clip",
        clip_sha256=file_sha256(files["clip"]),
        info=INFO,
        limits=Limits(),
        camera=parse_camera(case.camera),
        config=case.config,
        depth_dir=files["depth"] if case.depth_dir else None,
        mask_dir=files["masks"] if case.mask_dir else None,
        clean_plate=files["plate.png"] if case.clean_plate else None,
        force=case.force,
    )
    context = StageContext(request=request, models=models, executor=LocalExecutor(models=models))
    networks = {
        models.unet_digest: "unet",
        models.encoder_digest: "encoder",
        models.depth_source("embedded").digest: "depth",
    }
    if context.multiview_source is not None:
        networks[context.multiview_source.digest] = "multiview"
    keys: dict[str, str] = {}
    for stage in STAGES:
        inputs: dict[str, Any] = {name: SimpleNamespace(digest=keys[name]) for name in stage.inputs}
        if case.warm and stage.optional is WARM_START:
            inputs[WARM_START.name] = SimpleNamespace(digest="another path")
        keys[stage.name] = replace(stage, weights=named(stage.weights, networks)).key(context, inputs)
    return keys


def named(weights: Weights, networks: Mapping[str, str]) -> Weights:
    """The weights of a stage with networks' names in place of their digests."""

    def of(context: StageContext) -> str | None:
        found = weights(context)
        for digest, name in networks.items():
            found = found and found.replace(digest, name)
        return found

    return of


def all_keys() -> dict[str, dict[str, str]]:
    """Case -> stage -> key."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_files(folder)
        engine = Recapture.from_pretrained("tiny", device="cpu", store=folder / "store")
        return {name: keys_of(case, engine, folder) for name, case in cases(engine).items()}


def digests() -> dict[str, str]:
    """Stage -> sha256 of its result, of a small clip with the embedded model. They differ from machine to machine."""
    folder = Path(tempfile.mkdtemp())
    try:
        rng = np.random.default_rng(0)
        wall = rng.integers(60, 160, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        with VideoWriter(folder / "clip.mp4", width=WIDTH, height=HEIGHT, rate=RATE, crf=4) as video:
            for t in range(FRAMES):
                picture = wall.copy()
                picture[20:44, 10 + 4 * t : 34 + 4 * t] = (230, 200, 40)
                video.write(picture)
        engine = Recapture.from_pretrained("tiny", device="cpu", store=folder / "store")
        config = override(
            engine.default_config(),
            {
                "anchor": {"route": "multiview"},
                "condition": {"height": 64, "width": 128, "augmentations": 4},
                "tune": {"rank": 2, "spatial_steps": 2, "temporal_steps": 2},
                "refine": {"sigma": 0.5},
            },
        )
        result = engine(folder / "clip.mp4", "arc(20deg)", config=config)
        return {name: entry.digest for name, entry in result.entries.items()}
    finally:
        shutil.rmtree(folder)


def differences(found: Mapping[str, Mapping[str, str]], wanted: Mapping[str, Mapping[str, str]]) -> list[str]:
    """`case: stage` wherever the two differ."""
    names = [(case, stage) for case in {**wanted, **found} for stage in {**wanted.get(case, {}), **found.get(case, {})}]
    return [f"{c}: {s}" for c, s in names if found.get(c, {}).get(s) != wanted.get(c, {}).get(s)]


def recorded() -> dict[str, dict[str, str]]:
    """The keys of `stage_keys.json`."""
    return json.loads(KEYS.read_text())


def main(arguments: list[str]) -> int:
    """1 where a key differs."""
    keys: dict[str, Any] = all_keys()
    if "--update" in arguments:
        KEYS.write_text(json.dumps(keys, indent=1) + "\n")
    if "--digests" in arguments:
        print(json.dumps(digests(), indent=1))
    differing = differences(keys, recorded())
    for line in differing:
        print(f"another key: {line}", file=sys.stderr)
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
