"""Opens files with everything shut that a hostile one could use, and gives their first picture."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ..errors import VideoError
from .admit import ACCEPTED, container_of, cut_short
from .clip import Limits

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg", "prores", "dnxhd", "ffv1")

_DECODERS = (*CODECS, "libdav1d")
_DECODER_THREADS = 4  # fixed: the frames in flight, and so the memory, must not grow with the machine


@contextmanager
def open_clip(path: Path, limits: Limits, name: str | None = None) -> Iterator[InputContainer]:
    """Opens a file for reading with everything shut that a hostile one could use; libav's errors become VideoError.

    Args:
        name: what errors call it, where the file has a name of our own.

    The `file:` prefix keeps a name such as `concat:a|b` from being read as an address. `max_pixels` bounds the frame
    that libav decodes while it looks for the streams' parameters; the decoders used later get theirs in `video_of`.
    """
    name = name or path.name
    container = container_of(path, name)
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi",
        "codec_whitelist": ",".join(_DECODERS),
        "max_pixels": str(_decoder_pixels(limits)),
    }
    try:
        with av.open(
            f"file:{path.resolve()}", "r", format=container, options=options, metadata_errors="replace"
        ) as opened:
            yield opened
    except FFmpegError as error:
        if cut_short(path, container):
            raise VideoError(f"{name} ends early: it was cut short before its first frame can be read") from error
        raise VideoError(f"{name} is damaged and cannot be read ({error.strerror}); pass {ACCEPTED}") from error


def video_of(container: InputContainer, limits: Limits) -> VideoStream | None:
    """The first video stream (cover art does not count), with a bounded decoder; None if the file has none."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        return None
    stream = streams[0]
    if stream.codec_context is not None:
        stream.codec_context.options = {"max_pixels": str(_decoder_pixels(limits))}
        stream.codec_context.thread_type = "AUTO"
        stream.codec_context.thread_count = _DECODER_THREADS
    return stream


def _decoder_pixels(limits: Limits) -> int:
    # Decoders count the padding to whole blocks, so the exact cap is held against the frames themselves.
    return limits.max_pixels * 9 // 8 + 65536


def first_picture(container: InputContainer, stream: VideoStream, name: str, limits: Limits) -> VideoFrame:
    """Decodes up to the first frame. Raises VideoError if none decodes within the limits."""
    context = stream.codec_context
    if context.width * context.height:
        check_size(context.width, context.height, name, limits)
    packets = 0
    try:
        for packet in container.demux(stream):
            packets += bool(packet.size)
            for frame in packet.decode():
                check_size(frame.width, frame.height, name, limits)
                return frame
    except FFmpegError as error:
        # What a decoder says of a frame over `max_pixels` is what it says of a damaged one.
        raise VideoError(
            f"{name} cannot be decoded: its frames are damaged or over the {limits.max_pixels} pixels accepted"
        ) from error
    raise VideoError(f"{name} has {'no frame that can be decoded' if packets else 'no frames'}; pass {ACCEPTED}")


def frame_pts(frame: VideoFrame) -> int:
    """A frame's presentation time in its stream's time base (0 where the file gives none)."""
    return frame.pts if frame.pts is not None else (frame.dts or 0)


def check_size(width: int, height: int, name: str, limits: Limits) -> None:
    """Raises VideoError for a frame over the cap."""
    if width * height > limits.max_pixels:
        raise VideoError(
            f"{name} has frames of {width}x{height}; at most {limits.max_pixels} pixels a frame are accepted"
        )
