"""Train with the target's true labels, for comparison: what an adaptation could hope for.

The only program that opens labels of target training images. It starts from the pretrained model
and takes as many steps as the rounds together, with the pretraining's optimizer.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from cag import metrics
from cag.config.adaptation import Adapt
from cag.config.base import Name, load_params
from cag.config.datasets import Target
from cag.config.evaluation import Oracle
from cag.config.parameters import Round
from cag.config.training import Pretrain, Run
from cag.datasets.labels import read_class_map
from cag.datasets.layouts import list_split, splits
from cag.datasets.preparation import prepare_split, write_manifest
from cag.datasets.prepared import PreparedImages, read_label_space, read_shared_label_space
from cag.datasets.prepared import fingerprint as data_fingerprint
from cag.evaluation import BATCH_SIZE, predict_labelled, write_scores
from cag.networks import SegmentationNetwork, load_model
from cag.runtime.devices import best_precision, make_fabric
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_folder, fingerprint, sha256
from cag.runtime.program import run_stage
from cag.runtime.progress import progress
from cag.runtime.seeds import mix
from cag.training.loop import Checkpoint, shared_batches, train
from cag.training.objectives import SupervisedObjective, source_class_weights
from cag.training.samples import Sample, TrainingSamples, labelled_samples
from stages.prepare import raw_folder

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL = Path("data/models/pretrain.safetensors")
LABELLED = Path(".scratch/oracle/labelled")
CHECKPOINT = ".scratch/oracle/checkpoint-{}.pt"
OUT = Path("data/oracle")


class Params(Run):
    """The declared parameters."""

    rounds: dict[Name, Round]
    target: Target
    pretrain: Pretrain
    adapt: Adapt
    oracle: Oracle


def prepare_labelled(params: Params) -> None:
    """Prepare the labelled target images that are trained on, label maps at the images' size."""
    config, labels = params.target, params.oracle.labels
    train, *validation = splits("target", config)
    if config.layout == "scenes":
        split = replace(train, labels="train/labels")
    elif labels is not None:
        split = replace(train, labels=labels)
    elif validation:
        split = validation[0]
    else:
        raise UserError(
            "oracle: the target has no labels: set oracle.labels, or give the target labelled "
            "validation images"
        )
    class_map = read_class_map(Path(config.class_map))
    with (
        raw_folder("target", config, oracle=True) as raw,
        atomic_folder(LABELLED) as out,
    ):
        items = list_split(raw, split)
        with progress("prepare labelled target", len(items), "images") as advance:
            rows = prepare_split(items, raw, out, "train", class_map, config.size, on_item=advance)
        write_manifest(out, rows, class_map.label_space)


def fold_members(count: int, params: Params) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training, validation) indices of each fold.

    Where the training images have labels there is one fold, all of both sets. Otherwise the
    validation images are cut into contiguous parts, so that few neighbouring frames of a drive fall
    on both sides, and each part is predicted by a network trained on the others.
    """
    validation = np.arange(len(PreparedImages(TARGET, "val", with_labels=True)))
    if params.target.layout == "scenes" or params.oracle.labels is not None:
        return [(np.arange(count), validation)]
    parts = np.array_split(validation, params.oracle.folds)
    return [(np.setdiff1d(validation, part), part) for part in parts]


def train_fold(
    fold: int, members: list[Sample], params: Params, fabric: Fabric
) -> tuple[SegmentationNetwork, Checkpoint]:
    """The pretrained network after training on the source and labelled target images."""
    network = load_model(MODEL, read_label_space(SOURCE)).network
    config = params.pretrain.model_copy(
        update={
            "iterations": params.adapt.iterations * len(params.rounds),
            "batch_size": params.adapt.batch_size,
        }
    )
    seed = mix(params.seed, 3, fold)
    domains = [
        TrainingSamples(samples, config.augmentation, mix(seed, i))
        for i, samples in enumerate((labelled_samples(SOURCE), members))
    ]
    checkpoint = Checkpoint(
        Path(CHECKPOINT.format(fold)),
        fingerprint(
            seed=params.seed,
            precision=best_precision(params.precision),
            max_batch_per_device=params.max_batch_per_device,
            config=config.model_dump(),
            inputs=[data_fingerprint(SOURCE), data_fingerprint(LABELLED), sha256(MODEL)],
            members=[sample.image.name for sample in members],
        ),
    )

    weights = source_class_weights(domains[0].samples, network.num_classes, config)
    objective = SupervisedObjective(network, weights, ("source", "target"))
    with progress(f"oracle, fold {fold + 1}", config.iterations, "iterations") as advance:
        train(
            objective,
            shared_batches(domains, config.batch_size, fabric),
            config,
            seed,
            fabric,
            checkpoint,
            advance,
            params.max_batch_per_device,
            params.compile,
        )
    return network.eval(), checkpoint


def score_fold(network: SegmentationNetwork, validation: np.ndarray, fabric: Fabric) -> Tensor:
    """Confusion matrix [K, K] on the given validation images."""
    images = PreparedImages(TARGET, "val", with_labels=True)
    batches = images.batches(BATCH_SIZE, validation.tolist())
    with progress("evaluate", len(validation), "images") as advance:
        return predict_labelled(network, images, batches, fabric, advance)


@click.command(help=__doc__)
def main() -> None:
    """Write `data/oracle/`: metrics and tables."""
    params = load_params(Params)
    classes = read_shared_label_space(SOURCE, TARGET)
    prepare_labelled(params)
    samples = labelled_samples(LABELLED)
    fabric = make_fabric(params.precision)
    confusion = torch.zeros(classes.num_classes, classes.num_classes, dtype=torch.int64)
    checkpoints, scored = [], 0
    for fold, (training, validation) in enumerate(fold_members(len(samples), params)):
        members = [samples[i] for i in training]
        network, checkpoint = train_fold(fold, members, params, fabric)
        checkpoints.append(checkpoint)
        confusion += score_fold(network, validation, fabric)
        scored += len(validation)
    with atomic_folder(OUT) as folder:
        write_scores(folder, confusion, classes, scored)
    for checkpoint in checkpoints:
        checkpoint.delete()
    shutil.rmtree(LABELLED)
    print(f"oracle: mIoU {100 * metrics.mean_iou(confusion):.1f} over {scored} images")


if __name__ == "__main__":
    run_stage(main)
