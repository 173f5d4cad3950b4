"""Geometry of the built-in scenes: flat faces, a pinhole camera, and a painter's rasteriser.

World axes: x right, y up, z forward along the street, in metres; the camera is above the origin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

NEAR = 0.4  # metres; nothing nearer to the camera is drawn
FILL, STROKE, LABEL_ONLY = 0, 1, 2

Point = tuple[float, float, float]
Colour = tuple[float, float, float]


@dataclass
class Paint:
    """What a face looks like and which class it is.

    Attributes:
        colour: RGB in [0, 255].
        label: Cityscapes label id.
        material: index of the procedural texture, see `cag.scenes.shading`.
        second: RGB of the material's second colour (window glass, joints).
        pattern: the material's measures, in metres and fractions.
    """

    colour: Colour
    label: int
    material: int = 0
    second: Colour = (0.0, 0.0, 0.0)
    pattern: tuple[float, float, float, float, float] = (1.0, 1.0, 0.5, 0.5, 0.0)


@dataclass
class Model:
    """Faces of one thing in its own axes: x right, y up, z forward, origin on the ground below it.

    A face belongs to a convex solid (whose centre tells its outside from its inside) or is a flat
    card seen from both sides. Solids of one level are drawn far to near, levels one after another.
    """

    vertices: list[Point] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    paints: list[Paint] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    centres: list[Point] = field(default_factory=list)
    solid: list[bool] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)

    def face(
        self,
        vertices: list[Point],
        paint: Paint,
        *,
        centre: Point | None = None,
        level: int = 0,
        kind: int = FILL,
        width: float = 0.0,
    ) -> None:
        """Add a planar polygon, or a polyline of `width` metres when `kind` is STROKE."""
        self.vertices += vertices
        self.counts.append(len(vertices))
        self.paints.append(paint)
        self.kinds.append(kind)
        self.widths.append(width)
        self.solid.append(centre is not None)
        self.centres.append(vertices[0] if centre is None else centre)
        self.levels.append(level)

    def card(self, x: tuple[float, float], y: tuple[float, float], z: float, paint: Paint) -> None:
        """Add an upright rectangle across z, seen from both sides."""
        self.face([(x[0], y[0], z), (x[1], y[0], z), (x[1], y[1], z), (x[0], y[1], z)], paint)

    def stroke(self, points: list[Point], width: float, paint: Paint, level: int = 0) -> None:
        """Add a polyline of `width` metres."""
        self.face(points, paint, kind=STROKE, width=width, level=level)

    def disc(
        self,
        centre: Point,
        radius: float,
        paint: Paint,
        *,
        axis: str = "z",
        sides: int = 12,
        stretch: float = 1.0,
        solid: Point | None = None,
        level: int = 0,
        kind: int = FILL,
    ) -> None:
        """Add a regular polygon across `axis`; `stretch` scales its height."""
        circle = _circle(sides)
        x, y, z = centre
        if axis == "z":
            points = [(x + radius * c, y + radius * stretch * s, z) for c, s in circle]
        elif axis == "x":
            points = [(x, y + radius * stretch * s, z + radius * c) for c, s in circle]
        else:
            points = [(x + radius * c, y, z + radius * stretch * s) for c, s in circle]
        self.face(points, paint, centre=solid, level=level, kind=kind)

    def prism(
        self,
        profile: list[tuple[float, float]],
        x0: float,
        x1: float,
        strips: list[Paint] | Paint,
        side: Paint,
        *,
        level: int = 0,
        inset: float = 0.0,
    ) -> Point:
        """Extrude a convex (z, y) profile from x0 to x1; `inset` narrows it towards its top.

        Returns:
            The solid's centre, for faces that lie upon it.
        """
        low, high = min(y for _, y in profile), max(y for _, y in profile)
        shift = [inset * (y - low) / max(high - low, 1e-6) for _, y in profile]
        left = [(x0 + s, y, z) for (z, y), s in zip(profile, shift, strict=True)]
        right = [(x1 - s, y, z) for (z, y), s in zip(profile, shift, strict=True)]
        mid = sum(z for z, _ in profile) / len(profile)
        centre = ((x0 + x1) / 2, (low + high) / 2, mid)
        for i in range(len(profile)):
            j = (i + 1) % len(profile)
            paint = strips[i] if isinstance(strips, list) else strips
            self.face([left[i], left[j], right[j], right[i]], paint, centre=centre, level=level)
        self.face(left, side, centre=centre, level=level)
        self.face(right, side, centre=centre, level=level)
        return centre

    def box(
        self,
        low: Point,
        high: Point,
        paint: Paint,
        *,
        ends: Paint | None = None,
        top: Paint | None = None,
        level: int = 0,
    ) -> Point:
        """Add an axis-aligned box; `ends` paints the faces across z, `top` the upper one."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        ends, top = ends or paint, top or paint
        profile = [(z0, y0), (z0, y1), (z1, y1), (z1, y0)]
        return self.prism(profile, x0, x1, [ends, top, ends, paint], paint, level=level)


@lru_cache
def _circle(sides: int) -> list[tuple[float, float]]:
    angles = np.arange(sides) * (2 * np.pi / sides) + np.pi / sides
    return list(zip(np.cos(angles).tolist(), np.sin(angles).tolist(), strict=True))


@dataclass
class Scene:
    """Placed models, in world coordinates, and the shadows that they cast on the ground."""

    vertices: list[np.ndarray] = field(default_factory=list)
    centres: list[np.ndarray] = field(default_factory=list)
    model: Model = field(default_factory=Model)
    layers: list[int] = field(default_factory=list)
    anchors: list[tuple[float, float]] = field(default_factory=list)
    shadows: list[list[tuple[float, float]]] = field(default_factory=list)

    def add(
        self, model: Model, x: float = 0.0, z: float = 0.0, heading: float = 0.0, layer: int = 5
    ) -> None:
        """Place `model` at (x, z), turned right by `heading` radians; lower layers lie behind."""
        self._insert(model, x, z, heading, layer, (x, z))

    def add_fixed(self, model: Model, distance: float, layer: int) -> None:
        """Add a model given in world coordinates, drawn as if it stood at z = `distance`."""
        self._insert(model, 0.0, 0.0, 0.0, layer, (0.0, distance))

    def _insert(
        self,
        model: Model,
        x: float,
        z: float,
        heading: float,
        layer: int,
        anchor: tuple[float, float],
    ) -> None:
        if not model.counts:
            return
        cos, sin = np.cos(heading), np.sin(heading)
        turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
        shift = np.array([x, 0.0, z])
        self.vertices.append(np.array(model.vertices) @ turn + shift)
        self.centres.append(np.array(model.centres) @ turn + shift)
        merged = self.model
        merged.counts += model.counts
        merged.paints += model.paints
        merged.kinds += model.kinds
        merged.widths += model.widths
        merged.solid += model.solid
        merged.levels += model.levels
        self.layers += [layer] * len(model.counts)
        self.anchors += [anchor] * len(model.counts)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above the origin.

    Attributes:
        height: metres above the road.
        pitch: radians, positive looks down.
        yaw: radians, positive looks right.
        focal: focal length over image width.
    """

    height: float
    pitch: float
    yaw: float
    focal: float

    @property
    def rotation(self) -> np.ndarray:
        """World to camera, [3, 3]."""
        cy, sy, cp, sp = np.cos(self.yaw), np.sin(self.yaw), np.cos(self.pitch), np.sin(self.pitch)
        about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
        about_x = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
        return about_x @ about_y

    @property
    def position(self) -> np.ndarray:
        """Position in the world, [3]."""
        return np.array([0.0, self.height, 0.0])

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World points [..., 3] in the camera's axes."""
        return (points - self.position) @ self.rotation.T

    def project(self, points: np.ndarray, height: int, width: int) -> np.ndarray:
        """Points in the camera's axes [..., 3] to pixels (u, v) [..., 2]."""
        scale = self.focal * width / points[..., 2:]
        return np.array([width / 2, height / 2]) + points[..., :2] * scale * np.array([1, -1])


@dataclass
class Buffers:
    """The rasterised scene: which face is seen at each pixel, and tables of the faces.

    Attributes:
        face: [H, W] int, row of the tables seen at the pixel; 0 is the sky.
        labels: [H, W] uint8 label ids.
        shadow: [H, W] float32 in [0, 1], 1 inside a shadow cast on the ground.
        normals: [F, 3] world normals towards the camera.
        inverse_depth: [F, 3] so that 1/depth = a * u + b * v + c, pixels.
        depth_range: [F, 2] metres.
        origins: [F, 3] first vertex of each face.
        tangents: [F, 2] horizontal direction (x, z) along the face.
        paints: F paints.
    """

    face: np.ndarray
    labels: np.ndarray
    shadow: np.ndarray
    normals: np.ndarray
    inverse_depth: np.ndarray
    depth_range: np.ndarray
    origins: np.ndarray
    tangents: np.ndarray
    paints: list[Paint]


def rasterise(scene: Scene, camera: Camera, height: int, width: int, sky: Paint) -> Buffers:
    """Draw the scene's faces far to near."""
    world = np.concatenate(scene.vertices)
    local = camera.to_camera(world)
    counts = np.array(scene.model.counts)
    starts = np.cumsum(counts) - counts
    depth = local[:, 2]
    near, far = np.minimum.reduceat(depth, starts), np.maximum.reduceat(depth, starts)
    normals = _normals(world, starts, counts)
    visible = (far > NEAR) & _faces_camera(scene, world[starts], normals, camera)
    order = _painter_order(scene, camera)
    order = order[visible[order]]
    face, label_face = _draw(scene, camera, local, starts, counts, near, order, height, width)
    paints = [sky, *scene.model.paints]
    labels = np.array([paint.label for paint in paints], np.uint8)[label_face]
    towards = np.sum(normals * (camera.position - world[starts]), axis=1, keepdims=True)
    normals = normals * np.where(towards < 0, -1.0, 1.0)
    planes = _inverse_depth(camera, local, starts, normals, near, far, height, width)
    level = np.hypot(normals[:, 0], normals[:, 2])
    tangents = np.stack([normals[:, 2], -normals[:, 0]], 1) / np.maximum(level, 1e-6)[:, None]
    tangents[level < 0.1] = (1.0, 0.0)
    return Buffers(
        face=face,
        labels=labels,
        shadow=_draw_shadows(scene, camera, height, width),
        normals=_with_sky(normals, (0.0, 0.0, 0.0)),
        inverse_depth=_with_sky(planes, (0.0, 0.0, 1e-4)),
        depth_range=_with_sky(np.stack([np.maximum(near, NEAR), far], 1), (1e4, 1e4)),
        origins=_with_sky(world[starts], (0.0, 0.0, 0.0)),
        tangents=_with_sky(tangents, (1.0, 0.0)),
        paints=paints,
    )


def _with_sky(rows: np.ndarray, sky: tuple[float, ...]) -> np.ndarray:
    return np.concatenate([np.array([sky]), rows]).astype(np.float32)


def _normals(world: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Unit normals [F, 3]; strokes of two points get zero."""
    first, second = world[starts], world[starts + 1]
    third = world[starts + np.minimum(2, counts - 1)]
    normals = np.cross(second - first, third - first)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)


def _faces_camera(
    scene: Scene, first: np.ndarray, normals: np.ndarray, camera: Camera
) -> np.ndarray:
    """Whether a face's outside is towards the camera; flat cards always are."""
    outwards = np.sum(normals * (first - np.concatenate(scene.centres)), axis=1)
    towards = np.sum(normals * (camera.position - first), axis=1)
    return ~np.array(scene.model.solid) | (outwards * towards > 0)


def _painter_order(scene: Scene, camera: Camera) -> np.ndarray:
    centres = np.concatenate(scene.centres) - camera.position
    solid = np.where(scene.model.solid, np.linalg.norm(centres, axis=1), 0.0)
    anchors = np.array(scene.anchors)
    direction = np.array([np.sin(camera.yaw), np.cos(camera.yaw)])
    keys = (np.arange(len(solid)), -solid, scene.model.levels, -(anchors @ direction), scene.layers)
    return np.lexsort(keys)


def _inverse_depth(
    camera: Camera,
    local: np.ndarray,
    starts: np.ndarray,
    normals: np.ndarray,
    near: np.ndarray,
    far: np.ndarray,
    height: int,
    width: int,
) -> np.ndarray:
    """Coefficients of 1/depth, which is linear in the pixel on a plane; constant if edge-on."""
    turned = normals @ camera.rotation.T
    offset = np.sum(turned * local[starts], axis=1)
    focal = camera.focal * width
    ok = np.abs(offset) > 1e-3
    scale = turned / np.where(ok, offset, 1.0)[:, None]
    constant = scale[:, 2] - scale[:, 0] * width / 2 / focal + scale[:, 1] * height / 2 / focal
    planes = np.stack([scale[:, 0] / focal, -scale[:, 1] / focal, constant], 1)
    flat = np.zeros_like(planes)
    flat[:, 2] = 2 / np.maximum(near + far, 2 * NEAR)
    return np.where(ok[:, None], planes, flat)


def _draw(
    scene: Scene,
    camera: Camera,
    local: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
    near: np.ndarray,
    order: np.ndarray,
    height: int,
    width: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the face tables seen at each pixel, for the colour and for the label."""
    clipped = np.maximum(local, [-np.inf, -np.inf, NEAR])
    pixels = camera.project(clipped, height, width)
    low, high = np.minimum.reduceat(pixels, starts), np.maximum.reduceat(pixels, starts)
    outside = ((high < 0) | (low > (width, height))).any(axis=1) & (near > NEAR)
    flat, widths = pixels.ravel().tolist(), scene.model.widths
    colour, label = Image.new("I", (width, height), 0), Image.new("I", (width, height), 0)
    on_colour, on_label = ImageDraw.Draw(colour), ImageDraw.Draw(label)
    for i in order[~outside[order]].tolist():
        start, end, kind = int(starts[i]), int(starts[i] + counts[i]), scene.model.kinds[i]
        points = flat[2 * start : 2 * end]
        if kind == STROKE:
            if near[i] > NEAR:
                thick = max(1, round(widths[i] * camera.focal * width / near[i]))
                on_colour.line(points, fill=i + 1, width=thick)
                on_label.line(points, fill=i + 1, width=thick)
            continue
        if near[i] < NEAR:
            points = _clip(local[start:end], camera, height, width)
        if kind == FILL:
            on_colour.polygon(points, fill=i + 1)
        on_label.polygon(points, fill=i + 1)
    return np.asarray(colour), np.asarray(label)


def _clip(polygon: np.ndarray, camera: Camera, height: int, width: int) -> list[float]:
    """Cut a polygon in the camera's axes at the near plane; flat list of pixels."""
    kept = []
    for here, there in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if here[2] >= NEAR:
            kept.append(here)
        if (here[2] >= NEAR) != (there[2] >= NEAR):
            kept.append(here + (there - here) * ((NEAR - here[2]) / (there[2] - here[2])))
    if len(kept) < 3:
        return [-2.0, -2.0, -2.0, -2.0, -2.0, -2.0]
    pixels = camera.project(np.array(kept), height, width)
    return np.clip(pixels, -30000, 30000).ravel().tolist()


def _draw_shadows(scene: Scene, camera: Camera, height: int, width: int) -> np.ndarray:
    canvas = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    for outline in scene.shadows:
        points = camera.to_camera(np.array([(x, 0.0, z) for x, z in outline]))
        if points[:, 2].min() < NEAR:
            pixels = _clip(points, camera, height, width)
        else:
            pixels = camera.project(points, height, width).ravel().tolist()
        draw.polygon(pixels, fill=255)
    return np.asarray(canvas, np.float32) / 255
