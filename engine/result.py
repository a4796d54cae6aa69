"""What `Recapture` returns."""

from dataclasses import dataclass
from pathlib import Path

from .report.bundle import write_bundle
from .stage_results import StageResults


@dataclass(kw_only=True)
class Result(StageResults):
    """A finished run, or its first part after `until=`. Arrays are NumPy memory maps of the store.

    An array of a stage that was not run raises AttributeError.
    """

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
