"""Turns SuperTuxKart's tracks into textured worlds that the renderer reads, as far as their licenses allow.

    python -m recapture.priors.worlds --data DIR --game /usr/share/games/supertuxkart/data \\
      --copyright /usr/share/doc/supertuxkart-data/copyright

Every mesh and texture is looked up in Debian's copyright file: what is not under one of `LICENSES` is left out, a
texture on a licensed mesh is then replaced when a picture is drawn. One NPZ per track under DIR/assets/worlds holds the
triangles of each material (meters, y up, right-handed), its texture, and points along the drive line; `index.json` names
licenses and authors.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from .assets import decode_image, split_of
from .spm import Part, read_spm

LICENSES = {
    "CC0",
    "CC0-1.0",
    "public-domain",
    "MIT",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-SA",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
}
"""Of `A and B` all must be among them, of `A or B` one."""
SEE_THROUGH = ("alphablend", "additive")
CUT_OUT = ("alphatest", "grass", "unlit")
TEXTURE_PX = 512
LEFT_HANDED = np.diag([1.0, 1.0, -1.0, 1.0])
LEAST_TRIANGLES = 2000


class Licenses:
    """The stanzas of a Debian copyright file (DEP-5), asked by path; the last match counts."""

    def __init__(self, text: str) -> None:
        self.stanzas = []
        for paragraph in re.split(r"\n\s*\n", text):
            fields = {}
            for name, value in re.findall(r"^([A-Za-z-]+):((?:.*(?:\n[ \t].*)*))", paragraph, re.MULTILINE):
                fields[name] = [line.strip() for line in value.splitlines() if line.strip()]
            if fields.get("Files") and fields.get("License"):
                files = " ".join(fields["Files"]).split()
                authors = [re.sub(r"\s*<[^>]*>|^Copyright ", "", name) for name in fields.get("Copyright", [])]
                self.stanzas.append((files, fields["License"][0], authors))

    def of(self, path: str) -> tuple[str, list[str]]:
        """License and authors of a path such as `data/textures/dirt.jpg`; empty where none is named."""
        for patterns, name, authors in reversed(self.stanzas):
            if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
                return name, authors
        return "", []


def allowed(license_name: str) -> bool:
    return any(
        all(part in LICENSES for part in option.split(" and ")) for option in re.split(r" or | OR ", license_name)
    )


def euler(degrees: np.ndarray) -> np.ndarray:
    """[3, 3] of Irrlicht's angles: about x, then y, then z."""
    (a, b, c), (s, t, u) = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, a, -s], [0, s, a]])
    about_y = np.array([[b, 0, t], [0, 1, 0], [-t, 0, b]])
    about_z = np.array([[c, -u, 0], [u, c, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def numbers(element: ElementTree.Element, name: str, default: str) -> np.ndarray:
    return np.array([float(x) for x in element.get(name, default).split()])


def placement(element: ElementTree.Element) -> np.ndarray:
    """[4, 4] of an element's `xyz`, `hpr`, `scale`."""
    matrix = np.eye(4)
    matrix[:3, :3] = euler(numbers(element, "hpr", "0 0 0")) * numbers(element, "scale", "1 1 1")
    matrix[:3, 3] = numbers(element, "xyz", "0 0 0")
    return matrix


def drive_line(track: Path) -> np.ndarray:
    """[N, 3] middles of the road's quads in the renderer's axes; empty for an arena without them."""
    path, quads = track / "quads.xml", []
    if not path.exists():
        return np.zeros((0, 3))
    for element in ElementTree.parse(path).iter("quad"):
        corners = []
        for name in ("p0", "p1", "p2", "p3"):
            text = element.get(name, "")
            if ":" in text:  # corner of an earlier quad
                quad, corner = (int(part) for part in text.split(":"))
                corners.append(quads[quad][corner])
            else:
                corners.append([float(x) for x in text.split()])
        quads.append(corners)
    return np.array(quads).reshape(-1, 4, 3).mean(1) * [1, 1, -1]


@dataclass
class World:
    """A track being read: triangles by material, and whose work they are."""

    game: Path
    licenses: Licenses
    corners: dict[Path | None, list[np.ndarray]] = field(default_factory=dict)
    """Triangles [N, 3, 8] by their texture's file; None where no licensed one exists."""
    cut_out: set[Path] = field(default_factory=set)
    credits: dict[str, set[str]] = field(default_factory=dict)
    """License to authors."""
    left_out: int = 0
    """Triangles without a license or see-through."""
    _meshes: dict[Path, list[Part]] = field(default_factory=dict)
    _shaders: dict[Path, dict[str, str]] = field(default_factory=dict)

    def use(self, path: Path) -> bool:
        """Whether the license of a file is accepted; credits its authors."""
        name, authors = self.licenses.of(f"data/{path.relative_to(self.game)}")
        if allowed(name):
            self.credits.setdefault(name, set()).update(authors)
        return allowed(name)

    def shader(self, folder: Path, texture: str) -> str:
        for place in (folder, self.game / "textures"):
            if place not in self._shaders:
                file = place / "materials.xml"
                materials = ElementTree.parse(file).iter("material") if file.exists() else ()
                self._shaders[place] = {m.get("name", ""): m.get("shader", "solid") for m in materials}
            if texture in self._shaders[place]:
                return self._shaders[place][texture]
        return "solid"

    def add_mesh(self, path: Path, matrix: np.ndarray) -> None:
        """Adds the mesh as it stands in the world, `matrix` [4, 4] in the game's axes."""
        if path not in self._meshes:
            self._meshes[path] = read_spm(path) if path.exists() and self.use(path) else []
        matrix = LEFT_HANDED @ matrix
        turn = np.linalg.inv(matrix[:3, :3]).T if abs(np.linalg.det(matrix[:3, :3])) > 1e-9 else None
        for part in self._meshes[path]:
            shader = self.shader(path.parent, part.texture)
            files = (place / part.texture for place in (path.parent, self.game / "textures"))
            texture = next((f for f in files if part.texture and f.exists() and self.use(f)), None)
            if shader in SEE_THROUGH or turn is None or (texture is None and shader in CUT_OUT):
                self.left_out += len(part.corners)
                continue
            corners = part.corners.copy()
            corners[..., :3] = corners[..., :3] @ matrix[:3, :3].T + matrix[:3, 3]
            corners[..., 3:6] = corners[..., 3:6] @ turn.T
            corners[..., 3:6] /= np.linalg.norm(corners[..., 3:6], axis=-1, keepdims=True) + 1e-9
            corners[..., 7] = 1 - corners[..., 7]
            self.corners.setdefault(texture, []).append(corners)
            if shader in CUT_OUT:
                self.cut_out.add(texture)

    def add_scene(self, file: Path, parent: np.ndarray) -> None:
        """Adds what a `scene.xml` or `node.xml` places, at its highest level of detail."""
        root = ElementTree.parse(file).getroot()
        details: dict[str, tuple[float, str]] = {}
        for group in root.iterfind("lod/group"):
            for element in group:
                choice = (float(element.get("lod_distance", 0)), element.get("model", ""))
                details[group.get("name", "")] = min(choice, details.get(group.get("name", ""), choice))
        placed = [
            element for element in root if element.tag in ("static-object", "object", "library", "water", "track")
        ]
        for track in root.iterfind("track"):
            placed += [element for element in track if element.tag in ("static-object", "object", "library", "water")]
        for element in placed:
            if element.get("interaction") == "physics-only" or element.get("if") or element.get("visible") == "false":
                continue
            matrix = parent @ placement(element)
            if element.tag == "library":
                node = self.game / "library" / element.get("name", "") / "node.xml"
                if node.exists():
                    self.add_scene(node, matrix)
                continue
            model = element.get("model", "")
            if element.get("lod_instance") == "true":
                model = details.get(element.get("lod_group", ""), (0, model))[1]
            if model.endswith(".spm"):
                self.add_mesh(file.parent / model, matrix)


def convert_track(track: Path, game: Path, licenses: Licenses, out: Path) -> dict | None:
    """Writes one track's NPZ and returns its record, None where too little of it is licensed."""
    world = World(game, licenses)
    ground = ElementTree.parse(track / "scene.xml").find("track").get("model", "")
    world.add_scene(track / "scene.xml", np.eye(4))
    groups = [(texture, np.concatenate(parts)) for texture, parts in world.corners.items()]
    count = sum(len(corners) for _, corners in groups)
    if count < LEAST_TRIANGLES or not world.use(track / ground):
        return None
    arrays = {"drive": drive_line(track)}
    for k, (texture, corners) in enumerate(groups):
        arrays[f"triangles_{k}"] = corners.reshape(-1, 8)
        image = None if texture is None else decode_image(texture.read_bytes(), TEXTURE_PX)
        if image is not None:
            opaque = texture not in world.cut_out or image[..., 3].min() == 255
            arrays[f"texture_{k}"] = image[..., :3] if opaque else image
    np.savez(out / f"{track.name}.npz", **arrays)
    credits = {name: sorted(authors) for name, authors in sorted(world.credits.items())}
    return {
        "file": f"worlds/{track.name}.npz",
        "split": split_of(track.name),
        "triangles": count,
        "left_out": world.left_out,
        "credits": credits,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="output folder, shared by all recipes")
    parser.add_argument("--game", type=Path, required=True, help="the game's data folder")
    parser.add_argument("--copyright", type=Path, required=True, help="copyright file of its Debian package")
    args = parser.parse_args()
    out = args.data / "assets" / "worlds"
    out.mkdir(parents=True, exist_ok=True)
    licenses = Licenses(args.copyright.read_text())
    cv2.setNumThreads(1)
    records = []
    for track in sorted(path.parent for path in (args.game / "tracks").glob("*/scene.xml")):
        record = convert_track(track, args.game, licenses, out)
        if record is not None:
            records.append(record)
            print(track.name, record["split"], record["triangles"], record["left_out"], *record["credits"], flush=True)
    (out / "index.json").write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
