"""Video in and out: clips are admitted, probed and decoded as untrusted input; results are written whole or not at all.

clip = admit(source, folder)        # a file of our own name, first bytes checked
info = probe(clip)                  # one look through it; refuses by name what would come out wrong
for frame in decode(clip, info):    # upright RGB, square pixels, one at a time
    ...
with VideoWriter(out, width=info.width, height=info.height, rate=info.rate) as video:
    video.write(rgb)
add_sound(out, clip)                # its sound, packet by packet
"""

from .admit import admit, check_clip
from .audio import add_sound
from .clip import ClipInfo, ColorTags, Limits
from .decode import Frame, decode
from .encode import VideoWriter
from .png import write_png
from .probe import probe

__all__ = [
    "ClipInfo",
    "ColorTags",
    "Frame",
    "Limits",
    "VideoWriter",
    "add_sound",
    "admit",
    "check_clip",
    "decode",
    "probe",
    "write_png",
]
