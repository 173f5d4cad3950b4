"""Train the network on the labelled source alone: the baseline and the first teacher."""

from pathlib import Path

import click

from cag.config.base import load_params
from cag.config.networks import Network
from cag.config.training import Pretrain, Run
from cag.datasets.prepared import read_label_space
from cag.networks import build
from cag.runtime.program import run_stage
from cag.training.fit import Fit
from cag.training.objectives import SupervisedObjective
from cag.training.samples import labelled_samples

SOURCE, WEIGHTS = Path("data/prepared/source"), Path("data/index/weights.csv")
MODEL, CURVE = Path("data/models/pretrain.safetensors"), Path("data/curves/pretrain.csv")
CHECKPOINT = Path(".scratch/pretrain/checkpoint.pt")


class Params(Run):
    """The declared parameters."""

    network: Network
    pretrain: Pretrain


@click.command(help=__doc__)
def main() -> None:
    """Write `data/models/pretrain.safetensors` and its learning curve."""
    params, classes = load_params(Params), read_label_space(SOURCE)
    fit = Fit("pretrain", params, params.pretrain, [0], CHECKPOINT)
    network = build(params.network, classes.num_classes, pretrained=True)
    source = fit.samples(labelled_samples(SOURCE), 1)
    objective = SupervisedObjective(network, fit.class_weights(source, classes.num_classes))
    curve = fit.train(objective, [source], reads=[SOURCE, WEIGHTS])
    fit.save(MODEL, objective.kept, params.network, classes, SOURCE)
    fit.finish(CURVE, curve)


if __name__ == "__main__":
    run_stage(main)
