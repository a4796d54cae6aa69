"""Presets, their language, and the path they make."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recapture.engine.cameras import CameraPath, SourceView, parse_camera, path_warnings, presets, through_geometry
from recapture.engine.cameras.rigid import matrix_from_quaternion, quaternion_from_matrix, rotation_angle_deg, slerp
from recapture.engine.errors import CameraError

NAMES = [
    "static",
    "source",
    "stabilize",
    "offset",
    "pan",
    "tilt",
    "roll",
    "zoom",
    "dolly",
    "truck",
    "pedestal",
    "dolly_zoom",
    "arc",
    "orbit",
    "crane",
]
NAMES += ["spiral", "lemniscate"]
SUBJECT = np.array([0.0, 0.0, 3.0])


def make_view(frames: int = 25, **changes: object) -> SourceView:
    view = SourceView(
        K_px=np.array([[500.0, 0, 320], [0, 510, 136], [0, 0, 1]]),
        width=640,
        height=272,
        times_s=np.arange(frames) / 24,
        median_depth=4.0,
        subject_depth=3.0,
    )
    return replace(view, **changes)


def project(path: CameraPath, point: np.ndarray) -> np.ndarray:
    """Pixels [N, 2] of a point [3] in source coordinates."""
    camera = path.w2c[:, :3, :3] @ point + path.w2c[:, :3, 3]
    assert (camera[:, 2] > 0).all()
    uvw = np.einsum("nij,nj->ni", path.K_px, camera)
    return uvw[:, :2] / uvw[:, 2:]


def resolve(spec: str, **changes: object) -> CameraPath:
    return parse_camera(spec).resolve(make_view(**changes))


def test_preset_names_are_frozen() -> None:
    assert [p.name for p in presets()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_starts_at_the_source_and_stays_a_pose(name: str) -> None:
    path = resolve(name)
    np.testing.assert_array_equal(path.c2w[0], np.eye(4))
    np.testing.assert_array_equal(path.K_px[0], make_view().K_px)
    R = path.c2w[:, :3, :3]
    assert np.isfinite(path.c2w).all()
    np.testing.assert_allclose(R @ R.transpose(0, 2, 1), np.broadcast_to(np.eye(3), R.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(R), 1.0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_documented_parameter_is_accepted_at_its_bounds(name: str) -> None:
    for p in next(p for p in presets() if p.name == name).parameters:
        for word in p.words:
            parse_camera(f"{name}({p.name}={word})")
        if p.unit not in ("word", "clip"):
            for value in (p.low, p.high, p.default):
                parse_camera(f"{name}({p.name}={value})")
            for value in (p.low - 1, p.high + 1):
                with pytest.raises(CameraError, match=f"column .*{p.name} must be"):
                    parse_camera(f"{name}({p.name}={value})")


# The whole table of signs: where the subject's picture goes, and where the camera stands at the end.
SIGNS = [
    # spec, subject moves in the picture by (sign of du, sign of dv), camera moves by the sign of (x, y, z)
    ("pan(10deg)", (-1, 0), (0, 0, 0)),
    ("tilt(5deg)", (0, 1), (0, 0, 0)),
    ("dolly(0.3)", (0, 0), (0, 0, 1)),
    ("truck(0.2)", (-1, 0), (1, 0, 0)),
    ("pedestal(0.2)", (0, 1), (0, -1, 0)),
    ("zoom(1.5)", (0, 0), (0, 0, 0)),
    ("dolly_zoom(0.3)", (0, 0), (0, 0, 1)),
    ("arc(20deg)", (0, 0), (1, 0, 1)),
    ("arc(0deg, elevation=20deg)", (0, 0), (0, -1, 1)),
    ("orbit(90deg)", (0, 0), (1, 0, 1)),
    ("crane(0.3)", (0, 0), (0, -1, 0)),
    ("spiral(0.1, turns=0.125)", (0, 0), (1, -1, 0)),
    ("lemniscate(0.1, loops=0.125)", (0, 0), (1, -1, 0)),
]


@pytest.mark.parametrize(("spec", "shift", "travel"), SIGNS)
def test_signs(spec: str, shift: tuple[int, int], travel: tuple[int, int, int]) -> None:
    path = resolve(spec)
    pixels = project(path, SUBJECT)
    for got, want in ((pixels[-1] - pixels[0], shift), (path.c2w[-1, :3, 3], travel)):
        np.testing.assert_array_equal(np.sign(np.where(np.abs(got) < 1e-9, 0, got)), want)


def test_roll_clockwise_turns_the_picture_the_other_way() -> None:
    right_of_center = project(resolve("roll(10deg)"), np.array([0.5, 0, 3.0]))
    assert right_of_center[-1, 1] < right_of_center[0, 1]


def test_pan_turns_by_its_angle() -> None:
    path = resolve("pan(10deg)")
    np.testing.assert_allclose(path.c2w[-1, :3, 2], [np.sin(np.radians(10)), 0, np.cos(np.radians(10))], atol=1e-12)
    assert rotation_angle_deg(path.c2w[-1:, :3, :3])[0] == pytest.approx(10)


def test_zoom_scales_about_the_principal_point() -> None:
    path = resolve("zoom(2)")
    np.testing.assert_allclose(path.K_px[-1], [[1000, 0, 320], [0, 1020, 136], [0, 0, 1]])


def test_lengths_are_median_depths_and_arcs_keep_the_distance() -> None:
    assert resolve("dolly(0.3)").c2w[-1, 2, 3] == pytest.approx(0.3 * 4.0)
    centers = resolve("arc(40deg, elevation=30deg)").c2w[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(centers - SUBJECT, axis=-1), 3.0)
    centers = resolve("arc(40deg, look_at=2)").c2w[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(centers - [0, 0, 8], axis=-1), 8.0)


def test_orbit_goes_all_the_way_round() -> None:
    path = resolve("orbit(ease=linear)")
    np.testing.assert_allclose(path.c2w[-1], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(path.c2w[12, :3, 3], [0, 0, 6], atol=1e-12)
    assert any("frames 7-17" in w for w in path_warnings(path))


@pytest.mark.parametrize("distance", [0.4, -0.8])
def test_dolly_zoom_keeps_the_subjects_size(distance: float) -> None:
    path = resolve(f"dolly_zoom({distance})")
    width = project(path, np.array([0.5, 0.25, 3.0])) - project(path, SUBJECT)
    np.testing.assert_allclose(width, np.broadcast_to(width[0], width.shape), rtol=1e-12)
    behind = project(path, np.array([0.5, 0, 9.0]))[:, 0] - 320
    assert np.sign(behind[-1] - behind[0]) == -np.sign(distance)


def test_dolly_zoom_through_the_subject_is_refused() -> None:
    with pytest.raises(CameraError, match="passes its subject"):
        resolve("dolly_zoom(0.8)")


@pytest.mark.parametrize("spec", ["truck(0.3, look_at=subject)", "crane(0.3)", "spiral", "lemniscate", "arc(30deg)"])
def test_looking_at_the_subject_holds_it_even_off_the_axis(spec: str) -> None:
    aside = "pan(8deg, to=0.01)"
    np.testing.assert_allclose(
        project(resolve(f"{aside}+{spec}"), SUBJECT), project(resolve(aside), SUBJECT), atol=1e-6
    )


def test_motions_multiply_from_left_to_right() -> None:
    a, b, both = resolve("pan(10deg)"), resolve("dolly(0.3)"), resolve("pan(10deg) + dolly(0.3)")
    np.testing.assert_allclose(both.c2w, a.c2w @ b.c2w, atol=1e-12)
    np.testing.assert_allclose(resolve("zoom(1.5)+zoom(2)").K_px[-1], resolve("zoom(3)").K_px[-1])
    # An arc after a dolly still goes round the same subject.
    np.testing.assert_allclose(project(resolve("dolly(0.3)+arc(40deg)"), SUBJECT), [[320, 136]] * 25, atol=1e-9)


def test_start_moves_the_beginning() -> None:
    path = resolve("arc(20deg, start=-20deg)")
    np.testing.assert_allclose(path.c2w[0, 0, 3], -path.c2w[-1, 0, 3])
    assert resolve("zoom(1, start=2)").K_px[0, 0, 0] == pytest.approx(1000)


@pytest.mark.parametrize(("ease", "half"), [("linear", 0.5), ("in", 0.25), ("out", 0.75), ("in_out", 0.5)])
def test_easing_and_window(ease: str, half: float) -> None:
    path = resolve(f"dolly(1, ease={ease}, from=0.5, to=1)")
    z = path.c2w[:, 2, 3] / 4
    np.testing.assert_array_equal(z[:13], 0)
    assert z[18] == pytest.approx(half)
    assert z[-1] == pytest.approx(1)


def test_sampled_by_time_not_by_index() -> None:
    times = np.array([10.0, 10.1, 10.5, 11.0])
    z = resolve("dolly(1, ease=linear)", times_s=times).c2w[:, 2, 3]
    np.testing.assert_allclose(z, 4 * (times - 10))


def test_a_single_frame_stays_at_the_source() -> None:
    np.testing.assert_array_equal(resolve("arc(20deg)", times_s=np.zeros(1)).c2w, [np.eye(4)])


def test_intrinsics_that_change_over_the_clip_are_kept() -> None:
    K = np.stack([make_view().K_px * [[s], [s], [1]] for s in (1.0, 2.0)])
    path = parse_camera("zoom(2)").resolve(make_view(2, K_px=K))
    np.testing.assert_allclose(path.K_px[:, 0, 0], [500, 2000])


def test_one_movement_has_one_key() -> None:
    key = parse_camera("arc").to_json()
    for same in ("arc(20deg)", " arc( angle = 20 ) ", "static + arc(2e1)", "arc(20deg, elevation=-0)"):
        assert parse_camera(same).to_json() == key
    assert parse_camera("arc(20.0001deg)").to_json() != key
    assert json.loads(key)["kind"] == "preset"


REFUSED = [
    ("arcc(20deg)", r"column 1: unknown preset 'arcc' \(did you mean 'arc'\?\)\. Presets: static, source"),
    ("arc(20deg)+zom(2)", r"column 12: unknown preset 'zom' \(did you mean 'zoom'\?\)"),
    ("", "column 1: expected a preset, not the end"),
    ("pan(3)+", "column 8: expected a preset"),
    ("pan(3)pan(4)", r"column 7: expected '\+'"),
    ("arc(20", r"column 7: expected ',' or '\)', not the end"),
    ("arc(20dg)", "column 7: unexpected 'dg' after 20: angle takes a bare number or 'deg'"),
    ("dolly(3deg)", "column 8: unexpected 'deg'"),
    ("arc(1.2.3)", "column 8: expected ','"),
    ("arc(nan)", "column 5: angle must be a number from -360 to 360"),
    ("arc(inf)", "column 5"),
    ("arc(1e999)", "column 5"),
    ("arc(20, 30)", "column 9: only the first value may leave its name out"),
    ("arc(20, angle=30)", "column 9: angle is given twice"),
    ("arc(ease=in, ease=in)", "column 14: ease is given twice"),
    ("arc(elevaton=3)", r"column 5: arc has no parameter 'elevaton' \(did you mean 'elevation'\?\)\. It takes: angle"),
    ("static(1)", "column 8: static takes no parameters"),
    ("pan(ease=bouncy)", "column 10: ease must be one of linear, in, out, in_out"),
    ("arc(look_at=none)", "column 13: look_at must be subject or a number"),
    ("pan(from=0.6, to=0.5)", "pan must begin before it ends"),
    ("arc(20deg)" + "+pan(1)" * 40, "at most 32 movements"),
    ("pan" + " " * 3000, "at most 2000 characters"),
    ("no_such.json", "no_such.json: no such camera file"),
    ("no/such/folder", "no such camera file"),
    ("\0.json", "column 1"),
]


@pytest.mark.parametrize(("spec", "message"), REFUSED)
def test_refusals_say_where_and_what_instead(spec: str, message: str) -> None:
    with pytest.raises(CameraError, match=message) as caught:
        parse_camera(spec)
    assert caught.value.param == "camera"
    assert "\n" not in str(caught.value)


def test_presets_take_no_file_options() -> None:
    with pytest.raises(CameraError) as caught:
        parse_camera("arc", source_camera=Path("x.json"))
    assert caught.value.param == "source_camera"
    with pytest.raises(CameraError) as caught:
        parse_camera("arc", path_scale=2.0)
    assert caught.value.param == "path_scale"


WORDS = st.sampled_from([*NAMES, "(", ")", "+", "-", ",", "=", "deg", "20", "1e3", "nan", "ease", "in", "start", " "])


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=12).map("".join)))
def test_any_text_is_a_camera_or_a_camera_error(text: str) -> None:
    try:
        path = parse_camera(text).resolve(make_view(5))
    except CameraError as error:
        problem = str(error)
    else:
        problem = ""
        assert np.isfinite(path.c2w).all()
    assert "\n" not in problem


def test_camera_path_json_is_exact() -> None:
    path = resolve("arc(20deg)+zoom(1.3)")
    again = CameraPath.from_json(path.to_json())
    for name in ("c2w", "K_px", "times_s"):
        np.testing.assert_array_equal(getattr(again, name), getattr(path, name))
    assert (again.width, again.height) == (640, 272)
    assert again.to_json() == path.to_json()


def test_resized_keeps_the_picture() -> None:
    path = resolve("arc(20deg)+zoom(1.3)")
    small = path.resized(320, 68)
    point = np.array([0.4, 0.2, 5.0])
    np.testing.assert_allclose(project(small, point), project(path, point) * [0.5, 0.25])


def test_a_path_checks_itself() -> None:
    good = resolve("static", times_s=np.arange(2.0))
    with pytest.raises(CameraError, match="frame 1: the pose's 3x3 part is not a rotation"):
        replace(good, c2w=np.stack([np.eye(4), np.diag([1.1, 1, 1, 1])]))
    with pytest.raises(CameraError, match="frame 1: the pose is mirrored"):
        replace(good, c2w=np.stack([np.eye(4), np.diag([1.0, -1, 1, 1])]))
    with pytest.raises(CameraError, match="frame 0: the pose has a number that is not finite"):
        replace(good, c2w=np.full((2, 4, 4), np.nan))
    with pytest.raises(CameraError, match="frame 1: the pose's last row"):
        replace(good, c2w=np.stack([np.eye(4), np.ones((4, 4))]))
    with pytest.raises(CameraError, match="focal lengths"):
        replace(good, K_px=-good.K_px)
    with pytest.raises(ValueError, match="times_s"):
        replace(good, times_s=np.zeros(2))
    with pytest.raises(ValueError, match="2 times, but"):
        replace(good, c2w=good.c2w[:1])
    with pytest.raises(ValueError, match="read-only"):
        good.c2w[0, 0, 0] = 2


@pytest.mark.parametrize(
    "change", [{"median_depth": 0.0}, {"subject_depth": np.nan}, {"K_px": np.eye(2)}, {"width": 0}]
)
def test_a_view_checks_itself(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        make_view(**change)


def test_smooth_paths_do_not_jump() -> None:
    for name in NAMES:
        for frames in (2, 5, 14, 60):
            assert not [w for w in path_warnings(resolve(name, times_s=np.arange(frames) / 24)) if "jump" in w]


def test_late_frames_are_no_jump() -> None:
    times = np.r_[np.arange(10) / 24, 1.0 + np.arange(10) / 24]
    assert path_warnings(resolve("pan(40deg, ease=linear)", times_s=times)) == []


def test_jumps_are_found_with_their_frames() -> None:
    path = resolve("dolly(0.3)")
    c2w = path.c2w.copy()
    c2w[11:] = c2w[11:] @ resolve("pan(12deg)").c2w[-1]
    assert path_warnings(replace(path, c2w=c2w)) == [
        "the path jumps between frames 10 and 11: it turns 12.0 degrees in one step"
    ]
    c2w = path.c2w.copy()
    c2w[3, :3, 3] += 1.0
    assert [w[:46] for w in path_warnings(replace(path, c2w=c2w))] == [
        "the path jumps between frames 2 and 3: it move",
        "the path jumps between frames 3 and 4: it move",
    ]


def test_magnification_warns() -> None:
    (warning,) = path_warnings(resolve("zoom(5)"), make_view())
    assert "up to 5.0 times at frames 11-24" in warning


def test_through_geometry() -> None:
    path = resolve("dolly(1, ease=linear)")  # 4 scene units along the axis
    depth = np.full((25, 17, 40), 10.0)
    assert through_geometry(path, depth, make_view().K_px) == []
    depth[:, 8, 20] = 2.0
    assert through_geometry(path, depth, make_view().K_px) == ["the path passes through geometry at frames 12-24"]
    depth[20:] = np.nan
    assert through_geometry(path, depth, make_view().K_px) == ["the path passes through geometry at frames 12-19"]
    assert through_geometry(resolve("dolly(-1)"), depth, make_view().K_px) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8), st.floats(0, 1))
def test_quaternions_and_slerp(numbers: list[float], fraction: float) -> None:
    q = np.array(numbers).reshape(2, 4)
    if (np.linalg.norm(q, axis=-1) < 1e-2).any():
        return
    R = matrix_from_quaternion(q)
    np.testing.assert_allclose(matrix_from_quaternion(quaternion_from_matrix(R)), R, atol=1e-12)
    unit = quaternion_from_matrix(R)
    between = matrix_from_quaternion(slerp(unit[:1], unit[1:], np.array([fraction])))
    whole = rotation_angle_deg(R[:1].transpose(0, 2, 1) @ R[1:])
    part = rotation_angle_deg(R[:1].transpose(0, 2, 1) @ between)
    np.testing.assert_allclose(part, fraction * whole, atol=1e-5)


def test_every_example_of_the_documentation_works() -> None:
    text = (Path(__file__).parents[3] / "docs" / "cameras.md").read_text()
    examples = re.findall(r'--camera "([^"]+)"', text) + re.findall(r"^\| `([a-z_]+\([^`]*\))`", text, re.MULTILINE)
    assert len(examples) > len(NAMES)
    for example in examples:
        resolve(example)
    for preset in presets():
        assert f"`{preset.name}" in text
        for p in preset.parameters:
            assert f"`{p.name}" in text or f"{p.name}=" in text
