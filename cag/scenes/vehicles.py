"""Vehicles, with their length along z and the front at positive z."""

from typing import NamedTuple

import numpy as np

from cag.scenes.classes import BUS, CAR, TRAIN, TRUCK
from cag.scenes.figures import HUB, RUBBER
from cag.scenes.geometry import Model, Paint, Point
from cag.scenes.looks import Limits, Look, Rng, between, pick, tinted, varied


class _Body(NamedTuple):
    """A solid of a vehicle, which bears plates, wheels and lamps."""

    model: Model
    label: int
    half: float  # half of its width, metres
    centre: Point

    def end_plate(self, x: Limits, y: Limits, z: float, paint: Paint) -> None:
        """A rectangle upon the front or back."""
        self.model.card(x, y, z, paint, centre=self.centre, level=2)

    def side_plates(self, z: Limits, y: Limits, paint: Paint, gap: float = 0.01) -> None:
        """A rectangle upon both sides."""
        for x in (-self.half - gap, self.half + gap):
            self.model.screen(x, y, z, paint, centre=self.centre, level=2)

    def wheels(self, places: list[float], radius: float) -> None:
        """Wheels on both sides, and their treads seen from both ends."""
        tyre, hub = Paint(RUBBER, self.label), Paint(HUB, self.label)
        upon = {"centre": self.centre, "level": 2}
        for z in places:
            for x in (-self.half - 0.02, self.half + 0.02):
                self.model.wheel((x, radius, z), radius, tyre, **upon)
                self.model.wheel((x * 1.01, radius, z), radius * 0.5, hub, **upon)
        for z in (min(places) - radius, max(places) + radius):
            for x in (-self.half, self.half - 0.25):
                self.model.card((x, x + 0.25), (0.0, radius), z, tyre, level=-1)

    def lamps(self, y: float, back: float, front: float) -> None:
        """Red lamps at the back, white ones at the front, and a number plate at each end."""
        size, label = 0.17 * self.half, self.label
        red, white = Paint((225, 20, 20), label), Paint((250, 248, 220), label)
        for side in (-1, 1):
            x = (side * self.half * 0.82 - size, side * self.half * 0.82 + size)
            self.end_plate(x, (y - 0.09, y + 0.11), back - 0.02, red)
            self.end_plate(x, (y - 0.08, y + 0.1), front + 0.02, white)
        for z in (back - 0.02, front + 0.02):
            self.end_plate((-0.26, 0.26), (y - 0.3, y - 0.17), z, Paint((236, 234, 226), label))


CAR_CABINS = {  # (z, y) over length and height, from the back bottom round to the front bottom
    "saloon": [(-0.36, 0.62), (-0.24, 1.0), (0.08, 1.0), (0.26, 0.62)],
    "sports": [(-0.42, 0.6), (-0.2, 0.96), (0.02, 0.96), (0.24, 0.6)],
    "hatch": [(-0.49, 0.6), (-0.44, 1.0), (0.12, 1.0), (0.3, 0.6)],
    "estate": [(-0.5, 0.58), (-0.47, 1.0), (0.14, 1.0), (0.28, 0.6)],
    "van": [(-0.5, 0.5), (-0.49, 1.0), (0.3, 1.0), (0.43, 0.52)],
}


def car(look: Look, rng: Rng) -> Model:
    """A passenger car, about 4 m long."""
    shape = pick(("hatch", "estate", "van", "hatch") if look.foreign else ("saloon", "sports"), rng)
    height = {"van": 1.85, "estate": 1.55, "sports": 1.3}.get(shape, 1.48)
    height *= between((0.95, 1.05), rng)
    length = between((3.7, 4.4) if look.foreign else (4.3, 4.9), rng)
    half, model = between((0.84, 0.92), rng), Model()
    paint = Paint(varied(look.cars, rng), CAR)
    glass = Paint(tinted(varied(look.glass, rng), 0.55), CAR)
    waist = CAR_CABINS[shape][0][1] * height
    nose = (0.85 if shape == "van" else 0.72) * waist
    hull = [(-0.5, 0.22), (-0.5, waist), (0.3, waist), (0.48, nose), (0.5, 0.22)]
    hull = [(z * length, y) for z, y in hull]
    body = _Body(model, CAR, half, model.prism(hull, -half, half, paint, paint))
    cabin = [(z * length, y * height) for z, y in CAR_CABINS[shape]]
    strips, wide = [glass, Paint(tinted(paint.colour, 1.05), CAR), glass, paint], half * 0.96
    top = model.prism(cabin, -wide, wide, strips, paint, level=1, inset=0.16)
    _car_windows(model, cabin, half, glass, top)
    body.wheels([-0.31 * length, 0.31 * length], 0.33)
    body.lamps(waist - 0.16, -0.5 * length, 0.49 * length)
    bumper = Paint(tinted(paint.colour, 0.45), CAR)
    body.end_plate((-half, half), (0.22, 0.4), -0.5 * length - 0.01, bumper)
    body.end_plate((-half, half), (0.22, 0.38), 0.5 * length + 0.01, bumper)
    return model


def _car_windows(model: Model, cabin: list, half: float, glass: Paint, centre: Point) -> None:
    """Two side windows on each side, between pillars that keep the body's colour."""
    (z0, low), (z1, high), (z2, _), (z3, _) = cabin
    low, high, middle = low + 0.06, high - 0.1, (z1 + z2) / 2 - 0.1
    rear = (z0 + 0.3, z1 + 0.12, middle - 0.05, middle - 0.05)
    front = (middle + 0.05, middle + 0.05, z2 - 0.06, z3 - 0.22)
    for side in (-1, 1):
        bottom, top = side * half * 0.96, side * (half * 0.96 - 0.14)
        for a, b, c, d in (rear, front):
            pane = [(bottom, low, a), (top, high, b), (top, high, c), (bottom, low, d)]
            model.face(pane, glass, centre=centre, level=2)


def truck(look: Look, rng: Rng) -> Model:
    """A lorry: a cab in front of a tall load."""
    model, half = Model(), 1.2
    length, high = between((6.5, 8.5), rng), between((2.9, 3.5), rng)
    load, paint = Paint(varied(look.cargo, rng), TRUCK), Paint(varied(look.cars, rng), TRUCK)
    dark, glass = Paint((46, 46, 50), TRUCK), Paint(tinted(pick(look.glass, rng), 0.6), TRUCK)
    back, gap, front = -length / 2, length / 2 - 1.9, length / 2
    centre = model.box((-half * 0.9, 0.4, back), (half * 0.9, 0.95, front), dark, level=-1)
    chassis = _Body(model, TRUCK, half, centre)
    if look.foreign and rng.random() < 0.35:
        _tipper(model, half, back, gap, load)
    else:
        centre = model.box((-half, 0.95, back), (half, high, gap - 0.15), load)
        box = _Body(model, TRUCK, half, centre)
        frame, leaf, stripe = (Paint(tinted(load.colour, k), TRUCK) for k in (0.6, 0.92, 0.72))
        box.end_plate((-half, half), (1.0, high - 0.08), back - 0.01, frame)
        y = (1.0 + 0.1, high - 0.08 - 0.08)
        for x0, x1 in ((-half + 0.1, -0.05), (0.05, half - 0.1)):  # two doors with a bar each
            box.end_plate((x0, x1), y, back - 0.01, leaf)
            bar = ((x0 + x1) / 2 - 0.04, (x0 + x1) / 2 + 0.04)
            box.end_plate(bar, y, back - 0.01, frame)
        box.side_plates((back + 0.5, gap - 0.8), (1.3, 1.75), stripe)
    profile = [(gap, 0.5), (gap, 2.6), (front - 0.3, 2.6), (front, 1.55), (front, 0.5)]
    cab = model.prism(profile, -half, half, [paint, paint, glass, paint, dark], paint)
    side = (gap + 0.5, front - 0.25)
    _Body(model, TRUCK, half, cab).side_plates(side, (1.6, 2.3), glass)
    chassis.wheels([back + 1.0, back + 2.0, front - 0.9], 0.5)
    chassis.lamps(0.8, back, front)
    return model


def _tipper(model: Model, half: float, back: float, front: float, load: Paint) -> None:
    """An open skip with ribs and a heap of sand."""
    sand, rib = Paint((150, 128, 92), TRUCK), Paint(tinted(load.colour, 0.65), TRUCK)
    heap = [(back + 0.3, 1.9), (back + 1.6, 2.5), (front - 1.3, 2.45), (front - 0.3, 1.9)]
    model.prism(heap, -half * 0.8, half * 0.8, sand, sand, level=-1)
    centre = model.box((-half, 0.95, back), (half, 2.05, front - 0.1), load)
    box = _Body(model, TRUCK, half, centre)
    for z in np.linspace(back + 0.4, front - 0.6, 5).tolist():
        box.side_plates((z, z + 0.14), (0.95, 2.05), rib)
    box.end_plate((-half, half), (1.45, 1.6), back - 0.01, rib)


def bus(look: Look, rng: Rng) -> Model:
    """A city bus; half of the source city's have two decks."""
    model, half = Model(), 1.27
    length = between((9.5, 11.5), rng)
    double = not look.foreign and rng.random() < 0.5
    high = 4.2 if double else between((2.95, 3.15), rng)
    paint = Paint(varied(look.buses, rng), BUS)
    glass, dark = Paint(tinted(pick(look.glass, rng), 0.5), BUS), Paint((40, 40, 44), BUS)
    back, front = -length / 2, length / 2
    body = _Body(model, BUS, half, model.box((-half, 0.3, back), (half, high, front), paint))
    post, pitch = Paint(tinted(paint.colour, 0.7), BUS), (front - back - 0.6) / 6
    for low in (1.25, 2.85) if double else (1.3,):
        top = low + (1.0 if double else 1.15)
        for k in range(6):  # side windows between pillars
            start = back + 0.3 + k * pitch
            body.side_plates((start + 0.08, start + pitch - 0.08), (low, top), glass)
        body.end_plate((-half + 0.12, half - 0.12), (low - 0.15, top), front + 0.01, glass)
        body.end_plate((-half + 0.3, half - 0.3), (low + 0.1, top), back - 0.01, glass)
        body.end_plate((-0.03, 0.03), (low - 0.15, top), front + 0.02, post)
    stripe = Paint((240, 238, 230) if not look.foreign else tinted(paint.colour, 0.6), BUS)
    body.side_plates((back, front), (0.62, 0.84), stripe)
    body.side_plates((front - 1.9, front - 0.8), (0.4, 2.4), glass, gap=0.015)
    board = Paint((255, 176, 30), BUS)
    body.end_plate((-0.75, 0.75), (high - 0.36, high - 0.12), front + 0.03, board)
    body.end_plate((-0.45, 0.45), (high - 0.34, high - 0.14), back - 0.03, board)
    body.wheels([back + 2.4, front - 2.2], 0.5)
    body.lamps(0.8, back, front)
    body.end_plate((-half, half), (0.3, 0.46), back - 0.02, dark)
    return model


def tram(look: Look, rng: Rng) -> Model:
    """A two-car train on street rails, with window band, doors and a pantograph."""
    model, half, section = Model(), 1.3, 11.0
    paint, band = (Paint(colour, TRAIN) for colour in pick(look.trains, rng))
    glass, dark = Paint(tinted(pick(look.glass, rng), 0.45), TRAIN), Paint((60, 60, 64), TRAIN)
    nose = 0.3 if look.foreign else 1.3
    for k in range(2):
        z0 = (k - 1) * section + 0.2
        z1 = z0 + section - 0.4
        tip0, tip1 = (nose, 0.0) if k == 0 else (0.0, nose)
        profile = [(z0, 0.35), (z0, 1.3), (z0 + tip0, 3.4), (z1 - tip1, 3.4), (z1, 1.3), (z1, 0.35)]
        back, front = (glass, band) if k == 0 else (band, glass)
        centre = model.prism(profile, -half, half, [band, back, paint, front, band, band], paint)
        body, low, high = _Body(model, TRAIN, half, centre), z0 + tip0, z1 - tip1
        body.side_plates((low, high), (0.35, 1.0), band)
        body.side_plates((low, high), (3.05, 3.4), band)
        pitch = (high - low) / 6
        for i in range(6):
            along = (low + i * pitch + 0.12, low + i * pitch + pitch - 0.12)
            body.side_plates(along, (0.5 if i in (1, 4) else 1.45, 2.85), glass, gap=0.02)
    _tram_ends(_Body(model, TRAIN, half, (0.0, 1.8, 0.0)), section, nose, band)
    pantograph = [(0.0, 3.4, -3.0), (0.0, 4.1, -2.2), (0.0, 4.7, -3.0)]
    model.stroke(pantograph, 0.1, dark, level=3)
    model.stroke([(-0.8, 4.7, -3.0), (0.8, 4.7, -3.0)], 0.1, dark, level=3)
    return model


def _tram_ends(body: _Body, section: float, nose: float, band: Paint) -> None:
    """A pointed band below the windscreen, three lamps, a bumper and the route number."""
    white, red = Paint((252, 250, 226), TRAIN), Paint((220, 24, 24), TRAIN)
    number, dark = Paint((255, 190, 60), TRAIN), Paint((36, 36, 40), TRAIN)
    pale = Paint(tinted(band.colour, 1.5 if sum(band.colour) < 400 else 0.55), TRAIN)
    upon = {"centre": body.centre, "level": 2}
    for z, lamp in ((-section + 0.16, red), (section - 0.16, white)):
        wedge = [(-1.3, 1.3, z), (1.3, 1.3, z), (1.3, 1.05, z), (0.0, 0.55, z), (-1.3, 1.05, z)]
        body.model.face(wedge, pale, **upon)
        for x in (-0.95, 0.95):
            body.model.disc((x, 0.8, z), 0.17, lamp, **upon)
        body.end_plate((-1.3, 1.3), (0.1, 0.42), z, dark)
        inward = z - np.sign(z) * nose * 0.9
        body.end_plate((-0.4, 0.4), (3.05, 3.32), inward + np.sign(z) * 0.05, number)
        body.model.disc((0.0, 3.55, inward), 0.2, white, **upon)
