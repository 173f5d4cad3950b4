"""Align the pretrained model's output on the target with its output on the source.

0 iterations pass it on as it is; a model that is given takes its place.
"""

import shutil
from pathlib import Path

import click
import pandas as pd

from cag.config.base import load_params
from cag.config.training import Run
from cag.config.warmup import Warmup
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_file, fingerprint, model_weights_file, sha256, write_csv
from cag.runtime.program import run_stage
from cag.runtime.progress import is_main_process, progress

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
PRETRAINED = Path("data/models/pretrain.safetensors")
GIVEN = Path("data/index/warmup.csv")
MODEL, CURVE = Path("data/models/warmup.safetensors"), Path("data/curves/warmup.csv")
CHECKPOINT = Path(".scratch/warmup/checkpoint.pt")


class Params(Run):
    """The declared parameters."""

    warmup: Warmup


def given_model(weights: str) -> Path:
    """The file of `warmup.weights`, whose classes are those of the data."""
    from cag.datasets.prepared import read_label_space
    from cag.networks import load_model

    if not GIVEN.is_file():
        raise UserError(f"{GIVEN}: no such file; `dvc repro` makes it")
    path = model_weights_file(weights)
    load_model(path, read_label_space(SOURCE))
    return path


@click.command(help=__doc__)
def main() -> None:
    """Write `data/models/warmup.safetensors` and its learning curve."""
    params = load_params(Params)
    config = params.warmup
    model = PRETRAINED if config.weights is None else given_model(config.weights)
    if not model.is_file():
        raise UserError(f"{model}: no such model; `dvc repro` makes it")
    if config.iterations and config.weights is None:
        align(params)
    elif is_main_process():
        pass_on(model)


def pass_on(model: Path) -> None:
    """Copy a model; the curve has no rows."""
    write_csv(CURVE, pd.DataFrame(columns=["iteration", "loss"]))
    with atomic_file(MODEL) as partial:
        shutil.copyfile(model, partial)


def align(params: Params) -> None:
    """Train the pretrained model against a discriminator; no label of the target is opened."""
    # A copy should not wait for these, which import torch.
    from cag.adversarial import AdversarialObjective
    from cag.datasets.prepared import common_size, read_label_space, read_manifest
    from cag.datasets.prepared import fingerprint as data_fingerprint
    from cag.networks import load_model, save_model
    from cag.runtime.devices import best_precision, make_fabric
    from cag.runtime.seeds import mix
    from cag.training.loop import Checkpoint, shared_batches, train
    from cag.training.objectives import source_class_weights
    from cag.training.samples import TrainingSamples, labelled_samples, unlabelled_samples

    config, seed = params.warmup, mix(params.seed, *b"warmup")
    classes = read_label_space(SOURCE)
    network, network_config, *_ = load_model(PRETRAINED, classes)
    fabric = make_fabric(params.precision)
    fabric.seed_everything(seed % 2**32, verbose=False)
    domains = [
        TrainingSamples(samples, config.augmentation, mix(seed, domain))
        for domain, samples in enumerate((labelled_samples(SOURCE), unlabelled_samples(TARGET)))
    ]
    checkpoint = Checkpoint(
        CHECKPOINT,
        fingerprint(
            seed=params.seed,
            precision=best_precision(params.precision),
            max_batch_per_device=params.max_batch_per_device,
            warmup=config.model_dump(),
            inputs=[data_fingerprint(SOURCE), data_fingerprint(TARGET), sha256(PRETRAINED)],
            processes=fabric.world_size,
        ),
    )

    weights = source_class_weights(domains[0].samples, classes.num_classes, config)
    objective = AdversarialObjective(network, config, weights)
    with progress("warmup", config.iterations, "iterations", 2 * config.batch_size) as advance:
        curve = train(
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
    if fabric.is_global_zero:
        write_csv(CURVE, curve)
        size = common_size(read_manifest(TARGET).query("split == 'train'"))
        save_model(MODEL, network, network_config, classes, size)
        checkpoint.delete()


if __name__ == "__main__":
    run_stage(main)
