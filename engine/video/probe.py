"""Looks at a clip once, through, and refuses by name what the engine would otherwise show wrongly."""

import shlex
from fractions import Fraction
from pathlib import Path, PurePath

from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ..errors import VideoError
from .admit import ACCEPTED, container_of, cut_short
from .clip import DEFAULT_LIMITS, ClipInfo, ColorTags, Limits
from .geometry import display_size, focal_px, orientation
from .opening import CODECS, check_size, first_picture, frame_pts, open_clip, video_of
from .rates import constant_rate

_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
_TO_SDR = "-vf zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,tonemap=hable,zscale=t=bt709:m=bt709:r=tv,format=yuv420p"
_MOST_PACKETS = 1_000_000
"""In a file, whatever is used of it: their times are held in memory."""
_MATRICES = (0, 1, 2, 3, 4, 5, 6, 7, 9)  # those that the scaler converts; 0 is RGB


def probe(
    path: Path,
    limits: Limits = DEFAULT_LIMITS,
    *,
    name: str | None = None,
    first_frame: int = 0,
    max_frames: int | None = None,
) -> ClipInfo:
    """Reads all packet times and decodes one frame.

    Args:
        name: what errors call the file, where it has a name of our own.
        first_frame: the caps on frames, seconds and pixels hold for the frames from here on,
        max_frames: and for at most this many.

    Raises VideoError in one sentence for a clip that is not video, broken off, over a cap, or of a kind that is not
    supported (interlaced, HDR, variable frame rate).
    """
    name = name or path.name
    with open_clip(path, limits, name) as container:
        if len(container.streams) > limits.max_streams:
            raise VideoError(f"{name} has {len(container.streams)} streams; at most {limits.max_streams} are accepted")
        stream = video_of(container, limits)
        if stream is None:
            what = "sound but no video" if container.streams.audio else "no video frames"
            raise VideoError(f"{name} has {what}; pass {ACCEPTED} with a video stream")
        codec = _codec(stream, name)
        frame = first_picture(container, stream, name, limits)
        refuse_kind(stream, frame, name)
        start_pts = frame_pts(frame)
        declared = stream.frames or None
        rates = (stream.guessed_rate, stream.average_rate, stream.base_rate)
        has_audio = bool(container.streams.audio)
        metadata = {**container.metadata, **stream.metadata}
        color = _color(stream, frame)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        time_base = stream.time_base
        pix_fmt = frame.format.name
        coded = (frame.width, frame.height)
        rotation_deg, mirrored = orientation(frame, name)
    assert time_base is not None
    pts = _packet_times(path, start_pts, limits, name)
    if cut_short(path, container_of(path, name)) and not (declared and len(pts) >= declared):
        raise VideoError(f"{name} ends early at frame {len(pts)}: the file was cut short; export or copy it again")
    rate = constant_rate(pts, time_base, rates)
    if rate is None:
        raise VideoError(
            f"{name} has a variable frame rate, which is not supported yet; make it constant first: "
            + ffmpeg(name, "-vf fps=30", "cfr")
        )
    width, height = display_size(*coded, aspect, rotation_deg, name)
    check_size(width, height, name, limits)
    used = max(0, min(len(pts) - first_frame, len(pts) if max_frames is None else max_frames))
    _check_caps(name, used, rate, width, height, limits)
    return ClipInfo(
        width=width,
        height=height,
        coded_width=coded[0],
        coded_height=coded[1],
        rotation_deg=rotation_deg,
        mirrored=mirrored,
        sample_aspect=aspect,
        rate=rate,
        time_base=time_base,
        duration_s=float(len(pts) / rate),
        declared_frames=declared,
        container=container_of(path, name),
        codec=codec,
        pix_fmt=pix_fmt,
        color=color,
        has_audio=has_audio,
        focal_px=focal_px(metadata, width, height),
    )


def _check_caps(name: str, used: int, rate: Fraction, width: int, height: int, limits: Limits) -> None:
    """Raises VideoError where the frames that are used are too many, last too long or have too many pixels."""
    part = "use a part of it (`decode.first_frame`, `decode.max_frames`)"
    if used > limits.max_frames:
        raise VideoError(
            f"{name} has {used} frames to be used, at most {limits.max_frames} are accepted; {part}, or raise `max_frames`"
        )
    if used / rate > limits.max_duration_s:
        raise VideoError(
            f"{name} lasts {float(used / rate):.1f} s, at most {limits.max_duration_s:g} s are accepted; {part}"
        )
    if width * height * used > limits.max_total_pixels:
        raise VideoError(
            f"{name} has {width}x{height} pixels in {used} frames, at most {limits.max_total_pixels} pixels in all are "
            f"accepted; shrink it, or {part}"
        )


def ffmpeg(name: str, options: str, ending: str) -> str:
    """The command that makes an acceptable clip of the user's file."""
    made = f"{PurePath(name).stem}-{ending}.mp4"
    return f"ffmpeg -i {shlex.quote(name)} {options} {shlex.quote(made)}"


def refuse_kind(stream: VideoStream, frame: VideoFrame, name: str) -> None:
    """Raises VideoError for pictures that would be converted wrongly: interlaced, HDR, an unknown matrix."""
    if frame.interlaced_frame or stream.codec_context.field_order > 1:
        raise VideoError(f"{name} is interlaced; deinterlace it first: {ffmpeg(name, '-vf bwdif', 'progressive')}")
    transfer = int(frame.color_trc)
    if transfer not in _HDR_TRANSFERS:
        transfer = int(stream.codec_context.color_trc)
    if transfer in _HDR_TRANSFERS:
        raise VideoError(
            f"{name} is HDR ({_HDR_TRANSFERS[transfer]}), which is not supported yet; convert it to SDR (BT.709) first: "
            + ffmpeg(name, _TO_SDR, "sdr")
        )
    if int(frame.colorspace) not in _MATRICES:
        raise VideoError(f"{name} has color matrix {int(frame.colorspace)}, which is not supported; use BT.709")


def _codec(stream: VideoStream, name: str) -> str:
    codec = stream.codec_context.codec.canonical_name if stream.codec_context is not None else "an unknown codec"
    if codec not in CODECS:
        raise VideoError(f"{name} is coded as {codec}; accepted are {', '.join(CODECS)}")
    return codec


def _packet_times(path: Path, start_pts: int, limits: Limits, name: str) -> list[int]:
    """Ascending presentation times of the packets that show a picture, from the first frame that can be decoded on."""
    times: list[int] = []
    with open_clip(path, limits, name) as container:
        stream = video_of(container, limits)
        assert stream is not None
        hidden_bit = 0x10 if stream.codec_context.name == "vp8" else 0
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard:
                continue
            if packet.is_corrupt:
                raise VideoError(f"{name} ends early at frame {len(times)}: the file was cut short or is damaged")
            if hidden_bit and not bytes(packet)[0] & hidden_bit:
                continue  # a VP8 reference picture that is never shown
            if (pts := packet.pts if packet.pts is not None else packet.dts) is None:
                continue
            if pts < start_pts and container.format.name != "avi":  # AVI's times are of decoding, not of showing
                continue
            times.append(pts)
            if len(times) > _MOST_PACKETS:
                raise VideoError(f"{name} has more than {_MOST_PACKETS} frames; cut it first")
    return sorted(times) or [start_pts]


def _color(stream: VideoStream, frame: VideoFrame) -> ColorTags:
    context = stream.codec_context
    primaries, transfer, matrix = (
        int(of_frame) if int(of_frame) != 2 else int(of_stream)
        for of_frame, of_stream in (
            (frame.color_primaries, context.color_primaries),
            (frame.color_trc, context.color_trc),
            (frame.colorspace, context.colorspace),
        )
    )
    full_range = 2 in (int(frame.color_range), int(context.color_range)) or frame.format.name.startswith("yuvj")
    return ColorTags(primaries=primaries, transfer=transfer, matrix=matrix, full_range=full_range)
