"""Depth as people have it: every layout that is taken, and what is refused by name."""

import cv2
import numpy as np
import pytest

from recapture.engine.errors import InputError
from recapture.engine.geometry.depth_files import read_depth
from recapture.engine.store.arrays import ArrayWriter, read_array
from recapture.engine.user_files.depth import DepthKind, find_depth
from recapture.engine.user_files.frame_files import ClipFrames

N, H, W = 12, 18, 32
DEPTH = np.arange(N * H * W, dtype=np.float32).reshape(N, H, W) / 1000 + 1


def clip(first=0, count=N, total=N, width=64, height=36) -> ClipFrames:
    return ClipFrames(used=range(first, first + count), total=total, width=width, height=height)


@pytest.fixture
def own(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    return folder


@pytest.fixture
def read(tmp_path):
    def run(path, of=None, kind: DepthKind | None = None) -> np.ndarray:
        files = find_depth(path, of or clip(), kind)
        target = tmp_path / "out.arrow"
        target.unlink(missing_ok=True)
        read_depth(files, lambda shape: ArrayWriter(target, shape_per_row=shape, dtype=np.float32))
        return np.array(read_array(target))

    return run


def save_each(folder, names, maps=DEPTH) -> None:
    for name, depth in zip(names, maps, strict=True):
        np.save(folder / name, depth)


@pytest.mark.parametrize("form", ["frame_{}.npy", "{:05d}.npy", "depth_{:02d}_v2.npy"])
@pytest.mark.parametrize("first", [0, 1, 1001])
def test_files_come_in_the_order_that_a_person_counts(own, read, form, first):
    save_each(own, [form.format(first + i) for i in range(N)])
    assert np.array_equal(read(own), DEPTH)
    assert np.array_equal(read(own, clip(first=3, count=4)), DEPTH[3:7])


def test_files_of_the_used_frames_alone(own, read):
    save_each(own, [f"{i}.npy" for i in range(4)], DEPTH[3:7])
    assert np.array_equal(read(own, clip(first=3, count=4)), DEPTH[3:7])


def test_numbers_in_names_say_which_frame_a_map_is_of(own, read):
    kept = [0, 1, 4, 5, 6, 11]
    save_each(own, [f"{i}.npy" for i in kept], DEPTH[kept])
    assert np.array_equal(read(own, clip(first=4, count=3)), DEPTH[4:7])
    with pytest.raises(InputError, match=r"no depth maps for frames 2-3, 7-10"):
        read(own)


@pytest.mark.parametrize("count", [5, 13, 24])
def test_a_number_of_maps_that_is_not_the_clips_is_refused(own, read, count):
    maps = np.resize(DEPTH, (count, H, W))
    np.save(own / "all.npy", maps)
    with pytest.raises(InputError, match=rf"depth_dir: .*own holds {count} depth maps, the clip has 12 frames"):
        read(own)
    save_each(own, [f"{i}.npy" for i in range(count)], maps)
    (own / "all.npy").unlink()
    with pytest.raises(InputError, match=rf"{count} depth maps|no depth maps for frames"):
        read(own)


def test_several_kinds_of_files_in_one_folder(own, read):
    save_each(own, [f"{i:03}.npy" for i in range(N)])
    for i in range(N):
        cv2.imwrite(str(own / f"{i:03}.png"), np.zeros((H, W, 3), np.uint8))
    assert np.array_equal(read(own), DEPTH)
    assert "12 .npy and 12 .png" in find_depth(own, clip(), None).notes[0]
    (own / "003.png").unlink()
    with pytest.raises(InputError, match=r"12 \.npy and 11 \.png files; leave only one kind"):
        read(own)


@pytest.mark.parametrize("key", ["depth", "depths", "anything"])
@pytest.mark.parametrize("as_file", [True, False])
def test_an_npz_by_its_keys(own, read, key, as_file):
    others = {"images": np.zeros((N, H, W, 3), np.uint8), "cam_c2w": np.zeros((N, 4, 4)), "intrinsic": np.eye(3)}
    np.savez_compressed(own / "clip_sgd_cvd_hr.npz", **({} if key == "anything" else others), **{key: DEPTH})
    assert np.array_equal(read(own / "clip_sgd_cvd_hr.npz" if as_file else own), DEPTH)


@pytest.mark.parametrize("shape", [(N, 1, H, W), (N, H, W, 1)])
def test_axes_of_length_one_do_not_count(own, read, shape):
    np.save(own / "all.npy", DEPTH.reshape(shape))
    assert np.array_equal(read(own), DEPTH)


def test_an_npz_with_nothing_that_is_depth_lists_what_it_holds(own, read):
    np.savez(own / "a.npz", images=np.zeros((N, H, W, 3), np.uint8), cam_c2w=np.zeros((N, 4, 4)))
    with pytest.raises(InputError, match=r"a.npz holds several arrays \(images \[12, 18, 32, 3\], cam_c2w"):
        read(own)
    np.savez(own / "a.npz", data=np.zeros((N, 4, 4)), inds=np.arange(N))
    with pytest.raises(InputError, match="of ViPE, not depth"):
        read(own)


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_values_that_were_stretched_need_a_word(own, read, top):
    near_is_large = 1 / DEPTH
    stretched = (near_is_large - near_is_large.min()) / np.ptp(near_is_large) * top
    np.savez(own / "clip.npz", depth=stretched.astype(np.float32))
    with pytest.raises(InputError, match=rf"run from 0 to {top}, .*disparity"):
        read(own)
    depth = read(own, kind="disparity").ravel()  # its rows follow each other from near to far, with the sky at zero
    assert (np.diff(depth[np.isfinite(depth)]) > 0).all()
    assert np.isfinite(depth).mean() > 0.98
    assert np.nanmax(read(own, kind="depth")) == top


@pytest.mark.parametrize(("key", "kind"), [("depth", "inverse"), ("inv_depth", None)])
def test_inverse_depth_is_turned_over_and_its_zero_is_the_sky(own, read, key, kind):
    inverse = 1 / DEPTH
    inverse[:, 0] = 0
    np.savez(own / "clip.npz", **{key: inverse})
    depth = read(own, kind=kind)
    assert np.isinf(depth[:, 0]).all()
    assert np.allclose(depth[:, 1:], DEPTH[:, 1:], rtol=1e-5)


def test_a_map_of_another_shape_is_refused_or_said(own, read):
    np.save(own / "all.npy", np.ones((N, 32, 18), np.float32))
    with pytest.raises(InputError, match="the depth is 18x32, the clip 64x36: turn it by 90 degrees"):
        read(own)
    np.save(own / "all.npy", np.ones((N, 32, 32), np.float32))
    with pytest.raises(InputError, match="32x32, the clip 64x36: the shapes must agree"):
        read(own)
    np.save(own / "all.npy", np.ones((N, 19, 32), np.float32))
    assert "stretched" in find_depth(own, clip(), None).notes[0]


def test_pngs(own, read):
    for i, depth in enumerate(DEPTH):
        cv2.imwrite(str(own / f"{i}.png"), (depth * 1000).round().astype(np.uint16))
    assert np.allclose(read(own), DEPTH, atol=1e-3)
    for i in range(N):
        cv2.imwrite(str(own / f"{i}.png"), np.full((H, W), 10 * i, np.uint8))
    with pytest.raises(InputError, match=r"0\.png is an 8-bit picture, which is for viewing"):
        read(own)
    assert np.isfinite(read(own, kind="disparity")[1:]).all()
    for i in range(N):
        cv2.imwrite(str(own / f"{i}.png"), np.full((H, W, 3), 10 * i, np.uint8))
    with pytest.raises(InputError, match=r"0\.png is a color picture"):
        read(own, kind="disparity")


def test_exr_files(own, read):
    exr = pytest.importorskip("OpenEXR")
    for i, depth in enumerate(DEPTH):
        exr.File({"type": exr.scanlineimage}, {"Z": depth.astype(np.float16)}).write(str(own / f"{i:05}.exr"))
    assert np.allclose(read(own), DEPTH, rtol=1e-3)


def test_what_is_no_depth_is_refused_by_its_name(own, read, tmp_path):
    for name, match in (("none", "does not exist"), ("own", "holds no .npy")):
        with pytest.raises(InputError, match=match):
            read(tmp_path / name)
    (own / "deeper").mkdir()
    np.save(own / "deeper" / "0.npy", DEPTH[0])
    with pytest.raises(InputError, match=r"holds no .*; did you mean .*own/deeper\?"):
        read(own)
    (own / "depth.mp4").write_bytes(b"x")
    with pytest.raises(InputError, match="is a file; give a folder"):
        read(own / "depth.mp4")
    for data in (b"garbage", b""):
        (own / "d.npz").write_bytes(data)
        with pytest.raises(InputError, match=r"d.npz cannot be read as depth"):
            read(own)
    np.savez(own / "d.npz", depth=np.array([[{}]]), allow_pickle=True)
    with pytest.raises(InputError, match="object"):
        read(own)
    (own / "d.npz").unlink()
    (own / "depth.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"unzip depth\.zip"):
        read(own)


def test_a_map_that_differs_from_the_first_or_holds_nothing_is_named(own, read):
    for name, odd, match in (
        ("1.npy", np.ones((H, 30)), "map 1: .*the first is"),
        ("0.npy", np.full((H, W), np.nan), "no positive"),
    ):
        save_each(own, [f"{i}.npy" for i in range(N)])
        np.save(own / name, odd)
        with pytest.raises(InputError, match=match):
            read(own)
