"""Parameters of a round's pseudo-labels: `pseudo_label`."""

from __future__ import annotations

from types import NoneType
from typing import Annotated, get_args

from pydantic import Field, model_validator

from cag.config.base import PAPER, RELEASED, Fraction, Section, about


class PseudoLabel(Section):
    """Thresholds of the two rules; an active pixel passes each that may be null and is not."""

    margin: Annotated[float, Field(ge=0)] | None = about(
        "the least d2 - d1 of an active pixel, where d1 and d2 are the distances to the nearest "
        "and the second nearest anchor; null: not asked",
        "units of the features",
        PAPER,
        default=None,
    )
    relative_margin: Fraction | None = about(
        "the least (d2 - d1) / (d2 + d1) of an active pixel; null: not asked",
        default=None,
    )
    quantile: Annotated[float, Field(gt=0, le=1)] | None = about(
        "the share of each class's pixels, those of the largest relative margin, that is active; "
        "null: not asked",
        "share",
        default=None,
    )
    agreement: bool = about(
        "whether an active pixel's class must also be the one that the teacher predicts",
        default=False,
    )
    probability: Fraction = about(
        "the probability that the probability rule asks for: more than this",
        "probability",
        RELEASED,
    )

    @model_validator(mode="after")
    def _any(self) -> PseudoLabel:
        fields = type(self).model_fields.items()
        *others, last = (key for key, field in fields if NoneType in get_args(field.annotation))
        if all(getattr(self, key) is None for key in (*others, last)):
            raise ValueError(f"one of {', '.join(others)} and {last} must be a number")
        return self
