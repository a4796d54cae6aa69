"""The splat's backends against each other, to the last bit, and against z-buffers written out pixel by pixel."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recapture.kernels.backends import installed, interpreted
from recapture.kernels.splat import Splat, camera_rows, splat

from .backends import BACKENDS, FAST, NUMBA, device_of, run_interpreted

f32 = np.float32
EXAMPLES = 5 if interpreted() else 60
SCENES = {
    "height": st.integers(1, 14),
    "width": st.integers(1, 14),
    "h": st.integers(1, 18),
    "w": st.integers(1, 18),
    "move": st.tuples(*[st.floats(-1.5, 1.5)] * 3),
    "turn": st.tuples(*[st.floats(-70, 70)] * 2),
    "zoom": st.sampled_from([0.3, 1.0, 1.0, 2.7]),
    "seed": st.integers(0, 10**6),
}


def scene(height, width, h, w, move, turn, zoom, seed, *, frames=1, channels=2):
    """Arguments of `splat`: boards, slopes and noise, sky, and depths that are none."""
    rng = np.random.default_rng(seed)
    depth = np.empty((frames, height, width), f32)
    v, u = np.mgrid[:height, :width]
    for t in range(frames):
        depth[t] = 1 / (0.3 + rng.uniform(-0.02, 0.02) * u + rng.uniform(-0.02, 0.02) * v)
        for _ in range(3):
            top, left = rng.integers(0, height), rng.integers(0, width)
            board = depth[t, top : top + rng.integers(1, 8), left : left + rng.integers(1, 8)]
            board[:] = rng.choice([rng.uniform(0.5, 4), np.inf, 1e20, 1e-20])
        noisy = rng.random((height, width)) < rng.choice([0, 0.1, 0.6])
        depth[t][noisy] *= rng.uniform(0.8, 1.3, noisy.sum())
        bad = rng.random((height, width)) < 0.05
        depth[t][bad] = rng.choice([np.nan, 0, -1, -np.inf, 1e-42, 3e38], bad.sum())
    color = rng.random((frames, channels, height, width), f32)
    yaw, pitch = np.radians(turn)
    c2w = np.eye(4)
    c2w[:3, :3] = np.array(
        [[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]]
    ) @ np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
    c2w[:3, 3] = move
    K1, K2 = (np.array([[k, 0, x / 2], [0, k, y / 2], [0, 0, 1]]) for k, x, y in ((9, width, height), (9 * zoom, w, h)))
    cameras = [torch.from_numpy(np.repeat(part[None], frames, 0)) for part in (K1, np.linalg.inv(c2w), K2)]
    return torch.from_numpy(color), torch.from_numpy(depth), *cameras, (h, w)


def on(device, arguments):
    frames, depth, *rest = arguments
    return frames.to(device), depth.to(device), *rest


def assert_same_bits(a: Splat, b: Splat) -> None:
    for field in fields(Splat):
        x, y = (getattr(part, field.name).cpu() for part in (a, b))
        if x.dtype == torch.float32:  # compares -0 and NaN too
            x, y = x.contiguous().view(torch.int32), y.contiguous().view(torch.int32)
        assert torch.equal(x, y), field.name


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("footprint", ["nearest", "soft"])
@settings(deadline=None, max_examples=EXAMPLES)
@given(flying_pixel_threshold=st.sampled_from([0.0, 0.1]), depth_tolerance=st.sampled_from([0.01, 0.05]), **SCENES)
def test_backends_agree_to_the_last_bit(backend, footprint, flying_pixel_threshold, depth_tolerance, **options):
    arguments = scene(**options)
    expected = splat(
        *arguments,
        footprint=footprint,
        backend="torch",
        flying_pixel_threshold=flying_pixel_threshold,
        depth_tolerance=depth_tolerance,
    )
    found = splat(
        *on(device_of(backend), arguments),
        footprint=footprint,
        backend=backend,
        flying_pixel_threshold=flying_pixel_threshold,
        depth_tolerance=depth_tolerance,
    )
    assert_same_bits(found, expected)


@pytest.mark.parametrize("backend", [NUMBA])
@settings(deadline=None, max_examples=EXAMPLES)
@given(flying_pixel_threshold=st.sampled_from([0.0, 0.1]), **SCENES)
def test_backends_agree_on_the_mesh(backend, flying_pixel_threshold, **options):
    arguments = scene(**options)
    expected = splat(*arguments, footprint="mesh", backend="torch", flying_pixel_threshold=flying_pixel_threshold)
    assert_same_bits(
        splat(*arguments, footprint="mesh", backend=backend, flying_pixel_threshold=flying_pixel_threshold), expected
    )


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("footprint", ["nearest", "soft"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_backends_agree_on_clips(backend, footprint, channels):
    arguments = scene(40, 57, 43, 61, (0.4, -0.2, 0.3), (8, -5), 1.6, 3, frames=3, channels=channels)
    expected = splat(*arguments, footprint=footprint, backend="torch")
    assert 0.1 < expected.mask.float().mean() < 1
    assert_same_bits(splat(*on(device_of(backend), arguments), footprint=footprint, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("footprint", ["nearest", "soft"])
def test_a_size_of_one_is_a_size(backend, footprint):
    for height, width, h, w in ((1, 1, 1, 1), (1, 9, 9, 1), (9, 1, 1, 9)):
        arguments = scene(height, width, h, w, (0.0, 0.0, 0.0), (0, 0), 1.0, 1)
        expected = splat(*arguments, footprint=footprint, backend="torch")
        assert_same_bits(splat(*on(device_of(backend), arguments), footprint=footprint, backend=backend), expected)


@pytest.mark.parametrize("footprint", ["nearest", "soft", "mesh"])
def test_no_split_and_no_thread_changes_a_bit(footprint):
    frames, depth, *cameras, size = scene(30, 41, 33, 39, (0.4, 0.1, 0.5), (9, 4), 1.5, 7, frames=5)
    whole = splat(frames, depth, *cameras, size, footprint=footprint)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert_same_bits(splat(frames, depth, *cameras, size, footprint=footprint), whole)
    finally:
        torch.set_num_threads(threads)
    parts = [
        splat(frames[part], depth[part], *(camera[part] for camera in cameras), size, footprint=footprint)
        for part in (slice(0, 2), slice(2, 3), slice(3, 5))
    ]
    joined = {field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Splat)}
    assert_same_bits(Splat(**joined), whole)


@pytest.mark.skipif(not installed("numba"), reason="numba is not installed")
def test_memory_of_a_result_is_used_again_only_when_nothing_refers_to_it():
    frames, depth, *cameras, size = scene(30, 41, 33, 39, (0.4, 0.1, 0.5), (9, 4), 1.5, 7, frames=2)
    first = splat(frames, depth, *cameras, size, backend="numba")
    kept, address = first.depth[1], first.depth.data_ptr()  # a part of one of its tensors is enough
    before = kept.clone()
    del first
    second = splat(1 - frames, 2 * depth, *cameras, size, backend="numba")
    assert second.depth.data_ptr() != address
    assert torch.equal(kept.nan_to_num(-1), before.nan_to_num(-1))
    address = second.depth.data_ptr()
    del second
    assert splat(frames, depth, *cameras, size, backend="numba").depth.data_ptr() == address


def project(camera, u, v, z):
    """x, y, z of one pixel in float32, one operation after the other; None where it is not drawn."""
    with np.errstate(all="ignore"):
        q = f32(1) / z
        if not (z > 0 and np.isfinite(q)):
            return None
        u, v = f32(u) + f32(0.5), f32(v) + f32(0.5)
        X, Y, D = (camera[3 * i] * u + camera[3 * i + 1] * v + camera[3 * i + 2] + camera[9 + i] * q for i in range(3))
        s = f32(1) / D
        x, y, z = X * s, Y * s, D * z
    return (x, y, z) if z > f32(1e-6) else None


def points(depth, cameras):
    for v in range(depth.shape[0]):
        for u in range(depth.shape[1]):
            placed = project(cameras, u, v, depth[v, u])
            if placed is not None:
                yield v, u, *placed


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=EXAMPLES)
@given(**SCENES)
def test_nearest_is_a_z_buffer(backend, **options):
    frames, depth, *cameras, (h, w) = scene(**options)
    found = splat(
        *on(device_of(backend), (frames, depth, *cameras, (h, w))),
        footprint="nearest",
        backend=backend,
        flying_pixel_threshold=0.0,
    )
    nearest = np.full((h, w), np.nan, f32)
    winner = np.full((h, w), -1)
    for v, u, x, y, z in points(depth[0].numpy(), camera_rows(*cameras)[0].numpy()):
        if 0 <= x < w and 0 <= y < h:
            cell = int(y), int(x)
            if not z >= nearest[cell]:  # the first of equals stays
                nearest[cell], winner[cell] = z, v * depth.shape[2] + u
    assert np.array_equal(found.winner[0].cpu().numpy(), winner)
    assert np.array_equal(found.depth[0].cpu().numpy(), nearest, equal_nan=True)
    color = np.where(winner >= 0, frames[0].flatten(1).numpy()[:, winner], f32(0))
    assert np.array_equal(found.color[0].cpu().numpy(), color)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=EXAMPLES)
@given(**SCENES)
def test_soft_is_the_mean_within_a_band_of_a_z_buffer(backend, **options):
    """One sample a pixel; sums in Python's integers, so in no order."""
    frames, depth, *cameras, (h, w) = scene(**options)
    found = splat(
        *on(device_of(backend), (frames, depth, *cameras, (h, w))),
        backend=backend,
        flying_pixel_threshold=0.0,
        max_density=1,
    )
    taps: dict[tuple[int, int], list[tuple[float, int, int]]] = {}
    for v, u, x, y, z in points(depth[0].numpy(), camera_rows(*cameras)[0].numpy()):
        x, y = x - f32(0.5), y - f32(0.5)
        if not (-1 <= x < w and -1 <= y < h):
            continue
        ax, ay = (int((p - np.floor(p)) * f32(128) + f32(0.5)) for p in (x, y))
        for dy, wy in ((0, 128 - ay), (1, ay)):
            for dx, wx in ((0, 128 - ax), (1, ax)):
                if wx * wy:
                    cell = int(np.floor(y)) + dy, int(np.floor(x)) + dx
                    taps.setdefault(cell, []).append((z, v * depth.shape[2] + u, wx * wy))
    color, winner = found.color[0].cpu().numpy(), found.winner[0].cpu().numpy()
    source = frames[0].flatten(1).double().numpy()
    for cell in np.ndindex(h, w):
        z, index, _ = min(taps.get(cell, [(np.inf, -1, 0)]))
        with np.errstate(over="ignore"):
            near = [(i, weight) for z_tap, i, weight in taps.get(cell, []) if z_tap <= z * f32(1.05)]
        total = sum(weight for _, weight in near)
        if total < 0.6 * 128**2:  # no one covers it, or it is a crack between those who do
            continue
        assert winner[cell] == index
        expected = sum(source[:, i] * weight for i, weight in near) / total
        assert np.abs(color[:, cell[0], cell[1]] - expected).max() < 1e-6


@pytest.mark.slow
@pytest.mark.ci
def test_kernels_interpreted():
    """The Triton kernels themselves, without a GPU."""
    pytest.importorskip("triton")
    run_interpreted(["test_splat_backends.py"])
