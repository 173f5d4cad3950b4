"""The whole of `params.yaml`, and what its sections must agree on."""

from pathlib import Path

from cag.config.adaptation import Adapt
from cag.config.anchors import Anchors
from cag.config.base import (
    ADAPTSEGNET,
    PAPER,
    RELEASED,
    Name,
    Section,
    about,
    read_parameters,
    validated,
)
from cag.config.datasets import Source, Target
from cag.config.evaluation import Evaluate, Oracle, Report
from cag.config.extract import Extract
from cag.config.networks import Network
from cag.config.pseudo_labels import PseudoLabel
from cag.config.training import Pretrain, Run
from cag.config.warmup import Warmup
from cag.config.watch import Watch
from cag.runtime.errors import UserError


class Round(Section):
    """A round of the stagewise training (the paper's "stage")."""

    teacher: Name = about(
        "the model that labels the target and starts the student: `pretrain`, `warmup` or an "
        "earlier round",
        source=PAPER,
    )
    anchors: Name = about(
        "the round whose source features give the anchors: this one, or an earlier one to keep its "
        "anchors, as the released training does",
        source=RELEASED,
    )


class Experiment(Run):
    """The sections that the pipeline's stages read."""

    rounds: dict[Name, Round] = about("the rounds by name, in their order", source=PAPER)
    evaluated: tuple[Name, ...] = about("the models to score; [] without validation labels")
    source: Source = about("the labelled domain")
    target: Target = about("the unlabelled domain")
    network: Network = about("the network of all models", source=PAPER)
    pretrain: Pretrain = about("the training on the source alone", source=PAPER)
    warmup: Warmup = about("the alignment before the first round", source=ADAPTSEGNET)
    extract: Extract = about("the features of a round")
    anchors: Anchors = about("the anchors of a round", source=PAPER)
    pseudo_label: PseudoLabel = about("the thresholds of the two rules", source=PAPER)
    adapt: Adapt = about("the training of a round's student", source=PAPER)
    watch: Watch = about("the measures that need no labels", default=Watch())
    evaluate: Evaluate = about("the evaluation's pictures")
    report: Report = about("the report")


class Parameters(Experiment):
    """The whole of `params.yaml`."""

    oracle: Oracle = about("the comparison with training on true target labels")


def load_all(path: str | Path = "params.yaml") -> Parameters:
    """Read and validate every section, and what sections must agree on; else a UserError."""
    params = validated(Parameters, read_parameters(path), path)
    models, rounds = ["pretrain", "warmup"], []
    for name, entry in params.rounds.items():
        if name in models:
            raise UserError(f"{path}: rounds.{name}: another model has this name; choose another")
        rounds.append(name)
        _refer(path, f"rounds.{name}.teacher", entry.teacher, models)
        _refer(path, f"rounds.{name}.anchors", entry.anchors, rounds)
        models.append(name)
    for index, name in enumerate(params.evaluated):
        _refer(path, f"evaluated.{index}", name, models)
        if name in params.evaluated[:index]:
            raise UserError(f"{path}: evaluated.{index} is '{name}' a second time; remove it")
    if params.adapt.active_only and params.pseudo_label.quantile is not None:
        raise UserError(
            f"{path}: adapt.active_only is true, but pseudo_label.quantile needs the whole target; "
            "set the quantile to null and give a margin"
        )
    if params.adapt.teacher == "ema" and params.adapt.target_labels != "both":
        raise UserError(
            f"{path}: adapt.target_labels is '{params.adapt.target_labels}', which chooses among "
            "labels that were made once, but adapt.teacher is 'ema'; set it to 'both', or the "
            "teacher to 'cached'"
        )
    _check_apart(path, params)
    if params.evaluated and not params.target.has_validation:
        key = "labels" if params.target.layout == "cityscapes" else "val_images"
        raise UserError(f"{path}: target.{key} is null, so `evaluated` must be []")
    return params


def _check_apart(path: str | Path, params: Parameters) -> None:
    """Raise a UserError if the target's training images hold other files of the parameters."""
    source, target = params.source, params.target
    if target.layout != "folder":
        return
    others = [("oracle.labels", target.folder, params.oracle.labels)]
    if source.layout == "folder":
        others += [(f"source.{k}", source.folder, getattr(source, k)) for k in ("images", "labels")]
    for other in others:
        try:
            target.check_apart(*other)
        except ValueError as error:
            raise UserError(f"{path}: target: {error}") from None


def _refer(path: str | Path, key: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise UserError(f"{path}: {key} is '{name}'; at this point there are {', '.join(known)}")
