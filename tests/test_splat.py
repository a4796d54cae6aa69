"""The point splat against geometry that can be worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recapture.kernels.splat import splat

H, W = 48, 64


def intrinsics(width: int = W, height: int = H, focal: float = 60.0) -> torch.Tensor:
    return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)[None]


def pose(x: float = 0, y: float = 0, z: float = 0, yaw_deg: float = 0) -> torch.Tensor:
    """World-to-camera of a camera at (x, y, z) turned right by `yaw_deg`."""
    a = math.radians(yaw_deg)
    c2w = torch.eye(4, dtype=torch.float64)
    c2w[:3, :3] = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    c2w[:3, 3] = torch.tensor([x, y, z])
    return torch.linalg.inv(c2w)[None]


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, H, W, generator=torch.Generator().manual_seed(seed))


def draw(frames, depth, w2c, *, K2=None, size=(H, W), **options):
    return splat(frames, depth, intrinsics(), w2c, intrinsics() if K2 is None else K2, size, **options)


def test_static_camera_is_the_identity():
    frames, depth = picture(), torch.rand(1, H, W) * 5 + 1
    result = draw(frames, depth, pose())
    assert torch.equal(result.color, frames)
    assert result.mask.all()
    assert torch.allclose(result.depth, depth)


def test_truck_moves_a_plane_by_its_disparity():
    frames, depth = picture(), torch.full((1, H, W), 3.0)
    result = draw(frames, depth, pose(x=0.5))  # 60 px * 0.5 / 3 = 10 px
    assert torch.allclose(result.color[..., : W - 10], frames[..., 10:], atol=1e-5)
    assert result.mask[..., : W - 10].all()
    assert not result.mask[..., W - 10 :].any()


def test_nearer_surface_wins_and_uncovers_what_nobody_saw():
    frames, depth = torch.zeros(1, 3, H, W), torch.full((1, H, W), 6.0)
    frames[..., 20:30], depth[..., 20:30] = 1.0, 2.0
    result = draw(frames, depth, pose(x=0.4))  # the bar moves 12 px left, the wall 4
    assert torch.equal(result.color[0, 0, 10, 8:18], torch.ones(10))
    hole = (~result.mask[0, 10]).nonzero().flatten()
    assert hole.tolist() == [*range(18, 26), *range(60, 64)]


def test_sky_turns_with_the_camera_and_does_not_translate():
    frames, depth = picture(), torch.full((1, H, W), torch.inf)
    moved = draw(frames, depth, pose(x=3.0, y=1.0, z=2.0))
    assert torch.equal(moved.color, frames)
    assert torch.isinf(moved.depth).all()
    assert not torch.equal(draw(frames, depth, pose(yaw_deg=10)).color, frames)


def test_sky_is_behind_everything_finite():
    frames = torch.cat([torch.ones(1, 3, H, W // 2), torch.zeros(1, 3, H, W // 2)], dim=3)
    depth = torch.cat([torch.full((1, H, W // 2), 1e6), torch.full((1, H, W // 2), torch.inf)], dim=2)
    result = draw(frames, depth, pose(x=-1e5))  # the wall moves 6 px right over the sky
    assert torch.equal(result.color[0, 0, 5, 32:38], torch.ones(6))


def test_what_is_behind_the_camera_or_no_depth_is_never_drawn():
    frames, depth = picture(), torch.full((1, H, W), 2.0)
    assert not draw(frames, depth, pose(z=5.0)).mask.any()
    for bad in (torch.nan, 0.0, -1.0):
        depth[0, 10, 10] = bad
        result = draw(frames, depth, pose())
        assert torch.isfinite(result.color).all()
        depth[0, 10, 10] = 2.0


def test_valid_pixels_only():
    frames, depth = picture(), torch.full((1, H, W), 2.0)
    valid = torch.ones(1, H, W, dtype=torch.bool)
    valid[..., 10:20, 10:20] = False
    assert torch.equal(draw(frames, depth, pose(), valid=valid).mask, valid)


@pytest.mark.parametrize("factor", [1.3, 2.0, 2.8])
def test_magnified_surfaces_stay_closed(factor):
    frames, depth = picture(), torch.full((1, H, W), 2.0)
    K2 = intrinsics()
    K2[:, 0, 0] *= factor
    K2[:, 1, 1] *= factor
    assert draw(frames, depth, pose(), K2=K2).mask.all()


def test_grazing_plane_has_no_cracks():
    """A floor-like wall turned 60 degrees, seen closer: every covered row is covered without gaps."""
    u = (torch.arange(W) + 0.5 - W / 2) / 60
    depth = (3 / (1 + math.tan(math.radians(60)) * u * 0.9)).clamp(0.5, 20).expand(1, H, W)
    result = draw(picture(), depth, pose(x=0.3, z=0.3, yaw_deg=15))
    row = result.mask[0, H // 2].nonzero().flatten()
    assert len(row) > W / 2
    assert torch.equal(row, torch.arange(int(row[0]), int(row[-1]) + 1))


def test_smaller_target_averages_and_keeps_a_ramp():
    ramp = torch.linspace(0, 1, W).expand(1, 3, H, W)
    noise = 0.2 * (picture() - 0.5)
    result = draw(
        ramp + noise, torch.full((1, H, W), 2.0), pose(), K2=intrinsics(W // 2, H // 2, 30.0), size=(H // 2, W // 2)
    )
    assert result.mask.all()
    error = (result.color - torch.nn.functional.avg_pool2d(ramp, 2))[..., 1:-1, 1:-1]
    assert error.abs().mean() < 0.4 * noise.abs().mean()


@settings(deadline=None, max_examples=25)
@given(
    x=st.floats(-1, 1), y=st.floats(-1, 1), z=st.floats(-1, 1.5), yaw=st.floats(-60, 60),
    height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_pose_gives_finite_colours_of_the_source(x, y, z, yaw, height, width, seed):
    frames, depth = picture(seed), torch.rand(1, H, W, generator=torch.Generator().manual_seed(seed)) * 4 + 0.2
    result = draw(frames, depth, pose(x, y, z, yaw), K2=intrinsics(width, height, 40.0), size=(height, width))
    assert torch.isfinite(result.color).all()
    assert result.color.min() >= 0
    assert result.color.max() <= 1 + 1e-5
    assert torch.equal(torch.isnan(result.depth), ~result.mask)
    assert bool((result.depth[result.mask] > 0).all())


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="depth"):
        draw(picture(), torch.ones(1, H, W - 1), pose())
    with pytest.raises(ValueError, match="cameras"):
        draw(picture(), torch.ones(1, H, W), pose().repeat(2, 1, 1))
