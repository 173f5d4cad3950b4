"""The oracle: the network when it may train on the target's true labels, for comparison."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cag.config.adaptation import Adapt
from cag.config.base import Name
from cag.config.datasets import Target
from cag.config.evaluation import Oracle
from cag.config.parameters import Round
from cag.config.training import Pretrain, Run
from cag.datasets.labels import LabelSpace, read_class_map
from cag.datasets.layouts import Split, list_split, splits
from cag.datasets.preparation import prepare_split, write_manifest
from cag.datasets.prepared import PreparedImages
from cag.evaluation import BATCH_SIZE, predict_labelled
from cag.networks import load_model
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_folder, data_root, inside
from cag.runtime.progress import progress
from cag.training.fit import Fit
from cag.training.objectives import SupervisedObjective
from cag.training.samples import Sample, labelled_samples

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL = Path("data/models/pretrain.safetensors")
LABELLED = Path(".scratch/oracle/labelled")
WITHOUT = "`cag results --no-oracle` leaves the oracle out"


class OracleParams(Run):
    """The parameters that the oracle reads."""

    rounds: dict[Name, Round]
    target: Target
    pretrain: Pretrain
    adapt: Adapt
    oracle: Oracle

    @property
    def training_has_labels(self) -> bool:
        """Whether the target's training images have labels; else validation images stand in."""
        return self.target.layout == "scenes" or self.oracle.labels is not None

    @property
    def schedule(self) -> Pretrain:
        """As many steps as the rounds together, with the pretraining's optimizer."""
        iterations = self.adapt.iterations * len(self.rounds)
        changes = {"iterations": iterations, "batch_size": self.adapt.batch_size}
        return self.pretrain.model_copy(update=changes)


def labelled_split(params: OracleParams) -> Split:
    """The target's images with labels that are trained on; UserError: there are none."""
    train, *validation = splits("target", params.target)
    if params.target.layout == "scenes":
        return replace(train, labels="train/labels")
    if params.oracle.labels is not None:
        return replace(train, labels=params.oracle.labels)
    if validation:
        return validation[0]
    hint = f"set oracle.labels, or give the target labelled validation images; {WITHOUT}"
    raise UserError(f"oracle: the target has no labels: {hint}")


def require_labels(params: OracleParams) -> None:
    """Raise a UserError if raw labels that the oracle needs are missing; opens no file.

    So `cag results` says it before it trains, and not after all its seeds.
    """
    split = labelled_split(params)
    if params.target.layout != "scenes":
        try:
            list_split(inside(data_root(), params.target.folder), split)
        except UserError as error:
            raise UserError(f"oracle: {error}; {WITHOUT}") from None


def prepare_labelled(params: OracleParams, raw: Path) -> None:
    """Prepare the images of `labelled_split` in the scratch folder, labels at the images' size."""
    class_map = read_class_map(Path(params.target.class_map))
    with atomic_folder(LABELLED) as out:
        items = list_split(raw, labelled_split(params))
        with progress("prepare labelled target", len(items), "images") as advance:
            options = (class_map, params.target.size)
            rows = prepare_split(items, raw, out, "train", *options, on_item=advance)
        write_manifest(out, rows, class_map.label_space)


def fold_members(count: int, params: OracleParams) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training, validation) indices of each fold, of `count` images to train on.

    If the training images have labels, one fold holds both sets. Otherwise a network trained on the
    other parts predicts each part of the validation images. The parts are contiguous, so that few
    neighbouring frames of a drive are on both sides.
    """
    validation = np.arange(len(PreparedImages(TARGET, "val", with_labels=True)))
    if params.training_has_labels:
        return [(np.arange(count), validation)]
    parts = np.array_split(validation, params.oracle.folds)
    return [(np.setdiff1d(validation, part), part) for part in parts]


def run_folds(params: OracleParams, classes: LabelSpace) -> tuple[Tensor, int]:
    """Train and score each fold; the confusion matrix int64 [K, K] and the number of images."""
    members = labelled_samples(LABELLED)
    confusion = torch.zeros(classes.num_classes, classes.num_classes, dtype=torch.int64)
    scored = 0
    for fold, (training, validation) in enumerate(fold_members(len(members), params)):
        confusion += _run_fold(fold, [members[i] for i in training], validation, params, classes)
        scored += len(validation)
    return confusion, scored


def _run_fold(
    fold: int,
    members: list[Sample],
    validation: np.ndarray,
    params: OracleParams,
    classes: LabelSpace,
) -> Tensor:
    network = load_model(MODEL, classes).network
    fit = Fit(f"oracle fold {fold + 1}", params, params.schedule, [3, fold])
    source, weights = fit.source(SOURCE, classes.num_classes)
    target = fit.samples(members)
    objective = SupervisedObjective(network, weights, ("source", "target"))
    names = [sample.image.name for sample in members]
    fit.train(objective, [source, target], [SOURCE, LABELLED, MODEL], members=names)
    images = PreparedImages(TARGET, "val", with_labels=True)
    batches = images.batches(BATCH_SIZE, validation.tolist())
    with progress("evaluate", len(validation), "images") as advance:
        return predict_labelled(network.eval(), images, batches, fit.fabric, advance)


def clean_up() -> None:
    """Remove the resume states and the prepared images, once the scores are on the disk."""
    for folder in (LABELLED, *Path(".scratch").glob("oracle-fold-*")):
        shutil.rmtree(folder)
