"""Train a round's student on source labels, target pseudo-labels and the anchors."""

from pathlib import Path

import click

from cag.adaptation import AdaptationObjective
from cag.anchors import read_anchors
from cag.config.adaptation import Adapt
from cag.config.anchors import Anchors
from cag.config.base import load_params
from cag.config.training import Run
from cag.datasets.prepared import common_size, read_label_space, read_manifest
from cag.datasets.prepared import fingerprint as data_fingerprint
from cag.networks import load_model, save_model
from cag.runtime.devices import best_precision, make_fabric
from cag.runtime.files import fingerprint, sha256, write_csv
from cag.runtime.program import run_stage
from cag.runtime.progress import progress
from cag.runtime.seeds import mix
from cag.training.loop import Checkpoint, shared_batches, train
from cag.training.objectives import source_class_weights
from cag.training.samples import TrainingSamples, labelled_samples, pseudo_labelled_samples

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL, CURVE = "data/models/{}.safetensors", "data/curves/{}.csv"
ROUND = "data/rounds/{}"
CHECKPOINT = ".scratch/adapt-{}/checkpoint.pt"


class Params(Run):
    """The declared parameters."""

    anchors: Anchors
    adapt: Adapt


@click.command(help=__doc__)
@click.argument("round_name")
@click.argument("teacher")
def main(round_name: str, teacher: str) -> None:
    """Write the student `data/models/<round>.safetensors` of TEACHER, and its learning curve."""
    params = load_params(Params)
    config, folder = params.adapt, Path(ROUND.format(round_name))
    classes = read_label_space(SOURCE)
    teacher_path = Path(MODEL.format(teacher))
    network, network_config, *_ = load_model(teacher_path, classes)
    anchors = read_anchors(folder / "anchors.npy", classes.num_classes, network.width)
    fabric = make_fabric(params.precision)
    seed = mix(params.seed, *round_name.encode())
    domains = [
        TrainingSamples(samples, config.augmentation, mix(seed, domain))
        for domain, samples in enumerate(
            (labelled_samples(SOURCE), pseudo_labelled_samples(TARGET, folder / "pseudo_labels"))
        )
    ]
    checkpoint = Checkpoint(
        Path(CHECKPOINT.format(round_name)),
        fingerprint(
            seed=params.seed,
            precision=best_precision(params.precision),
            max_batch_per_device=params.max_batch_per_device,
            min_pixels=params.anchors.min_pixels,
            adapt=config.model_dump(),
            inputs=[data_fingerprint(SOURCE), data_fingerprint(TARGET)],
            files=[sha256(path) for path in (teacher_path, folder / "anchors.npy")],
            pseudo_labels=[sha256(p) for s in domains[1].samples for p in s.labels],
            processes=fabric.world_size,
        ),
    )

    weights = source_class_weights(domains[0].samples, classes.num_classes, config)
    objective = AdaptationObjective(network, anchors, config, params.anchors.min_pixels, weights)
    with progress(
        f"adapt {round_name}", config.iterations, "iterations", 2 * config.batch_size
    ) as advance:
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
        write_csv(Path(CURVE.format(round_name)), curve)
        size = common_size(read_manifest(TARGET).query("split == 'train'"))
        save_model(Path(MODEL.format(round_name)), network, network_config, classes, size)
        checkpoint.delete()


if __name__ == "__main__":
    run_stage(main)
