"""Parameters of the evaluation, the report and the oracle."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cag.config.base import Count, Positive, Section, about


class Oracle(Section):
    """The target-supervised comparison, a separate command."""

    labels: str | None = about(
        "the folder of the target training images' labels, below the target's folder; null: "
        "cross-validation over the labelled validation images (the scenes render what it needs)",
        default=None,
    )
    folds: Annotated[int, Field(ge=2)] = about("the parts of that cross-validation", "parts")


class Evaluate(Section):
    """Pictures that an evaluation draws."""

    panels: Count = about("the validation images in `panels.png`", "images")


class Report(Section):
    """What the report shows."""

    images: Positive = about("the images of each kind that the report shows", "images")
