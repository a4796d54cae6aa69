"""VBench itself (Huang et al. 2024), run by the Python of an environment that has it.

Unrun against the real package: its networks (DINO, CLIP, AMT, MUSIQ) are gigabytes that it downloads on first use.
Written to the code of version 0.1.5 and tested against a stand-in of the same interface and result file.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..engine.errors import InputError, RecaptureError

DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "imaging_quality",
)
"""Those that ask for no prompt and judge how a clip looks."""

_PARAM = "vbench_python"
_NOT_INSTALLED = 3
_NAME = "recapture"
_DRIVER = f"""
import importlib.util, json, os, sys
if importlib.util.find_spec("vbench") is None:
    sys.exit({_NOT_INSTALLED})
import torch, vbench
videos, results, dimensions = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
prompts = os.path.join(os.path.dirname(vbench.__file__), "VBench_full_info.json")
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
vbench.VBench(device, prompts, results).evaluate(
    videos_path=videos, name="{_NAME}", dimension_list=dimensions, mode="custom_input",
    imaging_quality_preprocessing_mode="longer",
)
"""


def run_vbench(
    python: Path, videos: Mapping[str, Path], dimensions: Sequence[str] = DIMENSIONS
) -> dict[str, dict[str, float]]:
    """VBench's scores per video, 0..1.

    Args:
        python: interpreter of an environment with the package `vbench`.
        videos: MP4 files by any name.

    Returns:
        By the video's name, then by dimension.

    Raises:
        InputError: no such interpreter, no `vbench` there, or a video that is no MP4 file.
        RecaptureError: VBench failed or left out a video; its last line is in the message.
    """
    for name, path in videos.items():
        if path.suffix.lower() != ".mp4" or not path.is_file():
            raise InputError(f"VBench reads MP4 files; {name} is {path}", param=_PARAM)
    if not videos:
        return {}
    with tempfile.TemporaryDirectory(prefix="recapture-vbench-") as temporary:
        folder, results = Path(temporary, "videos"), Path(temporary, "results")
        folder.mkdir()
        # Plain numbers: VBench reads prompts out of file names.
        numbered = {f"{number:05d}": name for number, name in enumerate(videos)}
        for stem, name in numbered.items():
            shutil.copyfile(videos[name], folder / f"{stem}.mp4")
        _run(python, Path(temporary), [str(folder), str(results), json.dumps(list(dimensions))])
        try:
            scores = _read_scores(results / f"{_NAME}_eval_results.json", dimensions)
            return {name: {each: scores[each][stem] for each in dimensions} for stem, name in numbered.items()}
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise RecaptureError(f"VBench's results cannot be read ({error!r})", param=_PARAM) from None


def _run(python: Path, folder: Path, arguments: list[str]) -> None:
    """The driver, in `folder`: the current one may hold a checkout called vbench that would be imported instead."""
    found = shutil.which(str(python))
    if found is None:
        raise InputError(f"{python} cannot be run; give the Python of an environment", param=_PARAM)
    command = [str(Path(found).absolute()), "-c", _DRIVER, *arguments]  # its symlink is what makes it an environment's
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == _NOT_INSTALLED:
        raise InputError(f"the package vbench is not installed for {python}", param=_PARAM)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise RecaptureError(f"VBench failed: {last}", param=_PARAM)


def _read_scores(path: Path, dimensions: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of {dimension: [mean, [{"video_path", "video_results"}, ...]]}: by dimension, then by the file's stem."""
    document = json.loads(path.read_text())
    scores = {
        each: {Path(row["video_path"]).stem: float(row["video_results"]) for row in document[each][1]}
        for each in dimensions
    }
    # MUSIQ's scale is 0..100; VBench divides the mean by 100 and leaves the videos' own values.
    if "imaging_quality" in scores:
        scores["imaging_quality"] = {stem: value / 100 for stem, value in scores["imaging_quality"].items()}
    return scores
