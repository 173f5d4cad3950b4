"""Names in any script: installed fonts that have their letters, or numbers in their place."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from matplotlib.font_manager import FontEntry, fontManager, get_font
from rich.cells import cell_len

FIRST = "DejaVu Sans"  # comes with matplotlib
LEGEND_LINE, LEGEND_LETTER, USUAL_LEGEND = 0.19, 0.085, 2.2  # inches
LONGEST_NAME = 32  # letters: a figure has room for no more


@cache
def fonts_for(text: str) -> tuple[str, ...] | None:
    """The installed fonts that together have all letters of a text; None if one is in none."""
    shown = (letter for letter in text if not letter.isspace())
    wanted = {ord(letter) for letter in shown if unicodedata.category(letter) != "Cf"}
    fonts = []
    for font in _installed():
        if not wanted:
            break
        if found := wanted & _letters(font.fname):
            fonts.append(font.name)
            wanted -= found
    return None if wanted else tuple(fonts)


def drawable(names: Sequence[str]) -> list[str]:
    """The names of classes as a figure can draw them: "class 7" for one whose letters no font has.

    The number is the train id, the place of the class in every table. A long name is shortened and
    has it, too.
    """
    drawn = [name if fonts_for(name) is not None else f"class {i}" for i, name in enumerate(names)]
    long = [len(name) > LONGEST_NAME for name in drawn]
    return [f"{n[:24]}... ({i})" if long[i] else n for i, n in enumerate(drawn)]


def legend_columns(names: Iterable[str], height: float) -> tuple[int, float]:
    """The columns of a legend of this height, and the inches that it is wider than a usual one."""
    lengths = [cell_len(name) for name in names]
    columns = max(1, -(-len(lengths) // int(height / LEGEND_LINE)))
    return columns, max(0.0, columns * (0.6 + LEGEND_LETTER * max(lengths)) - USUAL_LEGEND)


def _installed() -> Iterator[FontEntry]:
    regular = [
        font
        for font in fontManager.ttflist
        if font.style == "normal" and str(font.weight) in ("400", "normal", "regular")
    ]
    fonts = sorted(regular, key=lambda font: (font.name != FIRST, font.name, font.fname))
    # The last resort has a box for every letter.
    return (font for font in fonts if not font.name.startswith("Last Resort"))


@cache
def _letters(path: str) -> frozenset[int]:
    try:
        font = get_font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):  # removed since it was listed, or no font
        return frozenset()
