"""Parameters of the evaluation, the report and the oracle."""

from typing import Annotated

from pydantic import Field

from cag.config.base import Section, about


class Oracle(Section):
    """The comparison with training on true target labels, by its own command."""

    labels: str | None = about(
        "the folder of the target training images' labels, below the target's; null: "
        "cross-validation on the validation images (scenes: labels are rendered)",
        default=None,
    )
    folds: Annotated[int, Field(ge=2, le=100)] = about("the folds of the cross-validation", "parts")


class Evaluate(Section):
    """Pictures that an evaluation draws."""

    panels: Annotated[int, Field(ge=0, le=100)] = about(
        "the number of validation images in `panels.png`", "images"
    )


class Report(Section):
    """The content of the report."""

    images: Annotated[int, Field(ge=1, le=1000)] = about(
        "the number of images of each kind: target training images, labelled validation images",
        "images",
    )
