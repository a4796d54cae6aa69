"""What is asked of a run: the clip, the camera, the options and the user's own files. It can be sent to another process."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from ..cameras import CameraSpec
from ..config import RunConfig
from ..diffusion.sampler import Sampler
from ..errors import InputError
from ..video import ClipInfo, Limits


@dataclass(frozen=True, kw_only=True)
class RenderRequest:
    """One clip, one camera.

    Attributes:
        clip: the admitted copy of the user's file; it is deleted when the run ends.
        clip_path: the user's own file, which the sound is copied from when the result is saved.
        clip_sha256: of the file's bytes.
        info: what `probe` says of the clip.
        depth_dir: the user's own depth maps.
        mask_dir: PNG masks of the source pixels that may be used.
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
        """sha256 of the user's depth files.

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
    def clean_plate_picture(self) -> np.ndarray | None:
        """The user's picture of the empty scene at the clip's size, uint8 [H, W, 3].

        Raises:
            InputError: it cannot be read, or its shape differs from the clip's.
        """
        if self.clean_plate is None:
            return None
        image = cv2.imread(str(self.clean_plate), cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(f"{self.clean_plate} cannot be read as a picture", param="clean_plate")
        height, width = image.shape[:2]
        if abs(width / height - self.info.width / self.info.height) > 0.01 * width / height:
            raise InputError(
                f"it is {width}x{height}, the clip is {self.info.width}x{self.info.height}: the shapes must agree, "
                "for it must be taken with the clip's own camera",
                param="clean_plate",
            )
        size = (self.info.width, self.info.height)
        return np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)[..., ::-1])

    @property
    def source_mask(self) -> Callable[[int], np.ndarray] | None:
        """Mask of frame t, bool [H, W]: white pixels of the user's PNGs, in the order of their names, may be used."""
        if self.mask_dir is None:
            return None
        files = sorted(self.mask_dir.glob("*.png"))
        first = self.config.decode.first_frame

        def read(t: int) -> np.ndarray:
            if first + t >= len(files):
                raise InputError(
                    f"{self.mask_dir} holds {len(files)} PNG masks, frame {first + t} has none", param="mask_dir"
                )
            image = cv2.imread(str(files[first + t]), cv2.IMREAD_GRAYSCALE)
            if image is None:
                raise InputError(f"{files[first + t].name} cannot be read as a PNG", param="mask_dir")
            return cv2.resize(image, (self.info.width, self.info.height), interpolation=cv2.INTER_NEAREST) > 127

        return read


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, param: str) -> str:
    """sha256 over the names and contents of a folder's files.

    Raises:
        InputError: it is no folder, or empty.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder} is no folder with files in it", param=param)
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name} {file_sha256(path)}\n".encode())
    return total.hexdigest()
