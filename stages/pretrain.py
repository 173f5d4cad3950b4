"""Train the network on the labelled source alone: the baseline and the first teacher."""

from pathlib import Path

import click

from cag.config.base import load_params
from cag.config.networks import Network
from cag.config.training import Pretrain, Run
from cag.datasets.prepared import common_size, read_label_space, read_manifest
from cag.networks import Model, build, feature_form
from cag.runtime.program import run_stage
from cag.training.fit import Fit
from cag.training.objectives import SupervisedObjective

SOURCE, WEIGHTS = Path("data/prepared/source"), Path("data/index/weights.csv")
MODEL, CURVE = Path("data/models/pretrain.safetensors"), Path("data/curves/pretrain.csv")


class Params(Run):
    """The declared parameters."""

    network: Network
    pretrain: Pretrain


@click.command(help=__doc__)
def main() -> None:
    """Write `data/models/pretrain.safetensors` and its learning curve."""
    params, classes = load_params(Params), read_label_space(SOURCE)
    fit = Fit("pretrain", params, params.pretrain, [0])
    network = build(params.network, classes.num_classes, pretrained=True)
    for size in (params.pretrain.augmentation.crop, common_size(read_manifest(SOURCE))):
        if size is not None:
            feature_form(network, size)  # an error comes before any training
    source, weights = fit.source(SOURCE, classes.num_classes, draw=1)
    objective = SupervisedObjective(network, weights)
    curve = fit.train(objective, [source], reads=[SOURCE, WEIGHTS])
    model = Model(objective.kept, params.network, classes, None)
    fit.save(MODEL, model, SOURCE, CURVE, curve)


if __name__ == "__main__":
    run_stage(main)
