"""`recapture run --cluster`: what is refused before Ray starts, and one whole run."""

import json
from pathlib import Path

import pytest

from .test_cli import clip, depth_dir, recapture  # noqa: F401 - the fixtures


def test_options_that_cannot_be(recapture, clip, tmp_path):  # noqa: F811
    def run(*more: object):
        return recapture("run", clip, "--camera", "static", "--out", tmp_path / "out", "--store", tmp_path / "s", *more)

    run("--gpus", 2).refused("--gpus", "give --cluster local, auto or HOST:PORT too")
    run("--tune-devices", 2).refused("--tune-devices", "--cluster")
    run("--cluster", "local", "--deepspeed", "x.json").refused("--deepspeed", "--tune-devices")
    run("--cluster", "local", "--tune-devices", 2).refused("--temporal-batch", "a batch of 1", "2 devices")
    run("--cluster", "head").refused("--cluster", "not local, auto or HOST:PORT")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_on_a_local_cluster(recapture, small_svd, clip, depth_dir, tmp_path):  # noqa: F811
    common = ["--camera", "truck(0.1)", "--model", small_svd, "--steps", 2, "--sample-steps", 1, "--sdedit-steps", 1]
    common += ["--depth-dir", depth_dir, "--rank", 2, "--device", "cpu", "--json"]
    said = {}
    for name, more in (("alone", []), ("crew", ["--cluster", "local", "--workers", 2])):
        out = tmp_path / name
        answer = recapture("run", clip, *common, "--out", out, "--store", tmp_path / f"{name}-store", *more)
        assert answer.code == 0, answer.err
        said[name] = json.loads(answer.out)
    assert delivered(tmp_path / "crew-store") == delivered(tmp_path / "alone-store")
    assert said["crew"]["seed"] == said["alone"]["seed"]


def delivered(store: Path) -> bytes:
    """The frames themselves: of pictures as small as these x264 does not always make the same file."""
    (frames,) = store.glob("deliver/*/*/frames.arrow")
    return frames.read_bytes()
