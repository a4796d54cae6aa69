"""Places that clips of rooms and streets lack: windows, tables seen from close by, stairs, fences."""

from __future__ import annotations

import numpy as np

from .rasterizer import Lighting, Surface, look_at, perspective
from .scenes import Assets, box, place, rectangle, scatter
from .streets import pole, post
from .views import RemotePath, View, aimed, foreground, random_lens, random_sun

Look = tuple[np.ndarray | None, tuple[float, float, float]]
"""Texture and tint."""


def random_look(rng: np.random.Generator, assets: Assets, plain: float) -> Look:
    """A surface's look; with this chance it has no texture."""
    gray = rng.uniform(0.25, 1.0)
    tint = np.clip(gray + rng.normal(0, 0.12, 3), 0.05, 1.0)
    return (None, tuple(tint)) if rng.random() < plain else (assets.material(rng), tuple(tint * 0.4 + 0.6))


def slab(size: np.ndarray, at: np.ndarray, look: Look, tile_m: float = 1.0) -> Surface:
    """A box of `size` [3] whose foot's middle is at `at` [3]."""
    triangles = box(np.asarray(size, float), tile_m)
    triangles[:, :3] += at
    return Surface(triangles=triangles, texture=look[0], tint=look[1])


def opened_wall(
    rng: np.random.Generator, origin: np.ndarray, u: np.ndarray, v: np.ndarray, look: Look, frame: Look
) -> list[Surface]:
    """A wall spanning u (along) and v (up) from `origin`, with a row of windows or doors in it, and their frames."""
    length, height = np.linalg.norm(u), np.linalg.norm(v)
    along, up = u / length, v / height
    count = int(rng.integers(1, 4))
    sill = rng.choice([0.0, rng.uniform(0.3, 1.1)])
    top = rng.uniform(max(1.7, sill + 0.6), max(height - 0.1, sill + 0.8, 1.8))
    width = rng.uniform(0.4, 0.85) * length / count
    gap = (length - count * width) / (count + 1)
    tile, wall = rng.uniform(1, 3), []

    def span(left: float, low: float, wide: float, tall: float) -> None:
        if wide > 1e-3 and tall > 1e-3:
            triangles = rectangle(origin + along * left + up * low, along * wide, up * tall, tile)
            wall.append(Surface(triangles=triangles, texture=look[0], tint=look[1], casts=False))

    span(0, 0, length, sill)
    span(0, top, length, height - top)
    inward = np.cross(along, up)
    bar, thick = rng.uniform(0.03, 0.09), rng.uniform(0.03, 0.2)
    for k in range(count + 1):
        left = gap + k * (width + gap)
        span(left - gap, sill, gap, top - sill)
        if k == count:
            break
        uprights = np.linspace(left, left + width, int(rng.integers(2, 5)))
        levels = np.linspace(sill, top, int(rng.integers(2, 4)))
        spans = [(x - bar / 2, sill, bar, top - sill) for x in uprights]
        spans += [(left, y - bar / 2, width, bar) for y in levels]
        for x, y, wide, tall in spans:
            corner = origin + along * x + up * y + inward * thick / 2
            for side in (0, 1):
                triangles = rectangle(corner - inward * thick * side, along * wide, up * tall, 1.0)
                wall.append(Surface(triangles=triangles, texture=frame[0], tint=frame[1]))
            for start, edge in ((corner, up * tall), (corner + along * wide, up * tall), (corner, along * wide)):
                triangles = rectangle(start, edge, -inward * thick, 1.0)
                wall.append(Surface(triangles=triangles, texture=frame[0], tint=frame[1]))
    return wall


def stairs(rng: np.random.Generator, assets: Assets) -> list[Surface]:
    """Steps that rise toward -z from the origin, some with a wall or rail beside them."""
    steps, run, rise = int(rng.integers(4, 16)), rng.uniform(0.24, 0.38), rng.uniform(0.12, 0.2)
    width, look, tread = rng.uniform(0.8, 4), random_look(rng, assets, 0.4), random_look(rng, assets, 0.4)
    surfaces = []
    for k in range(steps):
        at = np.array([0, 0, -run * (k + 0.5)])
        surfaces.append(slab(np.array([width, rise * (k + 1), run]), at, look if rng.random() < 0.8 else tread))
    if rng.random() < 0.6:
        rail = random_look(rng, assets, 0.8)
        for side in (-1, 1):
            for k in range(0, steps, int(rng.integers(1, 4))):
                bar = Surface(triangles=pole(rng.uniform(0.01, 0.03), 0.9, 1.0), texture=rail[0], tint=rail[1])
                bar.triangles[:, :3] += [side * width / 2, rise * (k + 1), -run * (k + 0.5)]
                surfaces.append(bar)
    return surfaces


def fence(rng: np.random.Generator, assets: Assets) -> list[Surface]:
    """Bars or boards and their rails along x, centered on the origin."""
    length, height = rng.uniform(2, 10), rng.uniform(0.6, 2.0)
    look, pitch = random_look(rng, assets, 0.6), rng.uniform(0.1, 0.5)
    round_bars, thick = rng.random() < 0.5, rng.uniform(0.006, 0.03)
    board = np.array([rng.uniform(0.3, 0.85) * pitch, height, 0.02])
    surfaces = []
    for x in np.arange(-length / 2, length / 2, pitch):
        if round_bars:
            bar = Surface(triangles=pole(thick, height, 1.0, sides=8), texture=look[0], tint=look[1])
            bar.triangles[:, 0] += x
            surfaces.append(bar)
        else:
            surfaces.append(slab(board, np.array([x, 0, 0]), look))
    for y in np.linspace(0.12, 0.92, int(rng.integers(2, 4))) * height:
        surfaces.append(slab(np.array([length, 0.05, 0.05]), np.array([0, y, 0]), look))
    return surfaces


def merged(surfaces: list[Surface]) -> list[Surface]:
    """The same surfaces in as few draw calls as their looks allow."""
    groups: dict[tuple, list[Surface]] = {}
    for surface in surfaces:
        groups.setdefault((id(surface.texture), surface.tint, surface.gloss, surface.casts), []).append(surface)
    return [
        Surface(
            triangles=np.concatenate([s.triangles for s in group]),
            texture=group[0].texture,
            tint=group[0].tint,
            gloss=group[0].gloss,
            casts=group[0].casts,
        )
        for group in groups.values()
    ]


def lamp_light(rng: np.random.Generator, size: np.ndarray) -> Lighting:
    """A lamp below the ceiling of a room of `size` [3], warm or cold, or little more than light from everywhere."""
    lamp = np.array([rng.uniform(-0.4, 0.4) * size[0], size[1] - 0.15, rng.uniform(-0.4, 0.4) * size[2]])
    view = look_at(lamp, lamp * (1, 0, 1) + 1e-3, up=(0, 0, 1))
    tone, ambient = np.array([1, rng.uniform(0.85, 1), rng.uniform(0.6, 1.1)]), rng.uniform(0.15, 0.9)
    return Lighting(
        light=(*lamp, rng.uniform(2, 6)),
        projection=perspective(2.6, 2.6, 0.1, 12.0) @ np.linalg.inv(view),
        sun=tuple(tone * rng.uniform(0.1, 1.8)),
        sky=tuple(tone * ambient),
        ground=tuple(tone[::-1] * ambient * rng.uniform(0.4, 1)),
    )


def room_place(rng: np.random.Generator, assets: Assets, views: int) -> RemotePath:
    """A room with windows onto the panorama, furniture, people, at times stairs or a table seen from close by."""
    size = np.array([rng.uniform(2.6, 10), rng.uniform(2.2, 3.8), rng.uniform(2.6, 10)])
    half = size[[0, 2]] / 2
    objects, motions = scatter(rng, assets, int(rng.integers(3, 15)), np.maximum(half - 0.4, 0.5), None)
    models = [motion(0.0) for motion in motions]
    w, h, d = size
    low, x, y, z = np.array([-w / 2, 0, -d / 2]), np.array([w, 0, 0]), np.array([0, h, 0]), np.array([0, 0, d])
    wall, frame, floor = random_look(rng, assets, 0.6), random_look(rng, assets, 0.8), random_look(rng, assets, 0.15)
    shell = [Surface(triangles=rectangle(low, z, x, rng.uniform(0.8, 2.5)), texture=floor[0], tint=floor[1])]
    shell[0].casts = False
    shell.append(Surface(triangles=rectangle(low + y, x, z, 2.0), tint=(0.85, 0.85, 0.83), casts=False))
    for origin, u in ((low, x), (low + z, x), (low, z), (low + x, z)):
        if rng.random() < 0.45:
            shell += opened_wall(rng, origin, u, y, wall, frame)
        else:
            triangles = rectangle(origin, u, y, rng.uniform(1, 3))
            shell.append(Surface(triangles=triangles, texture=wall[0], tint=wall[1], casts=False))
    objects.append(merged(shell))
    models.append(np.eye(4))
    if rng.random() < 0.2:
        objects.append(merged(stairs(rng, assets)))
        models.append(place(*rng.uniform(-half, half)[[0]], 0, rng.uniform(-half[1], half[1]), rng.uniform(-3, 3)))
    lighting, pictures, close = lamp_light(rng, size), [], rng.random() < 0.4
    if close:
        table = lay_table(rng, assets, objects, models, half)
    for _ in range(views):
        if close:
            angle, steep, far = rng.uniform(-np.pi, np.pi), rng.uniform(0.15, 1.1), rng.uniform(0.5, 1.6)
            toward = np.array([np.cos(angle) * np.cos(steep), np.sin(steep), np.sin(angle) * np.cos(steep)])
            c2w = look_at(table + toward * far, table + rng.normal(0, 0.12, 3))
        else:
            spot = rng.uniform(-0.95, 0.95, 2) * (half - 0.1)
            eye = np.array([spot[0], rng.uniform(0.4, min(2.0, h - 0.2)), spot[1]])
            yaw = np.arctan2(-spot[0], spot[1]) + rng.normal(0, 0.9)
            c2w = aimed(rng, eye, yaw, rng.normal(-0.12, 0.15))
        tan_x = random_lens(rng)
        if rng.random() < 0.3:
            more, where = foreground(rng, assets, c2w, tan_x, lambda x, z: 0.0)
            objects, models = objects + more, models + where
        pictures.append(View(c2w=c2w, tan_x=tan_x, lighting=lighting, sky_turn=rng.random()))
    sky = assets.image(assets.skies[rng.integers(len(assets.skies))])
    return RemotePath(objects=objects, models=models, sky=sky, views=pictures, kind="room")


def lay_table(
    rng: np.random.Generator, assets: Assets, objects: list[list[Surface]], models: list[np.ndarray], half: np.ndarray
) -> np.ndarray:
    """Adds a table with small things on it, and at times an arm that reaches over it; its top's middle [3]."""
    top = np.array([rng.uniform(-0.5, 0.5) * half[0], rng.uniform(0.4, 1.0), rng.uniform(-0.5, 0.5) * half[1]])
    wide, deep = rng.uniform(0.5, 2.0), rng.uniform(0.4, 1.0)
    look = random_look(rng, assets, 0.3)
    board = slab(np.array([wide, 0.04, deep]), np.array([0, -0.04, 0]), look, rng.uniform(0.3, 1.5))
    legs = [
        slab(
            np.array([0.05, top[1] - 0.04, 0.05]),
            np.array([a * (wide / 2 - 0.05), -top[1], b * (deep / 2 - 0.05)]),
            look,
        )
        for a in (-1, 1)
        for b in (-1, 1)
    ]
    yaw = rng.uniform(-np.pi, np.pi)
    stand = place(*top, yaw)
    objects.append([board, *legs])
    models.append(stand)
    for _ in range(int(rng.integers(3, 12))):
        record = assets.things[rng.integers(len(assets.things))]
        scale = rng.uniform(0.06, 0.35) / max(record["size_m"])
        spot = place(rng.uniform(-0.45, 0.45) * wide, 0, rng.uniform(-0.45, 0.45) * deep, rng.uniform(-3, 3), scale)
        objects.append(assets.mesh(record, rng))
        models.append(stand @ spot)
    if rng.random() < 0.4:
        skin = tuple(np.array([0.9, 0.7, 0.55]) * rng.uniform(0.35, 1.0))
        objects.append([Surface(triangles=pole(rng.uniform(0.03, 0.06), 1.2, 0.6), tint=skin)])
        reach = look_at(np.zeros(3), rng.normal(0, 1, 3) * (1, 0.3, 1) + (0, -0.5, 0)) @ np.diag([1.0, 1, 1, 1])
        reach[:3, 3] = top + np.array([rng.normal(0, 0.2), rng.uniform(0.05, 0.3), rng.normal(0, 0.2)])
        models.append(reach)
    return top


def yard_place(rng: np.random.Generator, assets: Assets, views: int) -> RemotePath:
    """Open ground with walls, stairs, fences and posts, people and things in front, seen from standing height."""
    reach = rng.uniform(3, 9)
    objects, motions = scatter(rng, assets, int(rng.integers(3, 10)), np.array([reach, reach]), None)
    models = [motion(0.0) for motion in motions]
    floor = rectangle(np.array([-90.0, 0, -90]), np.array([0, 0, 180.0]), np.array([180.0, 0, 0]), rng.uniform(0.5, 6))
    objects.append([Surface(triangles=floor, texture=assets.material(rng), casts=False)])
    models.append(np.eye(4))
    for maker, most in ((stairs, 2), (fence, 4), (post, 5)):
        for _ in range(int(rng.integers(0, most + 1))):
            objects.append(merged(maker(rng, assets)))
            models.append(place(*(rng.uniform(-reach, reach, 3) * (1, 0, 1)), rng.uniform(-np.pi, np.pi)))
    for _ in range(int(rng.integers(0, 5))):
        wide, tall, angle, far = (
            rng.uniform(4, 25),
            rng.uniform(2.2, 12),
            rng.uniform(-3, 3),
            reach + rng.uniform(1, 15),
        )
        origin, along = np.array([-wide / 2, 0, 0]), np.array([wide, 0, 0])
        look, frame = random_look(rng, assets, 0.3), random_look(rng, assets, 0.7)
        wall = opened_wall(rng, origin, along, np.array([0, tall, 0]), look, frame)
        dark = rectangle(origin - [0, 0, 0.3], along, np.array([0, tall, 0]), 2.0)
        wall.append(Surface(triangles=dark, tint=tuple(rng.uniform(0.02, 0.5, 3))))
        objects.append(merged(wall))
        models.append(place(np.sin(angle) * far, 0, np.cos(angle) * far, angle + np.pi + rng.normal(0, 0.4)))
    pictures = []
    for _ in range(views):
        angle, far = rng.uniform(-np.pi, np.pi), rng.uniform(0.4, 1.3) * reach
        eye = np.array([np.sin(angle) * far, rng.uniform(0.4, 2.2), np.cos(angle) * far])
        yaw = np.arctan2(-eye[0], eye[2]) + rng.normal(0, 0.5)
        c2w, tan_x = aimed(rng, eye, yaw, rng.normal(-0.08, 0.12)), random_lens(rng)
        more, where = foreground(rng, assets, c2w, tan_x, lambda x, z: 0.0)
        objects, models = objects + more, models + where
        pictures.append(View(c2w=c2w, tan_x=tan_x, lighting=random_sun(rng, np.zeros(3)), sky_turn=rng.random()))
    sky = assets.image(assets.skies[rng.integers(len(assets.skies))])
    return RemotePath(objects=objects, models=models, sky=sky, views=pictures, kind="yard")


def random_turn(rng: np.random.Generator) -> np.ndarray:
    """[3, 3] rotation, uniform over all."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    q[:, 0] *= np.linalg.det(q)
    return q


def floating_place(rng: np.random.Generator, assets: Assets, views: int) -> RemotePath:
    """Things in the air and on a floor before a panorama: only their look says how far they are."""
    reach = rng.uniform(2, 6)
    floor = rectangle(np.array([-90.0, 0, -90]), np.array([0, 0, 180.0]), np.array([180.0, 0, 0]), rng.uniform(0.5, 5))
    objects = [[Surface(triangles=floor, texture=assets.material(rng), casts=False)]]
    models = [np.eye(4)]
    for _ in range(int(rng.integers(6, 20))):
        pool = assets.people if assets.people and rng.random() < 0.1 else assets.things
        record = pool[rng.integers(len(pool))]
        scale = rng.uniform(0.4, 1.8) / max(record["size_m"])
        spot = rng.uniform(-reach, reach, 3) * (1, 0, 1)
        matrix = place(*spot, rng.uniform(-np.pi, np.pi), scale)
        if rng.random() < 0.65:
            matrix[:3, :3] = random_turn(rng) * scale
            matrix[1, 3] = rng.uniform(0.4, 3.5)
        objects.append(assets.mesh(record, rng))
        models.append(matrix)
    pictures = []
    for _ in range(views):
        angle, far, rise = rng.uniform(-np.pi, np.pi), rng.uniform(1.0, 2.2) * reach, rng.uniform(0.02, 0.5)
        eye = np.array([np.sin(angle) * far, 0.3 + far * np.tan(rise), np.cos(angle) * far])
        c2w = look_at(eye, np.array([rng.normal(0, 0.5), rng.uniform(0.4, 1.8), rng.normal(0, 0.5)]))
        tan_x = float(np.exp(rng.uniform(-1.1, -0.2)))
        pictures.append(View(c2w=c2w, tan_x=tan_x, lighting=random_sun(rng, np.zeros(3)), sky_turn=rng.random()))
    sky = assets.image(assets.skies[rng.integers(len(assets.skies))])
    return RemotePath(objects=objects, models=models, sky=sky, views=pictures, kind="floating")
