"""The classes of the built-in scenes, with the label ids, names and colours of Cityscapes."""

from PIL import ImageColor

IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY = IDS[:11]
PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = IDS[11:]
EGO_VEHICLE = 1  # the id of the camera's own car, no class
_NAMES = (
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, "
    "terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle"
)
_COLOURS = (
    "#804080 #f423e8 #464646 #66669c #be9999 #999999 #faaa1e #dcdc00 #6b8e23 #98fb98 #4682b4 "
    "#dc143c #ff0000 #00008e #000046 #003c64 #005064 #0000e6 #770b20"
)
_COLOURED = zip(_NAMES.split(", "), map(ImageColor.getrgb, _COLOURS.split()), strict=True)
CLASSES = dict(zip(IDS, _COLOURED, strict=True))  # label id -> name, colour
