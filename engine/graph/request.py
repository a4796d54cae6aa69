"""What is asked of a run: the clip, the camera, the options and the user's own files. It can be sent to another process.

Importing it does not load torch: what is wrong with a request is said before that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..cameras import CameraSpec
from ..config import RunConfig
from ..errors import InputError
from ..user_files.clean_plate import read_clean_plate
from ..user_files.depth import DepthFiles, find_depth
from ..user_files.frame_files import ClipFrames
from ..user_files.masks import SourceMask, find_masks
from ..video import ClipInfo, Limits

if TYPE_CHECKING:
    from ..diffusion.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class RenderRequest:
    """One clip, one camera.

    Attributes:
        clip: the admitted copy of the user's file; it is deleted when the run ends.
        clip_path: the user's own file, which the sound is copied from when the result is saved.
        clip_sha256: of the file's bytes.
        info: what `probe` says of the clip.
        depth_dir: the user's own depth maps, a folder or a file.
        mask_dir: PNG masks of the source pixels that may be used, a folder or one for all frames.
        clean_plate: picture of the empty scene.
        force: continue where the path sees almost nothing of the clip.
        given: stages that the user's own results replace (`engine/given.py`).
        sampler: the user's own; None is `EulerSampler`.
    """

    clip: Path
    clip_path: Path
    clip_name: str
    clip_sha256: str
    info: ClipInfo
    limits: Limits
    camera: CameraSpec
    config: RunConfig
    depth_dir: Path | None = None
    mask_dir: Path | None = None
    clean_plate: Path | None = None
    force: bool = False
    given: tuple[str, ...] = ()
    sampler: Sampler | None = None

    @property
    def frame_count(self) -> int:
        """Frames that will be used, according to the file's header."""
        available = max(0, self.info.frame_count - self.config.decode.first_frame)
        return available if self.config.decode.max_frames is None else min(available, self.config.decode.max_frames)

    @property
    def sample_seed(self) -> int:
        """The seed of the sampling stages, which may differ from the tuning's."""
        return self.config.seed if self.config.sample.seed is None else self.config.sample.seed

    @cached_property
    def depth_digest(self) -> str | None:
        """sha256 of the user's depth files, or of the one file.

        Raises:
            InputError: the folder does not exist or is empty.
        """
        return None if self.depth_dir is None else folder_digest(self.depth_dir, "depth_dir")

    @cached_property
    def mask_digest(self) -> str | None:
        """sha256 of the user's mask files.

        Raises:
            InputError: the folder does not exist or is empty.
        """
        return None if self.mask_dir is None else folder_digest(self.mask_dir, "mask_dir")

    @cached_property
    def frames(self) -> ClipFrames:
        """The frames of the clip that are used."""
        first = self.config.decode.first_frame
        used = range(first, first + self.frame_count)
        return ClipFrames(used=used, total=self.info.frame_count, width=self.info.width, height=self.info.height)

    @cached_property
    def depth_files(self) -> DepthFiles | None:
        """The user's depth maps of the used frames.

        Raises:
            InputError: see `find_depth`.
        """
        return None if self.depth_dir is None else find_depth(self.depth_dir, self.frames, self.config.depth.kind)

    @cached_property
    def source_mask(self) -> SourceMask | None:
        """Masks of the used frames, bool [H, W]: source pixels that may be used.

        Raises:
            InputError: see `find_masks`.
        """
        return None if self.mask_dir is None else find_masks(self.mask_dir, self.frames)

    def check_files(self) -> None:
        """Refuse what the user brings before anything is loaded.

        Raises:
            InputError: too few frames, or depth, masks or a clean plate that cannot be used or do not fit the clip.
        """
        if self.frame_count < 2:
            raise InputError(
                f"{self.clip_name} has {self.info.frame_count} frames, from frame {self.config.decode.first_frame} "
                f"on {self.frame_count} would be used; at least 2 are needed",
                param="video",
            )
        _ = self.depth_files, self.source_mask, self.clean_plate_picture

    @cached_property
    def clean_plate_picture(self) -> np.ndarray | None:
        """The user's picture of the empty scene at the clip's size, uint8 [H, W, 3].

        Raises:
            InputError: see `read_clean_plate`.
        """
        return None if self.clean_plate is None else read_clean_plate(self.clean_plate, self.frames)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, param: str) -> str:
    """sha256 over the names and contents of a folder's files, or of one file.

    Raises:
        InputError: it is neither a file nor a folder with files.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else [folder]
    if not files or not files[0].is_file():
        raise InputError(f"{folder} is no folder with files in it", param=param)
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name} {file_sha256(path)}\n".encode())
    return total.hexdigest()
