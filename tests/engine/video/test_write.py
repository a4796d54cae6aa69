"""What `VideoWriter` and `write_png` leave on disk: the whole file with its colors and sound, or nothing."""

import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from recapture.engine.errors import OutputError, VideoError
from recapture.engine.video import ColorTags, VideoWriter, add_sound, decode, probe, write_png

from .clips import picture, sound_packets, write_clip

NTSC = Fraction(30000, 1001)


def write_frames(path: Path, frames: int = 12, size: tuple[int, int] = (64, 48), **options) -> None:
    width, height = size
    options = {"rate": Fraction(25), "preset": "veryfast", **options}
    with VideoWriter(path, width=width, height=height, **options) as video:
        for index in range(frames):
            video.write(picture(width, height, index))


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9))


@pytest.mark.parametrize("rate", [Fraction(24), NTSC, Fraction(25), Fraction(60), Fraction(15, 2)])
@pytest.mark.parametrize("frames", [1, 2, 31])
def test_frame_count_rate_and_duration_are_kept(tmp_path: Path, rate: Fraction, frames: int) -> None:
    path = tmp_path / "out.mp4"
    write_frames(path, frames, rate=rate)
    info = probe(path)
    assert len(list(decode(path, info))) == frames == info.declared_frames
    if frames > 1:
        assert info.rate == rate
    with av.open(str(path)) as clip:
        assert abs(Fraction(clip.duration, av.time_base) - frames / rate) <= 1 / rate
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_the_index_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    write_frames(path)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(
    "tags", [(6, 6, 6), (1, 1, 1), (5, 6, 5), (12, 13, 1), (9, 14, 9)], ids=["601-525", "709", "601-625", "p3", "2020"]
)
def test_colors_and_tags_survive(tmp_path: Path, tags: tuple[int, int, int], full_range: bool) -> None:
    primaries, transfer, matrix = tags
    color = ColorTags(primaries=primaries, transfer=transfer, matrix=matrix, full_range=full_range)
    path = tmp_path / "out.mp4"
    write_frames(path, 3, (160, 96), color=color, crf=4)
    info = probe(path)
    assert info.color == color
    for index, frame in enumerate(decode(path, info)):
        expected = picture(160, 96, index)
        assert psnr_db(frame.rgb, expected) > 38
        assert np.abs((frame.rgb.astype(float) - expected).mean(axis=(0, 1))).max() < 1.5


@pytest.mark.parametrize(("height", "matrix"), [(48, 6), (720, 1)])
def test_without_tags_the_matrix_of_the_height_is_used_and_written(tmp_path: Path, height: int, matrix: int) -> None:
    path = tmp_path / "out.mp4"
    untagged = ColorTags(primaries=2, transfer=2, matrix=2, full_range=False)
    for color in (None, untagged):
        write_frames(path, 2, (64, height), color=color, crf=4)
        info = probe(path)
        assert info.color.matrix == matrix
        assert psnr_db(next(decode(path, info)).rgb, picture(64, height)) > 36


@pytest.mark.parametrize("size", [(63, 48), (64, 47), (63, 47)])
def test_odd_sizes_are_padded_by_their_edge_never_stretched(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "out.mp4"
    write_frames(path, 2, size, crf=4)
    info = probe(path)
    width, height = size
    assert (info.width, info.height) == (width + width % 2, height + height % 2)
    frame = next(decode(path, info)).rgb
    assert psnr_db(frame[:height, :width], picture(width, height)) > 36
    padded = np.pad(picture(width, height), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    assert psnr_db(frame, padded) > 36


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "source.mp4", 30, audio="aac")

    def written(name: str) -> bytes:
        write_frames(tmp_path / name, 30)
        assert add_sound(tmp_path / name, source) == []
        return (tmp_path / name).read_bytes()

    # Of equal frames x264 itself makes other bytes about once in 2000 files on a loaded machine with AVX-512.
    first = written("a.mp4")
    assert any(written("b.mp4") == first for _ in range(3))


@pytest.mark.parametrize("offset_s", [0.0, 0.3])
@pytest.mark.parametrize(
    ("name", "codec"), [("s.mp4", "aac"), ("s.mkv", "aac"), ("s.mkv", "libopus"), ("s.avi", "libmp3lame")]
)
def test_sound_is_copied_packet_by_packet_with_its_offset(
    tmp_path: Path, name: str, codec: str, offset_s: float
) -> None:
    video = "mpeg4" if name.endswith("avi") else "libx264"
    source = write_clip(tmp_path / name, 50, codec=video, audio=codec, audio_from_s=offset_s)
    out = tmp_path / "out.mp4"
    write_frames(out, 50)
    assert add_sound(out, source) == []
    before, after = sound_packets(source), sound_packets(out)
    assert [data for data, _ in after] == [data for data, _ in before][: len(after)]
    cut = [time_s for _, time_s in before if time_s < 2]
    assert len(after) == len(cut) > 20
    for (_, kept), (_, was) in zip(after, before, strict=False):
        assert abs(kept - was) < Fraction(2, 1000)


def test_sound_is_cut_to_the_video(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "source.mp4", 50, audio="aac")
    out = tmp_path / "out.mp4"
    write_frames(out, 25)
    assert add_sound(out, source) == []
    assert 0.9 < sound_packets(out)[-1][1] < 1.0
    with av.open(str(out)) as clip:
        assert clip.duration / av.time_base == pytest.approx(1, abs=0.04)


def test_a_later_start_takes_the_sound_of_that_moment(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "source.mp4", 50, audio="aac")
    out = tmp_path / "out.mp4"
    write_frames(out, 20)
    assert add_sound(out, source, start_s=0.8) == []
    times = {data: time_s for data, time_s in sound_packets(source)}
    kept = sound_packets(out)
    assert min(time_s for _, time_s in kept) <= 0
    assert max(time_s for _, time_s in kept) > 0.75
    for data, time_s in kept:
        assert abs(times[data] - Fraction(8, 10) - time_s) < Fraction(1, 1000)


def test_sound_is_measured_from_the_first_video_frame(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "late.mkv", 25, times=range(50, 75), audio="aac", audio_from_s=2.0)
    out = tmp_path / "out.mp4"
    write_frames(out, 25)
    assert add_sound(out, source) == []
    assert abs(sound_packets(out)[0][1] - sound_packets(source)[0][1]) < Fraction(2, 1000)


def test_sound_that_mp4_cannot_carry_is_left_out_with_a_warning(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "source.avi", codec="mpeg4", audio="adpcm_ms")
    write_frames(tmp_path / "out.mp4")
    silent = (tmp_path / "out.mp4").read_bytes()
    (warning,) = add_sound(tmp_path / "out.mp4", source)
    assert "adpcm_ms" in warning
    assert (tmp_path / "out.mp4").read_bytes() == silent
    assert not probe(tmp_path / "out.mp4").has_audio


@pytest.mark.parametrize(
    ("healthy", "damaged"),
    [(b"A_OPUS", b"A_OPUX"), (b"c\xa2\x93OpusHead", b"\xec\x94\0OpusHead")],
    ids=["unknown codec", "codec header lost"],
)
def test_damaged_sound_does_not_cost_the_video(tmp_path: Path, healthy: bytes, damaged: bytes) -> None:
    source = write_clip(tmp_path / "source.mkv", 50, audio="libopus")
    data = source.read_bytes()
    assert healthy in data
    source.write_bytes(data.replace(healthy, damaged))
    write_frames(tmp_path / "out.mp4", 10)
    assert len(add_sound(tmp_path / "out.mp4", source)) == 1
    assert probe(tmp_path / "out.mp4").frame_count == 10


def test_only_the_first_of_two_sound_tracks_is_kept_and_said(tmp_path: Path) -> None:
    one, two = write_clip(tmp_path / "one.mkv", audio="aac"), tmp_path / "two.mkv"
    with av.open(str(one)) as source, av.open(str(two), "w") as output:
        video, sound = source.streams.video[0], source.streams.audio[0]
        copies = [output.add_stream_from_template(s, opaque=True) for s in (video, sound, sound)]
        for packet in source.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                output.mux(packet)
    write_frames(tmp_path / "out.mp4")
    assert add_sound(tmp_path / "out.mp4", two) == ["only the first of 2 sound tracks is kept"]
    assert probe(tmp_path / "out.mp4").has_audio


def test_colons_in_a_path_are_part_of_the_name(tmp_path: Path) -> None:
    write_frames(tmp_path / "take 2: http:x.mp4")
    assert probe(tmp_path / "take 2: http:x.mp4").frame_count == 12


def test_a_silent_source_gives_a_silent_video(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "source.mp4")
    write_frames(tmp_path / "out.mp4")
    assert add_sound(tmp_path / "out.mp4", source) == []
    assert not probe(tmp_path / "out.mp4").has_audio


def test_an_unreadable_sound_source_leaves_the_video_as_it_was(tmp_path: Path) -> None:
    write_frames(tmp_path / "out.mp4")
    silent = (tmp_path / "out.mp4").read_bytes()
    with pytest.raises(VideoError):
        add_sound(tmp_path / "out.mp4", tmp_path / "gone.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == silent
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_pictures_and_their_colors_are_untouched_by_the_sound(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "source.mkv", 31, audio="libopus")
    color = ColorTags(primaries=12, transfer=13, matrix=1, full_range=True)
    out = tmp_path / "out.mp4"
    write_frames(out, 31, rate=NTSC, color=color)
    silent = probe(out)
    before = [(frame.time_s, frame.rgb.tobytes()) for frame in decode(out, silent)]
    assert add_sound(out, source) == []
    info = probe(out)
    assert [(frame.time_s, frame.rgb.tobytes()) for frame in decode(out, info)] == before
    assert (info.color, info.rate, info.has_audio) == (color, NTSC, True)
    data = out.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_an_exception_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"the old one")

    def interrupted() -> None:
        with VideoWriter(path, width=64, height=48, rate=Fraction(25)) as video:
            video.write(picture(64, 48))
            assert (tmp_path / "out.mp4.part").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    assert path.read_bytes() == b"the old one"


def test_no_frames_are_no_video(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frames"):
        write_frames(tmp_path / "out.mp4", 0)
    assert list(tmp_path.iterdir()) == []


def test_frames_of_another_shape_or_type_are_a_callers_mistake(tmp_path: Path) -> None:
    for frame in (picture(48, 64), picture(64, 48).astype(np.float32), picture(64, 48)[..., 0]):
        with (
            pytest.raises(ValueError, match="a frame must be uint8"),
            VideoWriter(tmp_path / "out.mp4", width=64, height=48, rate=Fraction(25)) as video,
        ):
            video.write(frame)
    with pytest.raises(ValueError, match="cannot be"):
        VideoWriter(tmp_path / "out.mp4", width=0, height=48, rate=Fraction(25))


@pytest.mark.parametrize("place", ["missing/out.mp4", "file/out.mp4", "folder"])
def test_a_place_that_cannot_be_written_is_named_before_the_first_frame(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(OutputError, match=f"cannot write {tmp_path / place}"),
        VideoWriter(tmp_path / place, width=64, height=48, rate=Fraction(25)),
    ):
        pytest.fail("the block must not be entered")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("room_bytes", [0, 40, 20_000, 60_000])
def test_no_more_room_is_one_error_and_nothing_left(tmp_path: Path, room_bytes: int) -> None:
    path = tmp_path / "out.mp4"

    def write_noise() -> None:
        noise = np.random.default_rng(0).integers(0, 255, (12, 96, 128, 3), dtype=np.uint8)
        with VideoWriter(path, width=128, height=96, rate=Fraction(25), preset="ultrafast") as video:
            for rgb in noise:
                video.write(rgb)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to let any file grow past this, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*out\.mp4: "):
            write_noise()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7), (1, 1)])
def test_pngs_are_lossless(tmp_path: Path, dtype: type, top: int, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).integers(0, top, shape, endpoint=True).astype(dtype)
    path = tmp_path / "a.png"
    write_png(path, image)
    with av.open(str(path)) as opened:
        assert np.array_equal(next(opened.decode(video=0)).to_ndarray(), image)
    if dtype is np.uint8 or image.ndim == 2:  # Pillow knows no 16-bit RGB
        assert np.array_equal(np.asarray(Image.open(path)), image)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_pngs_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_png(tmp_path / "missing" / "a.png", picture(8, 8))
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_png(tmp_path / "a.png", picture(8, 8))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(ValueError, match="uint8 or uint16"):
        write_png(tmp_path / "b.png", picture(8, 8).astype(np.float32))
