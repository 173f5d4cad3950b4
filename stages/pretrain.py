"""Train the network on the labelled source alone: the baseline and the first teacher."""

from pathlib import Path

import click

from cag.config.base import load_params
from cag.config.networks import Network
from cag.config.training import Pretrain, Run
from cag.datasets.prepared import common_size, read_label_space, read_manifest
from cag.datasets.prepared import fingerprint as data_fingerprint
from cag.networks import build, save_model
from cag.runtime.devices import best_precision, make_fabric
from cag.runtime.errors import UserError
from cag.runtime.files import fingerprint, sha256, write_csv
from cag.runtime.program import run_stage
from cag.runtime.progress import progress
from cag.runtime.seeds import mix
from cag.training.loop import Checkpoint, shared_batches, train
from cag.training.objectives import SupervisedObjective, source_class_weights
from cag.training.samples import TrainingSamples, labelled_samples

SOURCE = Path("data/prepared/source")
WEIGHTS = Path("data/index/weights.csv")
MODEL, CURVE = Path("data/models/pretrain.safetensors"), Path("data/curves/pretrain.csv")
CHECKPOINT = Path(".scratch/pretrain/checkpoint.pt")


class Params(Run):
    """The declared parameters."""

    network: Network
    pretrain: Pretrain


@click.command(help=__doc__)
def main() -> None:
    """Write `data/models/pretrain.safetensors` and its learning curve."""
    params = load_params(Params)
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
