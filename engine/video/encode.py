"""Writes H.264 MP4 files: whole or not at all, the same bytes for the same frames."""

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from ..errors import OutputError
from .clip import UNSPECIFIED, ColorTags
from .decode import SCALER_FLAGS, SCALER_MATRIX

_THREADS = 4  # x264's choices depend on it, so it is no machine's business


class VideoWriter:
    """Writes frames to an H.264 yuv420p MP4 with the index in front (faststart).

    Used as a context manager. The file is built as `PATH.part`, flushed to disk and renamed when the block ends well;
    if it ends in an exception nothing is left. Odd sizes are padded by their last row and column, never stretched:
    the file is then one pixel wider or higher than `width` and `height`.

    Args:
        path: The file to write; an existing one is replaced at the end.
        width: Of the frames given to `write`, in pixels.
        height: Likewise.
        rate: Frames per second.
        color: Tags to convert by and to write. Without a matrix, the one players assume of this height is used and
            written.
        crf: x264's constant quality, 0 (lossless) to 51.
        preset: x264's speed ("ultrafast" to "placebo").

    Raises:
        OutputError: The file cannot be written (no permission, disk full, no frames).
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        rate: Fraction,
        color: ColorTags | None = None,
        crf: int = 16,
        preset: str = "medium",
    ) -> None:
        if width < 1 or height < 1 or rate <= 0:
            raise ValueError(f"a video of {width}x{height} at {rate} frames a second cannot be")
        self.path = Path(path)
        self._part = self.path.with_name(self.path.name + ".part")
        self._shape = (height, width, 3)
        self._rate = Fraction(rate)
        tags = color or ColorTags(primaries=UNSPECIFIED, transfer=UNSPECIFIED, matrix=UNSPECIFIED, full_range=False)
        self._color = ColorTags(
            primaries=tags.primaries,
            transfer=tags.transfer,
            matrix=tags.resolved_matrix(height),
            full_range=tags.full_range,
        )
        self._options = {"crf": str(crf), "preset": preset}
        self._container: OutputContainer | None = None
        self._reformatter = VideoReformatter()
        self._frames = 0

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise OutputError(f"cannot write {self.path}: it is a folder")
        try:
            self._part.open("wb").close()  # libav opens it with the first frame: too late to say that it cannot
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._start()
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, rgb: np.ndarray) -> None:
        """Appends one frame, uint8 [H, W, 3].

        Raises ValueError for another shape or type, OutputError if the file cannot be written.
        """
        if rgb.shape != self._shape or rgb.dtype != np.uint8:
            raise ValueError(f"a frame must be uint8 {self._shape}, not {rgb.dtype} {rgb.shape}")
        frame = self._to_yuv(rgb)
        frame.pts, frame.time_base = self._frames, 1 / self._rate
        try:
            self._mux(self._stream.encode(frame))
            self._frames += 1
        except (FFmpegError, OSError) as error:
            raise self._failed(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._finish()
        except (FFmpegError, OSError) as failure:
            self._discard()
            raise self._failed(failure) from failure
        except BaseException:
            self._discard()
            raise

    def _start(self) -> None:
        height, width, _ = self._shape
        # `file:` keeps a colon in a path from being read as a protocol.
        self._container = av.open(
            f"file:{self._part.absolute()}", "w", format="mp4", container_options={"movflags": "faststart"}
        )
        self._stream: VideoStream = self._container.add_stream(
            "libx264",
            rate=self._rate,
            options=self._options,
            width=width + width % 2,
            height=height + height % 2,
            time_base=1 / self._rate,
        )
        context = self._stream.codec_context
        context.thread_count = _THREADS
        context.color_primaries = self._color.primaries
        context.color_trc = self._color.transfer
        context.colorspace = self._color.matrix
        context.color_range = ColorRange.JPEG if self._color.full_range else ColorRange.MPEG

    def _finish(self) -> None:
        assert self._container is not None
        if not self._frames:
            raise OutputError(f"cannot write {self.path}: no frames were given")
        self._mux(self._stream.encode(None))
        self._close()
        with self._part.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(self._part, self.path)

    def _to_yuv(self, rgb: np.ndarray) -> VideoFrame:
        height, width, _ = self._shape
        if height % 2 or width % 2:
            rgb = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        matrix = SCALER_MATRIX[self._color.matrix]
        frame = self._reformatter.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24"),
            format="yuv420p",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.JPEG if self._color.full_range else ColorRange.MPEG,
            interpolation=SCALER_FLAGS | int(Interpolation.FULL_CHR_H_INP),
            threads=1,
        )
        frame.color_primaries = self._color.primaries
        frame.color_trc = self._color.transfer
        frame.colorspace = self._color.matrix
        return frame

    def _mux(self, packets: list[av.Packet]) -> None:
        assert self._container is not None
        for packet in packets:
            packet.duration = packet.duration or round(1 / self._rate / packet.time_base)
            self._container.mux(packet)

    def _close(self) -> None:
        if self._container is not None:
            container, self._container = self._container, None
            container.close()

    def _discard(self) -> None:
        try:
            self._close()
        except (FFmpegError, OSError):
            pass  # the block's own error is the one to tell
        finally:
            self._part.unlink(missing_ok=True)

    def _failed(self, error: Exception) -> OutputError:
        cause = getattr(error, "strerror", None) or error
        return OutputError(f"cannot write {self.path}: {cause}")
