"""Train the network on the labelled source alone: the baseline and the first teacher."""

from pathlib import Path

import click

from cag.config import load_params
from cag.datasets import common_size, read_label_space, read_manifest
from cag.datasets import fingerprint as data_fingerprint
from cag.devices import best_precision, make_fabric
from cag.errors import UserError
from cag.files import fingerprint, sha256, write_csv
from cag.networks import build, save_model
from cag.samples import TrainingSamples, labelled_samples
from cag.seeds import mix
from cag.stage import progress, run_stage
from cag.training import (
    Checkpoint,
    SupervisedObjective,
    shared_batches,
    source_class_weights,
    train,
)

SECTIONS = ("seed", "precision", "max_batch_per_device", "compile", "network", "pretrain")
SOURCE = Path("data/prepared/source")
WEIGHTS = Path("data/index/weights.csv")
MODEL, CURVE = Path("data/models/pretrain.safetensors"), Path("data/curves/pretrain.csv")
CHECKPOINT = Path(".scratch/pretrain/checkpoint.pt")


@click.command(help=__doc__)
def main() -> None:
    """Write `data/models/pretrain.safetensors` and its learning curve."""
    params = load_params(*SECTIONS)
    config, seed = params.pretrain, mix(params.seed, 0)
    classes = read_label_space(SOURCE)
    if not WEIGHTS.is_file():
        raise UserError(f"{WEIGHTS}: no such file; `dvc repro` makes it")
    fabric = make_fabric(params.precision)
    fabric.seed_everything(seed % 2**32, verbose=False)
    network = build(params.network, classes.num_classes, pretrained=True)
    samples = labelled_samples(SOURCE)
    source = TrainingSamples(samples, config.augmentation, mix(seed, 1))
    checkpoint = Checkpoint(
        CHECKPOINT,
        fingerprint(
            seed=params.seed,
            precision=best_precision(params.precision),
            max_batch_per_device=params.max_batch_per_device,
            network=params.network.model_dump(),
            pretrain=config.model_dump(),
            inputs=[data_fingerprint(SOURCE), sha256(WEIGHTS)],
            processes=fabric.world_size,
        ),
    )

    with progress("pretrain", config.iterations, "iterations", config.batch_size) as advance:
        weights = source_class_weights(samples, classes.num_classes, config)
        objective = SupervisedObjective(network, weights)
        curve = train(
            objective,
            shared_batches([source], config.batch_size, fabric),
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
        save_model(MODEL, network, params.network, classes, common_size(read_manifest(SOURCE)))
        checkpoint.delete()


if __name__ == "__main__":
    run_stage(main)
