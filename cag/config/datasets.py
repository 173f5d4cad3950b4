"""Parameters of the two domains: `source` and `target`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cag.config.base import PAPER, RELEASED, Pixels, Positive, Section, about

CityscapesLabels = Literal["labelIds", "labelTrainIds"]  # which files of gtFine
LAYOUT = "the form of the raw data"
CLASS_MAP = "the YAML file that translates label values to classes"
PREPARED_SIZE = "height and width of the prepared images; null keeps each image's own"


class FolderSource(Section):
    """Labelled images in plain folders below `$CAG_DATA`."""

    layout: Literal["folder"] = about(LAYOUT)
    folder: str = about("the data set's folder, below `$CAG_DATA`")
    images: str = about("the folder of the images, below `folder`; sub-folders belong to it")
    labels: str = about(
        "the folder of the label maps, below `folder`; a label has its image's name"
    )
    class_map: str = about(CLASS_MAP)
    size: Pixels | None = about(PREPARED_SIZE, "pixels")


class FolderTarget(Section):
    """Unlabelled training images and, if there are any, labelled validation images in folders."""

    layout: Literal["folder"] = about(LAYOUT)
    folder: str = about("the data set's folder, below `$CAG_DATA`")
    images: str = about("the folder of the training images, below `folder`; no label is looked for")
    val_images: str | None = about(
        "the folder of the validation images; null: there are none", default=None
    )
    val_labels: str | None = about(
        "the folder of their label maps; null with `val_images` alone", default=None
    )
    class_map: str = about(CLASS_MAP)
    size: Pixels | None = about(PREPARED_SIZE, "pixels")

    @property
    def has_validation(self) -> bool:
        """Whether there are labelled images to evaluate on."""
        return self.val_images is not None

    @model_validator(mode="after")
    def _both(self) -> FolderTarget:
        if (self.val_images is None) != (self.val_labels is None):
            raise ValueError("val_images and val_labels must both be given or both be null")
        return self


class ScenesSource(Section):
    """The built-in scenes in the look of a simulator."""

    layout: Literal["scenes"] = about(LAYOUT)
    images: Positive = about("the number of labelled images to render", "images")
    class_map: str = about(CLASS_MAP)
    size: Pixels = about("height and width to render", "pixels")


class ScenesTarget(Section):
    """The built-in scenes in the look of a camera."""

    layout: Literal["scenes"] = about(LAYOUT)
    images: Positive = about("the number of unlabelled training images to render", "images")
    val_images: Positive = about("the number of labelled validation images to render", "images")
    class_map: str = about(CLASS_MAP)
    size: Pixels = about("height and width to render", "pixels")

    @property
    def has_validation(self) -> bool:
        """Whether there are labelled images to evaluate on: always."""
        return True


class GameSource(Section):
    """GTA5 or SYNTHIA (RAND_CITYSCAPES) as they are distributed, in a folder below `$CAG_DATA`.

    GTA5 holds images/ and labels/, SYNTHIA RGB/ and GT/LABELS/.
    """

    layout: Literal["gta5", "synthia"] = about(LAYOUT, source=PAPER)
    folder: str = about("the data set's folder, below `$CAG_DATA`")
    class_map: str = about(CLASS_MAP, source=PAPER)
    size: Pixels | None = about(PREPARED_SIZE, "pixels", RELEASED)


class CityscapesSource(Section):
    """The training images of Cityscapes with their labels, below `$CAG_DATA`."""

    layout: Literal["cityscapes"] = about(LAYOUT)
    folder: str = about("the folder that holds `leftImg8bit/` and `gtFine/`, below `$CAG_DATA`")
    labels: CityscapesLabels = about("which label files of `gtFine/` are read")
    class_map: str = about(CLASS_MAP)
    size: Pixels | None = about(PREPARED_SIZE, "pixels")


class CityscapesTarget(Section):
    """The training images of Cityscapes without labels, and the labelled validation images."""

    layout: Literal["cityscapes"] = about(LAYOUT, source=PAPER)
    folder: str = about(
        "the folder that holds `leftImg8bit/` and, for the validation images, `gtFine/`, below "
        "`$CAG_DATA`"
    )
    labels: CityscapesLabels | None = about(
        "which label files of the validation images are read; null: there are none"
    )
    class_map: str = about(CLASS_MAP, source=PAPER)
    size: Pixels | None = about(PREPARED_SIZE, "pixels", RELEASED)

    @property
    def has_validation(self) -> bool:
        """Whether there are labelled images to evaluate on."""
        return self.labels is not None


Source = Annotated[
    FolderSource | GameSource | CityscapesSource | ScenesSource, Field(discriminator="layout")
]
Target = Annotated[FolderTarget | CityscapesTarget | ScenesTarget, Field(discriminator="layout")]
