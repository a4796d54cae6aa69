"""Street scenes: posts, people and things in front of a facade; what room and field scenes have too little of."""

from __future__ import annotations

import numpy as np

from .rasterizer import Lighting, Surface, look_at, orthographic
from .scenes import Assets, Scene, box, place, random_camera, rectangle, scatter


def pole(radius: float, height: float, taper: float, sides: int = 14) -> np.ndarray:
    """A post [N, 8] with a flat lid standing on y = 0; `taper` is the top's radius over the foot's."""
    rows = []
    for k in range(sides):
        a, b = (2 * np.pi * j / sides for j in (k, k + 1))
        foot = [np.array([np.cos(x) * radius, 0, np.sin(x) * radius]) for x in (a, b)]
        top = [np.array([p[0] * taper, height, p[2] * taper]) for p in foot]
        corners = [(foot[0], a, 0), (top[0], a, height), (top[1], b, height), (foot[0], a, 0), (top[1], b, height)]
        corners += [(foot[1], b, 0)]
        rows += [np.concatenate([p, [np.cos(x), 0, np.sin(x)], [x / 2, y]]) for p, x, y in corners]
        lid = (np.array([0, height, 0]), top[1], top[0])
        rows += [np.concatenate([p, [0, 1, 0], [0, 0]]) for p in lid]
    return np.array(rows, np.float32)


def post(rng: np.random.Generator, assets: Assets) -> list[Surface]:
    """A bollard or a mast with a cap, standing on y = 0."""
    height = rng.choice([rng.uniform(0.5, 1.2), rng.uniform(1.5, 5)])
    radius = rng.uniform(0.02, 0.14)
    image = assets.material(rng) if rng.random() < 0.5 else None
    tint = tuple(rng.uniform(0.1, 1, 3))
    body = Surface(triangles=pole(radius, height, rng.uniform(0.6, 1.1)), texture=image, tint=tint)
    cap = Surface(triangles=pole(radius * 1.4, radius * 2, 0.7), texture=image, tint=tint)
    cap.triangles[:, 1] += height
    return [body, cap]


def street_scene(rng: np.random.Generator, assets: Assets) -> Scene:
    """Posts, people and things in front of a facade, seen from standing height: thin shapes against a near wall."""
    behind, reach = rng.uniform(2.2, 7), rng.uniform(1.5, 3)
    objects, motions = scatter(rng, assets, int(rng.integers(3, 9)), np.array([reach * 1.5, reach]), None)
    ground_image, wall_image, tile_m = assets.material(rng), assets.material(rng), rng.uniform(0.5, 3)
    floor = (np.array([-40.0, 0, -40]), np.array([0, 0, 80.0]), np.array([80.0, 0, 0]))
    wall = (np.array([-30.0, 0, -reach - 0.5]), np.array([60.0, 0, 0]), np.array([0, rng.uniform(2.5, 12), 0]))
    shell = [Surface(triangles=rectangle(*floor, tile_m), texture=ground_image, casts=False)]
    shell.append(Surface(triangles=rectangle(*wall, rng.uniform(0.7, 4)), texture=wall_image, casts=False))
    for _ in range(int(rng.integers(0, 6))):  # windows, doors, ledges
        size = np.array([rng.uniform(0.4, 2), rng.uniform(0.4, 2.5), rng.uniform(0.04, 0.4)])
        relief = box(size, rng.uniform(0.5, 2))
        relief[:, :3] += [rng.uniform(-6, 6), rng.choice([0, rng.uniform(0.5, 3)]), -reach - 0.5]
        tint = tuple(rng.uniform(0.1, 1, 3))
        shell.append(Surface(triangles=relief, texture=assets.material(rng) if rng.random() < 0.5 else None, tint=tint))
    objects.append(shell)
    motions.append(lambda t: np.eye(4))
    for _ in range(int(rng.integers(1, 7))):
        objects.append(post(rng, assets))
        matrix = place(rng.uniform(-2, 2), 0, rng.uniform(-reach, behind - 1), 0)
        motions.append(lambda t, matrix=matrix: matrix)
    eye = np.array([rng.uniform(-2, 2), rng.uniform(0.6, 1.9), behind])
    target = np.array([rng.uniform(-1.5, 1.5), rng.uniform(0.3, 1.6), -reach])
    sun = np.array([rng.uniform(-1, 1), rng.uniform(0.5, 1.5), rng.uniform(0.2, 1.5)])
    sun /= np.linalg.norm(sun)
    sky = assets.image(assets.skies[rng.integers(len(assets.skies))])
    lighting = Lighting(
        light=(*sun, 0.0),
        projection=orthographic(9.0, 0.1, 80.0) @ np.linalg.inv(look_at(sun * 40, np.zeros(3))),
        sun=tuple(np.array([1, 0.95, rng.uniform(0.7, 1)]) * rng.choice([0.05, rng.uniform(0.2, 1.2)])),
        sky=tuple(np.array([0.9, 0.95, 1.0]) * rng.uniform(0.3, 0.9)),
        ground=tuple(rng.uniform(0.1, 0.5, 3)),
    )
    return Scene(
        objects=objects,
        motions=motions,
        camera=random_camera(rng, eye, target),
        tan_x=rng.uniform(0.35, 0.8),
        lighting=lighting,
        sky=sky,
        sky_turn=rng.random(),
        kind="street",
        fps=int(rng.integers(8, 25)),
    )
