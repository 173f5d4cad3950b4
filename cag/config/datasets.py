"""Parameters of the two domains: `source` and `target`."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cag.config.base import PAPER, RELEASED, Images, Pixels, Section, about

CityscapesLabels = Literal["labelIds", "labelTrainIds"]  # which files of gtFine
Look = Literal["simulator", "camera", "both", "randomised"]  # of the labelled scenes
LAYOUT = "the form of the raw data"
CLASS_MAP = "the YAML file that translates label values to classes"
FOLDER = "the data set's folder, below `$CAG_DATA`"
PREPARED_SIZE = "height and width of the prepared images; null: each image's own"
RENDERED_SIZE = "height and width to render"
TURN_BY_EXIF = (
    "whether images are turned as their EXIF orientation says; false, if label maps fit the images "
    "as they are stored"
)


class FolderSource(Section):
    """Labelled images in plain folders below `$CAG_DATA`."""

    layout: Literal["folder"] = about(LAYOUT)
    folder: str = about(FOLDER)
    images: str = about("the images' folder, below `folder`, with its sub-folders")
    labels: str = about("the label maps' folder, below `folder`; a label has its image's name")
    class_map: str = about(CLASS_MAP)
    size: Pixels | None = about(PREPARED_SIZE, "pixels")
    turn_by_exif: bool = about(TURN_BY_EXIF, default=True)


class FolderTarget(Section):
    """Unlabelled training images in a folder and, if wanted, labelled validation images."""

    layout: Literal["folder"] = about(LAYOUT)
    folder: str = about(FOLDER)
    images: str = about("the training images' folder, below `folder`; their labels are never read")
    val_images: str | None = about("the validation images' folder; null: none", default=None)
    val_labels: str | None = about(
        "their label maps' folder; null if `val_images` is", default=None
    )
    class_map: str = about(CLASS_MAP)
    size: Pixels | None = about(PREPARED_SIZE, "pixels")
    turn_by_exif: bool = about(TURN_BY_EXIF, default=True)

    @property
    def has_validation(self) -> bool:
        """Whether there are labelled images to evaluate on."""
        return self.val_images is not None

    def check_apart(self, key: str, folder: str, below: str | None) -> None:
        """Raise a ValueError if a key's files lie below `images`, so that they were trained on.

        They are in `below`, in a data set's `folder`. Images may also be the training images.
        """
        if below is None:
            return
        inner, outer = PurePosixPath(folder, below), PurePosixPath(self.folder, self.images)
        if inner.is_relative_to(outer) and (inner != outer or key.endswith("labels")):
            problem = f"images ({self.images}) holds {key} ({below}), which is not to be trained on"
            raise ValueError(f"{problem}; name a folder that holds the training images alone")

    @model_validator(mode="after")
    def _both(self) -> FolderTarget:
        if (self.val_images is None) != (self.val_labels is None):
            raise ValueError("val_images and val_labels must both be given or both be null")
        for key in ("val_images", "val_labels"):
            self.check_apart(key, self.folder, getattr(self, key))
        return self


class ScenesSource(Section):
    """The built-in scenes, by default in the look of a simulator."""

    layout: Literal["scenes"] = about(LAYOUT)
    look: Look = about(
        "the simulator's look, the camera's, both in turn, or a random one for each image",
        default="simulator",
    )
    images: Images = about("the number of labelled images", "images")
    class_map: str = about(CLASS_MAP)
    size: Pixels = about(RENDERED_SIZE, "pixels")


class ScenesTarget(Section):
    """The built-in scenes in the look of a camera."""

    layout: Literal["scenes"] = about(LAYOUT)
    images: Images = about("the number of unlabelled training images", "images")
    val_images: Images = about("the number of labelled validation images", "images")
    class_map: str = about(CLASS_MAP)
    size: Pixels = about(RENDERED_SIZE, "pixels")

    @property
    def has_validation(self) -> bool:
        """Whether there are labelled images to evaluate on: always."""
        return True


class GameSource(Section):
    """GTA5 or SYNTHIA (RAND_CITYSCAPES) as distributed.

    GTA5 holds images/ and labels/, SYNTHIA RGB/ and GT/LABELS/.
    """

    layout: Literal["gta5", "synthia"] = about(LAYOUT, source=PAPER)
    folder: str = about(FOLDER)
    class_map: str = about(CLASS_MAP, source=PAPER)
    size: Pixels | None = about(PREPARED_SIZE, "pixels", RELEASED)


class CityscapesSource(Section):
    """The training images of Cityscapes with their labels."""

    layout: Literal["cityscapes"] = about(LAYOUT)
    folder: str = about("the folder of `leftImg8bit/` and `gtFine/`, below `$CAG_DATA`")
    labels: CityscapesLabels = about("which label files of `gtFine/` to read")
    class_map: str = about(CLASS_MAP)
    size: Pixels | None = about(PREPARED_SIZE, "pixels")


class CityscapesTarget(Section):
    """The training images of Cityscapes without labels, and the labelled validation images."""

    layout: Literal["cityscapes"] = about(LAYOUT, source=PAPER)
    folder: str = about(
        "the folder of `leftImg8bit/` and, for the validation labels, `gtFine/`, below `$CAG_DATA`"
    )
    labels: CityscapesLabels | None = about("which validation labels to read; null: none")
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
