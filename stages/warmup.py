"""Align the pretrained model's output on the target with its output on the source.

0 iterations pass the pretrained model on as it is; a model that is given takes its place.
"""

from pathlib import Path

import click

from cag.adversarial import AdversarialObjective
from cag.config.base import load_params
from cag.config.training import Run
from cag.config.warmup import Warmup
from cag.datasets.prepared import read_label_space
from cag.networks import load_model
from cag.runtime.files import existing, model_weights_file
from cag.runtime.program import run_stage
from cag.training.fit import Fit, pass_on
from cag.training.samples import labelled_samples, unlabelled_samples

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
PRETRAINED = Path("data/models/pretrain.safetensors")
LISTED = Path("data/index/warmup.csv")  # the digest of the given model
MODEL, CURVE = Path("data/models/warmup.safetensors"), Path("data/curves/warmup.csv")
CHECKPOINT = Path(".scratch/warmup/checkpoint.pt")


class Params(Run):
    """The declared parameters."""

    warmup: Warmup


@click.command(help=__doc__)
def main() -> None:
    """Write `data/models/warmup.safetensors` and its learning curve."""
    params, classes = load_params(Params), read_label_space(SOURCE)
    config = params.warmup
    existing(LISTED)
    path = PRETRAINED if config.weights is None else model_weights_file(config.weights)
    network, network_config, _ = load_model(path, classes)
    if config.weights is not None or config.iterations == 0:
        pass_on(path, MODEL, CURVE)
        return
    fit = Fit("warmup", params, config, b"warmup", CHECKPOINT)
    source = fit.samples(labelled_samples(SOURCE), 0)
    target = fit.samples(unlabelled_samples(TARGET), 1)
    weights = fit.class_weights(source, classes.num_classes)
    objective = AdversarialObjective(network, config, weights)
    curve = fit.train(objective, [source, target], [SOURCE, TARGET, PRETRAINED])
    fit.save(MODEL, objective.kept, network_config, classes, TARGET)
    fit.finish(CURVE, curve)


if __name__ == "__main__":
    run_stage(main)
