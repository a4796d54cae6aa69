"""What `Recapture` returns."""

from dataclasses import dataclass
from pathlib import Path

from .report.bundle import write_bundle
from .stage_results import StageResults
from .video import VideoWriter


@dataclass(kw_only=True)
class Result(StageResults):
    """A finished run, or its first part after `until=`. Arrays are NumPy memory maps of the store.

    An array of a stage that was not run raises AttributeError.
    """

    def save_video(self, path: str | Path) -> Path:
        """Write the delivered frames as H.264 MP4, without sound.

        Raises:
            OutputError: the file cannot be written.
        """
        height, width = self.frames.shape[1:3]
        with VideoWriter(Path(path), width=width, height=height, rate=self.request.info.rate) as video:
            for frame in self.frames:
                video.write(frame)
        return Path(path)

    def save(self, folder: str | Path, *, passes: bool = False, tuned: bool = False) -> Path:
        """Write the bundle into a folder: videos, report, camera, configuration.

        Args:
            passes: also lossless PNG sequences, matte and depth.
            tuned: also the tuned adapters, in PEFT's layout.

        Returns:
            Path of the delivered video.

        Raises:
            InputError: the run stopped before its last stage.
            OutputError: the folder cannot be written, or the disk is full.
        """
        return write_bundle(self, Path(folder), passes=passes, tuned=tuned)
