"""Frames as upright RGB with square pixels, one at a time: memory does not grow with the clip."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from ..errors import VideoError
from .clip import DEFAULT_LIMITS, ClipInfo, Limits
from .opening import frame_pts, open_clip, video_of
from .probe import ffmpeg, refuse_kind

SCALER_FLAGS = int(Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)
"""Without the last two, libswscale rounds down and drops every other chroma sample."""

# libswscale names the matrices by its own numbers, equal to H.273's but for 6, which is 5's twin.
SCALER_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a clip."""

    index: int
    """Counted from the clip's first frame, whatever `first_frame` was."""
    pts: int
    """The file's own presentation time, in `ClipInfo.time_base`; AVI has none and may give them out of order."""
    time_s: Fraction
    """Seconds since the clip's first frame: index over rate. `probe` saw that the file's times say the same, but
    for what its time base rounds off."""
    rgb: np.ndarray
    """uint8 [H, W, 3], contiguous."""


def decode(
    path: Path,
    info: ClipInfo,
    limits: Limits = DEFAULT_LIMITS,
    *,
    first_frame: int = 0,
    max_frames: int | None = None,
    name: str | None = None,
) -> Iterator[Frame]:
    """Yields the frames `first_frame`, ... of a probed clip, at most `max_frames`, in the order they are shown.

    The caps of `limits` are counted on what comes out of the decoder, since a header can say anything; `name` is what
    errors call a file that has a name of our own.

    Raises VideoError (while iterating) where a cap is passed, the frame size changes, a frame cannot be decoded, or
    the clip ends before the frame that `info` counted as its last.
    """
    name = name or path.name
    stop = info.frame_count if max_frames is None else min(info.frame_count, first_frame + max_frames)
    reformatter = VideoReformatter()
    if stop <= first_frame:
        return
    index = -1
    for index, frame in enumerate(_pictures(path, limits, name)):
        _check(index, index - first_frame, frame, info, limits, name)
        if index >= first_frame:
            yield Frame(index, frame_pts(frame), index / info.rate, _upright_rgb(frame, info, reformatter))
        if index + 1 == stop:
            return
    raise VideoError(f"{name} ends early at frame {index + 1} of {info.frame_count}: it is cut short or damaged")


def _pictures(path: Path, limits: Limits, name: str) -> Iterator[VideoFrame]:
    """All shown frames; what libav says of a damaged one becomes a VideoError with its number."""
    count = 0
    with open_clip(path, limits, name) as container:
        stream = video_of(container, limits)
        if stream is None:
            raise VideoError(f"{name} has no video")
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise VideoError(f"{name} ends early at frame {count}: the file was cut short or is damaged")
                for frame in packet.decode():
                    if count == 0:
                        refuse_kind(stream, frame, name)
                    if frame.is_corrupt:  # decoders paint over damage and say so here only
                        raise VideoError(f"{name} is damaged at frame {count}; copy or export it again")
                    count += 1
                    yield frame
        except FFmpegError as error:
            raise VideoError(
                f"{name} cannot be decoded past frame {count} ({error.strerror}): it is damaged, "
                f"or that frame is over the {limits.max_pixels} pixels accepted"
            ) from error


def _check(index: int, used: int, frame: VideoFrame, info: ClipInfo, limits: Limits, name: str) -> None:
    """Raises VideoError for frame `index` of the clip, the one numbered `used` of those that are used."""
    if (frame.width, frame.height) != (info.coded_width, info.coded_height):
        raise VideoError(
            f"{name} changes its frame size at frame {index}, from {info.coded_width}x{info.coded_height} to "
            f"{frame.width}x{frame.height}; a clip must keep one size"
        )
    if frame.interlaced_frame:
        raise VideoError(
            f"{name} is interlaced from frame {index}; deinterlace it first: {ffmpeg(name, '-vf bwdif', 'progressive')}"
        )
    if max(frame.width * frame.height, info.width * info.height) > limits.max_pixels:
        raise VideoError(f"{name} has frames of {info.width}x{info.height}; at most {limits.max_pixels} pixels a frame")
    if used >= limits.max_frames:
        raise VideoError(f"{name} has more than {limits.max_frames} frames, the most accepted; use a part of it")
    if used / info.rate > limits.max_duration_s:
        raise VideoError(f"{name} lasts over {limits.max_duration_s:g} s, the most accepted; use a part of it")
    if (used + 1) * info.width * info.height > limits.max_total_pixels:
        raise VideoError(f"{name} has over {limits.max_total_pixels} pixels in all, the most accepted; shorten it")


def _upright_rgb(frame: VideoFrame, info: ClipInfo, reformatter: VideoReformatter) -> np.ndarray:
    """Resampled to square pixels, converted by the tags of the clip, then turned: uint8 [H, W, 3]."""
    quarter_turn = info.rotation_deg in (90, 270)
    width, height = (info.height, info.width) if quarter_turn else (info.width, info.height)
    matrix = SCALER_MATRIX[info.color.resolved_matrix(info.coded_height)]
    rgb = reformatter.reformat(
        frame,
        width,
        height,
        "rgb24",
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=ColorRange.JPEG if info.color.full_range else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=SCALER_FLAGS,
        threads=1,
    ).to_ndarray()
    rgb = np.rot90(rgb, k=-info.rotation_deg // 90)
    if info.mirrored:
        rgb = rgb[:, ::-1]
    return np.ascontiguousarray(rgb)
