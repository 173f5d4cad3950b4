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
from cag.training.samples import unlabelled_samples

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
PRETRAINED, LISTED = Path("data/models/pretrain.safetensors"), Path("data/index/warmup.csv")
MODEL, CURVE = Path("data/models/warmup.safetensors"), Path("data/curves/warmup.csv")


class Params(Run):
    """The declared parameters."""

    warmup: Warmup


@click.command(help=__doc__)
def main() -> None:
    """Write `data/models/warmup.safetensors` and its learning curve."""
    params, classes, _ = load_params(Params), read_label_space(SOURCE), existing(LISTED)
    config = params.warmup
    path = PRETRAINED if config.weights is None else model_weights_file(config.weights)
    model = load_model(path, classes)
    if config.weights is not None or config.iterations == 0:
        return pass_on(path, MODEL, CURVE)
    fit = Fit("warmup", params, config, b"warmup")
    source, weights = fit.source(SOURCE, classes.num_classes)
    target = fit.samples(unlabelled_samples(TARGET))
    objective = AdversarialObjective(model.network, config, weights)
    curve = fit.train(objective, [source, target], [SOURCE, TARGET, PRETRAINED])
    fit.save(MODEL, model._replace(network=objective.kept), TARGET, CURVE, curve)


if __name__ == "__main__":
    run_stage(main)
