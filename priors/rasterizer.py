"""Draws textured meshes with one shadow-casting light on EGL (software or GPU): color and planar depth.

World axes: x right, y up, z backward (the OpenGL camera looks down -z); meters. Cameras come as `c2w` in these axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SHADOW_PX = 1024
SUPERSAMPLE = 2
NEAR_M, FAR_M = 0.05, 1000.0

VERTEX = """
#version 330
uniform mat4 model, view_projection, light_projection;
in vec3 position; in vec3 normal; in vec2 uv;
out vec3 world; out vec3 world_normal; out vec2 texture_uv; out vec4 in_light;
void main() {
    vec4 p = model * vec4(position, 1.0);
    world = p.xyz; world_normal = mat3(model) * normal; texture_uv = uv;
    in_light = light_projection * p;
    gl_Position = view_projection * p;
}
"""

FRAGMENT = """
#version 330
uniform sampler2D albedo; uniform sampler2DShadow shadow;
uniform vec3 tint, eye, forward, sky_light, ground_light, sun_light; uniform vec4 light; uniform float gloss;
in vec3 world; in vec3 world_normal; in vec2 texture_uv; in vec4 in_light;
layout(location = 0) out vec4 color; layout(location = 1) out float depth;
void main() {
    vec4 base = texture(albedo, texture_uv);
    if (base.a < 0.5) discard;
    vec3 n = normalize(world_normal), v = normalize(eye - world);
    if (dot(n, v) < 0.0) n = -n;
    vec3 to_light = light.w > 0.0 ? light.xyz - world : light.xyz;
    float falloff = light.w > 0.0 ? light.w * light.w / (light.w * light.w + dot(to_light, to_light)) : 1.0;
    vec3 l = normalize(to_light);
    vec3 s = in_light.xyz / in_light.w * 0.5 + 0.5;
    float lit = 1.0;
    if (in_light.w > 0.0 && all(greaterThan(s, vec3(0.0))) && all(lessThan(s, vec3(1.0)))) {
        lit = 0.0;
        float bias = light.w > 0.0 ? 0.0006 : 0.002;
        for (int i = 0; i < 4; i++)
            lit += 0.25 * texture(shadow, vec3(s.xy + (vec2(i % 2, i / 2) - 0.5) * 0.0015, s.z - bias));
    }
    vec3 ambient = mix(ground_light, sky_light, 0.5 + 0.5 * n.y);
    float highlight = gloss * pow(max(dot(n, normalize(l + v)), 0.0), 40.0);
    vec3 linear = pow(base.rgb * tint, vec3(2.2));
    vec3 shaded = linear * (ambient + sun_light * lit * falloff * max(dot(n, l), 0.0)) + sun_light * lit * falloff * highlight;
    color = vec4(pow(clamp(shaded, 0.0, 1.0), vec3(1.0 / 2.2)), 1.0);
    depth = dot(world - eye, forward);
}
"""

SHADOW_VERTEX = """
#version 330
uniform mat4 model, light_projection; in vec3 position;
void main() { gl_Position = light_projection * model * vec4(position, 1.0); }
"""

SKY_VERTEX = """
#version 330
in vec2 corner; out vec2 ndc;
void main() { ndc = corner; gl_Position = vec4(corner, 0.999999, 1.0); }
"""

SKY_FRAGMENT = """
#version 330
uniform sampler2D panorama; uniform mat3 rotation; uniform vec2 half_extent; uniform float turn;
in vec2 ndc; layout(location = 0) out vec4 color; layout(location = 1) out float depth;
void main() {
    vec3 d = normalize(rotation * vec3(ndc * half_extent, -1.0));
    vec2 uv = vec2(atan(d.x, -d.z) / 6.2831853 + turn, acos(clamp(d.y, -1.0, 1.0)) / 3.14159265);
    color = vec4(textureLod(panorama, uv, 0.0).rgb, 1.0);
    depth = 1.0 / 0.0;
}
"""


@dataclass(kw_only=True, slots=True)
class Surface:
    """One draw call: a triangle soup and how it looks."""

    triangles: np.ndarray
    """[N, 8] float32: position, normal, uv of each corner."""
    texture: np.ndarray | None = None
    """[h, w, 3 or 4] uint8, repeated over uv; None means plain."""
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gloss: float = 0.0
    casts: bool = True
    """Whether it is drawn into the shadow map (room shells are not)."""


@dataclass(kw_only=True, slots=True)
class Lighting:
    """One light with shadows and a two-color ambient term; linear RGB."""

    light: tuple[float, float, float, float]
    """Direction to the light (w = 0) or its position in meters (w = falloff radius)."""
    projection: np.ndarray
    """[4, 4] world to the light's clip space."""
    sun: tuple[float, float, float]
    sky: tuple[float, float, float]
    ground: tuple[float, float, float]


def perspective(tan_x: float, tan_y: float, near_m: float, far_m: float) -> np.ndarray:
    """OpenGL projection [4, 4] from the tangents of the half fields of view."""
    a, b = (far_m + near_m) / (near_m - far_m), 2 * far_m * near_m / (near_m - far_m)
    return np.array([[1 / tan_x, 0, 0, 0], [0, 1 / tan_y, 0, 0], [0, 0, a, b], [0, 0, -1, 0]])


def orthographic(half_m: float, near_m: float, far_m: float) -> np.ndarray:
    """OpenGL parallel projection [4, 4] of a square of side 2 half_m."""
    depth = near_m - far_m
    return np.array(
        [[1 / half_m, 0, 0, 0], [0, 1 / half_m, 0, 0], [0, 0, 2 / depth, (far_m + near_m) / depth], [0, 0, 0, 1]]
    )


def look_at(eye: np.ndarray, target: np.ndarray, up: tuple[float, float, float] = (0.0, 1.0, 0.0)) -> np.ndarray:
    """c2w [4, 4] of a camera at `eye` that looks along -z at `target`."""
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, np.cross(back, right), back, eye], 1)
    return c2w


def _column_major(matrix: np.ndarray) -> bytes:
    return np.ascontiguousarray(matrix.T, np.float32).tobytes()


class Rasterizer:
    """Holds the context and the render targets; scenes are loaded one at a time."""

    def __init__(self, width: int, height: int) -> None:
        import moderngl  # scenes are described, and tested, where no OpenGL is installed

        self.size = (width, height)
        self.context = context = moderngl.create_context(standalone=True, backend="egl")
        context.enable(context.DEPTH_TEST)
        big = (width * SUPERSAMPLE, height * SUPERSAMPLE)
        self.color = context.texture(big, 4)
        self.depth = context.texture(big, 1, dtype="f4")
        self.target = context.framebuffer([self.color, self.depth], context.depth_renderbuffer(big))
        self.shadow = context.depth_texture((SHADOW_PX, SHADOW_PX))
        self.shadow.compare_func = "<="
        self.shadow_target = context.framebuffer(depth_attachment=self.shadow)
        self.program = context.program(vertex_shader=VERTEX, fragment_shader=FRAGMENT)
        self.shadow_program = context.program(
            vertex_shader=SHADOW_VERTEX, fragment_shader="#version 330\nvoid main() {}"
        )
        self.sky_program = context.program(vertex_shader=SKY_VERTEX, fragment_shader=SKY_FRAGMENT)
        self.quad = context.buffer(np.array([-1, -1, 1, -1, -1, 1, 1, 1], np.float32).tobytes())
        self.quad_array = context.vertex_array(self.sky_program, [(self.quad, "2f", "corner")])
        self.loaded: list[list[tuple]] = []
        self.sky = None

    def load(self, objects: list[list[Surface]], sky: np.ndarray) -> None:
        """Uploads a scene: the surfaces of each object, and the panorama [h, w, 3] uint8."""
        for resource in [r for surfaces in self.loaded for _, *resources in surfaces for r in resources]:
            resource.release()
        if self.sky is not None:
            self.sky.release()
        self.loaded = [[self._upload(surface) for surface in surfaces] for surfaces in objects]
        self.sky = self.context.texture(sky.shape[1::-1], 3, np.ascontiguousarray(sky).tobytes(), alignment=1)

    def _upload(self, surface: Surface) -> tuple:
        context = self.context
        image = np.full((1, 1, 3), 255, np.uint8) if surface.texture is None else surface.texture
        pixels = np.ascontiguousarray(image[::-1]).tobytes()  # OBJ's v runs upwards
        texture = context.texture(image.shape[1::-1], image.shape[2], pixels, alignment=1)
        texture.build_mipmaps()
        buffer = context.buffer(np.ascontiguousarray(surface.triangles, np.float32).tobytes())
        array = context.vertex_array(self.program, [(buffer, "3f 3f 2f", "position", "normal", "uv")])
        shadow = context.vertex_array(self.shadow_program, [(buffer, "3f 20x", "position")])
        return surface, array, shadow, texture, buffer

    def draw(
        self, models: list[np.ndarray], c2w: np.ndarray, tan_x: float, lighting: Lighting, sky_turn: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """One frame: rgb uint8 [H, W, 3] and planar depth float32 [H, W] in meters, inf where the sky shows.

        `models` are the object-to-world matrices [4, 4] in the order of `load`; `tan_x` is the tangent of half the
        horizontal field of view.
        """
        width, height = self.size
        tan_y = tan_x * height / width
        light_projection = _column_major(lighting.projection)
        self.shadow_target.use()
        self.shadow_target.clear(depth=1.0)
        self.shadow_program["light_projection"].write(light_projection)
        for surfaces, model in zip(self.loaded, models, strict=True):
            self.shadow_program["model"].write(_column_major(model))
            for surface, _, shadow, _, _ in surfaces:
                if surface.casts:
                    shadow.render()
        self.target.use()
        self.target.clear(depth=1.0)
        self.context.disable(self.context.DEPTH_TEST)
        self.sky.use(0)
        self.sky_program["rotation"].write(_column_major(c2w[:3, :3]))
        self.sky_program["half_extent"] = (tan_x, tan_y)
        self.sky_program["turn"] = sky_turn
        self.quad_array.render(self.context.TRIANGLE_STRIP)
        self.context.enable(self.context.DEPTH_TEST)
        program = self.program
        projection = perspective(tan_x, tan_y, NEAR_M, FAR_M) @ np.linalg.inv(c2w)
        program["view_projection"].write(_column_major(projection))
        program["light_projection"].write(light_projection)
        program["albedo"], program["shadow"] = 0, 1
        program["eye"], program["forward"] = tuple(c2w[:3, 3]), tuple(-c2w[:3, 2])
        program["light"], program["sun_light"] = lighting.light, lighting.sun
        program["sky_light"], program["ground_light"] = lighting.sky, lighting.ground
        self.shadow.use(1)
        for surfaces, model in zip(self.loaded, models, strict=True):
            program["model"].write(_column_major(model))
            for surface, array, _, texture, _ in surfaces:
                texture.use(0)
                program["tint"], program["gloss"] = surface.tint, surface.gloss
                array.render()
        shape = (height * SUPERSAMPLE, width * SUPERSAMPLE)
        rgb = np.frombuffer(self.color.read(), np.uint8).reshape(*shape, 4)[::-1, :, :3]
        depth = np.frombuffer(self.depth.read(), np.float32).reshape(shape)[::-1]
        # One sample a pixel: averaging depths would invent surfaces between foreground and background.
        return cv2.resize(rgb, self.size, interpolation=cv2.INTER_AREA), depth[::SUPERSAMPLE, ::SUPERSAMPLE].copy()
