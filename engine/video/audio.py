"""Copies a clip's sound packet by packet into another file: no re-encoding, the offset against the picture kept."""

import io
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet

from .clip import DEFAULT_LIMITS
from .opening import first_picture, frame_pts, open_clip, video_of

_PREROLL_S = Fraction(1, 10)
"""Sound kept before the start, hidden by the file's edit list: codecs need a packet or two (AAC 1024 samples, Opus
80 ms) before what they give out is right."""


class AudioCopy:
    """The first sound track of `source`, from `start_s` after its first video frame on.

    Raises VideoError if `source` cannot be read. `warnings` says what could not be kept.
    """

    def __init__(self, source: Path, start_s: float, output: OutputContainer) -> None:
        self.warnings: list[str] = []
        self._open = ExitStack()
        self._packets: Iterator[Packet] = iter(())
        self._waiting: Packet | None = None
        self._last_dts: int | None = None
        self._output = output
        origin_s = _video_origin_s(source)
        container = self._open.enter_context(open_clip(source, DEFAULT_LIMITS))
        if not container.streams.audio:
            return
        track = container.streams.audio[0]
        if len(container.streams.audio) > 1:
            self.warnings.append(f"only the first of {len(container.streams.audio)} sound tracks is kept")
        if not _mp4_carries(track):
            codec = track.codec_context.name if track.codec_context is not None else "unknown"
            self.warnings.append(f"the sound is left out: MP4 cannot carry its codec ({codec}) without re-encoding")
            return
        assert track.time_base is not None
        self._time_base = track.time_base
        self._shift = round((origin_s + Fraction(start_s)) / track.time_base)
        self._stream = output.add_stream_from_template(track)
        self._packets = container.demux(track)

    def copy_until(self, end_s: Fraction) -> None:
        """Muxes every packet that starts before `end_s` on the output's clock."""
        while (packet := self._next()) is not None:
            dts = packet.dts
            assert dts is not None
            if dts * self._time_base >= end_s:
                self._waiting = packet
                return
            packet.stream = self._stream
            self._output.mux(packet)

    def close(self) -> None:
        self._packets = iter(())
        self._open.close()

    def _next(self) -> Packet | None:
        """The next packet on the output's clock, in rising order."""
        if self._waiting is not None:
            packet, self._waiting = self._waiting, None
            return packet
        for packet in self._packets:
            stamp = packet.pts if packet.pts is not None else packet.dts
            if not packet.size or packet.is_corrupt or stamp is None:
                continue
            stamp -= self._shift
            ends = stamp + (packet.duration or 0)
            if ends * self._time_base <= -_PREROLL_S or (self._last_dts is not None and stamp <= self._last_dts):
                continue
            packet.pts = packet.dts = self._last_dts = stamp
            return packet
        return None


def _video_origin_s(source: Path) -> Fraction:
    """When the first video frame is shown, on the clock of the file; 0 without video."""
    with open_clip(source, DEFAULT_LIMITS) as container:
        stream = video_of(container, DEFAULT_LIMITS)
        if stream is None or stream.time_base is None:
            return Fraction(0)
        return frame_pts(first_picture(container, stream, source.name, DEFAULT_LIMITS)) * stream.time_base


def _mp4_carries(track: AudioStream) -> bool:
    """Tries it on a header in memory: the muxer's tables say yes to some codecs that it then refuses to write."""
    try:
        with av.open(io.BytesIO(), "w", format="mp4") as trial:
            trial.add_stream_from_template(track)
            trial.start_encoding()
    except (ValueError, FFmpegError):
        return False
    return True
