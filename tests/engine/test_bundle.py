"""What a run leaves behind: the bundle's files, the report's honesty, and nothing at all when it cannot be written."""

import json
import re
import resource
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from recapture.engine.config import RunConfig, override
from recapture.engine.errors import InputError, OutputError
from recapture.engine.imaging.metrics import smoothed, worst_boundaries
from recapture.engine.pipeline import Recapture
from recapture.engine.report.bundle import write_anchor_sheet, write_bundle
from recapture.engine.report.collect import jsonable, parameter_count, sentence
from recapture.engine.report.html.charts import Series, line_chart
from recapture.engine.report.html.page import FILES
from recapture.engine.result import Result
from recapture.engine.video import decode, probe

from .video.clips import sound_packets, write_clip

FRAMES, WIDTH, HEIGHT = 6, 64, 48
HOSTILE = "a\"b'<script>alert(1)<b>&${x}.mp4"
CAMERA = "pan(6deg)+dolly(0.15)"


@pytest.fixture(scope="session")
def result(small_svd: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A whole run of 6 frames with sound, under a hostile name, in two windows."""
    folder = tmp_path_factory.mktemp("run")
    clip = write_clip(folder / HOSTILE, FRAMES + 2, (WIDTH, HEIGHT), audio="aac", colorspace=5, color_primaries=5)
    depth = np.full((FRAMES + 2, 24, 32), 4.0, np.float32)
    depth[:, 8:20, 10:20] = 1.5
    (folder / "depth").mkdir()
    np.save(folder / "depth" / "depth.npy", depth)
    engine = Recapture.from_pretrained(small_svd, device="cpu", store=folder / "store")
    config = override(
        engine.default_config(),
        {
            "decode": {"first_frame": 2},
            "condition": {"augmentations": 4},
            "tune": {"spatial_steps": 2, "temporal_steps": 2, "rank": 2},
            "sample": {"steps": 2, "overlap": 2, "guidance": (1.0, 1.0)},
            "refine": {"steps": 1},
        },
    )
    return engine(clip, CAMERA, config=config, depth_dir=folder / "depth")


@pytest.fixture(scope="session")
def bundle(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "new" / "out"
    assert write_bundle(result, folder, passes=True) == folder / "video.mp4"
    return folder


def test_every_file_is_there_and_nothing_else(bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} == {name for name, _ in FILES} | {"report.html", "passes"}


@pytest.mark.parametrize("name", ["video", "generated", "anchor", "mask", "side_by_side"])
def test_videos_keep_frames_rate_and_size(bundle: Path, result: Result, name: str) -> None:
    info = probe(bundle / f"{name}.mp4")
    assert len(list(decode(bundle / f"{name}.mp4", info))) == FRAMES
    assert info.rate == result.request.info.rate == 25
    assert info.duration_s == pytest.approx(FRAMES / 25)
    height, width = result.generated.shape[1:3] if name == "generated" else (HEIGHT, WIDTH)
    assert (info.width, info.height) == ((2 if name == "side_by_side" else 1) * width, height)
    if name == "video":
        assert info.color == result.request.info.color
    assert info.has_audio == (name == "video")


def test_sound_starts_where_the_frames_do(bundle: Path, result: Result) -> None:
    heard = {data: at for data, at in sound_packets(result.request.clip_path)}
    copied = sound_packets(bundle / "video.mp4")
    shift = Fraction(2, 25)  # the run began at frame 2
    assert len(copied) > 5
    assert all(abs(heard[data] - shift - at) < Fraction(1, 1000) for data, at in copied)


def test_holes_are_gray_in_the_anchor_video(bundle: Path, result: Result) -> None:
    inner = cv2.erode((~result.validity_mask[-1]).astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=1).astype(
        bool
    )
    assert inner.any()
    *_, last = decode(bundle / "anchor.mp4", probe(bundle / "anchor.mp4"))
    assert np.abs(last.rgb[inner].astype(int) - 124).mean() < 12


def test_passes_are_lossless(bundle: Path, result: Result) -> None:
    passes = bundle / "passes"
    depth = result.entries["depth"].array("depth")
    arrays = {
        "delivered": result.frames,
        "generated": result.generated,
        "anchor": result.anchor,
        "matte": result.generated_mask,
    }
    for name, frames in arrays.items():
        assert len(list((passes / name).iterdir())) == FRAMES
        for t, frame in enumerate(frames):
            read = cv2.imread(str(passes / name / f"{t:06d}.png"), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(read if read.ndim == 2 else read[..., ::-1], frame)
    for t in range(FRAMES):
        assert np.array_equal(np.load(passes / "depth" / f"{t:06d}.npy"), depth[t])
    assert (passes / "camera.json").read_bytes() == (bundle / "camera.json").read_bytes()


def test_the_numbers_are_those_of_the_arrays(bundle: Path, result: Result) -> None:
    facts = json.loads((bundle / "report.json").read_text())
    generated = result.generated_mask.mean() / 255
    assert 0.01 < generated < 0.9
    assert facts["shares"]["generated"] == pytest.approx(generated, abs=1e-6)
    assert facts["shares"]["generated"] + facts["shares"]["footage"] == pytest.approx(1)
    assert facts["shares"]["holes"] == pytest.approx(1 - result.validity_mask.mean(), abs=1e-6)
    assert facts["sentence"].startswith(f"{100 - round(100 * generated, 1):.1f} % of these pixels are your footage; ")
    assert facts["windows"] == [[0, 3], [2, 5]]
    assert facts["measures"]["seams"] == [4]
    assert set(facts["tuning"]["held_out"]) == {"none", "spatial", "temporal", "spatial+temporal"}
    assert [stage["name"] for stage in facts["stages"]] == [record.name for record in result.records]
    assert facts["clip"]["sha256"] == result.request.clip_sha256


def test_the_parameters_are_counted_without_loading(result: Result) -> None:
    assert parameter_count(result.context.models.folder) == result.context.model.parameters


def test_config_reproduces_the_run(bundle: Path, result: Result) -> None:
    config = json.loads((bundle / "config.json").read_text())
    assert RunConfig.from_json(config["config"]) == result.config
    assert config["camera"]["text"] == CAMERA
    words = shlex.split(config["command"])
    assert words[:3] == ["recapture", "run", HOSTILE]
    assert words[words.index("--first-frame") + 1] == "2"


def test_the_command_is_one_that_the_cli_takes(bundle: Path) -> None:
    typer_main = pytest.importorskip("typer.main")
    from recapture.cli.main import app

    words = shlex.split(json.loads((bundle / "config.json").read_text())["command"])
    command = typer_main.get_command(app).commands["run"]
    given = command.make_context("run", words[2:]).params
    assert (given["temporal_steps"], given["guidance"], given["first_frame"]) == (2, (1.0, 1.0), 2)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.unlabeled: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.addresses += [values[name] or "" for name in ("src", "href", "poster", "srcset") if name in values]
        if tag == "img" and not values.get("alt"):
            self.unlabeled.append(str(attrs)[:80])


def test_the_page_stands_alone(bundle: Path) -> None:
    html = (bundle / "report.html").read_text()
    page = _Page()
    page.feed(html)
    assert all(a.startswith("data:") or (bundle / a).is_file() for a in page.addresses)
    assert not re.search(r"https?://|@import|url\(|fetch\(", re.sub(r'"data:[^"]*"', "", html))
    assert page.tags.count("video") == 2
    assert not page.unlabeled
    assert page.tags.count("script") == 1, "the clip's name made an element"
    assert "<b>&" not in html
    assert "a&#34;b&#39;&lt;script&gt;alert(1)&lt;b&gt;&amp;${x}.mp4" in html
    assert "nan" not in re.findall(r"<p[^>]*>([^<]*)</p>", html)
    assert len(html) < 6e6


def test_pictures_have_their_sizes(bundle: Path) -> None:
    assert cv2.imread(str(bundle / "contact.png")).shape[1] > 5 * 320


def test_saving_again_replaces_and_drops_old_passes(result: Result, tmp_path: Path) -> None:
    write_bundle(result, tmp_path, passes=True)
    write_bundle(result, tmp_path)
    assert not (tmp_path / "passes").exists()
    assert (tmp_path / "video.mp4").exists()


def test_a_clip_that_is_gone_costs_the_sound_only(result: Result, tmp_path: Path) -> None:
    gone = replace(result.request, clip_path=tmp_path / "gone.mp4")
    moved = replace(result, context=replace(result.context, request=gone), warnings=[])
    write_bundle(moved, tmp_path / "out")
    assert not probe(tmp_path / "out" / "video.mp4").has_audio
    warnings = json.loads((tmp_path / "out" / "report.json").read_text())["warnings"]
    assert any("the sound is left out" in warning for warning in warnings)


def test_a_preview_cannot_be_saved(result: Result, tmp_path: Path) -> None:
    entries = {name: entry for name, entry in result.entries.items() if name != "deliver"}
    with pytest.raises(InputError, match="deliver"):
        write_bundle(replace(result, entries=entries), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unwritable_folder(result: Result, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match="file"):
            write_bundle(result, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel lets no file grow past this, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room_for", ["nothing", "the videos"])
def test_full_disk_leaves_what_was_there(result: Result, bundle: Path, tmp_path: Path, room_for: str) -> None:
    room = 500 if room_for == "nothing" else max(path.stat().st_size for path in bundle.glob("*.mp4")) + 1
    assert room < (bundle / "contact.png").stat().st_size
    kept, made = tmp_path / "kept", tmp_path / "made"
    kept.mkdir()
    (kept / "video.mp4").write_bytes(b"of an earlier run")
    for folder in (kept, made):
        with files_of_at_most(room), pytest.raises(OutputError) as caught:
            write_bundle(result, folder)
        assert ".recapture" not in str(caught.value)
    assert [(path.name, path.read_bytes()) for path in kept.iterdir()] == [("video.mp4", b"of an earlier run")]
    assert not made.exists()


def test_anchor_sheet(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "new" / "anchor_sheet.png"
    write_anchor_sheet(result.source, result.anchor, result.validity_mask, result.provenance, path)
    assert cv2.imread(str(path)).shape[0] > 200
    with pytest.raises(OutputError):
        write_anchor_sheet(result.source, result.anchor, result.validity_mask, result.provenance, path / "below.png")


def test_the_worst_boundary_is_the_planted_one() -> None:
    draw = np.random.default_rng(0)
    anchor = draw.integers(90, 110, (4, 96, 128, 3)).astype(np.uint8)
    anchor[:, :, 60:] += 100  # an edge of the scene, which the holes' rims run along and across
    mask = np.ones((4, 96, 128), bool)
    mask[:, 20:50, 30:60] = mask[:, 60:85, 80:110] = False
    model = anchor.copy()
    model[2, 55:90, 75:115] += 40
    seen = np.where(mask[..., None], anchor, 0).astype(np.uint8)
    first, *others = worst_boundaries(lambda t: model[t], seen, mask)
    assert first.frame == 2
    assert 75 - first.size <= first.x <= 115
    assert 55 - first.size <= first.y <= 90
    assert first.step == pytest.approx(40, abs=5)
    assert all(other.step < 15 or other.frame == 2 for other in others)


def test_frames_without_a_hole_or_without_footage_have_no_boundary() -> None:
    picture, hole = np.zeros((2, 40, 40, 3), np.uint8), np.ones((2, 40, 40), bool)
    hole[1] = False
    assert worst_boundaries(lambda t: picture[t] + 9, picture, hole) == []


def test_smoothing_starts_at_the_first_value_and_follows() -> None:
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0] * 3)
    curve = smoothed([1.0] * 50 + [0.0] * 50, span=10)
    assert curve[49] == pytest.approx(1)
    assert curve[-1] < 0.01


@pytest.mark.parametrize(
    ("share", "count", "text"),
    [
        (
            0.0,
            5_900_000,
            "100.0 % of these pixels are your footage; 0.0 % come from a 5.9-million-parameter model (m).",
        ),
        (
            1.0,
            1_524_000_000,
            "0.0 % of these pixels are your footage; 100.0 % come from a 1.52-billion-parameter model (m).",
        ),
        (0.0001, None, "More than 99.9 % of these pixels are your footage; less than 0.1 % come from a model (m)."),
        (
            0.0999,
            8_000_000,
            "90.0 % of these pixels are your footage; 10.0 % come from an 8-million-parameter model (m).",
        ),
    ],
)
def test_the_sentence(share: float, count: int | None, text: str) -> None:
    assert sentence(share, count, "m") == text


def test_numbers_that_json_lacks() -> None:
    assert jsonable({"a": [float("nan"), float("inf"), (1.5, "x")]}) == {"a": [None, "inf", [1.5, "x"]]}


@pytest.mark.parametrize(
    "values", [[], [float("nan")], [0.0], [0.0, 0.0], [1e-9], [1e9, 2e9], [1.0, float("inf"), 2.0]]
)
@pytest.mark.parametrize("log", [False, True])
def test_charts_take_any_numbers(values: list[float], log: bool) -> None:
    svg = line_chart("<title>", [Series(label="<b>", values=values, style="ink", shade=True)], x_label="step", log=log)
    assert "nan" not in svg
    assert "inf" not in svg
    assert "<b>" not in svg
