"""Numbers as the page writes them."""

import numpy as np
import pandas as pd

NOTHING, MINUS, THIN_SPACE = "\u2013", "\u2212", "\u202f"  # an en dash stands for no value


def percent(share: float | None) -> str:
    """A share as percent with one digit."""
    return NOTHING if _missing(share) else f"{100 * share:.1f}"


def points(difference: float | None) -> str:
    """A difference of shares in points."""
    # A true minus sign is as wide as a plus, so that columns align.
    return NOTHING if _missing(difference) else f"{100 * difference:+.1f}".replace("-", MINUS)


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with so many digits after the point."""
    return NOTHING if _missing(value) else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """A whole number in groups of three digits."""
    return NOTHING if _missing(value) else f"{int(value):,}".replace(",", THIN_SPACE)


def text(value: object) -> str:
    """A text from a table; NaN means none."""
    return NOTHING if pd.isna(value) else str(value)


def _missing(value: float | None) -> bool:
    return value is None or not np.isfinite(value)
