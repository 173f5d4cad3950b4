"""From the rasterised scene to a picture: materials, light, shadows, haze, the camera's grade."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from cag.scenes.classes import EGO_VEHICLE
from cag.scenes.geometry import Buffers, Camera
from cag.scenes.looks import Grade, Look, Rng, between, drawn

PLAIN, FACADE, PAVING, ASPHALT, GRASS, LEAVES, BRICK, SKY_DOME, PLANKS = range(9)
GROUND = np.isin(np.arange(9), (PAVING, ASPHALT, GRASS))

# Texture strength of each material, and its grain in cells per metre.
ROUGHNESS = np.array([0.35, 0.7, 0.8, 1.0, 1.9, 2.4, 1.0, 0.0, 1.0], np.float32)
GRAIN = np.array([9.0, 9.0, 14.0, 18.0, 12.0, 9.0, 12.0, 0.0, 9.0], np.float32)
COARSE = np.array([3.0, 0.35, 0.35, 0.35, 0.35, 1.2, 0.35, 0.0, 0.35], np.float32)  # see `_coarse`

TILE = 256  # cells along the edge of the noise tile


def _noise(*radii: int) -> np.ndarray:
    """Periodic noise [TILE, TILE] float32 with grains of these radii in cells."""
    rng, total = np.random.default_rng(7), 0
    for radius in radii:
        tile = rng.standard_normal((TILE, TILE))
        for axis in (0, 1) * 3 if radius else ():  # three box blurs
            tile = sum(np.roll(tile, k, axis) for k in range(-radius, radius + 1))
        total = total + ((tile - tile.mean()) / tile.std()).astype(np.float32)
    return total / total.std()


NOISE = _noise(0, 1, 2)  # the grain of surfaces
CLOUDS = _noise(5, 9)  # clouds and stains


def _lookup(tile: np.ndarray, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Nearest cells of a periodic tile."""
    mask, lift = TILE - 1, np.float32(32 * TILE)  # above zero, the cast to int rounds down
    row, column = (t + lift).astype(np.int32) & mask, (s + lift).astype(np.int32) & mask
    return tile.ravel()[row * TILE + column]


class Surface(NamedTuple):
    """The visible surface at each pixel, arrays [H * W]."""

    face: np.ndarray  # row of the tables of faces; 0 is the sky
    material: np.ndarray
    depth: np.ndarray  # metres
    s: np.ndarray  # metres along the surface
    t: np.ndarray  # metres up the surface


def shade(buffers: Buffers, camera: Camera, look: Look, rng: Rng) -> np.ndarray:
    """The picture before the camera's grade, [H, W, 3] float32 in [0, 255]."""
    height, width = buffers.face.shape
    sun = np.array([0.7 if rng.random() < 0.5 else -0.7, 0.65, -0.45])  # behind the camera
    if look.natural:
        sun = np.array([rng.uniform(-1, 1), rng.uniform(0.4, 1), rng.uniform(-1, 0.5)])
    sun /= np.linalg.norm(sun)
    ambient = between(look.grade.ambient, rng)
    light = ambient + (1 - ambient) * 1.6 * np.maximum(buffers.normals @ sun, 0.0)
    light = np.where(np.abs(buffers.normals).sum(1) > 0, light, 1.0)  # the sky has no normal
    tables = zip(*((p.colour, p.second, p.pattern) for p in buffers.paints), strict=True)
    base, second, pattern = (np.array(rows, np.float32) for rows in tables)
    surface = _surface(buffers, camera)
    colour = (base * light[:, None].astype(np.float32))[surface.face]
    _windows(colour, second, pattern, surface, look)
    _joints(colour, pattern, surface)
    material, depth, s, t = surface[1:]
    if look.grade.texture > 0:
        grain = GRAIN[material]
        rough = look.grade.texture * ROUGHNESS[material] / (1 + depth / 30)
        value = _lookup(NOISE, s * grain, t * grain) + 0.6 * _lookup(CLOUDS, s * 7, t * 7)
        if look.natural:
            value = np.maximum(value + _coarse(surface, rng), -0.9 / np.maximum(rough, 1e-6))
        colour *= (1 + rough * value)[:, None]
    shadow = buffers.shadow
    if look.foreign:  # soft edges
        blur = ImageFilter.BoxBlur(width / 220)
        mask = Image.fromarray((shadow * 255).astype(np.uint8)).filter(blur)
        shadow = np.asarray(mask, np.float32) / 255
    darkening = between(look.grade.shadow, rng) * shadow.ravel() * GROUND[material]
    colour *= (1 - darkening)[:, None]
    colour *= np.float32(drawn(look.grade.exposure, rng))
    extinction = between(look.grade.haze, rng)
    if extinction > 0:
        clear = np.exp(-extinction * depth)[:, None].astype(np.float32)
        clear[surface.face == 0] = 1
        colour -= second[0]
        colour *= clear
        colour += second[0]
    _sky(colour, buffers, material, look, rng)
    return colour.reshape(height, width, 3)


def _coarse(surface: Surface, rng: Rng) -> np.ndarray:
    """Texture of random strength at coarse scales: stains, reflections, clumps of leaves."""
    value = np.float32(0)
    for cells in np.array([1.2, 3.0, 14.0], np.float32):
        place = surface.s * cells, surface.t * cells
        value = value + np.float32(rng.uniform(0.3, 1.3)) * _lookup(CLOUDS, *place)
    return COARSE[surface.material] * value


def ragged(buffers: Buffers, rng: Rng) -> None:
    """Fray the outlines of leaves, in place: move faces and labels by a few pixels of noise."""
    height, width = buffers.face.shape
    v, u = np.mgrid[:height, :width]
    shifts = []
    for start in rng.random((2, 2)) * TILE:
        place = u + start[0], v + start[1]
        noise = _lookup(NOISE, *place) + _lookup(CLOUDS, *place)
        shifts.append(np.rint(noise * (width / 200)).astype(int))
    v = np.clip(v + shifts[0], 0, height - 1)
    u = np.clip(u + shifts[1], 0, width - 1)
    leaves = np.array([paint.material == LEAVES for paint in buffers.paints])[buffers.face]
    moved = leaves | leaves[v, u]
    buffers.face = np.where(moved, buffers.face[v, u], buffers.face)
    buffers.labels = np.where(moved, buffers.labels[v, u], buffers.labels)


def bonnet(picture: np.ndarray, labels: np.ndarray, rng: Rng) -> None:
    """Draw the bonnet of the car that carries the camera, in place: id 1, which is ignored."""
    height, width = labels.shape
    across = np.linspace(-1, 1, width) - rng.uniform(-0.1, 0.1)
    edge = height * (rng.uniform(0.88, 0.96) + rng.uniform(0.02, 0.08) * across**2)
    inside = np.arange(height)[:, None] - edge
    colour = np.array([50.0, 54, 56]) * rng.uniform(0.3, 1.8)
    shine = colour * (1 + 0.5 * np.exp(-np.abs(inside) / 3))[..., None]
    picture[inside > 0] = shine[inside > 0]
    labels[inside > 0] = EGO_VEHICLE


def _surface(buffers: Buffers, camera: Camera) -> Surface:
    height, width = buffers.face.shape
    face = buffers.face.ravel()
    material = np.array([paint.material for paint in buffers.paints], np.int32)[face]
    focal = camera.focal * width
    u = np.tile(np.arange(width, dtype=np.float32) + 0.5, height)
    v = np.repeat(np.arange(height, dtype=np.float32) + 0.5, width)
    tables = buffers.inverse_depth, buffers.depth_range, buffers.origins, buffers.tangents
    columns = np.concatenate(tables, axis=1).T.copy()
    a, b, c, low, high, ox, oy, oz, tx, tz = (column[face] for column in columns)
    depth = np.clip(1 / np.maximum(a * u + b * v + c, np.float32(1e-4)), low, high)
    right, up = (u - width / 2) * (depth / focal), (height / 2 - v) * (depth / focal)
    turn = camera.rotation.astype(np.float32)
    x, y, z = (turn[0, k] * right + turn[1, k] * up + turn[2, k] * depth for k in range(3))
    ground = GROUND[material]
    s = np.where(ground, x, (x - ox) * tx + (z - oz) * tz)
    t = np.where(ground, z, y + np.float32(camera.height) - oy)
    return Surface(face, material, depth, s, t)


def _windows(
    colour: np.ndarray, second: np.ndarray, patterns: np.ndarray, surface: Surface, look: Look
) -> None:
    """Glass in a grid upon facades: pattern = pitch along, pitch up, width, height, shop height."""
    index = np.flatnonzero(surface.material == FACADE)
    rows, _, _, s, t = (values[index] for values in surface)
    pitch_s, pitch_t, wide, tall, shop = patterns[rows].T
    upper = t > shop
    column, row = s / pitch_s, np.where(upper, (t - shop) / pitch_t, t / np.maximum(shop, 0.1))
    in_s, in_t = column - np.floor(column), row - np.floor(row)
    wide = np.where(upper, wide, 0.8)
    glass = np.abs(in_s - 0.5) < wide / 2
    glass &= np.abs(in_t - np.where(upper, 0.52, 0.42)) < np.where(upper, tall, 0.7) / 2
    cell = _lookup(NOISE, np.floor(column) * 17 + rows * 5, np.floor(row) * 29)
    pane = second[rows] * (1 + 0.16 * np.clip(cell, -2, 2))[:, None]
    if look.foreign:
        pane[cell > 1.5] = (236, 206, 130)
        sill = ~glass & (np.abs(in_s - 0.5) < wide / 2 + 0.06) & upper
        sill &= np.abs(in_t - 0.52) < tall / 2 + 0.07
        colour[index[sill]] *= 1.22
    colour[index[glass]] = pane[glass]
    colour[index[upper & (t - shop < 0.25)]] *= 0.78


def _joints(colour: np.ndarray, patterns: np.ndarray, surface: Surface) -> None:
    """Thin lines between slabs, courses of stones or planks: pattern = pitch along, pitch up."""
    index = np.flatnonzero(np.isin(surface.material, (PAVING, BRICK, PLANKS)))
    rows, material, _, s, t = (values[index] for values in surface)
    pitch_s, pitch_t, line, _, strength = patterns[rows].T
    row = np.floor(t / pitch_t)
    along = s / pitch_s + 0.5 * (row % 2) * (material == BRICK)
    in_s, in_t = along - np.floor(along), t / pitch_t - row
    joint = (in_s < line) | (in_t < line)
    cell = _lookup(NOISE, np.floor(along) * 13, row * 7)
    shade = 1 + 0.25 * strength * np.clip(cell, -1.5, 1.5) * 0.3 - strength * 0.25 * joint
    colour[index] *= shade[:, None]


def _sky(colour: np.ndarray, buffers: Buffers, material: np.ndarray, look: Look, rng: Rng) -> None:
    """Zenith to horizon, with clouds in the target city."""
    height, width = buffers.face.shape
    index = np.flatnonzero(material == SKY_DOME)
    v, u = (index // width) / np.float32(height), (index % width) / np.float32(width)
    drift = rng.random(2) * TILE
    down = np.clip(v / 0.55, 0, 1)[:, None]
    dome = buffers.paints[0]
    zenith, horizon = np.array(dome.colour, np.float32), np.array(dome.second, np.float32)
    sky = zenith * (1 - down) + horizon * down
    if look.foreign:
        stretch = 1 / (1.15 - np.clip(v / 0.6, 0, 1))
        cloud = _lookup(CLOUDS, (u - 0.5) * 130 * stretch + drift[0], v * 150 * stretch + drift[1])
        sky += (14 * np.clip(cloud, -1.6, 1.6))[:, None]
    colour[index] = sky


def grade(picture: np.ndarray, settings: Grade, rng: Rng) -> np.ndarray:
    """The camera's rendering of a picture [H, W, 3] in [0, 255]; uint8."""
    height, width = picture.shape[:2]
    first, last = (np.array(c, np.float32) for c in settings.cast)
    gains = first + (last - first) * np.float32(rng.random())
    gamma, saturation = between(settings.gamma, rng), between(settings.saturation, rng)
    contrast, vignette = between(settings.contrast, rng), between(settings.vignette, rng)
    noise, blur = between(settings.noise, rng), between(settings.blur, rng)
    if blur > 0:
        image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
        picture = np.asarray(image.filter(ImageFilter.GaussianBlur(blur * width / 256)), np.float32)
    picture = picture * gains
    grey = picture.mean(axis=2, keepdims=True)
    picture = grey + saturation * (picture - grey)
    picture = 118 + contrast * (picture - 118)
    picture = 255 * (np.clip(picture, 0, 255) / 255) ** np.float32(gamma)
    if vignette > 0:
        x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
        picture = picture * (1 - vignette * (x * x + y * y) / 2)
    if noise > 0:
        picture = picture + noise * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
