"""Signs that images are not what they should be."""

import numpy as np

TURNS = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored and turned by 180 degrees",
    5: "mirrored and turned by 90 degrees",
    6: "turned by 90 degrees clockwise",
    7: "mirrored and turned by 90 degrees",
    8: "turned by 90 degrees anticlockwise",
}  # by EXIF orientation
_STEP = 4  # looks at a pixel of so many a side
_DARK, _BRIGHT, _CONTRAST = 16, 239, 4  # of 0 to 255
_FEW_COLOURS, _ENOUGH_PIXELS = 32, 1000
_QUARTER, _CUT = 63, 0.1  # the highest of 14 bits read as 16; a share of the rows


def oddity(image: np.ndarray) -> str | None:
    """What is odd in an image uint8 [H, W, 3]: nearly black, nearly white, of one colour, or flat.

    One pixel in a hundred may be otherwise. Flat is a picture of few colours, like a label map.
    Odd are also a picture without bright pixels and one whose lower rows are lost.
    """
    sample = image[::_STEP, ::_STEP].reshape(-1, 3)  # (N, 3)
    low, high = np.percentile(sample, (1, 99), axis=0)  # (3,)
    if high.max() < _DARK:
        return "nearly black"
    if low.min() > _BRIGHT:
        return "nearly white"
    if (high - low).max() < _CONTRAST:
        return "of one colour"
    if len(sample) >= _ENOUGH_PIXELS and len(np.unique(sample, axis=0)) <= _FEW_COLOURS:
        return "of few colours, as label maps are,"
    if image.max() <= _QUARTER:
        return f"dark (no value above {_QUARTER} of 255, as if of 12 or 14 bits saved as 16)"
    if any(_is_cut(np.rot90(image[::_STEP, ::_STEP], turn)) for turn in range(4)):
        return "cut off (a side of one colour, as of files that end early)"
    return None


def _is_cut(image: np.ndarray) -> bool:
    """Whether the lower rows of an image [H, W, 3] are lost, so that a JPEG's decoder made them up.

    It makes them grey; black and white are the borders of films and scans.
    """
    last = image[-1, 0]  # (3,)
    other = ~(image == last).all((1, 2))  # (H,)
    return _DARK < last.min() <= last.max() < _BRIGHT and other[::-1].argmax() > _CUT * len(other)


def edges_fit(image: np.ndarray, label: np.ndarray) -> float:
    """How many times steeper an image is at the borders of its label than on average.

    It is uint8 [H, W, 3], the label map [H, W] or [H, W, 3]. About 1 if the two do not belong
    together, or if there are no borders or no slopes.
    """
    grey, label = image.mean(2, dtype=np.float32), label.reshape(*image.shape[:2], -1)
    slopes, borders = [], []
    for axis in (0, 1):
        slopes.append(np.abs(np.diff(grey, axis=axis)).ravel())
        first, second = (np.delete(label, end, axis) for end in (0, -1))
        borders.append((first != second).any(2).ravel())
    slope, border = np.concatenate(slopes), np.concatenate(borders)
    return float(slope[border].mean() / slope.mean()) if border.any() and slope.any() else 1.0
