"""Parameters: what `params.yaml` may hold, with types, ranges and units, and its one loader."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from cag.errors import UserError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0, strict=True)]
Pixels = tuple[Positive, Positive]
CityscapesLabels = Literal["labelIds", "labelTrainIds"]  # which files of gtFine
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
BatchNorm = Literal["mixed", "target", "frozen"]  # whose statistics the network keeps
DISCRIMINATOR_MINIMUM = 32  # pixels, of which five halvings leave one


class Section(BaseModel):
    """A section of `params.yaml`: every key is required, none may be added, no type is coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Round(Section):
    """One pass of the stagewise training (METHOD: the paper's "stage")."""

    teacher: Name  # the model that labels the target and that the student starts from
    anchors: Name  # the round whose source features give the anchors (itself: fresh anchors)


class FolderSource(Section):
    """Labelled images in plain folders below `$CAG_DATA`."""

    layout: Literal["folder"]
    folder: str
    images: str
    labels: str
    class_map: str
    size: Pixels | None  # height, width of the prepared images; null keeps each image's own


class FolderTarget(Section):
    """Unlabelled training images and, if there are any, labelled validation images in folders."""

    layout: Literal["folder"]
    folder: str
    images: str
    val_images: str | None
    val_labels: str | None
    class_map: str
    size: Pixels | None

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

    layout: Literal["scenes"]
    images: Positive  # number of images
    class_map: str
    size: Pixels


class ScenesTarget(Section):
    """The built-in scenes in the look of a camera."""

    layout: Literal["scenes"]
    images: Positive
    val_images: Positive
    class_map: str
    size: Pixels

    @property
    def has_validation(self) -> bool:
        """Whether there are labelled images to evaluate on: always."""
        return True


class GameSource(Section):
    """GTA5 or SYNTHIA (RAND_CITYSCAPES) as they are distributed, in a folder below `$CAG_DATA`.

    GTA5 holds images/ and labels/, SYNTHIA RGB/ and GT/LABELS/.
    """

    layout: Literal["gta5", "synthia"]
    folder: str
    class_map: str
    size: Pixels | None


class CityscapesSource(Section):
    """The training images of Cityscapes with their labels, below `$CAG_DATA`."""

    layout: Literal["cityscapes"]
    folder: str  # holds leftImg8bit/ and gtFine/
    labels: CityscapesLabels
    class_map: str
    size: Pixels | None


class CityscapesTarget(Section):
    """The training images of Cityscapes without labels, and the labelled validation images."""

    layout: Literal["cityscapes"]
    folder: str  # holds leftImg8bit/ and, for the validation images, gtFine/
    labels: CityscapesLabels | None  # of the validation images; null: there are none
    class_map: str
    size: Pixels | None

    @property
    def has_validation(self) -> bool:
        """Whether there are labelled images to evaluate on."""
        return self.labels is not None


Source = FolderSource | GameSource | CityscapesSource | ScenesSource
Target = FolderTarget | CityscapesTarget | ScenesTarget


class Normalization(Section):
    """Mean and standard deviation of the red, green and blue inputs, in units of [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError("each standard deviation must be above 0")
        return std


class Network(Section):
    """A network of segmentation_models_pytorch, or the paper's, on one of its encoders."""

    architecture: str
    encoder: str
    # a name such as imagenet, a .safetensors file below $CAG_WEIGHTS, or null for random weights
    encoder_weights: str | None
    options: dict[str, Any]  # further arguments of the architecture, e.g. decoder_channels
    normalization: Normalization


class Photometric(Section):
    """Random changes of brightness and colour; 0 switches a change off."""

    brightness: Annotated[float, Field(ge=0)]  # factor from [max(0, 1 - x), 1 + x]
    contrast: Annotated[float, Field(ge=0)]
    saturation: Annotated[float, Field(ge=0)]
    hue: Annotated[float, Field(ge=0, le=0.5)]  # shift from [-x, x] turns
    gamma: Annotated[float, Field(ge=0, lt=5)]  # exponent from [2^-x, 2^x]


class Augmentation(Section):
    """Random scale, crop, flip and photometric change of a training image."""

    scale: tuple[float, float]  # range of the factor on the prepared size
    crop: Pixels  # height, width
    flip: Fraction  # probability
    photometric: Photometric | None

    @field_validator("scale")
    @classmethod
    def _range(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError("must be [low, high] with 0 < low <= high")
        return scale


class Training(Section):
    """What every training has in common."""

    iterations: Positive
    batch_size: Positive  # images of each domain in a step
    optimizer: Literal["sgd", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
    power: Annotated[float, Field(ge=0)]  # of the polynomial decay
    momentum: Annotated[float, Field(ge=0, lt=1)]  # sgd's momentum, adamw's beta 1
    weight_decay: Annotated[float, Field(ge=0)]
    class_balance: Fraction  # power of the source classes' inverse frequency as weight; 0: plain
    augmentation: Augmentation


class Pretrain(Training):
    """Cross-entropy on the source alone."""


class Warmup(Training):
    """Alignment before the first round; 0 iterations pass the pretrained model through."""

    weights: str | None  # a model file below $CAG_WEIGHTS that is used instead of training one
    iterations: Count
    objective: Literal["vanilla", "least_squares"]
    adversarial_weight: Annotated[float, Field(ge=0)]
    discriminator_learning_rate: Annotated[float, Field(gt=0)]  # its power is the network's
    batch_norm: BatchNorm

    @field_validator("augmentation")
    @classmethod
    def _large_enough(cls, augmentation: Augmentation) -> Augmentation:
        if min(augmentation.crop) < DISCRIMINATOR_MINIMUM:
            raise ValueError(
                f"crop is {list(augmentation.crop)}; the discriminator needs at least "
                f"{DISCRIMINATOR_MINIMUM} x {DISCRIMINATOR_MINIMUM} pixels"
            )
        return augmentation


class Views(Section):
    """Views of a target image whose outputs are averaged: every combination."""

    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field(min_length=1)
    gammas: tuple[Annotated[float, Field(gt=0, le=5)], ...] = Field(min_length=1)  # < 1: lighter
    flip: bool  # each of them mirrored too


class Extract(Section):
    """Features of both domains by the round's teacher."""

    batch_size: Positive
    target_views: Views
    samples_per_class: Count  # single-pixel source features kept for plots


class Anchors(Section):
    """Class centroids of the source features."""

    average: Literal["images", "pixels"]
    min_pixels: Positive  # correctly predicted pixels that an image's class needs to count
    min_recall: Fraction  # of its source pixels that the teacher must find, or the class has none


class PseudoLabel(Section):
    """Thresholds of the two rules; an active pixel passes each of the first three that is given."""

    margin: Annotated[float, Field(ge=0)] | None  # d2 - d1, in units of the features
    relative_margin: Fraction | None  # (d2 - d1) / (d2 + d1)
    quantile: Annotated[float, Field(gt=0, le=1)] | None  # most confident share kept of each class
    agreement: bool  # an active pixel's class must also be the one that the teacher predicts
    probability: Fraction  # that the probability rule asks for

    @model_validator(mode="after")
    def _any(self) -> PseudoLabel:
        if self.margin is None and self.relative_margin is None and self.quantile is None:
            raise ValueError("one of margin, relative_margin and quantile must be a number")
        return self


class Adapt(Training):
    """Training of a round's student."""

    class_mix: Fraction  # probability that half a source image's classes are pasted on a target's
    target_labels: Literal["both", "anchor", "probability"]
    distance_weight: Annotated[float, Field(ge=0)]
    distance_kind: Literal["class_mean", "pixel"]
    batch_norm: BatchNorm


class Oracle(Section):
    """The target-supervised comparison, a separate command."""

    labels: str | None  # folder of the target training images' labels (not of the scenes)
    folds: Annotated[int, Field(ge=2)]  # without such labels: cross-validation on the val split


class Evaluate(Section):
    """Pictures that an evaluation draws."""

    panels: Count


class Report(Section):
    """What the report shows."""

    images: Positive


class Parameters(Section):
    """The whole of `params.yaml`."""

    seed: Count
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
    max_batch_per_device: Positive | None  # images of a domain at a time; more accumulate gradients
    compile: bool  # the networks that are trained, by torch.compile
    rounds: dict[Name, Round]
    evaluated: list[Name]
    source: Annotated[Source, Field(discriminator="layout")]
    target: Annotated[Target, Field(discriminator="layout")]
    network: Network
    pretrain: Pretrain
    warmup: Warmup
    extract: Extract
    anchors: Anchors
    pseudo_label: PseudoLabel
    adapt: Adapt
    evaluate: Evaluate
    report: Report
    oracle: Oracle


def load_params(*sections: str, path: str | Path = "params.yaml") -> SimpleNamespace:
    """Read and validate the named sections of a parameter file.

    Args:
        *sections: Names of top-level keys; a stage asks for those it declares and sees no other.
        path: The YAML file.

    Returns:
        A namespace with one attribute per section: a number, a dict or a frozen pydantic model.

    Raises:
        UserError: The file cannot be read, or a key is missing, unknown, mistyped or impossible.
    """
    raw = _read_yaml(Path(path))
    known = Parameters.model_fields
    for key in raw:
        if key not in known:
            raise UserError(f"{path}: unknown key '{key}'; known are {', '.join(known)}")
    values = {}
    for name in sections:
        if name not in raw:
            raise UserError(f"{path}: '{name}' is missing; presets/ holds complete files")
        adapter = TypeAdapter(Annotated[known[name].annotation, *known[name].metadata, known[name]])
        try:
            # Through JSON's rules a YAML list is a tuple; other types stay strict.
            values[name] = adapter.validate_python(_tuples(raw[name]), strict=None)
        except ValidationError as error:
            raise UserError(f"{path}: {_explain(name, error)}") from None
    return SimpleNamespace(**values)


def load_all(path: str | Path = "params.yaml") -> SimpleNamespace:
    """Read and validate every section, and what sections must agree on.

    Raises:
        UserError: As `load_params`, or a round refers to a model or round that comes later or not.
    """
    params = load_params(*Parameters.model_fields, path=path)
    models, rounds = ["pretrain", "warmup"], []
    for name, entry in params.rounds.items():
        if name in models:
            raise UserError(f"{path}: rounds.{name}: another model has this name; choose another")
        rounds.append(name)
        _refer(path, f"rounds.{name}.teacher", entry.teacher, models)
        _refer(path, f"rounds.{name}.anchors", entry.anchors, rounds)
        models.append(name)
    for index, name in enumerate(params.evaluated):
        _refer(path, f"evaluated.{index}", name, models)
        if name in params.evaluated[:index]:
            raise UserError(f"{path}: evaluated.{index} is '{name}' a second time; remove it")
    if params.evaluated and not params.target.has_validation:
        key = "labels" if params.target.layout == "cityscapes" else "val_images"
        raise UserError(f"{path}: target.{key} is null, so `evaluated` must be []")
    return params


def _refer(path: str | Path, key: str, found: str, known: list[str]) -> None:
    if found not in known:
        raise UserError(f"{path}: {key} is '{found}'; at this point there are {', '.join(known)}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `cag preset scenes` writes one") from None
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, no such date
        raise UserError(f"{path}: not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds no mapping; presets/ holds complete files")
    return raw


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _explain(section: str, error: ValidationError) -> str:
    first = error.errors()[0]
    kind, found = first["type"], first["input"]
    # A domain's location starts with its layout, that of a mapping's bad key ends with "[key]".
    parts = first["loc"][1:] if section in ("source", "target") else first["loc"]
    key = ".".join([section, *(str(part) for part in parts if part != "[key]")])
    if kind == "union_tag_not_found":
        return f"'{key}.layout' is missing"
    if kind == "union_tag_invalid":
        expected = first["ctx"]["expected_tags"]
        return f"{key}.layout is {first['ctx']['tag']!r}: expected one of {expected}"
    if kind == "extra_forbidden":
        return f"unknown key '{key}'; check its spelling"
    if kind == "missing":
        return f"'{key}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    message = f"{message[0].lower()}{message[1:]}"
    if isinstance(found, dict):
        return f"{key}: {message}"
    text_for_number = kind == "float_type" and isinstance(found, str)
    hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if text_for_number else ""
    return f"{key} is {list(found) if isinstance(found, tuple) else found!r}: {message}{hint}"
