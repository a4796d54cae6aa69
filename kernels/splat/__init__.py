"""Point splat: every pixel of a frame is lifted by its depth and drawn by another camera. Start at `api.py`."""

from .api import Footprint, Splat, SplatOptions, camera_rows, splat, warp

__all__ = ["Footprint", "Splat", "SplatOptions", "camera_rows", "splat", "warp"]
