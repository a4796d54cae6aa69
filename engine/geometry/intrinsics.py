"""The clip's lens."""

import math
from typing import Any

ASSUMED_FOV_DEG = 55.0


def settle_intrinsics(
    width: int, height: int, *, given_deg: float | None, focal_px: float | None, estimated_deg: float | None
) -> dict[str, Any]:
    """Intrinsics of a width x height clip as JSON values, from the best source there is.

    Args:
        given_deg: horizontal field of view that the user gives.
        focal_px: focal length in the file's metadata, pixels.
        estimated_deg: field of view by the depth model.

    Returns:
        `K_px` [3, 3], `width`, `height`, `fov_deg`, and `source`: given, metadata, depth model or assumed.
    """
    if given_deg is not None:
        fov, source = given_deg, "given"
    elif focal_px is not None:
        fov, source = math.degrees(2 * math.atan(width / 2 / focal_px)), "metadata"
    elif estimated_deg is not None:
        fov, source = estimated_deg, "depth model"
    else:
        fov, source = ASSUMED_FOV_DEG, "assumed"
    focal = width / 2 / math.tan(math.radians(fov) / 2)
    K_px = [[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]
    return {"K_px": K_px, "width": width, "height": height, "fov_deg": fov, "source": source}
