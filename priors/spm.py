"""Reads SuperTuxKart's `.spm` meshes (version 1, little-endian) in their resting pose.

Layout: `SP`; a byte of version * 8 + type (0 static, 1 skinned, 2 static in sectors); a byte of flags (1 normals,
2 vertex colors, 4 tangents); bounds, 6 floats; the count of materials, 16 bits, and for each the names of two textures
as a byte of length and text; the count of sectors, and for each the count of parts, and for each part the counts of
vertices and indices (32 bits), its material (16 bits), the vertices, the indices. A vertex is a position (3 floats), a
normal packed in 10-10-10-2 bits, a color (one byte 128, or 255 and three of RGB), two half floats per texture, a packed tangent
if the part has a first and second texture coordinate, and in skinned meshes 4 joints and 4 half-float weights.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SKINNED, WHITE = 1, 128
NORMALS, COLORS, TANGENTS = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Part:
    """Triangles of one material."""

    texture: str
    """File name of the first texture, may be empty."""
    corners: np.ndarray
    """[N, 3, 8] float32: position, normal, uv (v down) of each corner."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def array(self, dtype: str, count: int) -> np.ndarray:
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += values.nbytes
        return values

    def text(self) -> str:
        (length,) = self.take("B")
        return self.array("u1", length).tobytes().decode()


def unpack_normals(packed: np.ndarray) -> np.ndarray:
    """uint32 [N] of three signed 10-bit numbers to unit vectors [N, 3]."""
    parts = np.stack([(packed >> shift) & 1023 for shift in (0, 10, 20)], -1).astype(np.int32)
    vectors = np.where(parts > 511, parts - 1024, parts) / 511.0
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9)


def read_vertices(reader: _Reader, count: int, flags: int, textures: tuple[str, str], skinned: bool) -> np.ndarray:
    """[count, 8] float32: position, normal, uv; zeros for what the file lacks."""
    head = [("position", "<f4", 3)] + [("normal", "<u4")] * bool(flags & NORMALS)
    tail = [("uv", "<f2", 2)] * bool(textures[0]) + [("uv2", "<f2", 2)] * bool(textures[1])
    tail += [("tangent", "<u4")] * bool(flags & TANGENTS and textures[0])
    tail += [("joints", "<i2", 4), ("weights", "<f2", 4)] * skinned
    if flags & COLORS:  # of one length or another, vertex by vertex
        head_bytes, tail_bytes = np.dtype(head).itemsize, np.dtype(tail).itemsize
        pieces = []
        for _ in range(count):
            pieces.append(reader.data[reader.at : reader.at + head_bytes])
            reader.at += head_bytes
            reader.at += 1 if reader.data[reader.at] == WHITE else 4
            pieces.append(reader.data[reader.at : reader.at + tail_bytes])
            reader.at += tail_bytes
        rows = np.frombuffer(b"".join(pieces), np.dtype(head + tail), count)
    else:
        rows = reader.array(np.dtype(head + tail), count)
    vertices = np.zeros((count, 8), np.float32)
    vertices[:, :3] = rows["position"]
    if flags & NORMALS:
        vertices[:, 3:6] = unpack_normals(rows["normal"])
    if textures[0]:
        vertices[:, 6:] = rows["uv"]
    return vertices


def read_spm(path: Path) -> list[Part]:
    """The parts of a mesh.

    Raises:
        ValueError: the file is no mesh of this format, or it ends too early or too late.
    """
    reader = _Reader(path.read_bytes())
    try:
        parts = _read(reader)
    except (struct.error, UnicodeDecodeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as an SPM mesh: {error}") from None
    return parts


def _read(reader: _Reader) -> list[Part]:
    magic, kind, flags = reader.take("2sBB")
    if magic != b"SP" or kind >> 3 != 1:
        raise ValueError("no SPM header of version 1")
    skinned = kind & 7 == SKINNED
    reader.take("6f")
    materials = [(reader.text(), reader.text()) for _ in range(reader.take("H")[0])]
    parts = []
    for _ in range(reader.take("H")[0]):
        for _ in range(reader.take("H")[0]):
            vertex_count, index_count, material = reader.take("IIH")
            vertices = read_vertices(reader, vertex_count, flags, materials[material], skinned)
            indices = reader.array("u1" if vertex_count <= 255 else "<u2", index_count).astype(np.int64)
            corners = vertices[indices].reshape(-1, 3, 8)
            if not flags & NORMALS:
                flat = np.cross(corners[:, 1, :3] - corners[:, 0, :3], corners[:, 2, :3] - corners[:, 0, :3])
                flat /= np.linalg.norm(flat, axis=-1, keepdims=True) + 1e-9
                corners[..., 3:6] = flat[:, None]
            parts.append(Part(materials[material][0], corners))
    if not skinned and reader.at != len(reader.data):  # a skinned mesh goes on with its armature
        raise ValueError(f"{len(reader.data) - reader.at} bytes left over")
    return parts
