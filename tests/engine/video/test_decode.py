"""What comes out of `decode`: every frame once, in order, upright, square, in the right colors."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recapture.engine.video import ClipInfo, ColorTags, Frame, Limits, decode, probe
from recapture.engine.video.rates import constant_rate

from .clips import jpeg, picture, write_clip, write_packets

NTSC = Fraction(30000, 1001)


def look(path: Path) -> tuple[ClipInfo, list[Frame]]:
    info = probe(path)
    return info, list(decode(path, info))


def mean_error(rgb: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(rgb.astype(float) - expected).mean())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h264.mp4", {"options": {"bf": "3"}}),
        ("h264.mkv", {}),
        ("h264.avi", {}),
        ("hevc.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none"}}),
        ("vp9.webm", {"codec": "libvpx-vp9"}),
        ("hidden_reference_frames.webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}),
        ("mpeg4.avi", {"codec": "mpeg4", "bit_rate": 4_000_000}),
        ("mjpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("prores.mov", {"codec": "prores", "pix_fmt": "yuv422p10le"}),
        ("ffv1.mkv", {"codec": "ffv1", "pix_fmt": "yuv444p"}),
        ("rgb.mkv", {"codec": "ffv1", "pix_fmt": "bgr0"}),
        ("fragmented.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    ],
)
def test_every_frame_comes_once_and_in_order(tmp_path: Path, name: str, options: dict) -> None:
    info, frames = look(write_clip(tmp_path / name, 24, **options))
    assert info.rate == 25
    assert [f.index for f in frames] == list(range(24)) == list(range(info.frame_count))
    assert [f.time_s for f in frames] == [Fraction(n, 25) for n in range(24)]
    assert info.duration_s == pytest.approx(24 / 25)
    blues = [f.rgb[..., 2].mean() for f in frames]
    assert np.all(np.diff(blues[:20]) > 2)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.avi"])
def test_ntsc_rates_survive_coarse_time_bases(tmp_path: Path, name: str) -> None:
    info, frames = look(write_clip(tmp_path / name, 40, rate=NTSC))
    assert info.rate == NTSC
    assert frames[-1].time_s == 39 / NTSC


def test_a_range_of_frames_keeps_its_place_in_the_clip(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 20)
    info, frames = look(path)
    part = list(decode(path, info, first_frame=7, max_frames=4))
    assert [(f.index, f.pts, f.time_s) for f in part] == [(f.index, f.pts, f.time_s) for f in frames[7:11]]
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(part, frames[7:11], strict=True))
    assert list(decode(path, info, first_frame=20)) == []
    assert list(decode(path, info, max_frames=0)) == []


def test_one_frame_is_a_clip(tmp_path: Path) -> None:
    info, frames = look(write_clip(tmp_path / "a.mp4", 1))
    assert len(frames) == 1
    assert info.duration_s == pytest.approx(0.04)


@pytest.mark.parametrize(("name", "first"), [("late.mp4", 50), ("late.mkv", 50), ("early.mp4", -5)])
def test_time_starts_at_zero_wherever_the_file_starts(tmp_path: Path, name: str, first: int) -> None:
    info, frames = look(write_clip(tmp_path / name, 12, times=[n + first for n in range(12)]))
    shown = 12 + min(first, 0)  # an MP4's edit list hides what lies before zero
    assert [f.time_s for f in frames] == [Fraction(n, 25) for n in range(shown)]
    assert frames[0].pts * info.time_base == max(Fraction(first, 25), 0)


@pytest.mark.parametrize(
    ("rotate", "turned"),
    [
        ((0,), lambda p: p),
        ((90,), lambda p: np.rot90(p, 1)),
        ((180,), lambda p: np.rot90(p, 2)),
        ((-90,), lambda p: np.rot90(p, -1)),
        ((0, True, False), lambda p: p[:, ::-1]),
        ((0, False, True), lambda p: p[::-1]),
    ],
)
def test_rotation_and_mirroring_are_applied(tmp_path: Path, rotate: tuple, turned) -> None:
    info, frames = look(write_clip(tmp_path / "a.mp4", 2, rotate=rotate))
    expected = turned(picture(64, 48))
    assert frames[0].rgb.shape == expected.shape == (info.height, info.width, 3)
    assert frames[0].rgb.flags.c_contiguous
    assert mean_error(frames[0].rgb, expected) < 4
    assert (info.coded_width, info.coded_height) == (64, 48)


def test_a_turn_that_is_no_quarter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="not a multiple of 90"):
        probe(write_clip(tmp_path / "a.mp4", 2, rotate=(45,)))


@pytest.mark.parametrize(
    ("aspect", "rotate", "size"),
    [
        (Fraction(4, 3), None, (96, 48)),
        (Fraction(8, 9), None, (72, 54)),
        (Fraction(4, 3), (90,), (48, 96)),
    ],
)
def test_pixels_become_square_without_a_crop(
    tmp_path: Path, aspect: Fraction, rotate: tuple | None, size: tuple[int, int]
) -> None:
    path = write_clip(tmp_path / "a.mp4", 2, (72, 48), sample_aspect_ratio=aspect, rotate=rotate)
    info, frames = look(path)
    assert info.sample_aspect == aspect
    assert (info.width, info.height) == size
    upright = np.rot90(frames[0].rgb, -1) if rotate else frames[0].rgb
    assert mean_error(upright, picture(upright.shape[1], upright.shape[0])) < 4


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(
    ("height", "tag", "matrix"), [(48, 5, 5), (48, 1, 1), (48, 2, 5), (720, 2, 1), (720, 6, 5), (48, 9, 9)]
)
def test_colors_follow_the_tags_or_else_the_height(
    tmp_path: Path, height: int, tag: int, matrix: int, full_range: bool
) -> None:
    path = write_clip(
        tmp_path / "a.mkv",
        1,
        (64, height),
        codec="ffv1",
        pix_fmt="yuv444p",
        matrix=matrix,
        full_range=full_range,
        colorspace=tag,
        color_range=2 if full_range else 1,
    )
    info, frames = look(path)
    assert (info.color.matrix, info.color.full_range) == (tag, full_range)
    assert mean_error(frames[0].rgb, picture(64, height)) < 1
    assert abs((frames[0].rgb.astype(float) - picture(64, height)).mean(axis=(0, 1))).max() < 1


def test_an_info_survives_json(tmp_path: Path) -> None:
    info = probe(write_clip(tmp_path / "a.mp4", 5, rate=NTSC, audio="aac"))
    data = json.loads(json.dumps(info.to_json()))
    assert data["rate"] == "30000/1001"
    assert info.has_audio
    assert info.declared_frames == 5
    assert ClipInfo.from_json(data) == info


def test_cover_art_is_not_taken_for_the_video(tmp_path: Path) -> None:
    bare, covered = write_clip(tmp_path / "bare.mkv"), tmp_path / "covered.mkv"
    with av.open(str(bare)) as source, av.open(str(covered), "w") as output:
        output.add_attachment("cover.jpg", "image/jpeg", jpeg(32, 32))
        video = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                output.mux(packet)
    assert probe(covered).codec == "h264"


def test_a_focal_length_is_taken_from_the_file_or_not_at_all(tmp_path: Path) -> None:
    bare, phone = write_clip(tmp_path / "bare.mp4"), tmp_path / "phone.mov"
    with (
        av.open(str(bare)) as source,
        av.open(str(phone), "w", container_options={"movflags": "use_metadata_tags"}) as output,
    ):
        output.metadata["com.apple.quicktime.camera.focal_length.35mm_equivalent"] = "26"
        video = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                output.mux(packet)
    assert probe(bare).focal_px is None
    assert probe(phone).focal_px == pytest.approx(26 / np.hypot(36, 24) * np.hypot(64, 48))


def test_limits_and_tags_have_the_promised_defaults() -> None:
    assert Limits().max_pixels == 4096 * 2304
    assert Limits().max_frames == 3000
    tags = ColorTags(primaries=2, transfer=2, matrix=2, full_range=False)
    assert [tags.resolved_matrix(h) for h in (480, 719, 720, 2160)] == [6, 6, 1, 1]


RATES = st.sampled_from([Fraction(24), Fraction(24000, 1001), Fraction(25), NTSC, Fraction(50), Fraction(60)])
TIME_BASES = st.sampled_from([Fraction(1, 1000), Fraction(1, 600), Fraction(1, 90000), Fraction(1, 12800)])


@given(rate=RATES, time_base=TIME_BASES, count=st.integers(200, 500), start=st.integers(-1000, 100000))
def test_rounded_times_are_a_constant_rate(rate: Fraction, time_base: Fraction, count: int, start: int) -> None:
    pts = [start + round(n / rate / time_base) for n in range(count)]
    assert constant_rate(pts, time_base, [None, rate]) == rate
    undeclared = constant_rate(pts, time_base, [Fraction(1000), None])
    assert undeclared is not None
    assert abs(undeclared - rate) * count / rate**2 <= 2 * time_base


@given(rate=RATES, time_base=TIME_BASES, count=st.integers(10, 300), data=st.data())
def test_a_dropped_frame_is_a_variable_rate(
    rate: Fraction, time_base: Fraction, count: int, data: st.DataObject
) -> None:
    lost = data.draw(st.integers(1, count - 2))
    pts = [round(n / rate / time_base) for n in range(count) if n != lost]
    assert constant_rate(pts, time_base, [rate]) is None


def test_whole_frame_time_bases_do_not_hide_a_dropped_frame() -> None:
    assert constant_rate([0, 1, 2, 4, 5, 6, 7, 8], Fraction(1, 25), [Fraction(25)]) is None


def test_liar_frames_are_probed_by_their_real_size(tmp_path: Path) -> None:
    info, frames = look(write_packets(tmp_path / "a.avi", "mjpeg", [jpeg(64, 48)] * 3, (32, 32)))
    assert (info.width, info.height) == (64, 48)
    assert len(frames) == 3
