"""How numbers are printed."""


def percent(share: float | None, form: str = ".1f") -> str:
    """A share in [0, 1] as a number of per cent; "none" for None and NaN.

    Example:
        >>> percent(0.256), percent(float("nan"))
        ('25.6', 'none')
    """
    return "none" if share is None or share != share else format(100 * share, form)
