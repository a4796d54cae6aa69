"""Tiny real video files, made with PyAV itself so that the tests read what other programs write."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter

SAMPLE_RATE = 48000


def picture(width: int, height: int, index: int = 0) -> np.ndarray:
    """Red grows to the right, green downwards, blue with time: uint8 [H, W, 3]. Every turn and flip shows."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1)
    return np.stack([red, green, np.full_like(x, (40 + 10 * index) % 256)], axis=-1).astype(np.uint8)


def write_clip(
    path: Path,
    frames: int = 10,
    size: tuple[int, int] = (64, 48),
    *,
    rate: Fraction | int = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    rotate: tuple[Any, ...] | None = None,
    audio: str | None = None,
    audio_from_s: float = 0.0,
    container_options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    matrix: int = 5,
    full_range: bool = False,
    **context: Any,
) -> Path:
    """A clip of `picture`s.

    Args:
        times: Presentation times in units of `time_base`, instead of 0, 1, 2...
        rotate: Arguments of `set_display_rotation` (degrees counter-clockwise, hflip, vflip).
        audio: An audio encoder: adds as much of a tone as there is video, from `audio_from_s` on.
        matrix: What the pictures are converted with (5 is BT.601, 1 is BT.709); tagged only by `colorspace=`.
        context: Further attributes of the video encoder.
    """
    time_base = time_base or 1 / Fraction(rate)
    width, height = size
    with av.open(str(path), "w", container_options=container_options or {}) as output:
        video = output.add_stream(codec, rate=Fraction(rate), width=width, height=height, time_base=time_base)
        video.pix_fmt = pix_fmt
        video.options = {"crf": "10", **(options or {})} if codec == "libx264" else (options or {})
        for name, value in context.items():
            setattr(video.codec_context, name, value)
        if rotate is not None:
            video.set_display_rotation(*rotate)
        sound = output.add_stream(audio, rate=SAMPLE_RATE) if audio else None
        output.metadata.update(metadata or {})
        output.start_encoding()
        for index in range(frames):
            frame = VideoReformatter().reformat(
                VideoFrame.from_ndarray(picture(width, height, index), "rgb24"),
                format=pix_fmt,
                src_colorspace=matrix,
                dst_colorspace=matrix,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.JPEG if full_range else ColorRange.MPEG,
            )
            frame.pts, frame.time_base = (times[index] if times else index), time_base
            output.mux(video.encode(frame))
        if frames:
            output.mux(video.encode(None))
        if sound is not None:
            _write_tone(output, sound, audio_from_s, float(frames / Fraction(rate)))
    return path


def _write_tone(output: Any, sound: Any, start_s: float, seconds: float) -> None:
    samples = sound.codec_context.frame_size or 1024
    sample_format = sound.codec_context.format.name
    for index in range(round(seconds * SAMPLE_RATE / samples) + 1):
        wave = np.sin(np.arange(samples) * (0.05 + 0.003 * index)).astype(np.float32) / 3  # no two packets are alike
        if sample_format.startswith("s"):
            wave = (wave * 2**15).astype(np.int16) if "16" in sample_format else (wave * 2**31).astype(np.int32)
        planes = np.stack([wave, wave]) if sample_format.endswith("p") else np.repeat(wave, 2)[None]
        frame = AudioFrame.from_ndarray(planes, format=sample_format, layout="stereo")
        frame.sample_rate, frame.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
        frame.pts = index * samples + round(start_s * SAMPLE_RATE)
        output.mux(sound.encode(frame))
    output.mux(sound.encode(None))


def write_sound(path: Path) -> Path:
    """A tone without a picture."""
    with av.open(str(write_clip(path.with_stem("both"), audio="aac"))) as source, av.open(str(path), "w") as output:
        track = output.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = track
                output.mux(packet)
    return path


def jpeg(width: int, height: int) -> bytes:
    """One JPEG frame of the given size."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    frame = VideoFrame.from_ndarray(picture(width, height), "rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def write_packets(path: Path, codec: str, packets: Sequence[bytes], declared: tuple[int, int]) -> Path:
    """Muxes ready-made packets at 25 frames a second under whatever size the header is to claim."""
    with av.open(str(path), "w") as output:
        width, height = declared
        stream: Any = output.add_mux_stream(codec, rate=25, width=width, height=height, time_base=Fraction(1, 25))
        for index, data in enumerate(packets):
            packet: Any = av.Packet(data)
            packet.pts = packet.dts = index
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, True
            output.mux(packet)
    return path


def write_bomb(path: Path) -> Path:
    """A few kB that claim, and decode to, frames of 8192x4096."""
    frame = bytearray(jpeg(64, 48))
    size_at = frame.index(b"\xff\xc0") + 5
    frame[size_at : size_at + 4] = (4096).to_bytes(2, "big") + (8192).to_bytes(2, "big")
    return write_packets(path, "mjpeg", [bytes(frame)] * 3, (8192, 4096))


def sound_packets(path: Path) -> list[tuple[bytes, Fraction]]:
    """(bytes, seconds since the first video frame) of every packet of the first sound track."""
    with av.open(str(path)) as clip:
        origin_s = min(Fraction(frame.pts or 0) * frame.time_base for frame in clip.decode(video=0))
    with av.open(str(path)) as clip:
        return [
            (bytes(packet), packet.pts * packet.time_base - origin_s)
            for packet in clip.demux(audio=0)
            if packet.pts is not None
        ]
