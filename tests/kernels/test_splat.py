"""The point splat against geometry that can be worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recapture.kernels import backends
from recapture.kernels.splat import splat, warp

H, W = 48, 64
FOOTPRINTS = ["nearest", "soft", "mesh"]


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


@pytest.mark.parametrize("footprint", FOOTPRINTS)
def test_static_camera_is_the_identity(footprint):
    """To the last bit, whatever the depth: no pixel is lost as flying where nothing moves."""
    frames, depth = (255 * picture()).round() / 255, torch.rand(1, H, W) * 5 + 1
    depth[:, :3] = torch.inf
    result = draw(frames, depth, pose(), footprint=footprint)
    assert torch.equal(result.color, frames)
    assert result.mask.all()
    assert torch.allclose(result.depth, depth)
    assert torch.equal(result.winner, torch.arange(H * W, dtype=torch.int32).view(1, H, W))


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


@pytest.mark.parametrize("footprint", FOOTPRINTS)
def test_sky_turns_with_the_camera_and_does_not_translate(footprint):
    frames, depth = picture(), torch.full((1, H, W), torch.inf)
    moved = draw(frames, depth, pose(x=3.0, y=1.0, z=2.0), footprint=footprint)
    assert torch.equal(moved.color, frames)
    assert torch.isinf(moved.depth).all()
    turned = draw(frames, depth, pose(yaw_deg=10), footprint=footprint)
    assert 0.5 < turned.mask.float().mean() < 1
    assert not torch.equal(turned.color, frames)
    assert not draw(frames, depth, pose(yaw_deg=180), footprint=footprint).mask.any()


@pytest.mark.parametrize("footprint", FOOTPRINTS)
def test_sky_is_behind_everything_finite(footprint):
    frames = torch.cat([torch.ones(1, 3, H, W // 2), torch.zeros(1, 3, H, W // 2)], dim=3)
    depth = torch.cat([torch.full((1, H, W // 2), 1e6), torch.full((1, H, W // 2), torch.inf)], dim=2)
    result = draw(frames, depth, pose(x=-1e5), footprint=footprint)  # the wall moves 6 px right over the sky
    assert torch.equal(result.color[0, 0, 5, 32:38], torch.ones(6))


@pytest.mark.parametrize("footprint", FOOTPRINTS)
def test_what_is_behind_the_camera_or_no_depth_is_never_drawn(footprint):
    frames, depth = picture(), torch.full((1, H, W), 2.0)
    assert not draw(frames, depth, pose(z=5.0), footprint=footprint).mask.any()
    for bad in (torch.nan, 0.0, -1.0, -torch.inf, 1e-42):  # the last has no finite inverse
        depth[0, 10, 10] = bad
        result = draw(frames, depth, pose(), footprint=footprint)
        assert torch.isfinite(result.color).all()
        assert not (result.winner == 10 * W + 10).any()
        depth[0, 10, 10] = 2.0


@pytest.mark.parametrize("footprint", FOOTPRINTS)
def test_valid_pixels_only(footprint):
    frames, depth = picture(), torch.full((1, H, W), 2.0)
    valid = torch.ones(1, H, W, dtype=torch.bool)
    valid[..., 10:20, 10:20] = False
    assert torch.equal(draw(frames, depth, pose(), valid=valid, footprint=footprint).mask, valid)
    assert not draw(frames, depth, pose(), valid=torch.zeros_like(valid), footprint=footprint).mask.any()


@pytest.mark.parametrize("footprint", ["soft", "mesh"])
@pytest.mark.parametrize(("across", "along"), [(1.3, 1.3), (2.0, 2.0), (2.8, 2.8), (1.0, 5.0), (5.5, 1.0)])
def test_magnified_surfaces_stay_closed(across, along, footprint):
    """Along one axis too, as a floor that comes to be seen from above is magnified."""
    frames, depth = picture(), torch.full((1, H, W), 2.0)
    K2 = intrinsics()
    K2[:, 0, 0] *= across
    K2[:, 1, 1] *= along
    assert draw(frames, depth, pose(), K2=K2, footprint=footprint).mask.all()


def floor() -> torch.Tensor:
    """Depth of a floor 1 m below a camera that looks along it; above the horizon there is nothing."""
    down = (torch.arange(H) + 0.5 - H / 2) / 60
    return torch.where(down > 0.02, 1 / down.clamp(min=0.02), torch.nan)[None, :, None].expand(1, H, W).contiguous()


def seen_from_above() -> torch.Tensor:
    """World-to-camera of a camera that has risen by 2.5 m and looks down by 35 degrees."""
    a = math.radians(35)
    w2c = torch.eye(4, dtype=torch.float64)
    w2c[1:3, 1:3] = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    w2c[:3, 3] = w2c[:3, :3] @ torch.tensor([0, 2.5, 0], dtype=torch.float64)
    return w2c[None]


@pytest.mark.parametrize("footprint", ["soft", "mesh"])
def test_a_floor_seen_from_above_stays_closed(footprint):
    result = draw(picture(), floor(), seen_from_above(), footprint=footprint, max_density=64)
    column = result.mask[0, :, W // 2].nonzero().flatten()
    assert len(column) > H / 4
    assert torch.equal(column, torch.arange(int(column[0]), int(column[-1]) + 1))


def test_a_pixel_is_a_plane_with_the_colors_of_its_surface():
    """A slanted wall with a linear picture, magnified: places, depths and colors are those of the plane."""
    u = (torch.arange(W, dtype=torch.float64) + 0.5 - W / 2) / 60
    inverse = (0.25 + 0.2 * u).expand(1, H, W)  # a plane: linear in 1/z
    ramp = torch.linspace(0, 1, W).expand(1, 3, H, W).contiguous()
    K2 = intrinsics(focal=180.0)
    for footprint, exact in (("soft", 2e-3), ("mesh", 1e-5)):
        result = draw(ramp, (1 / inverse).float(), pose(), K2=K2, footprint=footprint)
        # K2 and no pose: target x shows the source's W/2 + (x - W/2) / 3.
        x = (torch.arange(W) + 0.5 - W / 2) / 3 + W / 2 - 0.5
        inner = (slice(None), slice(H // 4, 3 * H // 4), slice(W // 8, -W // 8))
        assert result.mask.all()
        assert (result.color[0] - x / (W - 1))[inner].abs().max() < exact
        expected = 1 / (0.25 + 0.2 * (x + 0.5 - W / 2) / 60)
        assert (result.depth / expected - 1)[inner].abs().max() < 0.01


def test_mesh_tears_at_borders_and_nowhere_else():
    frames, depth = picture(), torch.full((1, H, W), 6.0)
    depth[..., 20:30] = 2.0
    hole = ~draw(frames, depth, pose(x=0.4), footprint="mesh").mask[0, 10]  # the bar moves 12 px, the wall 4
    assert hole.nonzero().flatten().tolist() == [*range(18, 26), *range(60, 64)]


def test_a_lone_pixel_is_drawn_by_the_mesh():
    frames, depth = picture(), torch.full((1, H, W), torch.nan)
    depth[0, 10, 20] = 3.0
    result = draw(frames, depth, pose(x=0.5), footprint="mesh")
    assert result.mask.nonzero().tolist() == [[0, 10, 10]]
    assert torch.equal(result.color[0, :, 10, 10], frames[0, :, 10, 20])


@pytest.mark.parametrize("footprint", FOOTPRINTS)
def test_flying_pixels_are_dropped_where_their_surfaces_part(footprint):
    frames, depth = torch.zeros(1, 3, H, W), torch.full((1, H, W), 6.0)
    depth[..., 20:30], depth[..., 19], depth[..., 30] = 2.0, 3.5, 3.5
    frames[..., 19], frames[..., 30] = 1.0, 1.0
    parted = {"nearest": 1.0, "soft": 0.5, "mesh": 0.5}[footprint]
    for moved, expected in ((pose(x=0.4), False), (pose(), True), (pose(yaw_deg=5), True)):
        result = draw(frames, depth, moved, footprint=footprint)
        assert bool((result.color >= parted).any()) == expected
        kept = draw(frames, depth, moved, footprint=footprint, flying_pixel_threshold=0.0)
        assert (kept.color >= parted).any()


def test_grazing_plane_has_no_cracks():
    """A floor-like wall turned 60 degrees, seen closer: every covered row is covered without gaps."""
    u = (torch.arange(W) + 0.5 - W / 2) / 60
    depth = (3 / (1 + math.tan(math.radians(60)) * u * 0.9)).clamp(0.5, 20).expand(1, H, W)
    result = draw(picture(), depth, pose(x=0.3, z=0.3, yaw_deg=15))
    row = result.mask[0, H // 2].nonzero().flatten()
    assert len(row) > W / 2
    assert torch.equal(row, torch.arange(int(row[0]), int(row[-1]) + 1))


def test_nothing_shines_through_the_cracks_of_a_surface():
    """A surface in steps of 4 % (within the band, but not joined) before a farther wall, pulled apart by the view."""
    near = 1 + 0.04 * (torch.arange(20) // 4)
    depth = torch.full((1, H, W), 3.0)
    depth[..., 36:56] = near
    frames = torch.zeros(1, 3, H, W)
    frames[:, 0, :, 36:56], frames[:, 2] = 1.0, (depth == 3).float()
    result = draw(frames, depth, pose(x=0.5))
    nearest = draw(frames, depth, pose(x=0.5), footprint="nearest")
    left, right = (int(part) for part in (nearest.color[0, 0, H // 2] == 1).nonzero().flatten()[[0, -1]])
    between = slice(left + 1, right)
    assert (nearest.color[0, 2, :, between] == 1).any()  # the wall is there to be seen
    assert (result.color[0, 0, :, between] > 0.5).all()
    # A dip that the source saw between them is no crack: `test_static_camera_is_the_identity`.


def test_what_lies_elsewhere_in_the_source_does_not_shine_through_where_a_pixel_was_lost():
    """A board without a depth in every fourth column moves over a wall."""
    depth = torch.full((1, H, W), 3.0)
    depth[..., 24:44] = 1.0
    depth[..., 25:44:4] = torch.nan
    frames = torch.zeros(1, 3, H, W)
    frames[:, 0], frames[:, 2] = (depth != 3).float(), (depth == 3).float()
    moved = pose(x=0.25)  # the board by 15 pixels, the wall by 5
    assert (draw(frames, depth, moved, footprint="nearest").color[0, 2, :, 10:28] == 1).any()
    assert (draw(frames, depth, moved).color[0, 2, :, 10:28] == 0).all()
    # Where the source saw the wall between two columns, it stays.
    depth[..., 25:44:4] = 3.0
    assert (draw(frames, depth, pose()).color == frames).all()


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
    x=st.floats(-1, 1),
    y=st.floats(-1, 1),
    z=st.floats(-1, 1.5),
    yaw=st.floats(-60, 60),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_any_pose_gives_finite_colors_of_the_source(x, y, z, yaw, height, width, seed):
    frames, depth = picture(seed), torch.rand(1, H, W, generator=torch.Generator().manual_seed(seed)) * 4 + 0.2
    result = draw(frames, depth, pose(x, y, z, yaw), K2=intrinsics(width, height, 40.0), size=(height, width))
    assert torch.isfinite(result.color).all()
    assert result.color.min() >= 0
    assert result.color.max() <= 1 + 1e-5
    assert torch.equal(torch.isnan(result.depth), ~result.mask)
    assert bool((result.depth[result.mask] > 0).all())


def test_ties_go_to_the_lowest_index():
    """Three pixels at one depth fall into one: the first of them is drawn, whatever comes after."""
    K2 = intrinsics(W // 4, H // 4, 15.0)
    result = draw(picture(), torch.full((1, H, W), 2.0), pose(), K2=K2, size=(H // 4, W // 4), footprint="nearest")
    v, u = torch.meshgrid(torch.arange(0, H, 4), torch.arange(0, W, 4), indexing="ij")
    assert torch.equal(result.winner[0], (v * W + u).int())


def test_the_winner_takes_any_field_along():
    frames, depth = picture(), torch.rand(1, H, W) * 3 + 1
    result = draw(frames, depth, pose(x=0.3, yaw_deg=8), footprint="nearest", flying_pixel_threshold=0.0)
    assert torch.equal(warp(frames, result.winner), result.color)
    assert torch.equal(result.mask, result.winner >= 0)
    whole = torch.arange(H * W).view(1, 1, H, W)
    assert torch.equal(warp(whole, result.winner)[result.mask[:, None]].int(), result.winner[result.mask])
    assert warp(whole > 5, result.winner).dtype == torch.bool
    assert warp(torch.zeros(0, 2, 3, 4), torch.zeros(0, 5, 6, dtype=torch.int32)).shape == (0, 2, 5, 6)
    assert warp(torch.zeros(1, 2, 0, 4), torch.full((1, 5, 6), -1)).shape == (1, 2, 5, 6)


def test_warp_has_the_gradient_of_a_gather():
    winner = torch.tensor([[[0, 3, -1], [3, 5, 3]]])
    field = torch.rand(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: warp(x, winner), field)
    warp(field, winner).sum().backward()
    counts = torch.tensor([[1, 0, 0], [3, 0, 1]], dtype=torch.float64)
    assert torch.equal(field.grad, counts.expand(1, 2, 2, 3))


def test_huge_and_tiny_depths_and_colors_between():
    frames = picture()
    for scale in (1e-4, 1e6, 1e20):
        result = draw(frames, torch.full((1, H, W), 3.0 * scale), pose(x=0.5 * scale))
        assert torch.allclose(result.color[..., : W - 10], frames[..., 10:], atol=1e-5)
        assert torch.allclose(result.depth[result.mask], torch.tensor(3.0 * scale))
    latents = 30 * (picture() - 0.5)
    assert torch.equal(draw(latents, torch.full((1, H, W), 3.0), pose()).color, latents)


@pytest.mark.parametrize("footprint", FOOTPRINTS)
def test_any_layout_and_size(footprint):
    frames, depth = picture(), torch.rand(1, H, W) + 1
    plain = draw(frames, depth, pose(x=0.2), footprint=footprint)
    across = frames.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    same = draw(across.double(), depth.mT.contiguous().mT.double(), pose(x=0.2), footprint=footprint)
    assert torch.equal(same.color, plain.color)
    for channels in (0, 1, 5):
        shape = draw(torch.rand(1, channels, H, W), depth, pose(x=0.2), footprint=footprint).color.shape
        assert shape == (1, channels, H, W)
    for height, width in ((0, 5), (1, 1), (1, 7), (7, 1), (2, 3)):
        part = draw(frames[..., :height, :width], depth[..., :height, :width], pose(), footprint=footprint)
        assert torch.equal(part.color[..., :height, :width], frames[..., :height, :width])
        assert int(part.mask.sum()) == height * width
    assert draw(frames, depth, pose(), size=(0, 4), footprint=footprint).color.shape == (1, 3, 0, 4)
    empty = splat(frames[:0], depth[:0], intrinsics()[:0], pose()[:0], intrinsics()[:0], (H, W), footprint=footprint)
    assert empty.winner.shape == (0, H, W)


def test_choices_are_checked(monkeypatch):
    frames, depth = picture(), torch.ones(1, H, W)
    before = draw(frames, depth, pose(x=0.1))
    with pytest.raises(ValueError, match="soft, nearest, mesh"):
        draw(frames, depth, pose(), footprint="round")
    with pytest.raises(ValueError, match="no Triton kernel"):
        draw(frames, depth, pose(), footprint="mesh", backend="triton")
    with pytest.raises(ValueError, match="max_density"):
        draw(frames, depth, pose(), max_density=0)
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    for backend in ("numba", "triton"):
        with pytest.raises(ValueError, match="pip install"):
            draw(frames, depth, pose(), backend=backend)
    assert torch.equal(draw(frames, depth, pose(x=0.1)).color, before.color)  # without numba, the same bits


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="depth"):
        draw(picture(), torch.ones(1, H, W - 1), pose())
    with pytest.raises(ValueError, match="cameras"):
        draw(picture(), torch.ones(1, H, W), pose().repeat(2, 1, 1))
    with pytest.raises(ValueError, match="valid"):
        draw(picture(), torch.ones(1, H, W), pose(), valid=torch.ones(1, H, 1, dtype=torch.bool))
    one = torch.ones(1)
    with pytest.raises(ValueError, match="32-bit index"):
        draw(one.expand(1, 3, 40000, 40000), one.expand(1, 40000, 40000), pose())
    with pytest.raises(ValueError, match="32-bit index"):
        draw(picture(), torch.ones(1, H, W), pose(), size=(2**16, 2**16))
