"""Depth of a clip: a network a frame, steadied over time, sharpened at object borders.

Depth is z in scene units, float32; +inf is sky, NaN is unknown.
"""
