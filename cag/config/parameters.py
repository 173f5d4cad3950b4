"""The whole of `params.yaml`, and what its sections must agree on."""

from pathlib import Path

from cag.config.adaptation import Adapt
from cag.config.anchors import Anchors
from cag.config.base import (
    ADAPTSEGNET,
    DOMAINS,
    MOST_BATCH_PIXELS,
    MOST_SCALED_PIXELS,
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
    online = params.adapt.teacher == "ema"
    if online and params.adapt.active_only and params.pseudo_label.quantile is not None:
        raise UserError(
            f"{path}: adapt.active_only is true, but pseudo_label.quantile needs the whole target; "
            "set the quantile to null and give a margin"
        )
    if online and params.adapt.target_labels != "both":
        raise UserError(
            f"{path}: adapt.target_labels is '{params.adapt.target_labels}', which chooses among "
            "labels that were made once, but adapt.teacher is 'ema'; set it to 'both', or the "
            "teacher to 'cached'"
        )
    _check_apart(path, params)
    _check_products(path, params)
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


def _check_products(path: str | Path, params: Parameters) -> None:
    """Raise a UserError if values within their bounds multiply to an absurd number of pixels."""
    sizes = {domain: getattr(params, domain).size for domain in DOMAINS}
    scales = {"source": 1.0, "target": max(params.extract.target_views.scales)}
    products = []
    for domain, size in sizes.items():
        pixels, what = size[0] * size[1] if size else 0, f"{domain}.size {list(size or ())}"
        for name in ("pretrain", "warmup", "adapt"):
            scale = getattr(params, name).augmentation.scale[1]
            key = f"{name}.augmentation.scale {scale:g}, squared,"
            products.append((key, what, pixels * scale**2, MOST_SCALED_PIXELS))
        key = f"extract.batch_size {params.extract.batch_size}"
        if scales[domain] != 1:
            key += f" times target_views.scales {scales[domain]:g}, squared,"
        batch = pixels * params.extract.batch_size * scales[domain] ** 2
        products.append((key, what, batch, MOST_BATCH_PIXELS))
    for key, what, pixels, most in products:
        if pixels > most:
            problem = f"{key} times {what} is {pixels:,.0f} pixels"
            raise UserError(f"{path}: {problem}; expected at most {most:,}")


def _refer(path: str | Path, key: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise UserError(f"{path}: {key} is '{name}'; at this point there are {', '.join(known)}")
