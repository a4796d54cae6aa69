"""Turns downloaded asset packages into one folder that the renderer reads.

Sources (all redistributable, see priors/README.md): Debian's `sweethome3d-furniture` archives, the `robosuite` wheel,
the npm tarball of `@pmndrs/assets`. The archive `BlendSwap-CC-0` is refused: evaluation scenes are made of it.

    python -m recapture.priors.assets --data DIR --furniture DIR_OF_SH3F --robosuite WHEEL --skies TARBALL
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np

CATALOGS = ("Scopia", "BlendSwap-CC-BY", "KatorLegaz", "Reallusion")
HELD_OUT_SKIES = ("park", "lobby")
MAX_TRIANGLES = 40_000
MAX_OBJ_BYTES = 6_000_000
TEXTURE_PX = 256


def split_of(name: str) -> str:
    """'held_out' for one name in eight, by a hash that never changes."""
    return "held_out" if zlib.crc32(name.encode()) % 8 == 0 else "train"


def read_catalog(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    """The numbered `key#i=value` entries of a furniture archive, as one dict each."""
    text = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
    entries: dict[int, dict[str, str]] = {}
    for key, index, value in re.findall(r"^(\w+)#(\d+)=(.*)$", text, re.MULTILINE):
        entries.setdefault(int(index), {})[key] = value.strip()
    return list(entries.values())


def read_materials(archive: zipfile.ZipFile, path: str) -> dict[str, dict]:
    """Materials of an MTL file: diffuse color, opacity, texture path inside the archive."""
    materials: dict[str, dict] = {}
    current: dict = {}
    if path not in archive.namelist():  # a few models name a file that the archive does not hold
        return materials
    folder = path.rsplit("/", 1)[0]
    for line in archive.read(path).decode("latin-1").splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        if words[0] == "newmtl":
            current = materials.setdefault(words[1], {"color": [0.7, 0.7, 0.7], "opacity": 1.0, "texture": None})
        elif words[0] == "Kd":
            current["color"] = [float(x) for x in words[1:4]]
        elif words[0] == "d":
            current["opacity"] = float(words[-1])
        elif words[0] == "map_Kd":
            current["texture"] = f"{folder}/{words[-1]}"
    return materials


def read_obj(archive: zipfile.ZipFile, path: str) -> list[tuple[dict, np.ndarray]]:
    """Triangles of an OBJ file by material: (material, [N, 3, 8]) with position, normal, uv per corner."""
    positions, normals, uvs = [], [], []
    corners: dict[str, list] = {}
    materials: dict[str, dict] = {}
    active = ""
    for line in archive.read(path).decode("latin-1").splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] == "v":
            positions.append([float(x) for x in words[1:4]])
        elif words[0] == "vn":
            normals.append([float(x) for x in words[1:4]])
        elif words[0] == "vt":
            uvs.append([float(x) for x in words[1:3]])
        elif words[0] == "usemtl" and len(words) > 1:
            active = words[1]
        elif words[0] == "mtllib":
            materials |= read_materials(archive, f"{path.rsplit('/', 1)[0]}/{words[1]}")
        elif words[0] == "f":
            face = [([int(i) if i else 0 for i in word.split("/")] + [0, 0])[:3] for word in words[1:]]
            corners.setdefault(active, []).extend([face[0], face[k], face[k + 1]] for k in range(1, len(face) - 1))
    # Row 0 stands for a missing index; OBJ counts from 1, and from the end when negative.
    tables = [np.array([[0.0] * n, *rows], np.float32) for n, rows in ((3, positions), (2, uvs), (3, normals))]
    groups = []
    for name, triangles in corners.items():
        index = np.array(triangles)  # [N, 3 corners, v/vt/vn]
        index = np.where(index < 0, index + [len(t) for t in tables], index)
        xyz, uv, normal = (table[index[..., k]] for k, table in enumerate(tables))
        flat = np.cross(xyz[:, 1] - xyz[:, 0], xyz[:, 2] - xyz[:, 0])[:, None].repeat(3, 1)
        normal = np.where(index[..., 2:3] == 0, flat, normal)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-12
        material = materials.get(name, {"color": [0.7, 0.7, 0.7], "opacity": 1.0, "texture": None})
        if material["opacity"] > 0.6:
            groups.append((material, np.concatenate([xyz, normal, uv], -1)))
    return groups


def decode_image(data: bytes, size_px: int) -> np.ndarray | None:
    """Decodes to RGBA uint8 [h, w, 4] with the longer side at most size_px; None when it cannot be read."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint8:
        return None
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)
    scale = size_px / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)


def convert_meshes(archive_path: Path, out: Path) -> list[dict]:
    """Writes one NPZ a model: meters, y up, resting on y = 0, centered on x and z."""
    records = []
    archive = zipfile.ZipFile(archive_path)
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    for entry in read_catalog(archive):
        path = entry.get("model", "").lstrip("/")
        name = f"{archive_path.stem}-{Path(path).stem}"
        door = entry.get("doorOrWindow") == "true"
        if not path.endswith(".obj") or door or not 0 < sizes.get(path, 0) < MAX_OBJ_BYTES:
            continue
        groups = read_obj(archive, path)
        count = sum(len(triangles) for _, triangles in groups)
        if not 12 <= count <= MAX_TRIANGLES:
            continue
        xyz = np.concatenate([triangles[..., :3].reshape(-1, 3) for _, triangles in groups])
        low, high = xyz.min(0), xyz.max(0)
        stated_m = max(float(entry[key]) for key in ("width", "depth", "height")) / 100
        scale = stated_m / max(high - low)
        shift = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2], np.float32)
        arrays = {}
        for k, (material, triangles) in enumerate(groups):
            triangles = triangles.copy()
            triangles[..., :3] = (triangles[..., :3] - shift) * scale
            arrays[f"triangles_{k}"] = triangles.reshape(-1, 8).astype(np.float32)
            arrays[f"color_{k}"] = np.array(material["color"], np.float32)
            texture = material["texture"]
            image = decode_image(archive.read(texture), TEXTURE_PX) if texture in sizes else None
            if image is not None:
                arrays[f"texture_{k}"] = image
        np.savez_compressed(out / f"{name}.npz", **arrays)
        size_m = ((high - low) * scale).tolist()
        records.append({"file": f"meshes/{name}.npz", "person": archive_path.stem == "Reallusion", "size_m": size_m})
        records[-1]["split"] = split_of(name)
    return records


def convert_textures(wheel: Path, out: Path) -> list[dict]:
    """Writes the wheel's material photographs as JPEG."""
    records = []
    archive = zipfile.ZipFile(wheel)
    for path in sorted(n for n in archive.namelist() if "/textures/" in n and n.endswith(".png")):
        image = decode_image(archive.read(path), 2 * TEXTURE_PX)
        if image is not None:
            name = Path(path).stem
            cv2.imwrite(
                str(out / f"{name}.jpg"), cv2.cvtColor(image, cv2.COLOR_RGBA2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95]
            )
            records.append({"file": f"textures/{name}.jpg", "split": split_of(name)})
    return records


def convert_skies(tarball: Path, out: Path) -> list[dict]:
    """Tone-maps the HDR panoramas to sRGB JPEG, equirectangular."""
    import OpenEXR  # OpenCV's reader lacks the DWA compression of these files

    records = []
    with tarfile.open(tarball) as archive:
        for member in archive.getmembers():
            if not re.fullmatch(r"package/hdri/\w+\.exr\.js", member.name):
                continue
            name = Path(member.name).name.split(".")[0]
            script = archive.extractfile(member).read()
            with tempfile.NamedTemporaryFile(suffix=".exr") as file:
                file.write(base64.b64decode(script.split(b"base64,")[1].split(b"'")[0]))
                file.flush()
                with OpenEXR.File(file.name) as exr:
                    linear = np.asarray(exr.channels()["RGB"].pixels, np.float32)
            exposed = linear * (0.35 / max(float(np.median(linear)), 1e-3))
            srgb = (exposed / (1 + exposed * 0.6)).clip(0, 1) ** (1 / 2.2)
            cv2.imwrite(
                str(out / f"{name}.jpg"), (srgb[..., ::-1] * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95]
            )
            split = "held_out" if name in HELD_OUT_SKIES else "train"
            records.append({"file": f"skies/{name}.jpg", "split": split})
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="output folder, shared by all recipes")
    parser.add_argument("--furniture", type=Path, required=True, help="folder of the .sh3f archives")
    parser.add_argument("--robosuite", type=Path, required=True, help="wheel file of robosuite")
    parser.add_argument("--skies", type=Path, required=True, help="tarball of @pmndrs/assets")
    args = parser.parse_args()
    assets = args.data / "assets"
    for folder in ("meshes", "textures", "skies"):
        (assets / folder).mkdir(parents=True, exist_ok=True)
    meshes = [r for name in CATALOGS for r in convert_meshes(args.furniture / f"{name}.sh3f", assets / "meshes")]
    textures = convert_textures(args.robosuite, assets / "textures")
    skies = convert_skies(args.skies, assets / "skies")
    (assets / "index.json").write_text(json.dumps({"meshes": meshes, "textures": textures, "skies": skies}, indent=1))
    print(f"{len(meshes)} meshes, {len(textures)} textures, {len(skies)} skies in {assets}")


if __name__ == "__main__":
    main()
