"""Signs that images are not what they should be."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from cag.datasets.images import read_image
from cag.datasets.preparation import Item
from cag.datasets.prepared import evenly_spaced
from cag.runtime.errors import UserError
from cag.runtime.files import inside

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
_LOSSY = (".jpg", ".jpeg")  # no label map is stored so
_LOOKED_AT, _EQUAL_NEIGHBOURS = 4, 0.8  # files of a folder; a share of a label map's pixels
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


def refuse_label_maps(items: Sequence[Item], folder: Path) -> None:
    """Raise a UserError if label maps lie among a folder's images without labels.

    They are losslessly stored, have another image's name, alone or before more of a name (a.jpg and
    labels/a.png or a_mask.png), and are areas of few values where the other image is none.
    """

    def is_flat(path: PurePosixPath) -> bool:
        return _is_flat(read_image(inside(folder, str(path))))

    paths = [PurePosixPath(item.image) for item in items]
    by_name, alike = defaultdict(list), defaultdict(list)
    for path in paths:
        by_name[path.stem].append(path)
    for path in paths:
        ends = [i for i, letter in enumerate(path.stem) if not letter.isalnum()]
        for end in [len(path.stem), *ends] if path.suffix.lower() not in _LOSSY else ():
            named = by_name.get(path.stem[:end], ())
            if others := list(islice((other for other in named if other != path), _LOOKED_AT)):
                alike[path.parent, path.stem[end:]].append((path, others))
    for pairs in alike.values():
        looked_at = [pairs[i] for i in evenly_spaced(len(pairs), _LOOKED_AT)]
        if all(is_flat(path) and not all(map(is_flat, others)) for path, others in looked_at):
            path, others = pairs[0]
            such = f"{len(pairs)} such files have the names of others"
            such = such if len(pairs) > 1 else "this file has the name of another"
            problem = f"{such} ({others[0]}) and the values of a label map"
            remedy = "move them elsewhere, or name a folder in target.images that holds none"
            raise UserError(f"{folder / path}: {problem}, which would be trained on; {remedy}")


def _is_flat(image: np.ndarray) -> bool:
    """Whether an image uint8 [H, W, 3] consists of areas of 2 to 32 values."""
    values = len(np.unique(image[::_STEP, ::_STEP].reshape(-1, 3), axis=0))
    equal = (image[:, 1:] == image[:, :-1]).all(axis=2)
    return 2 <= values <= _FEW_COLOURS and equal.sum() >= _EQUAL_NEIGHBOURS * equal.size


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
