"""People and two-wheelers, drawn as flat cards across the direction of view."""

import numpy as np

from cag.scenes.classes import BICYCLE, MOTORCYCLE, PERSON, RIDER
from cag.scenes.geometry import LABEL_ONLY, Corner, Model, Paint
from cag.scenes.looks import Colour, Look, Rng, between, pick, tinted, varied

RUBBER: Colour = (24, 24, 26)
HUB: Colour = (150, 152, 156)
SKIN: tuple[Colour, ...] = ((224, 178, 146), (150, 104, 76), (236, 196, 170), (104, 72, 54))
HAIR: tuple[Colour, ...] = ((40, 30, 26), (90, 62, 36), (20, 18, 18), (170, 140, 90))


def person(look: Look, rng: Rng) -> Model:
    """A standing or walking person, about 1.75 m tall, on a card across z."""
    model = Model()
    tall = between((1.6, 1.9), rng)
    top = Paint(varied(look.clothes, rng), PERSON)
    legs = Paint(varied(((44, 50, 78), (60, 58, 60), (110, 100, 84)), rng), PERSON)
    skin, hair = Paint(pick(SKIN, rng), PERSON), Paint(pick(HAIR, rng), PERSON)
    sleeve, shoe = Paint(tinted(top.colour, 0.8), PERSON), Paint((34, 32, 32), PERSON)
    stride = between((0.04, 0.3), rng)
    hip, shoulder = 0.5 * tall, 0.83 * tall
    for side in (-1, 1):
        foot = side * stride
        ankle = [(foot + side * 0.09, 0.06), (foot - side * 0.06, 0.06)]
        model.face([(side * 0.02, hip), (side * 0.2, hip), *ankle], legs)
        sole = [(foot - 0.08, 0), (foot + 0.14, 0)]
        model.face([*sole, (foot + 0.08, 0.1), (foot - 0.08, 0.1)], shoe)
    for side in (-1, 1):
        hand = side * (0.26 + 0.5 * stride)
        wrist = [(hand + side * 0.07, 0.48 * tall), (hand - side * 0.03, 0.48 * tall)]
        model.face([(side * 0.16, shoulder), (side * 0.25, shoulder - 0.03), *wrist], sleeve)
        model.disc((hand, 0.47 * tall), 0.05, skin, sides=6)
    coat = look.foreign and rng.random() < 0.5
    hem = (-0.27, 0.3 * tall) if coat else (-0.19, hip - 0.04)
    left = [hem, (-0.23, shoulder - 0.04), (-0.1, 0.86 * tall)]
    model.face([*left, *((-x, y) for x, y in reversed(left))], top)
    _head(model, (0.0, 0.92 * tall), skin, hair)
    if rng.random() < 0.3:
        bag = Paint(varied(look.cars, rng), PERSON)
        low, high = 0.36 * tall, 0.52 * tall
        model.face([(0.22, low), (0.42, low), (0.4, high), (0.24, high)], bag)
    return model


def _head(model: Model, at: Corner, skin: Paint, hair: Paint, helmet: bool = False) -> None:
    x, y = at
    model.disc((x, y + 0.035), 0.14 if helmet else 0.125, hair, stretch=1.15, sides=10)
    model.disc((x, y - (0.06 if helmet else 0.03)), 0.095, skin, stretch=1.1, sides=10)


def bicycle(look: Look, rng: Rng, ridden: bool = False) -> Model:
    """A bicycle along x, front at positive x."""
    model = Model()
    paint = Paint(varied(look.cars, rng), BICYCLE)
    tyre, area = Paint((28, 28, 30), BICYCLE), Paint((0, 0, 0), BICYCLE)
    radius = 0.36
    for x in (-0.54, 0.54):
        model.disc((x, radius), radius, area, kind=LABEL_ONLY)
        turns = np.linspace(0, 2 * np.pi, 13)
        rim = [(x + radius * np.cos(t), radius + radius * np.sin(t)) for t in turns]
        model.stroke(rim, 0.075, tyre)
        model.disc((x, radius), 0.07, tyre, sides=6)
    seat, crank, head = (-0.2, 0.88), (-0.08, 0.34), (0.36, 0.84)
    model.face([(-0.54, 0.36), seat, head, crank], area, kind=LABEL_ONLY)
    model.stroke([(-0.54, radius), seat, crank, (-0.54, radius)], 0.07, paint)
    model.stroke([crank, head, (-0.2, 0.8)], 0.075, paint)
    model.stroke([(0.54, radius), (0.34, 0.98), (0.44, 1.04)], 0.07, paint)
    model.stroke([(-0.34, 0.93), (-0.06, 0.92)], 0.1, tyre)
    if look.foreign:
        basket = Paint((92, 78, 60), BICYCLE)
        model.face([(0.48, 0.72), (0.8, 0.72), (0.84, 0.98), (0.44, 0.98)], basket)
    if ridden:
        _rider(model, look, rng, [(-0.2, 0.95), (0.42, 1.06), (-0.02, 0.2)])
    return model


def motorcycle(look: Look, rng: Rng, ridden: bool = False) -> Model:
    """A motorcycle or, in the target city, often a scooter; along x, front at positive x."""
    model = Model()
    paint, dark = Paint(varied(look.cars, rng), MOTORCYCLE), Paint((40, 40, 44), MOTORCYCLE)
    tyre, hub = Paint(RUBBER, MOTORCYCLE), Paint(HUB, MOTORCYCLE)
    scooter = look.foreign and rng.random() < 0.6
    radius = 0.25 if scooter else 0.34
    for x in (-0.68, 0.7):
        model.disc((x, radius), radius, tyre)
        model.disc((x, radius), radius * 0.5, hub, sides=10)
    if scooter:
        model.face([(-0.85, 0.42), (-0.8, 0.8), (-0.1, 0.78), (-0.02, 0.3), (-0.5, 0.26)], paint)
        model.face([(-0.1, 0.24), (-0.1, 0.36), (0.5, 0.36), (0.5, 0.24)], dark)
        model.face([(0.4, 0.3), (0.38, 1.0), (0.52, 1.06), (0.66, 0.34)], paint)
        model.face([(-0.82, 0.8), (-0.78, 0.9), (-0.08, 0.88), (-0.1, 0.78)], dark)
    else:
        model.face([(-0.3, 0.24), (-0.36, 0.62), (0.34, 0.66), (0.24, 0.24)], dark)
        model.disc((0.0, 0.4), 0.15, hub, sides=8)
        model.face([(-0.14, 0.64), (-0.06, 0.88), (0.3, 0.94), (0.42, 0.66)], paint)
        model.face([(-0.92, 0.84), (-0.86, 0.68), (-0.1, 0.64), (-0.12, 0.78)], dark)
        model.face([(-0.98, 0.72), (-0.95, 0.86), (-0.5, 0.78), (-0.5, 0.66)], paint)
        model.stroke([(-0.9, 0.3), (0.1, 0.26)], 0.1, hub)
    model.stroke([(0.7, radius), (0.42, 0.98), (0.3, 1.08)], 0.1, dark)
    model.disc((0.52, 0.9), 0.11, Paint((250, 246, 210), MOTORCYCLE), sides=8)
    model.disc((-0.94, 0.74), 0.07, Paint((226, 24, 24), MOTORCYCLE), sides=6)
    if ridden:
        _rider(model, look, rng, [(-0.2, 0.9), (0.34, 1.1), (0.12, 0.32)], helmet=True)
    return model


def _rider(model: Model, look: Look, rng: Rng, at: list[Corner], helmet: bool = False) -> None:
    """A person on a two-wheeler, seen from its side; `at` is seat, grip and pedal."""
    seat, grip, pedal = at
    top, legs = Paint(varied(look.clothes, rng), RIDER), Paint((54, 58, 80), RIDER)
    skin = Paint(pick(SKIN, rng), RIDER)
    covered = helmet or rng.random() < 0.5
    cap = Paint(varied(look.cars, rng) if covered else pick(HAIR, rng), RIDER)
    hip = (seat[0], seat[1] + 0.02)
    neck = (hip[0] + 0.22, hip[1] + 0.58)
    knee = (hip[0] + 0.4, hip[1] - 0.22)
    model.stroke([hip, knee, pedal], 0.17, legs)
    model.stroke([pedal, (pedal[0] + 0.16, pedal[1] - 0.02)], 0.12, Paint((30, 30, 30), RIDER))
    belt = [(hip[0] - 0.16, hip[1] - 0.04), (hip[0] + 0.14, hip[1] - 0.06)]
    model.face([*belt, (neck[0] + 0.13, neck[1] - 0.04), (neck[0] - 0.14, neck[1])], top)
    elbow = ((neck[0] + grip[0]) / 2, (neck[1] + grip[1]) / 2 - 0.12)
    sleeve = Paint(tinted(top.colour, 0.8), RIDER)
    model.stroke([(neck[0], neck[1] - 0.06), elbow, grip], 0.12, sleeve)
    _head(model, (neck[0] + 0.07, neck[1] + 0.19), skin, cap, helmet=True)
