"""What cannot work is refused before torch is loaded, by the name of the user's file and with a way out."""

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from recapture.engine.video import VideoWriter

HEIGHT, WIDTH, FRAMES = 48, 64, 8
_RUN = """
import sys
from recapture.cli.main import main
try:
    main()
finally:
    print("torch was loaded" if "torch" in sys.modules else "torch was not loaded", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "IMG_4711 (1).mp4"
    with VideoWriter(path, width=WIDTH, height=HEIGHT, rate=Fraction(12), crf=4) as video:
        for t in range(FRAMES):
            video.write(np.full((HEIGHT, WIDTH, 3), 20 * t, np.uint8))
    return path


@pytest.fixture
def refusal(clip, tmp_path):
    def run(*words: object, clip: Path = clip) -> str:
        given = ["preview", clip, "--camera", "static", "--out", tmp_path / "out", *words]
        done = subprocess.run(
            [sys.executable, "-c", _RUN, *map(str, given)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert "torch was not loaded" in done.stderr
        assert not (tmp_path / "out").exists()
        return done.stderr.splitlines()[0]

    return run


def test_depth_and_masks_that_do_not_fit(refusal, tmp_path):
    np.save(tmp_path / "three.npy", np.ones((3, HEIGHT, WIDTH), np.float32))
    assert "--depth-dir: " in (said := refusal("--depth-dir", tmp_path / "three.npy"))
    assert "three.npy holds 3 depth maps, the clip has 8 frames" in said
    ramp = np.linspace(0, 1, FRAMES * HEIGHT * WIDTH, dtype=np.float32).reshape(FRAMES, HEIGHT, WIDTH)
    np.savez(tmp_path / "clip.npz", depth=ramp)
    assert "set --depth-kind to disparity" in refusal("--depth-dir", tmp_path / "clip.npz")
    masks = tmp_path / "masks"
    masks.mkdir()
    for t in range(FRAMES):
        cv2.imwrite(str(masks / f"{t}.png"), np.zeros((HEIGHT, WIDTH), np.uint8))
    assert re.search(r"--mask-dir: the masks in .* are black everywhere", refusal("--mask-dir", masks))


def test_clips_are_called_as_the_user_calls_them(refusal, clip, tmp_path):
    broken = tmp_path / "my clip.mp4"
    broken.write_bytes(clip.read_bytes()[:900])
    assert "my clip.mp4" in refusal(clip=broken)
    assert "IMG_4711 (1).mp4 has 8 frames, from frame 7 on 1" in refusal("--first-frame", 7)
    said = refusal("--max-frames", 5)
    assert "IMG_4711 (1).mp4 has 8 frames to be used, at most 5" in said
    assert "(--first-frame, --frames)" in said


def test_hdr_names_the_command_that_makes_it_sdr(refusal, tmp_path):
    from ..engine.video.clips import write_clip

    film = write_clip(tmp_path / "IMG_1.mov", 4, (WIDTH, HEIGHT), color_trc=18, color_primaries=9, colorspace=9)
    assert re.search(r"IMG_1\.mov is HDR \(HLG\).*ffmpeg -i IMG_1\.mov -vf zscale.* IMG_1-sdr\.mp4", refusal(clip=film))
