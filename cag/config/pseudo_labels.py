"""Parameters of a round's pseudo-labels: `pseudo_label`."""

from __future__ import annotations

from types import NoneType
from typing import Annotated, get_args

from pydantic import Field, model_validator

from cag.config.base import PAPER, RELEASED, Fraction, Section, about

Distance = Annotated[float, Field(ge=0, le=1_000_000)]


class PseudoLabel(Section):
    """Thresholds of the two rules; an active pixel passes each one that is not null."""

    margin: Distance | None = about(
        "the least d2 - d1 of an active pixel, d1 and d2 its distances to the nearest and second "
        "nearest anchors; null: no condition",
        "units of the features",
        PAPER,
        default=None,
    )
    relative_margin: Fraction | None = about(
        "the least (d2 - d1) / (d2 + d1) of an active pixel; null: no condition", default=None
    )
    quantile: Annotated[float, Field(ge=1e-6, le=1)] | None = about(
        "the active share of each class's pixels, those with the largest relative margin; null: no "
        "condition",
        "share",
        default=None,
    )
    agreement: bool = about(
        "whether the teacher must predict an active pixel's class too", default=False
    )
    probability: Fraction = about(
        "the bound that the probability rule's pixels exceed", "probability", RELEASED
    )

    @model_validator(mode="after")
    def _any(self) -> PseudoLabel:
        fields = type(self).model_fields.items()
        *others, last = (key for key, field in fields if NoneType in get_args(field.annotation))
        if all(getattr(self, key) is None for key in (*others, last)):
            raise ValueError(f"one of {', '.join(others)} and {last} must be a number")
        return self
