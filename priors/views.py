"""Random places to stand in a world or scene, lenses and light: what a still needs beside its triangles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .rasterizer import Lighting, Surface, look_at, orthographic
from .scenes import Assets, Scene, place
from .streets import post

WORLD_REACH_M = 250.0
"""Of a world only what is nearer is drawn."""
SHADOW_HALF_M = 25.0


@dataclass(kw_only=True, slots=True)
class View:
    """One picture of a place."""

    c2w: np.ndarray
    tan_x: float
    lighting: Lighting
    sky_turn: float


@dataclass(kw_only=True, slots=True)
class RemotePath:
    """What stands where, and the pictures to take of it."""

    objects: list[list[Surface]]
    models: list[np.ndarray]
    """Object-to-world matrices [4, 4]."""
    sky: np.ndarray
    views: list[View]
    kind: str


def random_lens(rng: np.random.Generator) -> float:
    """Tangent of half the horizontal field of view: 20 to 95 degrees, most of them as phones and films have them."""
    return float(np.exp(rng.uniform(np.log(0.18), np.log(1.1)) if rng.random() < 0.5 else rng.uniform(-0.9, -0.15)))


def random_sun(rng: np.random.Generator, at: np.ndarray) -> Lighting:
    """Daylight around the point `at` [3]: clear, low, overcast, or hardly any."""
    azimuth, height = rng.uniform(-np.pi, np.pi), rng.uniform(0.15, 1.4)
    sun = np.array([np.cos(azimuth) * np.cos(height), np.sin(height), np.sin(azimuth) * np.cos(height)])
    strength = rng.choice([0.05, rng.uniform(0.3, 1.0), rng.uniform(0.8, 1.6)], p=[0.25, 0.45, 0.3])
    tone = np.array([0.9, 0.95, 1.05]) * rng.uniform(0.25, 1.0) + rng.normal(0, 0.04, 3)
    return Lighting(
        light=(*sun, 0.0),
        projection=orthographic(SHADOW_HALF_M, 0.1, 90.0) @ np.linalg.inv(look_at(at + sun * 45, at)),
        sun=tuple(np.array([1, 0.95, rng.uniform(0.6, 1.0)]) * strength),
        sky=tuple(tone.clip(0.05)),
        ground=tuple((tone * rng.uniform(0.2, 0.8)).clip(0.05)),
    )


def aimed(rng: np.random.Generator, eye: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
    """c2w [4, 4] at `eye` [3] toward a yaw and pitch in radians, rolled a little, at times much."""
    toward = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), -np.cos(yaw) * np.cos(pitch)])
    c2w = look_at(eye, eye + toward)
    roll = rng.normal(0, 0.25 if rng.random() < 0.1 else 0.02)
    c, s = np.cos(roll), np.sin(roll)
    c2w[:3, :2] = c2w[:3, :2] @ np.array([[c, -s], [s, c]])
    return c2w


def height_at(corners: np.ndarray, x: float, z: float, below: float) -> float | None:
    """Height of the highest surface under (x, below, z) of triangles [N, 3, 3], None over a void."""
    a, b, c = (corners[:, k][:, [0, 2]] for k in range(3))
    p = np.array([x, z])

    def twice_area(e: np.ndarray, f: np.ndarray) -> np.ndarray:
        return e[..., 0] * f[..., 1] - e[..., 1] * f[..., 0]

    with np.errstate(divide="ignore", invalid="ignore"):
        area = twice_area(b - a, c - a)
        u, v = twice_area(p - a, c - a) / area, twice_area(b - a, p - a) / area
        heights = corners[:, 0, 1] * (1 - u - v) + corners[:, 1, 1] * u + corners[:, 2, 1] * v
        inside = (u >= 0) & (v >= 0) & (u + v <= 1) & (heights <= below)
    return float(heights[inside].max()) if inside.any() else None


def standing_point(rng: np.random.Generator, corners: np.ndarray, drive: np.ndarray) -> tuple[np.ndarray, float]:
    """A point [3] on the ground and a yaw: on the road, looking along it, or anywhere flat enough to stand on."""
    if len(drive) > 2 and rng.random() < 0.6:
        k = int(rng.integers(len(drive) - 1))
        along = drive[k + 1] - drive[k]
        yaw = np.arctan2(along[0], -along[2]) + rng.normal(0, 0.7) + np.pi * (rng.random() < 0.5)
        return drive[k] + np.array([rng.normal(0, 3), 0, rng.normal(0, 3)]), float(yaw)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normal, axis=1)
    level = np.abs(normal[:, 1]) > 0.85 * area
    weight = np.where(level, np.minimum(area, 50.0), 0.0)
    triangle = corners[rng.choice(len(corners), p=weight / weight.sum())]
    return rng.dirichlet(np.ones(3)) @ triangle, float(rng.uniform(-np.pi, np.pi))


def foreground(
    rng: np.random.Generator,
    assets: Assets,
    c2w: np.ndarray,
    tan_x: float,
    ground: Callable[[float, float], float | None],
) -> tuple[list[list[Surface]], list[np.ndarray]]:
    """People, things and posts before the camera, near ones cut by the frame's edge, standing on `ground` (x, z)."""
    objects, models = [], []
    forward, right = -c2w[:3, 2], c2w[:3, 0]
    for _ in range(int(rng.integers(0, 6))):
        distance = np.exp(rng.uniform(np.log(0.9), np.log(12)))
        spot = c2w[:3, 3] + distance * (forward + rng.uniform(-1.15, 1.15) * tan_x * right)
        height = ground(spot[0], spot[2])
        if height is None:
            continue
        kind = rng.choice(["person", "thing", "post"], p=[0.5, 0.25, 0.25])
        if kind == "post":
            objects.append(post(rng, assets))
        else:
            pool = assets.people if kind == "person" and assets.people else assets.things
            record = pool[rng.integers(len(pool))]
            if max(record["size_m"]) > 0.8 * distance and kind == "thing":
                continue
            objects.append(assets.mesh(record, rng))
        models.append(place(spot[0], height, spot[2], rng.uniform(-np.pi, np.pi), rng.uniform(0.85, 1.15)))
    return objects, models


def world_place(rng: np.random.Generator, assets: Assets, views: int) -> RemotePath:
    """A corner of a track from standing height, with people and things put into it."""
    data = np.load(assets.root / assets.worlds[rng.integers(len(assets.worlds))]["file"])
    count = sum(name.startswith("triangles") for name in data)
    parts = [data[f"triangles_{k}"].reshape(-1, 3, 8) for k in range(count)]
    corners = np.concatenate([part[..., :3] for part in parts])
    foot, yaw = standing_point(rng, corners, data["drive"])
    near = corners[(np.abs(corners[:, :, [0, 2]] - foot[[0, 2]]).max(2) < 20).any(1)]
    top = foot[1] + rng.choice([1.0, 4.0])

    def ground(x: float, z: float) -> float | None:
        return height_at(near, x, z, top)

    foot[1] = ground(foot[0], foot[2]) if ground(foot[0], foot[2]) is not None else foot[1]
    wild = rng.random() < 0.3  # textures and tints that no world has
    shell = []
    for k, part in enumerate(parts):
        part = part[(np.abs(part[..., :3] - foot).max(2) < WORLD_REACH_M).any(1)]
        if not len(part):
            continue
        texture = data.get(f"texture_{k}")
        if texture is None or (wild and texture.shape[2] == 3 and rng.random() < 0.6):
            texture = assets.material(rng)
        tint = rng.uniform(0.4, 1.1, 3) if wild else np.ones(3) + rng.normal(0, 0.08, 3)
        shell.append(Surface(triangles=part.reshape(-1, 8), texture=texture, tint=tuple(tint.clip(0.05, 1.2))))
    objects, models, pictures = [shell], [np.eye(4)], []
    for _ in range(views):
        height = rng.uniform(0.25, 1.0) if rng.random() < 0.2 else rng.uniform(1.0, 2.2)
        height += rng.uniform(1, 8) * (rng.random() < 0.15)
        eye = foot + np.array([rng.normal(0, 1.0), height, rng.normal(0, 1.0)])
        c2w, tan_x = aimed(rng, eye, yaw + rng.normal(0, 0.8), rng.normal(-0.08, 0.14)), random_lens(rng)
        if rng.random() < 0.7:
            more, where = foreground(rng, assets, c2w, tan_x, ground)
            objects += more
            models += where
        pictures.append(View(c2w=c2w, tan_x=tan_x, lighting=random_sun(rng, foot), sky_turn=rng.random()))
    sky = assets.image(assets.skies[rng.integers(len(assets.skies))])
    return RemotePath(objects=objects, models=models, sky=sky, views=pictures, kind="world")


def moments(rng: np.random.Generator, scene: Scene, views: int) -> RemotePath:
    """Moments of a clip's scene, through its own lens and others."""
    time = rng.uniform(0, 1.5)
    pictures = []
    for _ in range(views):
        tan_x = scene.tan_x if rng.random() < 0.5 else random_lens(rng)
        c2w = scene.camera(rng.random())
        pictures.append(View(c2w=c2w, tan_x=tan_x, lighting=scene.lighting, sky_turn=scene.sky_turn))
    models = [motion(time) for motion in scene.motions]
    return RemotePath(objects=scene.objects, models=models, sky=scene.sky, views=pictures, kind=scene.kind)
