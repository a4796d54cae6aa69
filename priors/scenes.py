"""Random scenes: rooms and open ground with real objects, people, moving things and moving cameras.

A scene is drawn from `numpy.random.Generator` alone, so (seed, index) names it. Axes as in `rasterizer.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from .rasterizer import Lighting, Surface, look_at, orthographic, perspective
from .textures import procedural_texture

Motion = Callable[[float], np.ndarray]
"""Time in seconds to an object-to-world matrix [4, 4]."""


@dataclass(kw_only=True, slots=True)
class Scene:
    """What `render.py` needs to draw a clip."""

    objects: list[list[Surface]]
    motions: list[Motion]
    camera: Callable[[float], np.ndarray]
    """Fraction of the clip in 0..1 to c2w [4, 4]."""
    tan_x: float
    """Tangent of half the horizontal field of view."""
    lighting: Lighting
    sky: np.ndarray
    sky_turn: float
    kind: str
    fps: int


class Assets:
    """The converted assets of one split ('train' or 'held_out')."""

    def __init__(self, root: Path, split: str) -> None:
        index = json.loads((root / "index.json").read_text())
        chosen = {kind: [r for r in records if r["split"] == split] for kind, records in index.items()}
        self.root = root
        self.people = [r for r in chosen["meshes"] if r["person"]]
        self.things = [r for r in chosen["meshes"] if not r["person"] and max(r["size_m"]) > 0.15]
        self.textures, self.skies = chosen["textures"], chosen["skies"]
        worlds = root / "worlds" / "index.json"
        self.worlds = [r for r in json.loads(worlds.read_text()) if r["split"] == split] if worlds.exists() else []

    def image(self, record: dict) -> np.ndarray:
        return cv2.imread(str(self.root / record["file"]))[..., ::-1]

    def mesh(self, record: dict, rng: np.random.Generator) -> list[Surface]:
        """The surfaces of a model, recolored a little so that one model does not always look the same."""
        data = np.load(self.root / record["file"])
        shift = 1 + 0.25 * rng.standard_normal(3) * (rng.random() < 0.5)
        gloss = float(rng.choice([0, 0, 0.1, 0.4]))
        surfaces = []
        for k in range(sum(name.startswith("triangles") for name in data)):
            texture = data.get(f"texture_{k}")
            color = (1, 1, 1) if texture is not None else data[f"color_{k}"] ** (1 / 1.4)
            tint = tuple(float(x) for x in np.clip(np.asarray(color) * shift, 0.02, 1))
            surfaces.append(Surface(triangles=data[f"triangles_{k}"], texture=texture, tint=tint, gloss=gloss))
        return surfaces

    def material(self, rng: np.random.Generator) -> np.ndarray:
        """A photographed or a drawn texture [h, w, 3]."""
        if rng.random() < 0.6:
            return self.image(self.textures[rng.integers(len(self.textures))])
        return procedural_texture(rng)


def rectangle(origin: np.ndarray, u: np.ndarray, v: np.ndarray, tile_m: float) -> np.ndarray:
    """Two triangles [6, 8] spanning origin + u, origin + v, with uv counted in tiles."""
    normal = np.cross(u, v) / np.linalg.norm(np.cross(u, v))
    a, b = np.linalg.norm(u) / tile_m, np.linalg.norm(v) / tile_m
    corners = [(origin, 0, 0), (origin + u, a, 0), (origin + u + v, a, b), (origin + v, 0, b)]
    rows = [np.concatenate([point, normal, [s, t]]) for point, s, t in corners]
    return np.array([rows[k] for k in (0, 1, 2, 0, 2, 3)], np.float32)


def box(size: np.ndarray, tile_m: float) -> np.ndarray:
    """A box [36, 8] of `size` meters standing on y = 0."""
    x, y, z = np.diag(size).astype(float)
    low = np.array([-size[0] / 2, 0, -size[2] / 2])
    faces = [(low, y, x), (low + z, x, y), (low, z, y), (low + x, y, z), (low, x, z), (low + y, z, x)]
    return np.concatenate([rectangle(*face, tile_m) for face in faces])


def place(x: float, y: float, z: float, yaw: float, scale: float = 1.0) -> np.ndarray:
    """Object-to-world matrix: turn about the vertical, scale, move."""
    c, s = np.cos(yaw) * scale, np.sin(yaw) * scale
    return np.array([[c, 0, s, x], [0, scale, 0, y], [-s, 0, c, z], [0, 0, 0, 1.0]])


def random_motion(rng: np.random.Generator, at: np.ndarray, scale: float, person: bool) -> Motion:
    """Standing still, walking, spinning or thrown, starting at `at` [3]."""
    yaw = rng.uniform(-np.pi, np.pi)
    kind = rng.choice(["still", "walk", "spin", "thrown"], p=[0.3, 0.7, 0, 0] if person else [0.62, 0.14, 0.1, 0.14])
    speed, heading = rng.uniform(0.3, 1.8), rng.uniform(-np.pi, np.pi)
    rate, lift, phase = rng.uniform(-2, 2), rng.uniform(1, 5), rng.uniform(0, 6)

    def motion(t: float) -> np.ndarray:
        x, y, z = at
        if kind == "walk":
            x, z = x + np.cos(heading) * speed * t, z + np.sin(heading) * speed * t
            sway = 0.06 * np.sin(7 * t + phase) * person
            return place(x, y + abs(sway) / 2, z, heading + sway, scale)
        if kind == "spin":
            return place(x, y, z, yaw + rate * t, scale)
        if kind == "thrown":
            x, z = x + np.cos(heading) * speed * t, z + np.sin(heading) * speed * t
            y += abs(lift * t - 4.9 * t * t)
            tilt = np.eye(4)
            tilt[1:3, 1:3] = [[np.cos(rate * t), -np.sin(rate * t)], [np.sin(rate * t), np.cos(rate * t)]]
            return place(x, y, z, yaw + rate * t, scale) @ tilt
        return place(x, y, z, yaw, scale)

    return motion


def random_camera(rng: np.random.Generator, eye: np.ndarray, target: np.ndarray) -> Callable[[float], np.ndarray]:
    """Static, handheld, pan, tilt, dolly, truck, crane or arc, eased or not."""
    kind = rng.choice(
        ["static", "handheld", "pan", "dolly", "truck", "crane", "arc"], p=[0.2, 0.1, 0.14, 0.12, 0.12, 0.08, 0.24]
    )
    distance = float(np.linalg.norm(eye - target))
    amount = rng.uniform(-1, 1)
    eased = rng.random() < 0.5
    phases, roll = rng.uniform(0, 6, 4), rng.normal(0, 0.02)

    def camera(u: float) -> np.ndarray:
        u = u * u * (3 - 2 * u) if eased else u
        e, t = eye.copy(), target.copy()
        side = np.cross(t - e, (0, 1, 0))
        side /= np.linalg.norm(side)
        if kind == "handheld":
            e = e + 0.012 * distance * np.sin(5 * u + phases[:3])
            t = t + 0.03 * distance * np.sin(4 * u + phases[1:])
        elif kind == "pan":
            t = t + side * distance * amount * 0.6 * u + np.array([0, 0.2 * distance * (phases[0] / 3 - 1) * u, 0])
        elif kind == "dolly":
            e = e + (t - e) * 0.4 * amount * u
        elif kind == "truck":
            e, t = e + side * distance * 0.4 * amount * u, t + side * distance * 0.4 * amount * u
        elif kind == "crane":
            e = e + np.array([0, abs(amount) * 0.4 * distance * u, 0])
        elif kind == "arc":
            angle = 0.8 * amount * u
            c, s = np.cos(angle), np.sin(angle)
            e = t + np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ (e - t)
        c2w = look_at(e, t)
        c, s = np.cos(roll), np.sin(roll)
        c2w[:3, :2] = c2w[:3, :2] @ np.array([[c, -s], [s, c]])
        return c2w

    return camera


def room_shell(rng: np.random.Generator, assets: Assets, size: np.ndarray) -> list[Surface]:
    """Floor, ceiling, four walls and some pictures, of a room of `size` [3] meters centered on x and z."""
    w, h, d = size
    low = np.array([-w / 2, 0, -d / 2])
    x, y, z = np.array([w, 0, 0]), np.array([0, h, 0]), np.array([0, 0, d])
    walls = [(low, x, y), (low + z, x, y), (low, z, y), (low + x, z, y)]
    wall_image, plain = assets.material(rng), rng.random() < 0.5
    wall_tint = tuple(rng.uniform(0.45, 1.0, 3) * 0.5 + rng.uniform(0.2, 0.5))

    def surface(spans: tuple, image: np.ndarray | None, tint: tuple, tile_m: float) -> Surface:
        return Surface(triangles=rectangle(*spans, tile_m), texture=image, tint=tint, casts=False)

    floor = surface((low, z, x), assets.material(rng), (1.0, 1.0, 1.0), rng.uniform(0.8, 2.5))
    shell = [floor, surface((low + y, x, z), None, (0.85, 0.85, 0.83), 2.0)]
    shell += [surface(wall, None if plain else wall_image, wall_tint, rng.uniform(1, 3)) for wall in walls]
    for wall in walls:
        if rng.random() < 0.7:
            origin, u, v = wall
            inward = -np.sign(origin + (u + v) / 2) * (np.abs(np.cross(u, v)) > 0)
            wide, tall = rng.uniform(0.5, 1.6), rng.uniform(0.4, 1.2)
            corner = origin + u * rng.uniform(0.1, 0.6) + v * rng.uniform(0.35, 0.6) + inward * 0.02
            picture = assets.image(assets.skies[rng.integers(len(assets.skies))])
            left = rng.integers(picture.shape[1] // 2)
            crop = picture[picture.shape[0] // 4 : -picture.shape[0] // 4, left : left + picture.shape[1] // 3]
            triangles = rectangle(corner, u / np.linalg.norm(u) * wide, v / np.linalg.norm(v) * tall, 1.0)
            triangles[:, 6:] /= triangles[:, 6:].max(0)
            shell.append(Surface(triangles=triangles, texture=crop, casts=False))
    return shell


def scatter(
    rng: np.random.Generator, assets: Assets, count: int, half: np.ndarray, scale_to_m: tuple[float, float] | None
) -> tuple[list[list[Surface]], list[Motion]]:
    """`count` objects on the floor rectangle [-half, half] (x, z), people among them, overlap avoided loosely."""
    objects, motions, taken = [], [], []
    for _ in range(count):
        person = bool(assets.people) and rng.random() < 0.25
        # A van fits no room, and a camera inside one sees nothing.
        pool = assets.people if person else [r for r in assets.things if max(r["size_m"]) < 1.2 * half.min()]
        record = pool[rng.integers(len(pool))]
        size = np.array(record["size_m"])
        scale = 1.0
        if scale_to_m is not None and not person:
            scale = rng.uniform(*scale_to_m) / size.max()
        radius = max(size[0], size[2]) * scale / 2
        spots = [rng.uniform(-half, half) for _ in range(8)]
        free = [s for s in spots if all(np.hypot(*(s - t)) > radius + r for t, r in taken)]
        spot = free[0] if free else spots[0]
        taken.append((spot, radius))
        height = rng.uniform(0.2, 1.5) if rng.random() < 0.1 and not person else 0.0
        objects.append(assets.mesh(record, rng))
        motions.append(random_motion(rng, np.array([spot[0], height, spot[1]]), scale, person))
    return objects, motions


def indoor_scene(rng: np.random.Generator, assets: Assets) -> Scene:
    size = np.array([rng.uniform(3.5, 9), rng.uniform(2.4, 3.6), rng.uniform(3.5, 9)])
    half = size[[0, 2]] / 2
    objects, motions = scatter(rng, assets, int(rng.integers(7, 19)), half - 0.5, None)
    objects.append(room_shell(rng, assets, size))
    motions.append(lambda t: np.eye(4))
    corner = rng.choice([-1, 1], 2) * (half - 0.3) * rng.uniform(0.5, 1, 2)
    eye = np.array([corner[0], rng.uniform(0.5, 2.0), corner[1]])
    target = np.array([*rng.uniform(-0.4, 0.4, 2) * half, 0.0])[[0, 2, 1]]
    target[1] = rng.uniform(0.3, 1.3)
    lamp = np.array([*rng.uniform(-0.5, 0.5, 2) * half, size[1] - 0.15])[[0, 2, 1]]
    view = look_at(lamp, lamp * (1, 0, 1) + 1e-3, up=(0, 0, 1))
    warm = np.array([1, rng.uniform(0.85, 1), rng.uniform(0.65, 1.1)])
    ambient = rng.uniform(0.15, 0.6)
    lighting = Lighting(
        light=(*lamp, rng.uniform(2, 5)),
        projection=perspective(2.6, 2.6, 0.1, 8.0) @ np.linalg.inv(view),
        sun=tuple(warm * rng.uniform(0.6, 2.0)),
        sky=tuple(warm * ambient),
        ground=tuple(warm[::-1] * ambient * rng.uniform(0.5, 1)),
    )
    camera = random_camera(rng, eye, target)

    def inside(u: float) -> np.ndarray:
        c2w = camera(u)
        limit = np.array([half[0], size[1], half[1]]) - 0.15
        c2w[:3, 3] = np.clip(c2w[:3, 3], [-limit[0], 0.15, -limit[2]], limit)
        return c2w

    sky = assets.image(assets.skies[rng.integers(len(assets.skies))])
    return Scene(
        objects=objects,
        motions=motions,
        camera=inside,
        tan_x=rng.uniform(0.5, 1.0),
        lighting=lighting,
        sky=sky,
        sky_turn=rng.random(),
        kind="indoor",
        fps=int(rng.integers(8, 25)),
    )


def level_scene(rng: np.random.Generator, assets: Assets) -> Scene:
    """Open ground with the horizon in the picture, as most footage has it."""
    return replace(outdoor_scene(rng, assets, (0.0, 0.16)), kind="level")


def outdoor_scene(rng: np.random.Generator, assets: Assets, elevation_rad: tuple[float, float] = (0.05, 0.6)) -> Scene:
    """Objects on open ground, seen from an elevation in this range."""
    reach = rng.uniform(2.5, 7)
    sizes = (0.6, 2.8) if rng.random() < 0.6 else None
    objects, motions = scatter(rng, assets, int(rng.integers(8, 20)), np.array([reach, reach]), sizes)
    ground = Surface(
        triangles=rectangle(np.array([-80, 0, -80]), np.array([0, 0, 160]), np.array([160, 0, 0]), rng.uniform(1.5, 8)),
        texture=assets.material(rng),
        casts=False,
    )
    objects.append([ground])
    motions.append(lambda t: np.eye(4))
    for _ in range(int(rng.integers(0, 7))):
        angle, far = rng.uniform(-np.pi, np.pi), rng.uniform(reach + 5, reach + 40)
        size = np.array([rng.uniform(2, 14), rng.uniform(1, 12), rng.uniform(2, 14)])
        objects.append([Surface(triangles=box(size, rng.uniform(1, 4)), texture=assets.material(rng))])
        matrix = place(np.cos(angle) * far, 0, np.sin(angle) * far, rng.uniform(-3, 3))
        motions.append(lambda t, matrix=matrix: matrix)
    angle, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(*elevation_rad)
    distance = reach * rng.uniform(0.8, 2.0)
    target = np.array([rng.normal(0, 0.3), rng.uniform(0.3, 1.5), rng.normal(0, 0.3)])
    direction = np.array([np.cos(angle) * np.cos(elevation), np.sin(elevation), np.sin(angle) * np.cos(elevation)])
    azimuth, height = rng.uniform(-np.pi, np.pi), rng.uniform(0.3, 1.4)
    sun = np.array([np.cos(azimuth) * np.cos(height), np.sin(height), np.sin(azimuth) * np.cos(height)])
    sky = assets.image(assets.skies[rng.integers(len(assets.skies))])
    tone = np.clip(sky[: sky.shape[0] // 2].mean((0, 1)) / 255, 0.1, 1) ** 2.2 + 0.1
    lighting = Lighting(
        light=(*sun, 0.0),
        projection=orthographic(reach * 1.6, 0.1, 80.0) @ np.linalg.inv(look_at(sun * 40, np.zeros(3))),
        sun=tuple(np.array([1, 0.95, rng.uniform(0.7, 1)]) * rng.uniform(0.2, 1.3)),
        sky=tuple(tone * rng.uniform(0.6, 1.5)),
        ground=tuple(tone[::-1] * rng.uniform(0.2, 0.6)),
    )
    return Scene(
        objects=objects,
        motions=motions,
        camera=random_camera(rng, target + direction * distance, target),
        tan_x=rng.uniform(0.35, 0.9),
        lighting=lighting,
        sky=sky,
        sky_turn=rng.random(),
        kind="outdoor",
        fps=int(rng.integers(8, 25)),
    )
