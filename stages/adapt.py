"""Train a round's student on source labels, target pseudo-labels and the anchors."""

from pathlib import Path

import click

from cag.adaptation import AdaptationObjective
from cag.anchors import read_anchors
from cag.config.adaptation import Adapt
from cag.config.anchors import Anchors
from cag.config.base import load_params
from cag.config.training import Run
from cag.datasets.prepared import read_label_space
from cag.networks import load_model
from cag.runtime.program import run_stage
from cag.training.fit import Fit
from cag.training.samples import labelled_samples, pseudo_labelled_samples

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL, CURVE, ROUND = "data/models/{}.safetensors", "data/curves/{}.csv", "data/rounds/{}"
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
    params, classes = load_params(Params), read_label_space(SOURCE)
    folder, path = Path(ROUND.format(round_name)), Path(MODEL.format(teacher))
    network, network_config, _ = load_model(path, classes)
    anchors = read_anchors(folder / "anchors.npy", classes.num_classes, network.width)
    checkpoint = Path(CHECKPOINT.format(round_name))
    fit = Fit(f"adapt {round_name}", params, params.adapt, round_name.encode(), checkpoint)
    source = fit.samples(labelled_samples(SOURCE), 0)
    target = fit.samples(pseudo_labelled_samples(TARGET, folder / "pseudo_labels"), 1)
    weights = fit.class_weights(source, classes.num_classes)
    min_pixels = params.anchors.min_pixels
    objective = AdaptationObjective(network, anchors, params.adapt, min_pixels, weights)
    reads = [SOURCE, TARGET, path, folder / "anchors.npy", folder / "pseudo_labels"]
    curve = fit.train(objective, [source, target], reads)
    fit.save(Path(MODEL.format(round_name)), objective.kept, network_config, classes, TARGET)
    fit.finish(Path(CURVE.format(round_name)), curve)


if __name__ == "__main__":
    run_stage(main)
