"""Masks as programs store them: one bit, gray, 0 and 1, palette, color, transparency."""

import numpy as np
import pytest
from PIL import Image

from recapture.engine.errors import InputError
from recapture.engine.user_files.frame_files import ClipFrames
from recapture.engine.user_files.masks import find_masks

N, W, H = 4, 40, 24
CLIP = ClipFrames(used=range(N), total=N, width=W, height=H)
WANTED = np.zeros((N, H, W), bool)
for _t in range(N):
    WANTED[_t, 4:12, 2 + _t : 20 + _t] = True


def palette(values: np.ndarray, *colors: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(values.astype(np.uint8), "P")
    picture.putpalette([level for color in colors for level in color])
    return picture


def of_transparency(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([np.full((H, W, 3), 90, np.uint8), values.astype(np.uint8) * 255]), "RGBA")


STORED = {
    "gray": lambda m: Image.fromarray(m.astype(np.uint8) * 255),
    "0 and 1": lambda m: Image.fromarray(m.astype(np.uint8)),
    "one bit": lambda m: Image.fromarray(m),
    "0 and 38": lambda m: Image.fromarray(m.astype(np.uint8) * 38),
    "16 bit": lambda m: Image.fromarray(m.astype(np.uint16) * 65535),
    "16 bit of 0 and 1": lambda m: Image.fromarray(m.astype(np.uint16)),
    "soft": lambda m: Image.fromarray(np.where(m, 250, 3).astype(np.uint8) + np.arange(W, dtype=np.uint8)[None] % 4),
    "gray palette": lambda m: palette(~m, (255, 255, 255), (0, 0, 0)),
    "colored palette": lambda m: palette(m, (0, 0, 0), (128, 0, 0)),
    "gray in color": lambda m: Image.fromarray(np.dstack([m.astype(np.uint8) * 255] * 3)),
    "one color": lambda m: Image.fromarray(np.dstack([m.astype(np.uint8) * 128, *[np.zeros((H, W), np.uint8)] * 2])),
    "transparency": of_transparency,
    "opaque RGBA": lambda m: Image.fromarray(np.dstack([*[m.astype(np.uint8) * 255] * 3, np.full((H, W), 255, np.uint8)])),
}  # fmt: skip


def write(folder, store, masks=WANTED):
    folder.mkdir(exist_ok=True)
    for t, mask in enumerate(masks):
        store(mask).save(folder / f"{t}.png")
    return folder


@pytest.mark.parametrize("stored", STORED)
def test_a_mask_means_the_same_however_it_is_stored(tmp_path, stored):
    mask = find_masks(write(tmp_path / "masks", STORED[stored]), CLIP)
    assert np.array_equal(np.stack([mask(t) for t in range(N)]), WANTED)
    assert bool(mask.notes) == (stored == "transparency")


def test_all_white_masks_of_0_and_1(tmp_path):
    mask = find_masks(write(tmp_path / "masks", STORED["0 and 1"], [np.ones((H, W), bool)] * N), CLIP)
    assert mask(0).all()


def test_one_mask_serves_every_frame(tmp_path):
    STORED["gray"](WANTED[0]).save(tmp_path / "logo.png")
    for path in (tmp_path, tmp_path / "logo.png"):
        mask = find_masks(path, CLIP)
        assert np.array_equal(mask(3), WANTED[0])
        assert "every frame" in mask.notes[0]


def test_masks_are_matched_as_depth_is(tmp_path):
    folder = write(tmp_path / "masks", STORED["gray"], np.concatenate([WANTED] * 3))  # 0.png ... 11.png
    long = ClipFrames(used=range(8, 12), total=12, width=W, height=H)
    mask = find_masks(folder, long)
    assert np.array_equal(np.stack([mask(t) for t in range(N)]), WANTED)
    with pytest.raises(InputError, match="holds 12 masks, the clip has 4 frames"):
        find_masks(folder, CLIP)


@pytest.mark.parametrize(
    ("store", "match"),
    [
        (lambda m: Image.fromarray(np.zeros((H, W), np.uint8)), "black everywhere"),
        (lambda m: Image.fromarray((np.arange(H * W).reshape(H, W) % 90).astype(np.uint8)), "90 shades from 0 to 89"),
        (lambda m: palette(np.arange(H * W).reshape(H, W) % 3, (0, 0, 0), (128, 0, 0), (0, 128, 0)), "3 labels"),
        (lambda m: Image.fromarray(np.random.default_rng(0).integers(0, 255, (H, W, 3), np.uint8)), "color picture"),
        (lambda m: Image.fromarray(np.full((W, H), 255, np.uint8)), "turn it by 90 degrees"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path, store, match):
    with pytest.raises(InputError, match=match):
        find_masks(write(tmp_path / "masks", store), CLIP)(0)


def test_a_damaged_file_is_named(tmp_path):
    folder = write(tmp_path / "masks", STORED["gray"])
    (folder / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    with pytest.raises(InputError, match=r"0\.png cannot be read as a PNG"):
        find_masks(folder, CLIP)
