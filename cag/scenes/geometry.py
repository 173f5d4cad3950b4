"""Geometry of the built-in scenes: flat faces, a pinhole camera, and a painter's rasteriser.

World axes: x right, y up, z forward along the street, in metres; the camera is above the origin.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from cag.scenes.looks import Colour, Limits

NEAR = 0.4  # metres; nothing nearer to the camera is drawn
FILL, STROKE, LABEL_ONLY = 0, 1, 2

Point = tuple[float, float, float]
Corner = tuple[float, float]  # x and y of a point in a plane across z
Vertices = Sequence[Point | Corner]


@dataclass
class Paint:
    """A face's appearance and class."""

    colour: Colour  # RGB in [0, 255]
    label: int  # Cityscapes label id
    material: int = 0  # index of the procedural texture, see `cag.scenes.shading`
    second: Colour = (0.0, 0.0, 0.0)  # the material's second colour (window glass, horizon)
    pattern: tuple[float, float, float, float, float] = (1.0, 1.0, 0.5, 0.5, 0.0)  # m, fractions


class Face(NamedTuple):
    """A planar polygon or a polyline."""

    vertices: list[Point]
    paint: Paint
    centre: Point | None = None  # of its convex solid; None: a flat card, seen from both sides
    level: int = 0  # see `Model`
    kind: int = FILL  # or STROKE (a polyline), LABEL_ONLY
    width: float = 0.0  # of a polyline, in metres


@dataclass
class Model:
    """A thing's faces in its own axes: x right, y up, z forward, origin on the ground below it.

    Levels are drawn in order; within a level, solids are drawn far to near.
    """

    faces: list[Face] = field(default_factory=list)

    def face(self, vertices: Vertices, paint: Paint, z: float = 0.0, **options: Any) -> None:
        """Add a face with the options of `Face`; corners of two numbers (x, y) lie at `z`."""
        points = [(*vertex, z)[:3] for vertex in vertices]
        self.faces.append(Face(points, paint, **options))

    def card(self, x: Limits, y: Limits, z: float, paint: Paint, **options: Any) -> None:
        """Add an upright rectangle across z."""
        corners = [(x[0], y[0], z), (x[1], y[0], z), (x[1], y[1], z), (x[0], y[1], z)]
        self.face(corners, paint, **options)

    def screen(self, x: float, y: Limits, z: Limits, paint: Paint, **options: Any) -> None:
        """Add an upright rectangle across x."""
        corners = [(x, y[0], z[0]), (x, y[0], z[1]), (x, y[1], z[1]), (x, y[1], z[0])]
        self.face(corners, paint, **options)

    def stroke(self, points: Vertices, width: float, paint: Paint, **options: Any) -> None:
        """Add a polyline of `width` metres."""
        self.face(points, paint, kind=STROKE, width=width, **options)

    def disc(
        self,
        middle: Point | Corner,
        radius: float,
        paint: Paint,
        sides: int = 12,
        stretch: float = 1.0,
        **options: Any,
    ) -> None:
        """Add a regular polygon across z; `stretch` scales its height."""
        x, y, *z = middle
        points = [(x + radius * c, y + radius * stretch * s, *z) for c, s in _circle(sides)]
        self.face(points, paint, **options)

    def wheel(self, middle: Point, radius: float, paint: Paint, **options: Any) -> None:
        """Add a disc across x."""
        x, y, z = middle
        points = [(x, y + radius * s, z + radius * c) for c, s in _circle(12)]
        self.face(points, paint, **options)

    def prism(
        self,
        profile: list[Corner],
        x0: float,
        x1: float,
        strips: list[Paint] | Paint,
        side: Paint,
        *,
        level: int = 0,
        inset: float = 0.0,
    ) -> Point:
        """Extrude a convex (z, y) profile from x0 to x1; `inset` narrows it towards its top.

        Returns the solid's centre, for faces upon it.
        """
        z, y = zip(*profile, strict=True)
        low, high = min(y), max(y)
        shift = [inset * (height - low) / max(high - low, 1e-6) for height in y]
        left = [(x0 + s, y, z) for (z, y), s in zip(profile, shift, strict=True)]
        right = [(x1 - s, y, z) for (z, y), s in zip(profile, shift, strict=True)]
        options = {"centre": ((x0 + x1) / 2, (low + high) / 2, sum(z) / len(z)), "level": level}
        strips = strips if isinstance(strips, list) else [strips] * len(profile)
        for i, paint in enumerate(strips):
            j = (i + 1) % len(profile)
            self.face([left[i], left[j], right[j], right[i]], paint, **options)
        self.face(left, side, **options)
        self.face(right, side, **options)
        return options["centre"]

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

    vertices: list[np.ndarray] = field(default_factory=list)  # of each model, [V, 3]
    centres: list[np.ndarray] = field(default_factory=list)  # of each model, [F, 3]
    faces: list[Face] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    anchors: list[tuple[float, float]] = field(default_factory=list)
    shadows: list[list[tuple[float, float]]] = field(default_factory=list)

    def add(
        self,
        model: Model,
        x: float = 0.0,
        z: float = 0.0,
        heading: float = 0.0,
        layer: int = 5,
        distance: float | None = None,
        size: float = 1.0,
    ) -> None:
        """Place `model` at (x, z), `size` times as large, turned right by `heading` radians.

        Lower layers lie behind. With a `distance` it is drawn as if it stood at x = 0 and z = `distance`.
        """
        faces = model.faces
        cos, sin = np.cos(heading), np.sin(heading)
        turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
        shift = np.array([x, 0.0, z])
        vertices = [vertex for face in faces for vertex in face.vertices]
        centres = [face.centre or face.vertices[0] for face in faces]
        self.vertices.append(size * np.array(vertices) @ turn + shift)
        self.centres.append(size * np.array(centres) @ turn + shift)
        self.faces += faces
        self.layers += [layer] * len(faces)
        self.anchors += [(x, z) if distance is None else (0.0, distance)] * len(faces)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above the origin."""

    height: float  # metres above the road
    pitch: float  # radians, positive looks down
    yaw: float  # radians, positive looks right
    focal: float  # focal length over image width

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


@dataclass
class Buffers:
    """The rasterised scene: the visible face at each pixel, and tables of the F faces."""

    face: np.ndarray  # [H, W] int, the pixel's row of the tables; 0 is the sky
    labels: np.ndarray  # [H, W] uint8 label ids
    shadow: np.ndarray  # [H, W] float32 in [0, 1], 1 inside a shadow cast on the ground
    normals: np.ndarray  # [F, 3] world normals towards the camera
    inverse_depth: np.ndarray  # [F, 3] so that 1/depth = a * u + b * v + c, pixels
    depth_range: np.ndarray  # [F, 2] metres
    origins: np.ndarray  # [F, 3] first vertex of each face
    tangents: np.ndarray  # [F, 2] horizontal direction (x, z) along the face
    paints: list[Paint]  # F


class _View:
    """A scene's F faces and V vertices, in metres, before a camera with an image of [H, W]."""

    def __init__(self, scene: Scene, camera: Camera, height: int, width: int):
        self.scene, self.camera, self.height, self.width = scene, camera, height, width
        world = np.concatenate(scene.vertices)
        self.local = camera.to_camera(world)  # [V, 3] in the camera's axes
        self.counts = np.array([len(face.vertices) for face in scene.faces])  # [F] vertices
        self.starts = np.cumsum(self.counts) - self.counts  # [F] first vertex of each face
        self.near = np.minimum.reduceat(self.local[:, 2], self.starts)  # [F] least depth
        self.far = np.maximum.reduceat(self.local[:, 2], self.starts)  # [F] greatest depth
        self.centres = np.concatenate(scene.centres)  # [F, 3] of the solids
        self.solid = np.array([face.centre is not None for face in scene.faces])  # [F] bool
        self.origins, second = world[self.starts], world[self.starts + 1]  # [F, 3]
        third = world[self.starts + np.minimum(2, self.counts - 1)]
        normals = np.cross(second - self.origins, third - self.origins)
        # [F, 3] unit normals; those of two points are zero
        self.normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)

    def order(self) -> np.ndarray:
        """Face numbers in the painter's order."""
        distance = np.linalg.norm(self.centres - self.camera.position, axis=1)
        solid = np.where(self.solid, distance, 0.0)
        levels = [face.level for face in self.scene.faces]
        direction = np.array([np.sin(self.camera.yaw), np.cos(self.camera.yaw)])
        anchors = np.array(self.scene.anchors) @ direction
        return np.lexsort((np.arange(len(solid)), -solid, levels, -anchors, self.scene.layers))

    def inverse_depth(self, normals: np.ndarray) -> np.ndarray:
        """Coefficients of 1/depth, which is linear in the pixel on a plane; constant if edge-on."""
        turned = normals @ self.camera.rotation.T
        offset = np.sum(turned * self.local[self.starts], axis=1)
        focal = self.camera.focal * self.width
        ok = np.abs(offset) > 1e-3
        a, b, c = (turned / np.where(ok, offset, 1.0)[:, None]).T
        constant = c - a * self.width / 2 / focal + b * self.height / 2 / focal
        planes = np.stack([a / focal, -b / focal, constant], 1)
        planes[~ok, :2] = 0.0
        planes[~ok, 2] = (2 / np.maximum(self.near + self.far, 2 * NEAR))[~ok]
        return planes

    def draw(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the face tables seen at each pixel, for the colour and for the label."""
        starts, near = self.starts, self.near
        pixels = self.project(np.maximum(self.local, [-np.inf, -np.inf, NEAR]))
        low, high = np.minimum.reduceat(pixels, starts), np.maximum.reduceat(pixels, starts)
        outside = ((high < 0) | (low > (self.width, self.height))).any(axis=1) & (near > NEAR)
        flat = pixels.ravel().tolist()
        colour, label = (Image.new("I", (self.width, self.height), 0) for _ in range(2))
        on_colour, on_label = ImageDraw.Draw(colour), ImageDraw.Draw(label)
        for i in order[~outside[order]].tolist():
            face, start, end = self.scene.faces[i], int(starts[i]), int(starts[i] + self.counts[i])
            points = flat[2 * start : 2 * end]
            if face.kind == STROKE:
                if near[i] > NEAR:
                    thick = max(1, round(face.width * self.camera.focal * self.width / near[i]))
                    on_colour.line(points, fill=i + 1, width=thick)
                    on_label.line(points, fill=i + 1, width=thick)
                continue
            if near[i] < NEAR:
                points = self.clip(self.local[start:end])
            if face.kind == FILL:
                on_colour.polygon(points, fill=i + 1)
            on_label.polygon(points, fill=i + 1)
        return np.asarray(colour), np.asarray(label)

    def draw_shadows(self) -> np.ndarray:
        """The mask of the shadows, [H, W] float32."""
        canvas = Image.new("L", (self.width, self.height), 0)
        for outline in self.scene.shadows:
            points = self.camera.to_camera(np.array([(x, 0.0, z) for x, z in outline]))
            clipped = points[:, 2].min() < NEAR
            pixels = self.clip(points) if clipped else self.project(points).ravel().tolist()
            ImageDraw.Draw(canvas).polygon(pixels, fill=255)
        return np.asarray(canvas, np.float32) / 255

    def clip(self, polygon: np.ndarray) -> list[float]:
        """Cut a polygon in the camera's axes at the near plane; flat list of pixels."""
        kept = []
        for here, there in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if here[2] >= NEAR:
                kept.append(here)
            if (here[2] >= NEAR) != (there[2] >= NEAR):
                kept.append(here + (there - here) * ((NEAR - here[2]) / (there[2] - here[2])))
        if len(kept) < 3:
            return [-2.0] * 6
        return np.clip(self.project(np.array(kept)), -30000, 30000).ravel().tolist()

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points in the camera's axes [..., 3] to pixels (u, v) [..., 2]."""
        scale = self.camera.focal * self.width / points[..., 2:]
        middle = np.array([self.width / 2, self.height / 2])
        return middle + points[..., :2] * scale * np.array([1, -1])


def rasterise(scene: Scene, camera: Camera, height: int, width: int, sky: Paint) -> Buffers:
    """Draw the scene's faces far to near."""
    view = _View(scene, camera, height, width)
    outwards = np.sum(view.normals * (view.origins - view.centres), axis=1)
    towards = np.sum(view.normals * (camera.position - view.origins), axis=1)
    visible = (view.far > NEAR) & (~view.solid | (outwards * towards > 0))
    order = view.order()
    face, label_face = view.draw(order[visible[order]])
    paints = [sky, *(face.paint for face in scene.faces)]
    normals = view.normals * np.where(towards < 0, -1.0, 1.0)[:, None]
    level = np.hypot(normals[:, 0], normals[:, 2])
    tangents = np.stack([normals[:, 2], -normals[:, 0]], 1) / np.maximum(level, 1e-6)[:, None]
    tangents[level < 0.1] = (1.0, 0.0)
    depths = np.stack([np.maximum(view.near, NEAR), view.far], 1)

    def with_sky(rows: np.ndarray, *sky: float) -> np.ndarray:
        return np.concatenate([np.array([sky]), rows]).astype(np.float32)

    return Buffers(
        face=face,
        labels=np.array([paint.label for paint in paints], np.uint8)[label_face],
        shadow=view.draw_shadows(),
        normals=with_sky(normals, 0.0, 0.0, 0.0),
        inverse_depth=with_sky(view.inverse_depth(normals), 0.0, 0.0, 1e-4),
        depth_range=with_sky(depths, 1e4, 1e4),
        origins=with_sky(view.origins, 0.0, 0.0, 0.0),
        tangents=with_sky(tangents, 1.0, 0.0),
        paints=paints,
    )
