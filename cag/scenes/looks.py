"""The looks of the built-in scenes: a simulator's, a camera's in another city, a random one."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import ImageColor

Colour = tuple[float, float, float]
Limits = tuple[float, float]
Rng = np.random.Generator


@dataclass(frozen=True)
class Grade:
    """The camera's effect on the picture; a strength of 0 has none.

    Each image draws uniformly from the ranges. These constants set the domain gap.
    """

    haze: Limits = (0.0, 0.0)  # extinction per metre
    cast: tuple[Colour, Colour] = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))  # RGB gains of the light
    gamma: Limits = (1.0, 1.0)  # exponent of the tone curve
    saturation: Limits = (1.0, 1.0)  # 1 keeps colours, 0 is grey
    contrast: Limits = (1.0, 1.0)  # about the middle grey
    texture: float = 0.0  # standard deviation of surface textures over the surface's brightness
    noise: Limits = (0.0, 0.0)  # standard deviation of the sensor noise, in [0, 255] units
    blur: Limits = (0.0, 0.0)  # radius of the lens blur in pixels of a 256-wide image
    vignette: Limits = (0.0, 0.0)  # darkening in the corners
    shadow: Limits = (0.35, 0.35)  # darkening inside cast shadows
    ambient: Limits = (0.72, 0.72)  # part of the light without direction
    exposure: Limits = (1.0, 1.0)  # brightness of everything but the sky


@dataclass(frozen=True)
class Look:
    """Shapes, paints, frequencies, camera and grade of a domain.

    Frequencies are per image, in [0, 1]. Palettes are RGB in [0, 255].
    """

    identity: int  # third word of the seed
    grade: Grade
    supersample: int
    camera_height: Limits
    camera_pitch: Limits  # degrees, positive looks down
    camera_yaw: float  # degrees to either side
    camera_focal: Limits  # over the image width
    foreign: bool  # shapes of the other city
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
    road: tuple[Limits, Limits] = ((5.0, 8.0), (2.6, 4.8))  # metres left and right of the camera
    ahead: Limits = (8.0, 16.0)  # metres to the first vehicle
    walk: Limits = (2.8, 5.5)  # width of a sidewalk, metres
    floors: tuple[int, int] = (2, 8)  # of a building at the sidewalk
    tree_size: Limits = (1.0, 1.0)  # factor of the height and width
    sign_size: Limits = (1.0, 1.0)  # of signs, lamps and traffic lights
    slim: float = 1.0  # factor of the thickness of poles
    natural: bool = False  # ragged leaves, textures at several scales, any sun, a bonnet


def colours(codes: str) -> tuple[Colour, ...]:
    """Colours from their hexadecimal codes, as in "#ff0000 #00ff00"."""
    return tuple(map(ImageColor.getrgb, codes.split()))


SOURCE = Look(
    identity=1,
    grade=Grade(),
    supersample=1,
    camera_height=(1.5, 1.9),
    camera_pitch=(0.0, 2.5),
    camera_yaw=4.0,
    camera_focal=(0.72, 0.86),
    foreign=False,
    sky=(colours("#468ceb #afd7fa"), colours("#5aa0f5 #c8e1fa")),
    asphalt=colours("#5c5c62 #54545a #686668"),
    paving=colours("#b2aaa0 #beb8ac #a8a4a0"),
    grass=colours("#60b03e #74ba46 #96a850"),
    leaves=colours("#288430 #36942e #1e7438 #4e9c32"),
    trunk=ImageColor.getrgb("#68482c"),
    facades=colours("#cebea0 #96a8be #be7860 #ded8cc #a4968c"),
    glass=colours("#60a0d2 #4682be #78b4d7"),
    roofs=colours("#963c32 #6e5046 #5a5a64"),
    walls=colours("#b0aca6 #c4a88a #a09696"),
    fences=colours("#46464c #d6d6d2 #845c3a"),
    poles=colours("#787c80 #606468 #8c8c90"),
    cars=colours("#d21e24 #1e4cc8 #f0f0f0 #fac814 #1e1e22 #1e965a"),
    cargo=colours("#ecece8 #e0781e #3c6eb4"),
    buses=colours("#e22828 #f0b414"),
    trains=(colours("#e8e8ec #c81e32"), colours("#d2283c #f0f0f0")),
    clothes=colours("#dc2832 #2850c8 #fad228 #3ca050 #f0f0f0 #8c3ca0"),
)

TARGET = Look(
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
    sky=(colours("#96accc #d0d8de"), colours("#708ebc #e2d4be"), colours("#b8c2d0 #dce0e2")),
    asphalt=colours("#686664 #58585c #76726e"),
    paving=colours("#96928e #a08c80 #888686"),
    grass=colours("#707c46 #868054 #607442"),
    leaves=colours("#4e5e32 #626834 #806a36 #3e5232"),
    trunk=ImageColor.getrgb("#4a4038"),
    facades=colours("#965c4c #b08c70 #ccc4b4 #8c8078 #7a4a40 #beae82"),
    glass=colours("#3e464e #545c64 #323842"),
    roofs=colours("#68483e #524e4e #463e3c"),
    walls=colours("#8a827a #8e6454 #787672"),
    fences=colours("#4a584c #6c6862 #56463a"),
    poles=colours("#585c5a #70706c #46544e"),
    cars=colours("#b0b2b4 #3c4046 #1e2024 #68282a #344260 #ceccc6 #787060"),
    cargo=colours("#c4c2bc #54687c #968660 #5c6e54"),
    buses=colours("#ceccc4 #46786e #d8be6e"),
    trains=(colours("#d6c482 #5a5a54"), colours("#567460 #dad2ba")),
    clothes=colours("#363842 #5c544c #783432 #3e4c64 #969084 #545c46"),
    car=0.5,
    truck=0.25,
    bus=0.28,
    motorcycle=0.28,
    bicycle=0.65,
    people=(3, 8),
    tree=0.6,
    signs=(2, 5),
    crossing=0.7,
    districts=(0.45, 0.4, 0.15),
    floors=(2, 5),
)

RANDOMISED = 3  # identity of the random looks
LOOKS = ("source", "target", "both", "randomised")


def pick(options: tuple, rng: Rng):
    """A uniformly drawn option."""
    return options[int(rng.integers(len(options)))]


def between(limits: Limits, rng: Rng) -> float:
    """A uniformly drawn number between two limits."""
    return limits[0] + (limits[1] - limits[0]) * float(rng.random())


def tinted(colour: Colour, factor: float) -> Colour:
    """The colour, brightened (factor above 1) or darkened."""
    return tuple(min(255.0, channel * factor) for channel in colour)


def varied(options: tuple, rng: Rng, spread: float = 0.1) -> Colour:
    """A drawn colour, its brightness varied by up to `spread`."""
    return tinted(pick(options, rng), 1 + spread * (2 * float(rng.random()) - 1))


def drawn(limits: Limits, rng: Rng) -> float:
    """As `between`, but equal limits leave the generator as it is."""
    return limits[0] if limits[0] == limits[1] else between(limits, rng)


def look_of(name: str, index: int, rng: Callable[[int], Rng]) -> tuple[Look, Rng]:
    """The look of an image and its generator; `rng` makes one from the look's identity."""
    if name == "randomised":
        generator = rng(RANDOMISED)
        return _randomised(generator), generator
    first = index % 2 == 0 if name == "both" else name == "source"
    look = SOURCE if first else TARGET
    return look, rng(look.identity)


def _randomised(rng: Rng) -> Look:
    """Domain randomisation (Tobin et al. 2017): a look of its own for each image.

    Shapes and palettes mix those of both cities. The camera is near that of a car.
    """

    def uniform(low: float, high: float) -> float:
        return between((low, high), rng)

    def palette(name: str) -> tuple[Colour, ...]:
        options = getattr(SOURCE, name) + 2 * getattr(TARGET, name)
        gains = uniform(0.75, 1.2) * rng.uniform(0.85, 1.15, (len(options), 1))
        rgb = np.array(options) * gains * rng.uniform(0.92, 1.08, (len(options), 3))
        faded = uniform(0.0, 0.4 if name in ("leaves", "grass") else 0.8)
        rgb = rgb + faded * (rgb.mean(axis=1, keepdims=True) - rgb)
        return tuple(map(tuple, np.clip(rgb, 0, 255).tolist()))

    names = "asphalt paving grass leaves facades glass roofs walls fences poles cars cargo buses"
    palettes = {name: palette(name) for name in (*names.split(), "clothes")}
    kind, bright = rng.random(), uniform(195, 255)
    overcast = (bright, bright * uniform(0.98, 1.02), min(255.0, bright * uniform(0.98, 1.06)))
    blue = (uniform(70, 150), uniform(130, 190), uniform(200, 255))
    sky = (blue if kind < 0.3 else overcast, overcast)
    tint = rng.uniform((0.94, 0.98, 0.94), (1.04, 1.1, 1.06))
    contrast, gamma = uniform(0.9, 1.25), uniform(0.85, 1.3)
    grade = Grade(
        haze=(0.0, 0.006),
        cast=(tuple(tint.tolist()),) * 2,
        gamma=(gamma, gamma),
        saturation=(0.5, 1.1),
        contrast=(contrast, contrast),
        texture=uniform(0.04, 0.13),
        noise=(0.5, 5.0),
        blur=(0.2, 0.9),
        vignette=(0.0, 0.35),
        shadow=(0.2, 0.7),
        ambient=(0.45, 0.95),
        exposure=(0.6, 1.05),
    )
    city = uniform(0.4, 0.95)
    return replace(
        TARGET,
        identity=RANDOMISED,
        grade=grade,
        camera_height=(1.1, 1.4),
        camera_pitch=(0.3, 2.5),
        camera_yaw=10.0,
        camera_focal=(0.95, 1.2),
        foreign=rng.random() < 0.75,
        sky=(sky,),
        **palettes,
        trains=SOURCE.trains + TARGET.trains,
        car=uniform(0.2, 1.0),
        truck=0.15,
        bus=0.15,
        train=0.08,
        motorcycle=0.2,
        bicycle=0.35,
        people=(0, 8),
        tree=uniform(0.2, 2.2),
        signs=(0, 3),
        crossing=0.4,
        districts=(city, 0.8 * (1 - city), 0.2 * (1 - city)),
        road=((3.0, 12.0), (1.8, 7.5)),
        ahead=(5.5, 40.0),
        walk=(2.5, 9.0),
        floors=(3, 7),
        tree_size=(0.9, 2.2),
        sign_size=(0.5, 0.9),
        slim=0.7,
        natural=True,
    )
