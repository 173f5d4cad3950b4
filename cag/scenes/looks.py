"""The two looks of the built-in scenes: a simulator's, and a camera's in another city."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]

# Cityscapes label ids.
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN = 7, 8, 11, 12, 13, 17, 19, 20
VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS = 21, 22, 23, 24, 25, 26, 27, 28
TRAIN, MOTORCYCLE, BICYCLE = 31, 32, 33

RUBBER: Colour = (24, 24, 26)
HUB: Colour = (150, 152, 156)

# Label id -> (class, official Cityscapes colour).
CLASSES: dict[int, tuple[str, tuple[int, int, int]]] = {
    ROAD: ("road", (128, 64, 128)),
    SIDEWALK: ("sidewalk", (244, 35, 232)),
    BUILDING: ("building", (70, 70, 70)),
    WALL: ("wall", (102, 102, 156)),
    FENCE: ("fence", (190, 153, 153)),
    POLE: ("pole", (153, 153, 153)),
    LIGHT: ("traffic light", (250, 170, 30)),
    SIGN: ("traffic sign", (220, 220, 0)),
    VEGETATION: ("vegetation", (107, 142, 35)),
    TERRAIN: ("terrain", (152, 251, 152)),
    SKY: ("sky", (70, 130, 180)),
    PERSON: ("person", (220, 20, 60)),
    RIDER: ("rider", (255, 0, 0)),
    CAR: ("car", (0, 0, 142)),
    TRUCK: ("truck", (0, 0, 70)),
    BUS: ("bus", (0, 60, 100)),
    TRAIN: ("train", (0, 80, 100)),
    MOTORCYCLE: ("motorcycle", (0, 0, 230)),
    BICYCLE: ("bicycle", (119, 11, 32)),
}


@dataclass(frozen=True)
class Grade:
    """What the camera does to the picture; every strength at 0 leaves it as it is.

    Ranges are drawn uniformly for each image. These constants set the domain gap.

    Attributes:
        haze: extinction per metre.
        cast: RGB gains of the illumination, between the first and the second.
        gamma: exponent of the tone curve.
        saturation: 1 keeps colours, 0 is grey.
        contrast: about the picture's middle grey.
        texture: standard deviation of surface textures, relative to the surface's brightness.
        noise: standard deviation of the sensor noise, in [0, 255] units.
        blur: radius of the lens blur in pixels of a 256-wide image.
        vignette: darkening in the corners.
        shadow: darkening inside cast shadows.
        ambient: part of the light that has no direction.
    """

    haze: tuple[float, float] = (0.0, 0.0)
    cast: tuple[Colour, Colour] = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    gamma: tuple[float, float] = (1.0, 1.0)
    saturation: tuple[float, float] = (1.0, 1.0)
    contrast: tuple[float, float] = (1.0, 1.0)
    texture: float = 0.0
    noise: tuple[float, float] = (0.0, 0.0)
    blur: tuple[float, float] = (0.0, 0.0)
    vignette: tuple[float, float] = (0.0, 0.0)
    shadow: tuple[float, float] = (0.35, 0.35)
    ambient: tuple[float, float] = (0.72, 0.72)


@dataclass(frozen=True)
class Look:
    """Shapes, paints, frequencies, camera and grade of a domain.

    Frequencies are per image, in [0, 1]. Palettes are RGB in [0, 255].
    """

    name: str
    identity: int  # third word of the seed
    grade: Grade
    supersample: int
    camera_height: tuple[float, float]
    camera_pitch: tuple[float, float]  # degrees, positive looks down
    camera_yaw: float  # degrees to either side
    camera_focal: tuple[float, float]  # over the image width
    foreign: bool  # the other city's shapes
    sky: tuple[tuple[Colour, Colour], ...]  # (zenith, horizon)
    asphalt: tuple[Colour, ...]
    paving: tuple[Colour, ...]
    grass: tuple[Colour, ...]
    leaves: tuple[Colour, ...]
    trunk: Colour
    facades: tuple[Colour, ...]
    glass: tuple[Colour, ...]
    roofs: tuple[Colour, ...]
    walls: tuple[Colour, ...]
    fences: tuple[Colour, ...]
    poles: tuple[Colour, ...]
    cars: tuple[Colour, ...]
    cargo: tuple[Colour, ...]
    buses: tuple[Colour, ...]
    trains: tuple[tuple[Colour, Colour], ...]
    clothes: tuple[Colour, ...]
    car: float = 0.6  # each place on the road or at the kerb
    truck: float = 0.3
    bus: float = 0.25
    train: float = 0.25
    motorcycle: float = 0.3
    bicycle: float = 0.5
    people: tuple[int, int] = (2, 6)
    tree: float = 0.5  # each place along the kerb
    signs: tuple[int, int] = (2, 4)
    crossing: float = 0.75  # traffic lights
    districts: tuple[float, float, float] = (0.5, 0.25, 0.25)  # city, suburb, outskirts


SOURCE = Look(
    name="source",
    identity=1,
    grade=Grade(),
    supersample=1,
    camera_height=(1.5, 1.9),
    camera_pitch=(0.0, 2.5),
    camera_yaw=4.0,
    camera_focal=(0.72, 0.86),
    foreign=False,
    sky=(((70, 140, 235), (175, 215, 250)), ((90, 160, 245), (200, 225, 250))),
    asphalt=((92, 92, 98), (84, 84, 90), (104, 102, 104)),
    paving=((178, 170, 160), (190, 184, 172), (168, 164, 160)),
    grass=((96, 176, 62), (116, 186, 70), (150, 168, 80)),
    leaves=((40, 132, 48), (54, 148, 46), (30, 116, 56), (78, 156, 50)),
    trunk=(104, 72, 44),
    facades=((206, 190, 160), (150, 168, 190), (190, 120, 96), (222, 216, 204), (164, 150, 140)),
    glass=((96, 160, 210), (70, 130, 190), (120, 180, 215)),
    roofs=((150, 60, 50), (110, 80, 70), (90, 90, 100)),
    walls=((176, 172, 166), (196, 168, 138), (160, 150, 150)),
    fences=((70, 70, 76), (214, 214, 210), (132, 92, 58)),
    poles=((120, 124, 128), (96, 100, 104), (140, 140, 144)),
    cars=(
        (210, 30, 36),
        (30, 76, 200),
        (240, 240, 240),
        (250, 200, 20),
        (30, 30, 34),
        (30, 150, 90),
    ),
    cargo=((236, 236, 232), (224, 120, 30), (60, 110, 180)),
    buses=((226, 40, 40), (240, 180, 20)),
    trains=(((232, 232, 236), (200, 30, 50)), ((210, 40, 60), (240, 240, 240))),
    clothes=(
        (220, 40, 50),
        (40, 80, 200),
        (250, 210, 40),
        (60, 160, 80),
        (240, 240, 240),
        (140, 60, 160),
    ),
)

TARGET = Look(
    name="target",
    identity=2,
    grade=Grade(
        haze=(0.0, 0.007),
        cast=((0.92, 0.97, 1.04), (1.1, 0.99, 0.87)),
        gamma=(0.75, 1.1),
        saturation=(0.65, 1.0),
        contrast=(0.85, 1.1),
        texture=0.06,
        noise=(1.5, 4.0),
        blur=(0.2, 0.6),
        vignette=(0.15, 0.4),
        shadow=(0.35, 0.55),
        ambient=(0.55, 0.85),
    ),
    supersample=2,
    camera_height=(1.15, 1.45),
    camera_pitch=(-1.5, 3.0),
    camera_yaw=6.0,
    camera_focal=(0.85, 1.05),
    foreign=True,
    sky=(
        ((150, 172, 204), (208, 216, 222)),
        ((112, 142, 188), (226, 212, 190)),
        ((184, 194, 208), (220, 224, 226)),
    ),
    asphalt=((104, 102, 100), (88, 88, 92), (118, 114, 110)),
    paving=((150, 146, 142), (160, 140, 128), (136, 134, 134)),
    grass=((112, 124, 70), (134, 128, 84), (96, 116, 66)),
    leaves=((78, 94, 50), (98, 104, 52), (128, 106, 54), (62, 82, 50)),
    trunk=(74, 64, 56),
    facades=(
        (150, 92, 76),
        (176, 140, 112),
        (204, 196, 180),
        (140, 128, 120),
        (122, 74, 64),
        (190, 174, 130),
    ),
    glass=((62, 70, 78), (84, 92, 100), (50, 56, 66)),
    roofs=((104, 72, 62), (82, 78, 78), (70, 62, 60)),
    walls=((138, 130, 122), (142, 100, 84), (120, 118, 114)),
    fences=((74, 88, 76), (108, 104, 98), (86, 70, 58)),
    poles=((88, 92, 90), (112, 112, 108), (70, 84, 78)),
    cars=(
        (176, 178, 180),
        (60, 64, 70),
        (30, 32, 36),
        (104, 40, 42),
        (52, 66, 96),
        (206, 204, 198),
        (120, 112, 96),
    ),
    cargo=((196, 194, 188), (84, 104, 124), (150, 134, 96), (92, 110, 84)),
    buses=((206, 204, 196), (70, 120, 110), (216, 190, 110)),
    trains=(((214, 196, 130), (90, 90, 84)), ((86, 116, 96), (218, 210, 186))),
    clothes=(
        (54, 56, 66),
        (92, 84, 76),
        (120, 52, 50),
        (62, 76, 100),
        (150, 144, 132),
        (84, 92, 70),
    ),
    car=0.5,
    truck=0.25,
    bus=0.28,
    train=0.25,
    motorcycle=0.28,
    bicycle=0.65,
    people=(3, 8),
    tree=0.6,
    signs=(2, 5),
    crossing=0.7,
    districts=(0.45, 0.4, 0.15),
)

LOOKS = {look.name: look for look in (SOURCE, TARGET)}


def pick(options: tuple, rng: np.random.Generator):
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def between(limits: tuple[float, float], rng: np.random.Generator) -> float:
    """A number drawn uniformly between two limits."""
    return limits[0] + (limits[1] - limits[0]) * float(rng.random())


def tinted(colour: Colour, factor: float) -> Colour:
    """The colour, brightened (factor above 1) or darkened."""
    return tuple(min(255.0, channel * factor) for channel in colour)


def varied(options: tuple, rng: np.random.Generator, spread: float = 0.1) -> Colour:
    """One of the colours with its brightness varied by up to `spread`."""
    return tinted(pick(options, rng), 1 + spread * (2 * float(rng.random()) - 1))
