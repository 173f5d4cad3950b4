"""Poles, traffic lights, signs and plants, drawn as flat cards that face the camera."""

from functools import partial

import numpy as np

from cag.scenes.classes import LIGHT, POLE, SIGN, VEGETATION
from cag.scenes.geometry import Model, Paint, Point
from cag.scenes.looks import Colour, Limits, Look, Rng, between, pick, tinted, varied
from cag.scenes.shading import LEAVES


def pole(look: Look, rng: Rng, height: float, thick: float = 0.16) -> Model:
    """A bare pole."""
    model = Model()
    paint, half = Paint(varied(look.poles, rng), POLE), thick * look.slim / 2
    shade = Paint(tinted(paint.colour, 0.75), POLE)
    model.card((-half, half), (0, height), 0, paint)
    model.card((half * 0.2, half), (0, height), 0, shade)
    return model


def lamp_post(look: Look, rng: Rng, side: int) -> Model:
    """A street lamp on this side (-1 or 1) of the road, its arm above the road."""
    height = between((5.5, 7.5), rng)
    model = pole(look, rng, height, 0.19)
    paint = model.faces[0].paint
    tip = -side * 1.6
    if look.foreign:
        model.stroke([(0, height), (tip * 0.5, height + 0.5), (tip, height + 0.4)], 0.14, paint)
        low = height + 0.3
        model.face([(tip - 0.35, low), (tip + 0.35, low), (tip, height + 0.55)], paint)
    else:
        model.stroke([(0, height), (tip, height)], 0.14, paint)
        model.card((tip - 0.4, tip + 0.4), (height - 0.15, height + 0.1), 0, paint)
    return model


def utility_pole(look: Look, rng: Rng) -> Model:
    """A mast with two cross arms."""
    height = between((6.5, 8.5), rng)
    model = pole(look, rng, height, 0.26)
    for drop in (0.4, 1.2):
        model.stroke([(-1.1, height - drop), (1.1, height - drop)], 0.16, model.faces[0].paint)
    return model


def traffic_light(look: Look, rng: Rng, side: int, phase: int) -> Model:
    """A signal on a pole, sometimes with a second head on an arm above the road."""
    height = between((3.0, 3.8), rng)
    arm = rng.random() < 0.5
    model = pole(look, rng, 5.6 if arm else height + 0.2, 0.2)
    _signal_head(model, look, (0.0, height, -0.05), phase)
    if arm:
        reach = -side * between((2.0, 3.4), rng)
        model.stroke([(0, 5.5), (reach, 5.6)], 0.18, model.faces[0].paint)
        _signal_head(model, look, (reach, 5.2, -0.05), phase)
    return model


def _signal_head(model: Model, look: Look, at: Point, phase: int) -> None:
    """Three lamps, one of them lit, in a dark housing."""
    x, y, z = at
    half, tall = (0.3, 0.66) if look.foreign else (0.34, 0.72)
    rim = Paint((226, 224, 216) if look.foreign else (250, 196, 20), LIGHT)
    box = Paint((38, 48, 44) if look.foreign else (28, 28, 30), LIGHT)
    for grow, paint in ((0.07, rim), (0.0, box)):
        w, h = half + grow, tall + grow
        model.card((x - w, x + w), (y - h, y + h), z, paint)
    for k, colour in enumerate(((255, 40, 30), (255, 190, 20), (40, 240, 100))):
        shown = colour if k == phase else tinted(colour, 0.25)
        model.disc((x, y + 0.43 * (1 - k), z), 0.17, Paint(shown, LIGHT), sides=10)


def traffic_sign(look: Look, rng: Rng) -> Model:
    """A sign on a pole: warning, order, ban, direction or parking, as in the look's city."""
    height = between((2.3, 2.9), rng)
    model = pole(look, rng, height + 0.1, 0.13)
    abroad = (_ban, _warning, _parking, _direction, partial(_warning, up=-1))
    home = (_stop, _diamond, _ban, _direction, _parking)
    pick(abroad if look.foreign else home, rng)(model, height, look)
    if rng.random() < 0.25:
        white = Paint((232, 232, 228), SIGN)
        model.card((-0.35, 0.35), (height - 0.85, height - 0.55), -0.04, white)
    return model


def _plate(model: Model, y: float, half: float, tall: float, colour: Colour) -> None:
    model.card((-half, half), (y - tall, y + tall), -0.05, Paint(colour, SIGN))


def _ban(model: Model, y: float, look: Look) -> None:
    model.disc((0, y, -0.04), 0.5, Paint((206, 26, 32), SIGN))
    model.disc((0, y, -0.05), 0.34, Paint((242, 240, 236), SIGN))
    _plate(model, y, 0.2, 0.08, (30, 30, 34))


def _stop(model: Model, y: float, look: Look) -> None:
    model.disc((0, y, -0.04), 0.54, Paint((246, 246, 244), SIGN), sides=8)
    model.disc((0, y, -0.05), 0.48, Paint((210, 20, 30), SIGN), sides=8)
    white = Paint((248, 248, 246), SIGN)
    for x in (-0.3, -0.14, 0.02, 0.18):
        model.card((x, x + 0.1), (y - 0.11, y + 0.11), -0.06, white)


def _diamond(model: Model, y: float, look: Look) -> None:
    for size, colour in ((0.6, (24, 24, 24)), (0.54, (252, 204, 20))):
        corners = [(-size, y), (0, y + size), (size, y), (0, y - size)]
        model.face(corners, Paint(colour, SIGN), z=-0.04)
    _plate(model, y, 0.07, 0.26, (24, 24, 24))


def _warning(model: Model, y: float, look: Look, up: int = 1) -> None:
    """A triangle; it points down where drivers give way."""
    for size, colour in ((0.62, (206, 26, 32)), (0.39 + 0.01 * up, (240, 238, 232))):
        base = y - up * 0.36 * size / 0.62
        corners = [(-size, base), (size, base), (0, base + up * 1.7 * size)]
        model.face(corners, Paint(colour, SIGN), z=-0.05)
    if up > 0:
        _plate(model, y - 0.02, 0.05, 0.16, (30, 30, 30))


def _parking(model: Model, y: float, look: Look) -> None:
    _plate(model, y, 0.46, 0.5, (240, 240, 240))
    _plate(model, y, 0.41, 0.45, (24, 78, 176))
    white = Paint((242, 242, 242), SIGN)
    model.card((-0.18, -0.06), (y - 0.32, y + 0.32), -0.06, white)
    model.disc((0.04, y + 0.14, -0.06), 0.19, white, sides=8)


def _direction(model: Model, y: float, look: Look) -> None:
    ground = (238, 190, 40) if look.foreign else (16, 120, 70)
    ink = (30, 30, 32) if look.foreign else (240, 240, 240)
    low, high = y - 0.32, y + 0.32
    arrow = [(-0.9, low), (0.6, low), (0.95, y), (0.6, high), (-0.9, high)]
    model.face(arrow, Paint(ground, SIGN), z=-0.05)
    for low, high in ((-0.2, -0.08), (0.06, 0.18)):
        model.card((-0.75, 0.4), (y + low, y + high), -0.06, Paint(ink, SIGN))


def tree(look: Look, rng: Rng) -> Model:
    """A tree: a fir or a few round lobes; in the target city a spreading or slim crown."""
    model = Model()
    tall = between((4.5, 7.5), rng)
    leaves = varied(look.leaves, rng, 0.15)
    stem, trunk = tall * between((0.3, 0.42), rng), Paint(look.trunk, VEGETATION)
    model.face([(-0.17, 0), (0.17, 0), (0.11, stem + 0.5), (-0.11, stem + 0.5)], trunk)
    if look.foreign:
        slim = rng.random() < 0.3
        _crown(model, rng, leaves, (stem, tall), 0.9 if slim else between((1.8, 2.6), rng), 9)
    elif rng.random() < 0.35:
        for k in range(3):
            low = 0.8 + k * (tall - 1.0) / 3.6
            half = 1.7 - 0.4 * k
            paint = Paint(tinted(leaves, 0.85 + 0.12 * k), VEGETATION, LEAVES)
            model.face([(-half, low), (half, low), (0, low + 0.5 * tall)], paint)
    else:
        _crown(model, rng, leaves, (stem, tall), between((1.3, 1.8), rng), 4)
    return model


def _crown(model: Model, rng: Rng, leaves: Colour, y: Limits, half: float, lobes: int) -> None:
    """Overlapping lobes, the lower ones darker."""
    low, high = y
    middle, tall = (low + high) / 2, (high - low) / 2
    angles = rng.random(lobes) * 2 * np.pi
    radii = np.sqrt(rng.random(lobes)) * 0.55
    heights, places = middle + tall * (radii * np.sin(angles)), half * (radii * np.cos(angles))
    spots = sorted(zip(heights.tolist(), places.tolist(), strict=True))
    core = Paint(tinted(leaves, 0.8), VEGETATION, LEAVES)
    model.disc((0, middle), half * 0.75, core, stretch=tall / half)
    for y, x in spots:
        shade = 0.8 + 0.35 * (y - low) / max(high - low, 0.1)
        paint = Paint(tinted(leaves, shade), VEGETATION, LEAVES)
        size = half * (0.4 + 0.2 * float(rng.random()))
        model.disc((x, y, -0.02), size, paint, stretch=0.6 + 0.4 * tall / half, sides=9)


def bush(look: Look, rng: Rng) -> Model:
    """A low round shrub."""
    model = Model()
    leaves = varied(look.leaves, rng, 0.15)
    for k in range(3):
        size = between((0.5, 0.8), rng)
        paint = Paint(tinted(leaves, 0.85 + 0.12 * k), VEGETATION, LEAVES)
        model.disc((0.6 * (k - 1), size * 0.75), size, paint, sides=9)
    return model
