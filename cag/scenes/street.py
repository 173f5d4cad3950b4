"""Composition of a street: ground, frontages on both sides, furniture, traffic and people."""

from typing import NamedTuple

import numpy as np

from cag.scenes import figures, furniture, vehicles
from cag.scenes.classes import BUILDING, FENCE, ROAD, SIDEWALK, TERRAIN, VEGETATION, WALL
from cag.scenes.geometry import LABEL_ONLY, Model, Paint, Scene
from cag.scenes.looks import Limits, Look, Rng, between, drawn, pick, tinted, varied
from cag.scenes.shading import ASPHALT, BRICK, FACADE, GRASS, LEAVES, PAVING, PLANKS

FAR = 170.0  # metres to the end of the street
LAYER_BACK, LAYER_GROUND, LAYER_FRONT = 0, 1, 3

# Shares of building, wall, fence and park lots, of houses behind the latter three, and of grass
# strips along the sidewalks.
DISTRICTS = {
    "city": ((0.66, 0.1, 0.12, 0.12), 0.6, 0.2),
    "suburb": ((0.16, 0.2, 0.34, 0.3), 0.8, 0.7),
    "outskirts": ((0.08, 0.34, 0.24, 0.34), 0.2, 0.7),
}

# A facade's windows: pitch along and up in metres, width and height as shares of the pitch; pairs
# are limits of a draw.
WINDOWS = {
    "brick": ((1.9, 2.8), (2.8, 3.3), (0.35, 0.5), (0.45, 0.6)),
    "tower": ((2.2, 3.0), 3.4, 0.86, (0.6, 0.8)),
    "house": ((2.6, 3.6), (3.0, 3.6), (0.45, 0.6), (0.45, 0.6)),
}


class Street(NamedTuple):
    """A scene in the making and the street's measures, in metres; the camera is at x = 0."""

    scene: Scene
    look: Look
    rng: Rng
    left: float  # edge of the road
    right: float
    walk: Limits  # widths of the left and right sidewalk
    crossing: float  # distance of the side street; traffic lights stand there
    tracks: bool  # rails in the oncoming lane
    district: str  # a key of DISTRICTS

    def edge(self, side: int) -> float:
        """The road's edge on the left (-1) or right (1)."""
        return self.left if side < 0 else self.right

    def parking(self, side: int) -> bool:
        """Whether the road is wide enough on that side for cars to park at the kerb."""
        return self.right > 3.6 if side > 0 else self.left < -6.4

    def front(self, side: int) -> float:
        """The line of the frontages on the left (-1) or right (1)."""
        return self.left - self.walk[0] if side < 0 else self.right + self.walk[1]


def compose(look: Look, rng: Rng) -> Scene:
    """A street of the look's city."""
    street = Street(
        *(Scene(), look, rng),
        left=-between(look.road[0], rng),
        right=between(look.road[1], rng),
        walk=(between(look.walk, rng), between(look.walk, rng)),
        crossing=between((13.0, 32.0), rng),
        tracks=rng.random() < look.train,
        district=list(DISTRICTS)[int(np.searchsorted(np.cumsum(look.districts), rng.random()))],
    )
    _ground(street)
    _backdrop(street)
    shaded = int(rng.integers(-1, 2)) if look.foreign else 0
    for side in (-1, 1):
        _frontage(street, side)
        _kerbside(street, side)
        if side == shaded:
            _house_shadows(street, side)
    _traffic(street)
    _people(street)
    return street.scene


def _strip(scene: Scene, x: Limits, z: Limits, paint: Paint, layer: int = LAYER_GROUND) -> None:
    """A rectangle on the ground."""
    (x0, x1), (z0, z1), model = sorted(x), z, Model()
    model.face([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], paint)
    scene.add(model, distance=(z0 + z1) / 2, layer=layer)


def _ground(street: Street) -> None:
    scene, look, rng, *_ = street
    grass = Paint(varied(look.grass, rng), TERRAIN, GRASS)
    asphalt = Paint(varied(look.asphalt, rng, 0.06), ROAD, ASPHALT)
    paving = varied(look.paving, rng, 0.06)
    slabs = Paint(paving, SIDEWALK, PAVING, pattern=(1.2, 1.2, 0.07, 0.0, 1.0))
    curb = Paint(tinted(slabs.colour, 1.12), SIDEWALK, PAVING, pattern=(9.0, 1.5, 0.03, 0.0, 0.6))
    _strip(scene, (-300, 300), (-1, 420), grass, layer=LAYER_BACK)
    for side in (-1, 1):
        _strip(scene, (street.edge(side), street.front(side)), (-1, FAR), slabs)
    _strip(scene, (street.left, street.right), (-1, 400), asphalt)
    cross = (street.crossing, street.crossing + 8)
    _strip(scene, (street.front(-1) - 60, street.front(1) + 60), cross, asphalt, LAYER_GROUND + 1)
    for side in (-1, 1):
        x = street.edge(side)
        for z in ((-1, cross[0]), (cross[1], FAR)):
            _strip(scene, (x, x + side * 0.3), z, curb, LAYER_GROUND + 1)
    white = Paint((236, 236, 230) if not look.foreign else (206, 204, 198), ROAD, ASPHALT)
    yellow = not look.foreign and not look.natural
    centre = Paint((246, 206, 40), ROAD, ASPHALT) if yellow else white
    x = -1.8
    for z in np.arange(3.0, 80.0, 6.0).tolist():
        if not cross[0] - 4 < z < cross[1]:
            _strip(scene, (x - 0.09, x + 0.09), (z, z + 3.0), centre, LAYER_GROUND + 1)
    if look.foreign:
        _strip(scene, (street.left, street.right), (cross[0] - 0.9, cross[0] - 0.5), white, 2)
    if rng.random() < 0.7:
        for start in np.arange(street.left + 0.4, street.right - 0.5, 1.1).tolist():
            _strip(scene, (start, start + 0.55), (cross[0] - 3.6, cross[0] - 1.0), white, 2)
    if street.tracks:
        steel = Paint((150, 146, 146) if not look.foreign else (72, 70, 70), ROAD, ASPHALT)
        for x in (-4.35, -2.85):
            _strip(scene, (x - 0.07, x + 0.07), (-1, 300), steel, 2)


def _backdrop(street: Street) -> None:
    """Far hills or roofs along the horizon, and often a house at the end of the street."""
    scene, look, rng, *_ = street
    model = Model()
    if rng.random() < 0.5 or street.district == "outskirts":
        hill = Paint(varied(look.leaves, rng), VEGETATION, LEAVES)
        xs = np.linspace(-260, 260, 27)
        ridge = 10 + 9 * np.cumsum(rng.standard_normal(27)) / 5
        points = [(float(x), float(max(3.0, y)), 300.0) for x, y in zip(xs, ridge, strict=True)]
        model.face([(-260, 0, 300), *points, (260, 0, 300)], hill)
    for x in rng.uniform(-150, 150, 3 if street.district == "outskirts" else 10).tolist():
        half, tall = between((8, 18), rng), between((12, 40) if not look.foreign else (9, 20), rng)
        paint = _facade(look, rng)
        model.card((x - half, x + half), (0, tall), 260, paint)
    scene.add(model, distance=300.0, layer=LAYER_BACK)
    if rng.random() < 0.35:
        block, tall = Model(), between((9, 22), rng)
        block.box((-26, 0, 0), (26, tall, 12), _facade(look, rng))
        scene.add(block, z=between((70, 140), rng), layer=LAYER_FRONT)


def _facade(look: Look, rng: Rng) -> Paint:
    """A wall with windows: brick in the target city, sometimes a glass tower in the source city."""
    colour, glass = varied(look.facades, rng), varied(look.glass, rng)
    shop = 3.4 if rng.random() < 0.45 else 0.0
    kind = "brick" if look.foreign else "tower" if rng.random() < 0.4 else "house"
    windows = [between(size, rng) if isinstance(size, tuple) else size for size in WINDOWS[kind]]
    return Paint(colour, BUILDING, FACADE, second=glass, pattern=(*windows, shop))


def _frontage(street: Street, side: int) -> None:
    """Lots from the camera to the end of the street, with a gap at the side street."""
    rng = street.rng
    shares = np.cumsum(DISTRICTS[street.district][0])
    z = -between((0.0, 10.0), rng)
    while z < FAR:
        length = between((8.0, 17.0), rng) if z < 60 else between((18.0, 30.0), rng)
        if z < street.crossing + 8 and z + length > street.crossing:
            length = street.crossing - z
            if length <= 5:
                z = street.crossing + 8
                continue
        kind = int(np.searchsorted(shares, rng.random() * shares[-1]))
        if kind > 0:
            _behind(street, side, z, z + length)
        (_building, _walled, _fenced, _park)[kind](street, side, z, z + length)
        z += length + (0.0 if rng.random() < 0.6 else between((0.5, 3.0), rng))


def _building(street: Street, side: int, z0: float, z1: float, back: float = 0.0) -> None:
    """A house front at the sidewalk, or `back` metres behind it."""
    scene, look, rng, *_ = street
    x = street.front(side) + side * (back + between((0.0, 1.0), rng))
    deep, paint = between((8.0, 12.0), rng), _facade(look, rng)
    low = paint.pattern[4]
    floors = int(rng.integers(look.floors[0], look.floors[1] + 1))
    floors = int(rng.integers(2, 4)) if back else floors
    tall, model = low + floors * paint.pattern[1] + 0.5, Model()
    x0, x1 = sorted((x, x + side * deep))
    pitched = rng.random() < (0.35 if look.foreign else 0.45) and floors <= 4
    flat = Paint(tinted(paint.colour, 0.8), BUILDING)
    model.box((x0, 0, z0), (x1, tall, z1), paint)
    roof = Paint(varied(look.roofs, rng), BUILDING)
    if pitched:
        ridge, middle = tall + 0.32 * (x1 - x0), (x0 + x1) / 2
        options = {"centre": (middle, tall, (z0 + z1) / 2), "level": 1}
        for x_low in (x0 - 0.3, x1 + 0.3):
            eaves = [(x_low, tall - 0.2, z0), (x_low, tall - 0.2, z1)]
            model.face([*eaves, (middle, ridge, z1), (middle, ridge, z0)], roof, **options)
        for z in (z0, z1):
            model.face([(x0, tall, z), (x1, tall, z), (middle, ridge, z)], flat, **options)
    else:
        model.box((x0 - 0.2, tall - 0.1, z0), (x1 + 0.2, tall + 0.45, z1), flat, level=1)
    if low and rng.random() < 0.6:
        awning = Paint(varied(look.cars, rng), BUILDING)
        near, far, edge = z0 + 0.5, z1 - 0.5, x - side * 1.1
        corners = [(x, 3.1, near), (x, 3.1, far), (edge, 2.6, far), (edge, 2.6, near)]
        model.face(corners, awning, level=2)
    scene.add(model, distance=(z0 + z1) / 2, layer=LAYER_FRONT)


def _house_shadows(street: Street, side: int) -> None:
    """The jagged shadow of the houses on one side, across its sidewalk and part of the road."""
    scene, _, rng, *_ = street
    if street.district == "outskirts":
        return
    reach = (street.walk[0] if side < 0 else street.walk[1]) + between((0.5, 3.5), rng)
    x, z = street.front(side), -1.0
    while z < 100:
        end = z + between((7.0, 16.0), rng)
        edge = x - side * reach * between((0.7, 1.1), rng)
        scene.shadows.append([(x, z), (edge, z + 2), (edge, end + 2), (x, end)])
        z = end + (between((1.0, 6.0), rng) if rng.random() < 0.4 else 0.0)


def _walled(street: Street, side: int, z0: float, z1: float) -> None:
    """A garden or factory wall, with trees or a house behind."""
    scene, look, rng, *_ = street
    x, model = street.front(side), Model()
    tall = between((1.6, 2.6), rng)
    brick = look.foreign or rng.random() < 0.4
    pattern = (0.9, 0.4, 0.1, 0.0, 1.0) if brick else (3.0, 9.0, 0.03, 0.0, 1.0)
    paint = Paint(varied(look.walls, rng), WALL, BRICK if brick else PLANKS, pattern=pattern)
    x0, x1 = sorted((x, x + side * 0.35))
    model.box((x0, 0, z0), (x1, tall, z1), paint)
    cap = Paint(tinted(paint.colour, 0.7), WALL)
    model.box((x0 - 0.08, tall, z0), (x1 + 0.08, tall + 0.16, z1), cap, level=1)
    scene.add(model, distance=(z0 + z1) / 2 - 0.1, layer=LAYER_FRONT)


def _fenced(street: Street, side: int, z0: float, z1: float) -> None:
    """A fence of rails or bars; its gaps show the background but count as fence."""
    scene, look, rng, *_ = street
    x, model = street.front(side), Model()
    paint = Paint(varied(look.fences, rng), FENCE)
    tall = between((1.2, 1.9), rng)
    model.screen(x, (0.05, tall), (z0, z1), paint, kind=LABEL_ONLY)
    wide = between((0.05, 0.1), rng) if rng.random() < 0.5 else 0.16
    wide = 0.6 if z0 > 40 else wide  # bars finer than a pixel only cost time
    step = 0.42 if wide < 0.12 else 2.1 * wide
    for z in np.arange(z0, z1, step).tolist():
        model.screen(x, (0, tall), (z, z + wide), paint)
    for low in (0.2, tall - 0.25):
        model.screen(x, (low, low + 0.12), (z0, z1), paint)
    for z in np.arange(z0, min(z1, 60.0), 2.8).tolist():
        model.screen(x, (0, tall + 0.15), (z, z + 0.2), paint)
    scene.add(model, distance=(z0 + z1) / 2 - 0.1, layer=LAYER_FRONT)


def _park(street: Street, side: int, z0: float, z1: float) -> None:
    """Sometimes a hedge at the sidewalk; the plants of the park stand behind."""
    scene, look, rng, *_ = street
    x = street.front(side)
    if rng.random() < 0.35:
        model = Model()
        hedge = Paint(varied(look.leaves, rng), VEGETATION, LEAVES)
        x0, x1 = sorted((x + side * 0.4, x + side * 1.3))
        top = Paint(tinted(hedge.colour, 1.15), VEGETATION, LEAVES)
        model.box((x0, 0, z0), (x1, between((0.8, 1.3), rng), z1), hedge, top=top)
        scene.add(model, distance=(z0 + z1) / 2 - 0.1, layer=LAYER_FRONT)


def _behind(street: Street, side: int, z0: float, z1: float) -> None:
    """Trees and shrubs on a lot, and often a house at its back."""
    scene, look, rng, *_ = street
    x = street.front(side)
    if rng.random() < DISTRICTS[street.district][1]:
        _building(street, side, z0, z1, back=between((7.0, 14.0), rng))
    for _ in range(int(rng.integers(1, 4))):
        away = between((1.5, 6.0), rng)
        plant = furniture.tree(look, rng) if rng.random() < 0.65 else furniture.bush(look, rng)
        place = (x + side * away, between((z0 + 1, z1 - 1), rng))
        scene.add(plant, *place, layer=LAYER_FRONT, size=drawn(look.tree_size, rng))


def _kerbside(street: Street, side: int) -> None:
    """Trees, lamps, signs and parked vehicles."""
    scene, look, rng, *_ = street
    edge = street.edge(side)
    kerb = edge + side * 0.6
    offset = between((0.0, 9.0), rng)
    lamps = rng.random() < 0.75
    for k, z in enumerate(np.arange(5.0 + offset, 110.0, 8.5).tolist()):
        if abs(z - street.crossing - 4) < 6:
            continue
        if lamps and k % 3 == 0:
            scene.add(furniture.lamp_post(look, rng, side), kerb, z)
        elif rng.random() < look.tree * 0.5:
            tree, size = furniture.tree(look, rng), drawn(look.tree_size, rng)
            scene.add(tree, kerb + side * 0.5, z, size=size)
            _blob(scene, kerb + side * 0.5, z, 1.3 * size, 0.9 * size)
    if rng.random() < 0.3:
        for z in np.arange(7.0 + offset, 110.0, 24.0).tolist():
            scene.add(furniture.utility_pole(look, rng), street.front(side) - side * 0.5, z)
    if rng.random() < DISTRICTS[street.district][2]:  # a strip of grass
        wide = between((1.0, 1.9), rng)
        at_kerb = rng.random() < 0.5
        start = edge + side * (0.3 + wide) if at_kerb else street.front(side)
        grass = Paint(varied(look.grass, rng), TERRAIN, GRASS)
        for z in ((-1, street.crossing), (street.crossing + 8, FAR)):
            _strip(scene, (start, start - side * wide), z, grass, 2)
    low, high = look.signs
    for _ in range(int(rng.integers(low, high + 1)) // 2 + (side > 0)):
        sign = furniture.traffic_sign(look, rng)
        place = (kerb + side * between((0.0, 0.8), rng), between((6.5, 26.0), rng))
        scene.add(sign, *place, size=drawn(look.sign_size, rng))
    _parked(street, side)


def _blob(scene: Scene, x: float, z: float, half: float, deep: float) -> None:
    """An elliptic shadow."""
    angles = np.arange(10) * (np.pi / 5)
    outline = np.stack([x + half * np.cos(angles), z + deep * np.sin(angles)], 1)
    scene.shadows.append(outline.tolist())


def _parked(street: Street, side: int) -> None:
    """Cars at the kerb where the road is wide enough, and two-wheelers on the sidewalk."""
    scene, look, rng, *_ = street
    if street.parking(side):
        x = street.edge(side) - side * 1.05
        for z in np.arange(between((5.0, 9.0), rng), 70.0, 6.0).tolist():
            if rng.random() < look.car and abs(z - street.crossing - 4) > 8:
                _drive(street, "car", x, z, 0.0 if side > 0 else np.pi)
    for kind, share in (("bicycle", look.bicycle), ("motorcycle", look.motorcycle)):
        if rng.random() < share * 0.5:
            start = between((6.0, 15.0), rng)
            for k in range(int(rng.integers(1, 4))):
                x, z = street.edge(side) + side * between((0.7, 1.6), rng), start + 1.3 * k
                heading = between((-0.7, 0.7), rng)
                scene.add(getattr(figures, kind)(look, rng), x, z, heading)
                _blob(scene, x, z, 0.7, 0.35)


def _drive(street: Street, kind: str, x: float, z: float, heading: float) -> None:
    """Place a vehicle and the shadow beneath it."""
    scene, look, rng, *_ = street
    scene.add(getattr(vehicles, kind)(look, rng), x, z, heading)
    half, long = {"car": (0.95, 2.2), "truck": (1.25, 4.0), "bus": (1.3, 5.5)}[kind]
    _shadow(scene, x, z, half + 0.12, long + 0.1)


def _shadow(scene: Scene, x: float, z: float, a: float, b: float) -> None:
    """A rectangular shadow, `a` and `b` metres to either side."""
    scene.shadows.append([(x - a, z - b), (x + a, z - b), (x + a, z + b), (x - a, z + b)])


def _traffic(street: Street) -> None:
    """Vehicles in the camera's lane, seen from behind, and oncoming ones, seen from the front."""
    scene, look, rng, *_ = street
    if street.tracks:
        facing, z = np.pi if rng.random() < 0.7 else 0.0, between((19.0, 36.0), rng)
        scene.add(vehicles.tram(look, rng), -3.6, z, facing)
        _shadow(scene, -3.6, z, 1.4, 11)
    ahead = between(look.ahead, rng)
    while ahead < 70:
        ahead = _next_vehicle(street, between((-0.4, 0.5), rng), ahead, 0.0)
    oncoming = between((look.ahead[0] + 1, look.ahead[1] + 4), rng)
    while oncoming < 80 and not street.tracks:
        oncoming = _next_vehicle(street, between((-3.9, -3.3), rng), oncoming, np.pi)
    if rng.random() < 0.3:
        left, right = (street.left - 4, street.left + 1), (street.right - 1, street.right + 4)
        x, z = between(left if rng.random() < 0.5 else right, rng), street.crossing + 4
        scene.add(vehicles.car(look, rng), x, z, np.pi / 2 * pick((-1, 1), rng))
        _shadow(scene, x, z, 2.2 + 0.1, 0.95 + 0.12)
    z = 3.0  # of riders along the kerb or across the road
    for kind, share in (("bicycle", look.bicycle * 0.75), ("motorcycle", look.motorcycle * 0.8)):
        if rng.random() >= share:
            continue
        for _ in range(1 + (rng.random() < 0.35)):
            model = getattr(figures, kind)(look, rng, ridden=True)
            side = pick((-1, 1), rng)
            x = street.edge(side) - side * (2.6 if street.parking(side) else 0.8)
            z += between((3.0, 9.0), rng)
            heading = pick((0.0, np.pi), rng) + between((-0.85, 0.85), rng)
            scene.add(model, x, z, heading)
            _blob(scene, x, z, 0.8, 0.4)


def _next_vehicle(street: Street, x: float, z: float, heading: float) -> float:
    """Perhaps place a vehicle with its back at z; returns the back of the next one."""
    _, look, rng, *_ = street
    draw = rng.random()
    if draw < look.bus * 0.42:
        _drive(street, "bus", x, z + 6.0, heading)
        return z + between((15.0, 24.0), rng)
    if draw < look.bus * 0.42 + look.truck * 0.42:
        _drive(street, "truck", x, z + 5.0, heading)
        return z + between((13.0, 22.0), rng)
    if draw < 0.2 + look.car:
        _drive(street, "car", x, z + 2.2, heading)
    return z + between((8.0, 20.0), rng)


def _people(street: Street) -> None:
    """Pedestrians on both sidewalks and at the crossing, and traffic lights there."""
    scene, look, rng, *_ = street
    low, high = look.people
    for _ in range(int(rng.integers(low, high + 1))):
        side = pick((-1, 1), rng)
        inner, outer = street.edge(side) + side * 0.7, street.front(side) - side * 0.4
        x, z = between((inner, outer), rng), between((5.5, 28.0), rng)
        if rng.random() < 0.18:
            x, z = between((street.left, street.right), rng), street.crossing - 2.2
        scene.add(figures.person(look, rng), x, z, between((-0.5, 0.5), rng))
        _blob(scene, x, z, 0.4, 0.25)
    if rng.random() < look.crossing:
        phase = int(rng.integers(3))
        z = min(street.crossing - 0.5, 22.0)
        for side in (1, -1):
            if side > 0 or rng.random() < 0.75:
                light = furniture.traffic_light(look, rng, side, phase)
                x = street.edge(side) + side * 0.5
                scene.add(light, x, z, size=drawn(look.sign_size, rng))
