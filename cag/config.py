"""Parameters: what `params.yaml` may hold, with types, ranges and units, and its one loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
BatchNorm = Literal["mixed", "target", "frozen"]
PAPER, RELEASED, ADAPTSEGNET, OURS = "paper", "released code", "AdaptSegNet", "ours"
LAYOUT = "the form of the raw data"
CLASS_MAP = "the YAML file that translates label values to classes"
PREPARED_SIZE = "height and width of the prepared images; null keeps each image's own"
BATCH_NORM = (
    "whose batch-norm statistics the network keeps: `mixed`, those of both domains (the paper); "
    "`target`, the target's alone; `frozen`, the ones it has"
)
RULES = ("anchor", "probability")  # of pseudo-labels, in the order of their maps
DISCRIMINATOR_MINIMUM = 32  # pixels, of which five halvings leave one


class Section(BaseModel):
    """A section of `params.yaml`: every key is required, none may be added, no type is coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def about(meaning: str, unit: str | None = None, source: str = OURS) -> Any:
    """What the documentation says of a parameter; its type and range are those of the annotation.

    Args:
        meaning: What it does, as the end of "this parameter is ...".
        unit: Of its numbers; None for what has none.
        source: Where the parameter comes from.
    """
    return Field(description=meaning, json_schema_extra={"unit": unit, "source": source})


class Round(Section):
    """One pass of the stagewise training (the paper's "stage")."""

    teacher: Name = about(
        "the model that labels the target and that the student starts from: `pretrain`, `warmup` "
        "or an earlier round",
        source=PAPER,
    )
    anchors: Name = about(
        "the round whose source features give the anchors: itself for fresh ones, an earlier round "
        "to keep that round's, as the released training keeps one file",
        source=RELEASED,
    )


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
    val_images: str | None = about("the folder of the validation images; null: there are none")
    val_labels: str | None = about("the folder of their label maps; null with `val_images` alone")
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


Source = FolderSource | GameSource | CityscapesSource | ScenesSource
Target = FolderTarget | CityscapesTarget | ScenesTarget


class Normalization(Section):
    """Mean and standard deviation of the red, green and blue inputs, in units of [0, 1]."""

    mean: tuple[float, float, float] = about(
        "what is subtracted from red, green and blue", "of inputs in [0, 1]", RELEASED
    )
    std: tuple[float, float, float] = about(
        "what red, green and blue are then divided by; above 0", "of inputs in [0, 1]", RELEASED
    )

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError("each standard deviation must be above 0")
        return std


class Network(Section):
    """A network of segmentation_models_pytorch, or the paper's, on one of its encoders."""

    architecture: str = about(
        "`DeepLabV3PlusPaper`, or a network of segmentation_models_pytorch, e.g. `DeepLabV3Plus`, "
        "`FPN`, `Unet`",
        source=PAPER,
    )
    encoder: str = about("its encoder, e.g. `resnet18`, `mobilenet_v2`, `resnet101`", source=PAPER)
    encoder_weights: str | None = about(
        "the encoder's weights at the start: a name such as `imagenet`, a `.safetensors` file "
        "below `$CAG_WEIGHTS`, or null for random ones",
        source=PAPER,
    )
    options: dict[str, Any] = about("further arguments of the architecture: `decoder_channels`")
    normalization: Normalization = about("how inputs are normalised", source=RELEASED)


class Photometric(Section):
    """Random changes of brightness and colour; 0 switches a change off."""

    brightness: Annotated[float, Field(ge=0)] = about(
        "how far a random factor on the brightness may be from 1, never below 0", "factor"
    )
    contrast: Annotated[float, Field(ge=0)] = about("likewise for the contrast", "factor")
    saturation: Annotated[float, Field(ge=0)] = about("likewise for the saturation", "factor")
    hue: Annotated[float, Field(ge=0, le=0.5)] = about(
        "the largest random shift of the hue, either way round", "turns"
    )
    gamma: Annotated[float, Field(ge=0, lt=5)] = about(
        "how far the base-2 logarithm of a random exponent of the intensities may be from 0",
        "octaves",
    )


class Augmentation(Section):
    """Random scale, crop, flip and photometric change of a training image."""

    scale: tuple[float, float] = about(
        "the range of a random factor on the prepared size: low, high", "factor", RELEASED
    )
    crop: Pixels = about(
        "height and width of the random crop; a larger step sees more of the scene and costs more",
        "pixels",
        RELEASED,
    )
    flip: Fraction = about("the probability that an image is mirrored", "probability", RELEASED)
    photometric: Photometric | None = about(
        "random changes of brightness and colour; null: none (the paper)"
    )

    @field_validator("scale")
    @classmethod
    def _range(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError("must be [low, high] with 0 < low <= high")
        return scale


class Training(Section):
    """What every training has in common."""

    iterations: Positive = about("the number of steps", "steps", RELEASED)
    batch_size: Positive = about(
        "the images of each domain in a step, over all processes", "images", RELEASED
    )
    optimizer: Literal["sgd", "adamw"] = about("the optimizer; the paper: sgd", source=PAPER)
    learning_rate: Annotated[float, Field(gt=0)] = about(
        "the learning rate at the first step", source=RELEASED
    )
    power: Annotated[float, Field(ge=0)] = about(
        "the exponent of the polynomial decay to 0; 0: no decay", source=RELEASED
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = about(
        "the momentum of sgd, beta 1 of adamw", source=RELEASED
    )
    weight_decay: Annotated[float, Field(ge=0)] = about(
        "the weight decay: added to the gradient by sgd, decoupled from it by adamw",
        source=RELEASED,
    )
    class_balance: Fraction = about(
        "the power with which rare source classes count more in the cross-entropy, (median "
        "frequency / frequency) ^ power; 0: plain (the paper)"
    )
    augmentation: Augmentation = about("how training images are changed at random", source=RELEASED)


class Pretrain(Training):
    """Cross-entropy on the source alone."""


class Warmup(Training):
    """Alignment before the first round; 0 iterations pass the pretrained model through."""

    weights: str | None = about(
        "a model file below `$CAG_WEIGHTS` that is used instead of training one; null: train",
        source=RELEASED,
    )
    iterations: Count = about(
        "the number of steps; 0 passes the pretrained model through", "steps", ADAPTSEGNET
    )
    objective: Literal["vanilla", "least_squares"] = about(
        "the discriminator's: binary cross-entropy, or squared distance to 0 and 1",
        source=ADAPTSEGNET,
    )
    adversarial_weight: Annotated[float, Field(ge=0)] = about(
        "the weight of the loss that makes the target's output look like the source's; 0: training "
        "on the source, with the target's batch-norm statistics",
        source=ADAPTSEGNET,
    )
    discriminator_learning_rate: Annotated[float, Field(gt=0)] = about(
        "the discriminator's learning rate at the first step; `power` is the network's",
        source=ADAPTSEGNET,
    )
    batch_norm: BatchNorm = about(BATCH_NORM)

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

    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=4)], ...], Field(min_length=1)] = about(
        "the factors on the image's size", "factor"
    )
    gammas: Annotated[tuple[Annotated[float, Field(gt=0, le=5)], ...], Field(min_length=1)] = about(
        "the powers that intensities in [0, 1] are raised to; below 1: lighter", "exponent"
    )
    flip: bool = about("whether each of them is also seen mirrored")


class Extract(Section):
    """Features of both domains by the round's teacher."""

    batch_size: Positive = about(
        "the images in a forward pass; changes speed and memory, not the features", "images"
    )
    target_views: Views = about(
        "the views of a target image whose outputs are averaged; one plain view: the paper"
    )
    samples_per_class: Count = about(
        "the single-pixel source features of each class that are kept for plots", "pixels"
    )


class Anchors(Section):
    """Class centroids of the source features."""

    average: Literal["images", "pixels"] = about(
        "what an anchor is a mean over: the images' class means (released code), or all pixels of "
        "the class (paper)",
        source=f"{PAPER}; {RELEASED}",
    )
    min_pixels: Positive = about(
        "the correctly predicted pixels that a class needs in an image to count; also in the "
        "distance loss",
        "feature pixels",
        RELEASED,
    )
    min_recall: Fraction = about(
        "the share of its source pixels that the teacher must find, or a class has no anchor; 0: "
        "every class seen has one (the paper)",
        "share",
    )


class PseudoLabel(Section):
    """Thresholds of the two rules; an active pixel passes each of the first three that is given."""

    margin: Annotated[float, Field(ge=0)] | None = about(
        "the least d2 - d1 of an active pixel, where d1 and d2 are the distances to the nearest "
        "and the second nearest anchor; null: not asked",
        "units of the features",
        PAPER,
    )
    relative_margin: Fraction | None = about(
        "the least (d2 - d1) / (d2 + d1) of an active pixel; null: not asked"
    )
    quantile: Annotated[float, Field(gt=0, le=1)] | None = about(
        "the share of each class's pixels, those of the largest relative margin, that is active; "
        "null: not asked",
        "share",
    )
    agreement: bool = about(
        "whether an active pixel's class must also be the one that the teacher predicts"
    )
    probability: Fraction = about(
        "the probability that the probability rule asks for: more than this",
        "probability",
        RELEASED,
    )

    @model_validator(mode="after")
    def _any(self) -> PseudoLabel:
        if self.margin is None and self.relative_margin is None and self.quantile is None:
            raise ValueError("one of margin, relative_margin and quantile must be a number")
        return self


class Adapt(Training):
    """Training of a round's student."""

    class_mix: Fraction = about(
        "the probability that half of a source image's classes are pasted on a target image, with "
        "their labels",
        "probability",
        "ClassMix, DACS",
    )
    target_labels: Literal["both", "anchor", "probability"] = about(
        "the pseudo-labels of the target's cross-entropy: half of each rule's (released code), or "
        "one rule's alone (`anchor`: paper)",
        source=f"{PAPER}; {RELEASED}",
    )
    distance_weight: Annotated[float, Field(ge=0)] = about(
        "the weight lambda of the distance losses; 0: none", source=PAPER
    )
    distance_kind: Literal["class_mean", "pixel"] = about(
        "what is drawn to an anchor: the mean feature of a class in an image (released code), or "
        "each pixel's (paper)",
        source=f"{PAPER}; {RELEASED}",
    )
    batch_norm: BatchNorm = about(BATCH_NORM)


class Oracle(Section):
    """The target-supervised comparison, a separate command."""

    labels: str | None = about(
        "the folder of the target training images' labels, below the target's folder; null: "
        "cross-validation over the labelled validation images (the scenes render what it needs)"
    )
    folds: Annotated[int, Field(ge=2)] = about("the parts of that cross-validation", "parts")


class Evaluate(Section):
    """Pictures that an evaluation draws."""

    panels: Count = about("the validation images in `panels.png`", "images")


class Report(Section):
    """What the report shows."""

    images: Positive = about("the images of each kind that the report shows", "images")


class Parameters(Section):
    """The whole of `params.yaml`."""

    seed: Count = about("the number that all random draws follow from")
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = about(
        "the numbers of the forward pass; `auto`: bf16-mixed on a GPU that has it, else 32-true"
    )
    max_batch_per_device: Positive | None = about(
        "the images of a domain that a device takes at a time; what is more follows in equal "
        "pieces whose gradients are averaged; null: all of its share",
        "images",
    )
    compile: bool = about("whether the networks that are trained go through `torch.compile`")
    rounds: dict[Name, Round] = about("the rounds, by name, in their order", source=PAPER)
    evaluated: list[Name] = about(
        "the models that are scored; [] where no labelled validation image is there"
    )
    source: Annotated[Source, Field(discriminator="layout")] = about("the labelled domain")
    target: Annotated[Target, Field(discriminator="layout")] = about("the unlabelled domain")
    network: Network = about("the network of all models", source=PAPER)
    pretrain: Pretrain = about("the training on the source alone", source=PAPER)
    warmup: Warmup = about("the alignment before the first round", source=ADAPTSEGNET)
    extract: Extract = about("the features of a round")
    anchors: Anchors = about("the anchors of a round", source=PAPER)
    pseudo_label: PseudoLabel = about("the thresholds of the two rules", source=PAPER)
    adapt: Adapt = about("the training of a round's student", source=PAPER)
    evaluate: Evaluate = about("the evaluation's pictures")
    report: Report = about("the report")
    oracle: Oracle = about("the comparison with true target labels, no part of the pipeline")


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


def plain(params: SimpleNamespace) -> dict[str, Any]:
    """Parameters as nested mappings of plain values."""

    def values(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return value.model_dump()
        if isinstance(value, dict):
            return {key: values(item) for key, item in value.items()}
        return value

    return values(vars(params))


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of nested mappings with its path in dots; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
