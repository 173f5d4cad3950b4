"""Train a round's student on source labels, target pseudo-labels and the anchors."""

from pathlib import Path
from typing import Self

import click

from cag.adaptation import student_objective
from cag.anchors import read_anchors
from cag.batch_norm import take_statistics
from cag.config.adaptation import Adapt
from cag.config.anchors import Anchors
from cag.config.base import load_params
from cag.config.pseudo_labels import PseudoLabel
from cag.config.training import Run
from cag.config.watch import Watch
from cag.datasets.prepared import PreparedImages, read_label_space
from cag.networks import load_model
from cag.runtime.files import write_json
from cag.runtime.program import run_stage
from cag.training.fit import Fit
from cag.training.samples import pseudo_labelled_samples
from cag.watch import kept_model

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODELS, CURVES, ROUNDS = Path("data/models"), Path("data/curves"), Path("data/rounds")


class Params(Run):
    """The declared parameters."""

    anchors: Anchors
    pseudo_label: PseudoLabel
    adapt: Adapt
    watch: Watch = Watch()

    @property
    def of_training(self) -> Self:
        """These parameters as the steps need them."""
        return self.model_copy(update={"adapt": self.adapt.of_training, "watch": Watch()})


@click.command(help=__doc__)
@click.argument("name", metavar="ROUND")
@click.argument("teacher")
def main(name: str, teacher: str) -> None:
    """Write the student `data/models/ROUND.safetensors` of TEACHER, its curve and the verdict."""
    params, classes = load_params(Params), read_label_space(SOURCE)
    config, folder, path = params.adapt, ROUNDS / name, MODELS / f"{teacher}.safetensors"
    model = load_model(path, classes)
    anchors = read_anchors(folder / "anchors.npy", classes.num_classes, model.network.width)
    training = params.of_training
    fit = Fit(f"adapt {name}", training, training.adapt.of_samples, name.encode())
    source, weights = fit.source(SOURCE, classes.num_classes)
    target = fit.samples(pseudo_labelled_samples(TARGET, folder / "pseudo_labels"))
    sections = config, weights, params.anchors, params.pseudo_label
    objective = student_objective(model.network, anchors, *sections)
    reads = [SOURCE, TARGET, path, folder / "anchors.npy", folder / "pseudo_labels"]
    curve = fit.train(objective, [source, target], reads)
    model = model._replace(network=objective.kept)
    plain = PreparedImages(TARGET, "train", with_labels=False)
    share, frozen = config.target_statistics, None
    if config.freeze_encoder:
        frozen = model.network.encoder
    take_statistics(model.network, plain, share, fit.batch_size, fit.fabric, frozen)
    watching = (SOURCE, TARGET), params.watch, params.seed, fit.fabric
    model, verdict = kept_model(path, model, config.on_regression, *watching)
    if fit.fabric.is_global_zero:
        write_json(folder / "verdict.json", verdict._asdict())
    fit.save(MODELS / f"{name}.safetensors", model, TARGET, CURVES / f"{name}.csv", curve)


if __name__ == "__main__":
    run_stage(main)
