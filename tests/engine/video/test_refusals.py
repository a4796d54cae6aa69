"""Clips that are no good are refused by name, in one sentence, before anything is computed from them."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest

from recapture.engine.errors import OutputError, VideoError
from recapture.engine.video import Limits, admit, decode, probe

from .clips import jpeg, write_bomb, write_clip, write_packets, write_sound


def refusal(path: Path, limits: Limits = Limits()) -> str:  # noqa: B008
    """The sentence with which a file is turned away, whether at the door or at the first look."""
    with pytest.raises(VideoError) as raised:
        probe(admit(path, path.parent, limits), limits)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "holiday.mp4", 40)


def test_admit_copies_under_a_name_of_our_own(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    admitted = admit(str(clip), folder)
    assert admitted == folder / "clip.mp4"
    assert admitted.read_bytes() == clip.read_bytes()
    assert [p.name for p in folder.iterdir()] == ["clip.mp4"]


def test_admit_names_the_copy_by_content_not_by_suffix(tmp_path: Path) -> None:
    matroska = write_clip(tmp_path / "a.mkv", 2).rename(tmp_path / "a.mp4")
    assert admit(matroska, tmp_path).name == "clip.mkv"
    assert admit(write_clip(tmp_path / "b.avi", 2, codec="mpeg4"), tmp_path).name == "clip.avi"


def test_admit_says_when_the_folder_cannot_be_written(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot copy"):
        admit(clip, tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.mp4", b"", "empty"),
        ("notes.mp4", b"Dear diary, " * 100, "not a video"),
        ("photo.mp4", jpeg(64, 48), "still image"),
        ("photo.png", b"\x89PNG\r\n\x1a\n" + bytes(100), "still image"),
        ("photo.heic", b"\0\0\0\x18ftypheic" + bytes(100), "still image"),
        ("song.mp4", b"ID3\x04" + bytes(100), "sound file"),
        ("list.m3u8", b"#EXTM3U\n", "playlist"),
        ("LIST.M3U8", b"\0\0\0\x18ftypisom", "playlist"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n", "playlist"),
        ("list2.mp4", b"\xef\xbb\xbf#EXTM3U\n", "playlist"),
        ("script.mp4", b"ffconcat version 1.0\nfile '/etc/passwd'\n", "not a video"),
    ],
)
def test_other_files_are_refused_and_told_what_is_accepted(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert says in message
    assert "MP4/MOV, Matroska/WebM or AVI" in message


def test_missing_files_folders_and_addresses_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "gone.mp4")
    assert "image sequences are not supported yet" in refusal(tmp_path)
    with pytest.raises(VideoError, match="is an address"):
        admit("https://example.org/clip.mp4", tmp_path)


def test_file_size_is_capped(clip: Path) -> None:
    assert "at most 100 are accepted" in refusal(clip, Limits(max_bytes=100))


@pytest.mark.parametrize("name", ["concat:a.mp4", "http:b.mp4", "100% äö.mp4"])
def test_names_are_never_read_as_addresses(tmp_path: Path, name: str) -> None:
    assert probe(write_clip(tmp_path / "a.mp4", 2).rename(tmp_path / name)).frame_count == 2


def test_text_in_no_known_encoding_does_no_harm(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 2, metadata={"title": "TITLE"})
    path.write_bytes(path.read_bytes().replace(b"TITLE", b"\xff\xfe\xfd\xfc\xfb"))
    assert probe(path).frame_count == 2


@pytest.fixture
def canary() -> Iterator[tuple[int, list[str]]]:
    """A web server that must not be asked for anything: (port, paths that were asked for)."""
    hits: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1], hits
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.avi"])
def test_playlists_make_no_network_request(tmp_path: Path, canary: tuple[int, list[str]], name: str) -> None:
    port, hits = canary
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n"
    path = tmp_path / name
    path.write_text(playlist)
    for look in (lambda: probe(path), lambda: probe(admit(path, tmp_path))):
        with pytest.raises(VideoError):
            look()
    assert hits == []


def test_the_canary_sings(tmp_path: Path, canary: tuple[int, list[str]]) -> None:
    port, hits = canary
    path = tmp_path / "list.m3u8"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(av.FFmpegError):
        av.open(str(path), options={"protocol_whitelist": "file,http,tcp"})
    assert hits


def test_sound_without_video_is_refused(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "sound.mp4")
    assert "sound but no video" in refusal(path)


@pytest.mark.parametrize(("name", "codec"), [("none.mp4", "libx264"), ("none.mkv", "libx264"), ("none.avi", "mpeg4")])
def test_a_clip_without_frames_is_refused(tmp_path: Path, name: str, codec: str) -> None:
    refusal(write_clip(tmp_path / name, 0, codec=codec))


def test_interlaced_video_is_refused_with_a_hint(tmp_path: Path) -> None:
    interlaced = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    assert "bwdif" in refusal(write_clip(tmp_path / "tv.mp4", options=interlaced))


@pytest.mark.parametrize(("transfer", "curve"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused_by_name(tmp_path: Path, transfer: int, curve: str) -> None:
    message = refusal(write_clip(tmp_path / "hdr.mkv", color_trc=transfer, color_primaries=9, colorspace=9))
    assert f"HDR ({curve})" in message


def test_a_variable_frame_rate_is_refused(tmp_path: Path) -> None:
    times = [0, 40, 80, 160, 200, 280, 300, 340, 400, 500]
    message = refusal(write_clip(tmp_path / "phone.mp4", times=times, time_base=Fraction(1, 1000)))
    assert "variable frame rate" in message


def test_a_codec_off_the_list_is_refused(tmp_path: Path) -> None:
    assert "huffyuv" in refusal(write_clip(tmp_path / "a.avi", codec="huffyuv", pix_fmt="yuv422p"))


def test_streams_frames_duration_and_pixels_are_capped(clip: Path) -> None:
    assert "streams" in refusal(clip, Limits(max_streams=0))
    assert "40 frames to be used, at most 39" in refusal(clip, Limits(max_frames=39))
    assert "lasts 1.6 s" in refusal(clip, Limits(max_duration_s=1))
    assert "pixels in all" in refusal(clip, Limits(max_total_pixels=64 * 48 * 39))
    assert "64x48" in refusal(clip, Limits(max_pixels=64 * 48 - 1))


def test_caps_count_the_frames_that_are_used(clip: Path) -> None:
    limits = Limits(max_frames=6, max_duration_s=0.3, max_total_pixels=64 * 48 * 6)
    part = {"first_frame": 30, "max_frames": 6}
    assert [frame.index for frame in decode(clip, probe(clip, limits, **part), limits, **part)] == list(range(30, 36))
    with pytest.raises(VideoError, match=r"holiday\.mp4 has 7 frames to be used, at most 6"):
        probe(clip, limits, first_frame=33)


def test_errors_name_the_users_file_and_the_command_that_helps(tmp_path: Path) -> None:
    film = {"codec": "libx265", "pix_fmt": "yuv420p10le", "color_trc": 16, "options": {"x265-params": "log-level=none"}}
    clip = admit(write_clip(tmp_path / "my film.mov", **film), tmp_path)
    with pytest.raises(
        VideoError, match=r"my film\.mov is HDR \(PQ\).*: ffmpeg -i 'my film\.mov' .*'my film-sdr\.mp4'"
    ):
        probe(clip, name="my film.mov")
    times = [0, 40, 80, 160, 200, 280, 300, 340, 400, 500]
    clip = write_clip(tmp_path / "phone.mp4", times=times, time_base=Fraction(1, 1000))
    with pytest.raises(VideoError, match=r"ffmpeg -i phone\.mp4 -vf fps=30 phone-cfr\.mp4"):
        probe(clip)


def test_caps_are_inclusive(clip: Path) -> None:
    limits = Limits(max_frames=40, max_pixels=64 * 48, max_total_pixels=64 * 48 * 40, max_duration_s=1.6, max_streams=1)
    assert len(list(decode(clip, probe(clip, limits), limits))) == 40


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_small_file_with_huge_frames_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write_bomb(tmp_path / f"bomb.{suffix}")
    assert path.stat().st_size < 10_000
    assert "pixels" in refusal(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_header_that_claims_small_frames_does_not_help(tmp_path: Path, suffix: str) -> None:
    path = write_packets(tmp_path / f"liar.{suffix}", "mjpeg", [jpeg(640, 480)] * 3, (64, 48))
    assert "pixels" in refusal(path, Limits(max_pixels=64 * 48))


def test_the_decoder_itself_refuses_frames_over_the_cap(tmp_path: Path) -> None:
    path = write_packets(tmp_path / "liar.avi", "mjpeg", [jpeg(64, 48)] * 2 + [jpeg(640, 480)], (64, 48))
    limits = Limits(max_pixels=64 * 48)
    frames = decode(path, probe(path, limits), limits)
    assert [next(frames).index, next(frames).index] == [0, 1]
    with pytest.raises(VideoError, match="past frame 2"):
        next(frames)


def test_a_frame_size_that_changes_is_refused(tmp_path: Path) -> None:
    path = write_packets(tmp_path / "jump.avi", "mjpeg", [jpeg(64, 48)] * 2 + [jpeg(48, 64)], (64, 48))
    with pytest.raises(VideoError, match="changes its frame size at frame 2"):
        list(decode(path, probe(path)))


def test_caps_are_counted_again_while_decoding(clip: Path) -> None:
    info = probe(clip)
    for limits, says in [
        (Limits(max_frames=5), "more than 5 frames"),
        (Limits(max_total_pixels=64 * 48 * 5), "pixels in all"),
        (Limits(max_duration_s=0.2), "lasts over"),
    ]:
        seen: list[int] = []
        with pytest.raises(VideoError, match=says):
            seen.extend(frame.index for frame in decode(clip, info, limits))
        assert len(seen) in (5, 6)


@pytest.mark.parametrize(
    ("name", "codec", "flags"),
    [
        ("front.mp4", "libx264", {"movflags": "faststart"}),
        ("back.mp4", "libx264", {}),
        ("a.mkv", "libx264", {}),
        ("a.avi", "mpeg4", {}),
    ],
)
def test_a_file_cut_short_is_refused_and_says_where(
    tmp_path: Path, name: str, codec: str, flags: dict[str, str]
) -> None:
    path = write_clip(tmp_path / name, 60, codec=codec, container_options=flags)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 8 // 10])
    message = refusal(path)
    assert "ends early" in message
    if name != "back.mp4":  # without the index at the end of the file no frame can be found
        frame = int(message.split("at frame ")[1].split(":")[0])
        assert 5 < frame < 60


def test_a_file_that_shrinks_after_the_probe_is_refused_where_it_ends(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", 60)
    info = probe(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VideoError, match="ends early at frame"):
        list(decode(path, info))


def test_damage_that_a_decoder_paints_over_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 30, (128, 96), options={"bf": "0"})
    info, whole = probe(path), path.read_bytes()
    with av.open(str(path)) as opened:
        packet = [(p.pos, p.size) for p in opened.demux(video=0) if p.size][12]
    middle = (packet[0] or 0) + packet[1] // 2
    path.write_bytes(whole[:middle] + bytes(20) + whole[middle + 20 :])
    with pytest.raises(VideoError, match="frame 12"):
        list(decode(path, info))


def test_damage_in_the_middle_never_ends_in_a_traceback_of_another_kind(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 60)
    whole = path.read_bytes()
    for start in range(2000, len(whole) - 100, 3000):
        path.write_bytes(whole[:start] + b"\xff" * 60 + whole[start + 60 :])
        with contextlib.suppress(VideoError):
            assert len(list(decode(path, probe(path)))) == 60
