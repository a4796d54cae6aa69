"""Source and result of a run side by side, as an animated WebP.

python examples/moving_picture.py demo-out docs/pictures/demo.webp
"""

import sys
from pathlib import Path

import av
from PIL import Image

WIDTH = 440


def pictures(clip: Path) -> list[Image.Image]:
    with av.open(str(clip)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def main(run: Path, out: Path) -> None:
    pairs = pictures(run / "side_by_side.mp4")
    height = round(pairs[0].height * 2 * WIDTH / pairs[0].width)
    frames = [pair.resize((2 * WIDTH, height), Image.Resampling.LANCZOS) for pair in pairs]
    there_and_back = frames + frames[-2:0:-1]
    there_and_back[0].save(
        out, save_all=True, append_images=there_and_back[1:], duration=60, loop=0, quality=60, method=6
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
