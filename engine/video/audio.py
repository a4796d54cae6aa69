"""Copies a clip's sound packet by packet into another video: no re-encoding, the offset against the picture kept."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet

from ..errors import OutputError, VideoError
from .clip import DEFAULT_LIMITS, Limits
from .opening import first_picture, frame_pts, open_clip, video_of

_PREROLL_S = Fraction(1, 10)
"""Sound kept before the start, hidden by the file's edit list: codecs need a packet or two (AAC 1024 samples, Opus
80 ms) before what they give out is right."""


def add_sound(video: Path, source: Path, *, start_s: float = 0.0, limits: Limits = DEFAULT_LIMITS) -> list[str]:
    """Give a silent MP4 the sound of a clip, up to where its pictures end. It is replaced whole, or stays as it is.

    Args:
        video: a file of `VideoWriter`.
        source: the clip; of several sound tracks the first is taken.
        start_s: where in the clip the video's first frame was, in seconds from the clip's first frame.
        limits: the caps that the clip is read under.

    Returns:
        What could not be kept, one sentence each.

    Raises:
        VideoError: the clip cannot be read.
        OutputError: the video cannot be written.
    """
    part = video.with_name(video.name + ".part")
    try:
        with (
            av.open(f"file:{video.absolute()}") as silent,
            av.open(
                f"file:{part.absolute()}", "w", format="mp4", container_options={"movflags": "faststart"}
            ) as output,
        ):
            pictures = silent.streams.video[0]
            assert pictures.time_base is not None
            stream = output.add_stream_from_template(pictures)
            sound = _AudioCopy(source, start_s, output, limits)
            with closing(sound):
                if not sound.found:
                    return sound.warnings
                end_s = Fraction(0)
                for packet in silent.demux(pictures):
                    if packet.pts is None:
                        continue
                    end_s = max(end_s, (packet.pts + (packet.duration or 0)) * pictures.time_base)
                    packet.stream = stream
                    output.mux(packet)
                    sound.copy_until(end_s)
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(part, video)
        return sound.warnings
    except (FFmpegError, OSError) as error:
        raise OutputError(f"cannot write {video}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        part.unlink(missing_ok=True)


class _AudioCopy:
    """The first sound track of `source`, from `start_s` after its first video frame on.

    Raises VideoError if `source` cannot be read. `warnings` says what could not be kept.
    """

    found = False
    """Whether the clip has sound to copy."""

    def __init__(self, source: Path, start_s: float, output: OutputContainer, limits: Limits) -> None:
        self.warnings: list[str] = []
        self._open = ExitStack()
        self._packets: Iterator[Packet] = iter(())
        self._waiting: Packet | None = None
        self._output = output
        origin_s = _video_origin_s(source, limits)
        container = self._open.enter_context(open_clip(source, limits))
        if not container.streams.audio:
            return
        track = container.streams.audio[0]
        if len(container.streams.audio) > 1:
            self.warnings.append(f"only the first of {len(container.streams.audio)} sound tracks is kept")
        zero_s = origin_s + Fraction(start_s)
        if not _mp4_carries(source, zero_s, limits):
            codec = track.codec_context.name if track.codec_context is not None else "unknown"
            self.warnings.append(f"the sound is left out: MP4 cannot carry it without re-encoding (codec {codec})")
            return
        assert track.time_base is not None
        self.found = True
        self._time_base = track.time_base
        self._stream = output.add_stream_from_template(track)
        self._packets = _on_clock(container.demux(track), zero_s, track.time_base)

    def copy_until(self, end_s: Fraction) -> None:
        """Muxes every packet that starts before `end_s` on the output's clock."""
        while (packet := self._waiting or next(self._packets, None)) is not None:
            assert packet.pts is not None
            if packet.pts * self._time_base >= end_s:
                self._waiting = packet
                return
            self._waiting = None
            packet.stream = self._stream
            self._output.mux(packet)

    def close(self) -> None:
        self._packets = iter(())
        self._open.close()


def _on_clock(packets: Iterable[Packet], zero_s: Fraction, time_base: Fraction) -> Iterator[Packet]:
    """The packets from shortly before `zero_s` on, in rising order, with `zero_s` as time 0 and their durations set.

    Matroska leaves durations out, and MP4 would then hide the last packet: each lasts until the next one starts.
    """
    shift = round(zero_s / time_base)
    held: Packet | None = None
    held_at = duration = 0
    for packet in packets:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if not packet.size or packet.is_corrupt or stamp is None:
            continue
        at = stamp - shift
        if held is not None:
            if at <= held_at:
                continue
            duration = held.duration = held.duration or at - held_at
            if (held_at + duration) * time_base > -_PREROLL_S:
                yield held
        packet.pts = packet.dts = at
        held, held_at = packet, at
    if held is not None:
        held.duration = held.duration or duration
        if (held_at + held.duration) * time_base > -_PREROLL_S:
            yield held


def _video_origin_s(source: Path, limits: Limits) -> Fraction:
    """When the first video frame is shown, on the clock of the file; 0 without video."""
    with open_clip(source, limits) as container:
        stream = video_of(container, limits)
        if stream is None or stream.time_base is None:
            return Fraction(0)
        return frame_pts(first_picture(container, stream, source.name, limits)) * stream.time_base


def _mp4_carries(source: Path, zero_s: Fraction, limits: Limits) -> bool:
    """Whether the whole track can be written, tried on the null device.

    The muxer's tables say yes to codecs that it then refuses, and a damaged packet fails only when it is written: by
    then the video would be lost with it.
    """
    try:
        with open_clip(source, limits) as container, av.open(f"file:{os.devnull}", "w", format="mp4") as trial:
            track = container.streams.audio[0]
            stream = trial.add_stream_from_template(track)
            trial.start_encoding()
            for packet in _on_clock(container.demux(track), zero_s, track.time_base or Fraction(1)):
                packet.stream = stream
                trial.mux(packet)
    except (ValueError, FFmpegError, VideoError):
        return False
    return True
