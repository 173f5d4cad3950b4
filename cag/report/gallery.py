"""The pictures of the page: predictions and pseudo-labels, right and wrong."""

from collections.abc import Callable

import numpy as np
import torch

from cag.config.base import RULES
from cag.datasets.labels import IGNORE
from cag.pseudo_labels import apply_rules
from cag.report.contents import LabelledSample, Maps, Run, TrainingSample
from cag.report.pictures import Picture, css_color, enlarged, label_map, photo
from cag.report.tables import same_threshold
from cag.report.texts import percent

# Colours that colour-blind readers tell apart; a pixel without a label is black.
BLUE, ORANGE, GRAY = (0, 114, 178), (213, 94, 0), (150, 150, 150)
JUDGED_COLORS = np.array([BLUE, ORANGE, GRAY], np.uint8)
AGREEMENT = ("both rules, alike", "both, differently", "one rule")
ERRORS = ("right", "wrong", "no true label")


def predictions(run: Run) -> dict | None:
    """Validation images with their truth and the predictions of the compared models."""
    if not run.validation or not run.evaluations:
        return None
    palette, cards = run.label_space.palette_array, []
    captions = [*(f"{model} prediction" for model in run.compared), "truth"]
    for sample in run.validation:
        maps = zip((sample.before, sample.after, sample.truth), captions, strict=True)
        drawn = [label_map(labels, caption, sample.name, palette) for labels, caption in maps]
        pictures = [photo(sample.image, sample.name), *drawn]
        cards.append({"name": sample.name, "pictures": pictures, "rounds": ()})
    return {"cards": cards}


def pseudo_labels(run: Run) -> dict | None:
    """By round, the pseudo-labels of training images, and of labelled images with the errors."""
    if not run.training or not run.rounds:
        return None
    colors = [css_color(color) for color in JUDGED_COLORS]
    return {
        "rounds": list(run.rounds),
        "agreement": dict(zip(AGREEMENT, colors, strict=True)),
        "errors": dict(zip(ERRORS, colors, strict=True)),
        "training": _cards(run, "training", _training_pictures),
        "labelled": _cards(run, "labelled", _labelled_pictures),
    }


def rule_labels(run: Run, name: str, maps: Maps) -> tuple[np.ndarray, np.ndarray] | None:
    """Apply both rules: two uint8 [h, w], or None if the class thresholds are not known."""
    rules, thresholds = run.rules, run.rounds[name].class_thresholds
    cuts = [cut for quantile, cut in thresholds.items() if same_threshold(quantile, rules.quantile)]
    if rules.quantile is not None and not cuts:
        return None
    labels = apply_rules(maps.pixels(), rules, torch.from_numpy(cuts[0]) if cuts else None)
    return labels[0].numpy(), labels[1].numpy()


def _cards(run: Run, kind: str, draw: Callable[..., list[Picture]]) -> list[dict]:
    """The photograph of each image of a kind, and the pictures of each round that knows it."""
    cards = []
    for i, sample in enumerate(getattr(run, kind)):
        rounds = [(number, draw(run, name, sample)) for number, name in enumerate(run.rounds)]
        shown = [photo(sample.image, sample.name, f"photo-{kind}-{i}")]
        rounds = [(number, pictures) for number, pictures in rounds if pictures]
        cards.append({"name": sample.name, "pictures": shown, "rounds": rounds})
    return cards


def _training_pictures(run: Run, name: str, sample: TrainingSample) -> list[Picture]:
    by_rule = dict(zip(RULES, sample.pseudo_labels[name], strict=True))
    drawn, size = {}, by_rule["anchor"].shape
    if name in sample.maps:
        drawn[f"{name} · nearest anchor"] = enlarged(sample.maps[name].nearest, size)
    for rule, labels in by_rule.items():
        kept = percent(float((labels != IGNORE).mean()))
        drawn[f"{name} · {rule} label · {kept} %"] = labels
    palette = run.label_space.palette_array
    pictures = [label_map(labels, text, sample.name, palette) for text, labels in drawn.items()]
    agreement, caption = _agreement(*by_rule.values()), f"{name} · where they agree"
    return [*pictures, label_map(agreement, caption, sample.name, JUDGED_COLORS)]


def _labelled_pictures(run: Run, name: str, sample: LabelledSample) -> list[Picture]:
    if name not in sample.maps:
        return []
    maps, palette = sample.maps[name], run.label_space.palette_array
    drawn = [(maps.truth, "truth", palette), (maps.nearest, "nearest anchor", palette)]
    for rule, labels in zip(RULES, rule_labels(run, name, maps) or (), strict=False):
        judged = _errors(labels, maps.truth)
        right, known = (judged == 0).sum(), (judged < 2).sum()
        precision = percent(right / known if known else None)
        caption = f"{rule} label · {precision} % right"
        drawn += [(labels, f"{rule} label", palette), (judged, caption, JUDGED_COLORS)]
    size = sample.image.shape[:2]
    return [
        label_map(enlarged(labels, size), f"{name} · {caption}", sample.name, colors)
        for labels, caption, colors in drawn
    ]


def _agreement(anchor: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Indices into AGREEMENT, uint8 [H, W]; 255 where no rule labels."""
    labelled = (anchor != IGNORE).astype(np.uint8) + (probability != IGNORE)
    alike = np.where(anchor == probability, 0, 1)
    return np.choose(labelled, [IGNORE, 2, alike]).astype(np.uint8)


def _errors(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Indices into ERRORS, uint8 [h, w]; 255 where there is no label."""
    judged = np.where(truth == IGNORE, 2, np.where(labels == truth, 0, 1))
    return np.where(labels == IGNORE, IGNORE, judged).astype(np.uint8)
