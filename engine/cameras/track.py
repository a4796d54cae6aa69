"""The common form of all file formats: poses in one world, sampled at a clip's frame times."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import CameraError
from ..user_files.numbering import counted, first_number, frame_numbers
from .rigid import checked_poses, matrix_from_quaternion, quaternion_from_matrix, rigid, slerp

MAX_POSES = 100_000
# Intrinsics of one file, or of a file and its source camera, must agree on the picture's shape.
ASPECT_TOLERANCE = 0.01
_MAX_FOCAL_PX = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPart:
    """The place of the frames that are used in their clip.

    Attributes:
        first_frame: index in the clip of the first one.
        clip_frames: frames of the whole clip.
    """

    first_frame: int
    clip_frames: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoseTrack:
    """A camera file's content in one convention: OpenCV axes, c2w, pixel centers at +0.5."""

    c2w: np.ndarray
    """float64 [P, 4, 4], camera to the file's world, or to the source camera of the same moment."""
    K_px: np.ndarray | None = None
    """float64 [P, 3, 3], in pixels of (width, height)."""
    width: int = 0
    height: int = 0
    times_s: np.ndarray | None = None
    """float64 [P], rising, on the clip's own clock."""
    reference: Literal["world", "source"] = "world"
    unit: Literal["file", "scene", "median_depth"] = "file"
    numbers: np.ndarray | None = None
    """int64 [P], rising: the frame that each pose's image has by its name."""
    scene_depth: float | None = None
    """Median depth of the file's points before its first pose, in its unit."""
    distorted: bool = False
    """Whether the file's lens has distortion, which is left out."""

    @property
    def aspect(self) -> float | None:
        """Width over height, None for a file without intrinsics."""
        return None if self.K_px is None else self.width / self.height

    def sample(self, times_s: np.ndarray, part: ClipPart | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Poses [N, 4, 4] and intrinsics [N, 3, 3] at the times [N] of the frames that are used; ends are held.

        Rotations take the short way at constant speed, positions and intrinsics go straight. A pose of the file
        that falls on a frame is returned bit for bit.

        Args:
            part: which of the clip's frames these are; None is all.
        """
        position, _ = self._positions(times_s, part or ClipPart(first_frame=0, clip_frames=len(times_s)))
        before = np.clip(np.floor(position).astype(int), 0, max(len(self.c2w) - 2, 0))
        after = np.minimum(before + 1, len(self.c2w) - 1)
        fraction = position - before
        exact = np.where(fraction < 0.5, before, after)
        between = (fraction > 0) & (fraction < 1)

        c2w = self.c2w[exact]
        K_px = None if self.K_px is None else self.K_px[exact]
        if between.any():
            a, b, f = before[between], after[between], fraction[between]
            q = slerp(quaternion_from_matrix(self.c2w[a, :3, :3]), quaternion_from_matrix(self.c2w[b, :3, :3]), f)
            f = f[:, None]
            c2w[between] = rigid(matrix_from_quaternion(q), (1 - f) * self.c2w[a, :3, 3] + f * self.c2w[b, :3, 3])
            if K_px is not None and self.K_px is not None:
                f = f[:, None]
                K_px[between] = (1 - f) * self.K_px[a] + f * self.K_px[b]
        return c2w, K_px

    def _positions(self, times_s: np.ndarray, part: ClipPart) -> tuple[np.ndarray, str | None]:
        """Where the frames fall among the poses: 0 is the first pose, P - 1 the last. What decided it, if not the times."""
        n, count, poses = len(self.c2w), len(times_s), np.arange(len(self.c2w))
        frames = part.first_frame + np.arange(count)
        if n == 1:
            return np.zeros(count), None
        if self.times_s is not None:
            return np.interp(times_s, self.times_s, poses), None
        gaps = self.numbers is not None and self.numbers[-1] - self.numbers[0] != n - 1
        if self.numbers is not None and (gaps or n not in (count, part.clip_frames)):
            first = first_number(self.numbers.tolist(), part.clip_frames)
            # Without gaps, half of the frames or fewer were chosen evenly and numbered anew.
            if first is not None and (gaps or 2 * n > part.clip_frames):
                return np.interp(frames, self.numbers - first, poses), self._by_number(frames, first, part)
            if gaps:
                share = (self.numbers - self.numbers[0]) / (self.numbers[-1] - self.numbers[0])
                return np.interp(_elapsed(times_s), share, poses), "spread over the clip by the numbers in their names"
        if n == part.clip_frames:
            return frames.astype(np.float64), None
        if n == count:
            return np.arange(count, dtype=np.float64), None
        return _elapsed(times_s) * (n - 1), "spread evenly over the clip"

    def _by_number(self, frames: np.ndarray, first: int, part: ClipPart) -> str:
        assert self.numbers is not None
        missing = [frame for frame in frames.tolist() if frame + first not in self.numbers]
        low, high = int(self.numbers[0]) - first, int(self.numbers[-1]) - first
        held = [frame for frame in missing if not low <= frame <= high]
        between = [frame for frame in missing if low <= frame <= high]
        said = [f"matched by the numbers in their names, {first} being the clip's first frame"]
        said += [f"{counted(between)} interpolated"] if between else []
        said += [f"{counted(held)} held at the first or last pose"] if held else []
        return "; ".join(said)

    def warnings(self, name: str, times_s: np.ndarray, part: ClipPart | None = None) -> list[str]:
        """The decisions of `sample` for the frames of these times."""
        part = part or ClipPart(first_frame=0, clip_frames=len(times_s))
        n, frames = len(self.c2w), len(times_s)
        found = [f"the lens distortion in {name} is left out: the new picture is a pinhole's"] if self.distorted else []
        if n == 1:
            return [*found, *([f"{name} has one pose: the camera stands still"] if frames > 1 else [])]
        if self.times_s is None:
            _, decided = self._positions(times_s, part)
            if decided is not None:
                of = f"the clip's {part.clip_frames} frames"
                of += f", {frames} of them used" if frames != part.clip_frames else ""
                found.append(f"{name} has {n} poses and no times for {of}: {decided}")
            return found
        if not np.isin(times_s, self.times_s).all():
            found.append(f"{name} has other times than the clip's {frames} frames: interpolated between its {n} poses")
        outside = np.flatnonzero((times_s < self.times_s[0] - 1e-9) | (times_s > self.times_s[-1] + 1e-9))
        if len(outside):
            found.append(
                f"{name} covers {self.times_s[0]:g} to {self.times_s[-1]:g} s, the clip {times_s[0]:g} to "
                f"{times_s[-1]:g} s: {len(outside)} frames hold its first or last pose"
            )
        return found

    def digest(self) -> str:
        """sha256 of the content, whatever format it came in."""
        sha = hashlib.sha256(f"{self.width} {self.height} {self.reference} {self.unit}".encode())
        for array in (self.c2w, self.K_px, self.times_s):
            sha.update(b"none" if array is None else repr(array.shape).encode() + array.astype("<f8").tobytes())
        if self.numbers is not None:
            sha.update(self.numbers.astype("<i8").tobytes())
        return sha.hexdigest()


def build_track(
    c2w: np.ndarray,
    name: Callable[[int], str],
    *,
    K_px: np.ndarray | None = None,
    sizes: list[tuple[int, int]] | None = None,
    times_s: np.ndarray | None = None,
    reference: Literal["world", "source"] = "world",
    unit: Literal["file", "scene", "median_depth"] = "file",
    names: Sequence[str] | None = None,
    scene_depth: float | None = None,
    distorted: bool = False,
) -> PoseTrack:
    """A checked track; cameras of several sizes are scaled to the first one's.

    Args:
        c2w: [P, 4, 4], OpenCV axes.
        name: What to call pose i in an error.
        K_px: [P, 3, 3] in pixels of `sizes`, which then has P entries.
        names: of the poses' images, in natural order; the numbers in them say which frames they are.

    Raises:
        CameraError: no pose or too many, a matrix that is not a pose, intrinsics that are not a pinhole camera's, pictures of
            different shapes, times that do not rise.
    """
    check_count(len(c2w), name(0))
    clean = checked_poses(c2w, name)
    if times_s is not None and (np.diff(times_s) <= 0).any():
        later = int((np.diff(times_s) <= 0).argmax()) + 1
        raise CameraError(f"{name(later)}: its time is not later than the one before", param="camera")
    numbers = None if names is None else frame_numbers(names)
    rising = numbers is not None and bool((np.diff(numbers) > 0).all())
    images = {"numbers": np.array(numbers) if rising else None, "scene_depth": scene_depth, "distorted": distorted}
    if K_px is None or sizes is None:
        return PoseTrack(c2w=clean, times_s=times_s, reference=reference, unit=unit, **images)
    width, height = sizes[0]
    for i, (w, h) in enumerate(sizes):
        if abs(w / h - width / height) > ASPECT_TOLERANCE * width / height:
            raise CameraError(
                f"{name(i)}: a picture of {w}x{h} has another shape than the first one's {width}x{height}",
                param="camera",
            )
    focal = K_px[:, [0, 1], [0, 1]]
    skewed = np.abs(K_px[:, [0, 1, 2, 2], [1, 0, 0, 1]]).max(-1) > 0
    # Written so that NaN is outside too.
    outside = ~(np.abs(K_px) <= _MAX_FOCAL_PX).all((-1, -2)) | ~(focal >= 1 / _MAX_FOCAL_PX).all(-1)
    bad = outside | skewed | (K_px[:, 2, 2] != 1)
    if bad.any():
        raise CameraError(
            f"{name(int(bad.argmax()))}: intrinsics must be finite, with positive focal lengths and no skew",
            param="camera",
        )
    stretch = np.array([(width / w, height / h, 1.0) for w, h in sizes])
    return PoseTrack(
        c2w=clean,
        K_px=K_px * stretch[:, :, None],
        width=width,
        height=height,
        times_s=times_s,
        reference=reference,
        unit=unit,
        **images,
    )


def _elapsed(times_s: np.ndarray) -> np.ndarray:
    """Times as shares of the time from the first frame to the last."""
    elapsed = times_s - times_s[0]
    return elapsed / elapsed[-1] if elapsed[-1] > 0 else elapsed


def check_count(count: int, name: str) -> None:
    """Refuse an empty file and one of more than `MAX_POSES` poses."""
    if not 1 <= count <= MAX_POSES:
        raise CameraError(f"{name}: a camera file has 1 to {MAX_POSES} poses, not {count}", param="camera")
