"""The contents of the report page, as tables and arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from cag.config.pseudo_labels import PseudoLabel
from cag.datasets.labels import LabelSpace
from cag.pseudo_labels import Pixels
from cag.report.tables import baseline_of


@dataclass(frozen=True)
class Evaluation:
    """The results of `evaluate` for a model."""

    # miou, pixel_accuracy, mean_accuracy: 0..1; images; iou: class -> 0..1, or None if in no map
    metrics: Mapping
    confusion: np.ndarray  # [K, K] pixel counts, rows = truth


@dataclass(frozen=True)
class Features:
    """A round's anchors, and features of single pixels of both domains, balanced by class."""

    anchors: np.ndarray  # float32 [K, D], a row of NaN for a class without an anchor
    source: np.ndarray  # float [M, D]
    source_labels: np.ndarray  # uint8 [M], true classes
    target: np.ndarray  # float [N, D]
    target_labels: np.ndarray  # uint8 [N], predicted classes


@dataclass(frozen=True)
class Round:
    """A round's tables and its feature space."""

    teacher: str  # made the pseudo-labels
    anchor_teacher: str  # gave the source features whose means are the anchors
    coverage: pd.DataFrame  # class, nearest, anchor, probability, agree: pixel counts
    anchors: pd.DataFrame  # class, images, pixels, recall, norm, nearest_anchor, distance
    # quantile -> float32 [K], each class's least relative margin; empty: not known
    class_thresholds: Mapping[float, np.ndarray] = field(default_factory=dict)
    features: Features | None = None


@dataclass(frozen=True)
class Maps:
    """The inputs of both rules for an image, at the features' size."""

    nearest: np.ndarray  # uint8 [h, w], class of the nearest anchor
    nearest_distance: np.ndarray  # float32 [h, w], d1
    second_distance: np.ndarray  # float32 [h, w], d2
    prediction: np.ndarray  # uint8 [h, w]
    probability: np.ndarray  # float32 [h, w], of the predicted class
    truth: np.ndarray | None = None  # uint8 [h, w] train ids, 255 = ignore

    def pixels(self, step: int = 1) -> Pixels:
        """Every `step`th row and column, for the rules."""
        maps = (getattr(self, name)[::step, ::step] for name in Pixels._fields)
        return Pixels(*(torch.from_numpy(pixel_map.copy()) for pixel_map in maps))


@dataclass(frozen=True)
class TrainingSample:
    """A target training image with the rounds' pseudo-labels."""

    name: str
    image: np.ndarray  # uint8 [H, W, 3]
    pseudo_labels: Mapping[str, tuple[np.ndarray, np.ndarray]]  # round -> anchor, probability
    maps: Mapping[str, Maps] = field(default_factory=dict)  # round -> maps


@dataclass(frozen=True)
class LabelledSample:
    """A labelled target validation image with the rounds' maps, from which the rules label it."""

    name: str
    image: np.ndarray  # uint8 [H, W, 3]
    maps: Mapping[str, Maps]  # round -> maps, with their truth


@dataclass(frozen=True)
class ValidationSample:
    """A labelled target image with the predictions of the models that the page compares."""

    name: str
    image: np.ndarray  # uint8 [H, W, 3]
    before: np.ndarray  # uint8 [H, W] train ids
    after: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Run:
    """The contents of the whole page."""

    label_space: LabelSpace
    summary: Mapping[str, str]  # parameter -> value, as text
    evaluations: Mapping[str, Evaluation]  # by model, in the order of training
    rounds: Mapping[str, Round]
    rules: PseudoLabel  # the configured thresholds
    curves: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    watched: Mapping[str, Mapping] = field(default_factory=dict)  # model -> its measures
    verdicts: Mapping[str, Mapping] = field(default_factory=dict)  # round -> what it kept and why
    training: Sequence[TrainingSample] = ()
    labelled: Sequence[LabelledSample] = ()
    validation: Sequence[ValidationSample] = ()
    parameters: Mapping = field(default_factory=dict)  # of params.yaml, nested
    fingerprints: Sequence[tuple[str, str]] = ()  # file, checksum
    locations: Sequence[tuple[str, str]] = ()  # artifact, path

    @property
    def scores(self) -> dict[str, Mapping]:
        """Model -> its metrics."""
        return {model: evaluation.metrics for model, evaluation in self.evaluations.items()}

    @property
    def compared(self) -> tuple[str, str]:
        """The two models that the page compares: the source-only one and the last."""
        return baseline_of(list(self.evaluations)), list(self.evaluations)[-1]
