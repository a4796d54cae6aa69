"""The splat's benchmark: its rivals draw what it draws, and its rows say what was timed."""

import pytest
import torch

from recapture.benchmarks import splat as bench
from recapture.benchmarks.timing import COPY, compare
from recapture.kernels.splat import splat


@pytest.fixture
def small(monkeypatch) -> bench.Scene:
    monkeypatch.setattr(bench, "HEIGHT", 54)
    monkeypatch.setattr(bench, "WIDTH", 96)
    scene = bench.Scene(2, "cpu")
    scene.K_px[:, :2] *= scene.K_px.new_tensor([[96 / 1024], [54 / 576]])
    return scene


def test_rivals_draw_the_same_view(small):
    cameras = bench._cameras(small)
    arguments = (small.frames, small.depth, small.K_px, small.w2c, small.K_px, small.frames.shape[2:])
    ours = splat(*arguments, footprint="nearest", flying_pixel_threshold=0.0)
    color, mask = bench.packed_amin(small.frames, small.depth, cameras)
    # They divide where we multiply by the inverse: a point in a thousand falls into the next pixel.
    assert (color == ours.color).float().mean() > 0.995
    assert (mask == ours.mask).float().mean() > 0.995
    sorted_color = torch.from_numpy(bench.lexsort(small.frames, small.depth, cameras))
    assert (sorted_color.mT.view_as(ours.color) == ours.color).float().mean() > 0.995
    soft = splat(*arguments, flying_pixel_threshold=0.0)
    color, mask = bench.shared_warper(small.frames, small.depth, small.K_px, small.w2c)
    both = (mask & soft.mask)[:, None]
    assert both.float().mean() > 0.6
    assert ((color - soft.color).abs() * both).sum() / both.sum() < 0.1


def test_rows(small, monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(bench, "compare", lambda *given, **named: compare(*given, **{**named, "repeats": 1}))
    rows = bench.rows("cpu", True)
    names = {row["implementation"] for row in rows}
    assert {bench.WARPER, bench.PACKED, "nearest numba", "soft numba", "mesh numba", COPY} < names
    assert {"nearest numba, 2 threads", "soft numba, 2 threads"} < names
    assert {row["op"] for row in rows} == {bench.OP}
