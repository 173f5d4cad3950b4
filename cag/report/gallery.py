"""The pictures of the page: predictions, pseudo-labels, and where they are right."""

from collections.abc import Sequence

import numpy as np
import torch

from cag.config.base import RULES
from cag.datasets.labels import IGNORE
from cag.pseudo_labels import Pixels, apply_rules
from cag.report import pieces
from cag.report.contents import LabelledSample, Maps, Run, TrainingSample
from cag.report.tables import baseline_of, same_threshold

# Colours that colour-blind readers tell apart; what has none is black.
ALIKE, DIFFERENT, ONE = (0, 114, 178), (213, 94, 0), (150, 150, 150)
AGREEMENT = (("both rules, alike", ALIKE), ("both, differently", DIFFERENT), ("one rule", ONE))
ERRORS = (("right", ALIKE), ("wrong", DIFFERENT), ("no true label", ONE))


def predictions(run: Run) -> str:
    """Validation images with the first and the last model's prediction, and the truth."""
    if not run.validation or not run.evaluations:
        return ""
    first, last = baseline_of(list(run.evaluations)), list(run.evaluations)[-1]
    palette = run.label_space.palette_array
    cards = []
    for sample in run.validation:
        maps = (
            (f"{first} prediction", sample.before),
            (f"{last} prediction", sample.after),
            ("truth", sample.truth),
        )
        pictures = [pieces.photo(sample.image, "image", sample.name)]
        pictures += [pieces.label_map(labels, word, sample.name, palette) for word, labels in maps]
        cards.append(pieces.card(sample.name, "four", pictures))
    note = (
        "Validation images of the target, before and after adaptation. Black in the truth: "
        "ignored. A click, or Enter, enlarges a picture; arrow keys go on."
    )
    return f"<p>{note}</p>{pieces.legend(run.label_space)}" + "".join(cards)


def pseudo_labels(run: Run) -> str:
    """The pseudo-labels of training images, and of labelled ones with their errors, by round."""
    if not run.training or not run.rounds:
        return ""
    cards = [_training_card(run, index, sample) for index, sample in enumerate(run.training)]
    note = (
        "Target training images and what each rule labels in them, with the share of the "
        "picture that it labels. Black: left unlabelled. A click, or Enter, enlarges a picture."
    )
    content = f"<p>{note}</p>{pieces.legend(run.label_space)}{_marks(AGREEMENT)}" + "".join(cards)
    if run.labelled:
        note = (
            "Labelled validation images: the same rules and thresholds, and which pixels they "
            "label rightly. Nothing is trained on them or selected by them."
        )
        content += f'<h3 class="part">With their truth</h3><p>{note}</p>{_marks(ERRORS)}'
        content += "".join(
            _labelled_card(run, index, sample) for index, sample in enumerate(run.labelled)
        )
    return pieces.switch("gallery", list(run.rounds), content)


def rule_labels(run: Run, name: str, maps: Maps) -> tuple[np.ndarray, np.ndarray] | None:
    """What both rules label with the configured thresholds: two uint8 [h, w].

    None if the quantile's thresholds, which are those of all training images, are not known.
    """
    rules, thresholds = run.rules, None
    if rules is None:
        return None
    if rules.quantile is not None:
        found = [
            classes
            for quantile, classes in run.rounds[name].class_thresholds.items()
            if same_threshold(quantile, rules.quantile)
        ]
        if not found:
            return None
        thresholds = torch.from_numpy(found[0])
    *distances, prediction, probability = (
        torch.from_numpy(part)
        for part in (
            maps.nearest,
            maps.nearest_distance,
            maps.second_distance,
            maps.prediction,
            maps.probability,
        )
    )
    labels = apply_rules(Pixels(*distances, prediction, probability), rules, thresholds)
    return labels[0].numpy(), labels[1].numpy()


def _training_card(run: Run, index: int, sample: TrainingSample) -> str:
    palette = run.label_space.palette_array
    pictures = [pieces.photo(sample.image, "image", sample.name, f"photo-training-{index}")]
    for number, name in enumerate(run.rounds):
        anchor, probability = sample.pseudo_labels[name]
        shown = []
        if name in sample.maps:
            nearest = pieces.enlarged(sample.maps[name].nearest, anchor.shape)
            shown.append(
                pieces.label_map(nearest, f"{name} · nearest anchor", sample.name, palette)
            )
        for rule, labels in zip(RULES, (anchor, probability), strict=True):
            kept = pieces.percent(float((labels != IGNORE).mean()))
            caption = f"{name} · {rule} label · {kept} %"
            shown.append(pieces.label_map(labels, caption, sample.name, palette))
        shown.append(
            pieces.label_map(
                _agreement(anchor, probability),
                f"{name} · where they agree",
                sample.name,
                _palette(AGREEMENT),
            )
        )
        pictures.append(f'<div class="of of-{number} maps">{"".join(shown)}</div>')
    return pieces.card(sample.name, "rounds", pictures)


def _labelled_card(run: Run, index: int, sample: LabelledSample) -> str:
    palette, size = run.label_space.palette_array, sample.image.shape[:2]

    def picture(labels: np.ndarray, caption: str, colors: np.ndarray = palette) -> str:
        return pieces.label_map(pieces.enlarged(labels, size), caption, sample.name, colors)

    pictures = [pieces.photo(sample.image, "image", sample.name, f"photo-labelled-{index}")]
    for number, name in enumerate(run.rounds):
        if name not in sample.maps:
            continue
        maps = sample.maps[name]
        shown = [
            picture(maps.truth, f"{name} · truth"),
            picture(maps.nearest, f"{name} · nearest anchor"),
        ]
        by_rule = rule_labels(run, name, maps) or ()
        for rule, labels in zip(RULES, by_rule, strict=False):
            judged = _errors(labels, maps.truth)
            right, wrong = ((judged == kind).sum() for kind in (0, 1))
            precision = pieces.percent(right / (right + wrong) if right + wrong else None)
            shown += [
                picture(labels, f"{name} · {rule} label"),
                picture(judged, f"{name} · {rule} label · {precision} % right", _palette(ERRORS)),
            ]
        pictures.append(f'<div class="of of-{number} maps judged">{"".join(shown)}</div>')
    return pieces.card(sample.name, "rounds", pictures)


def _agreement(anchor: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Indices into AGREEMENT, uint8 [H, W]; 255 where no rule labels."""
    labelled = (anchor != IGNORE).astype(np.uint8) + (probability != IGNORE)
    alike = np.where(anchor == probability, 0, 1)
    return np.choose(labelled, [IGNORE, 2, alike]).astype(np.uint8)


def _errors(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Indices into ERRORS, uint8 [h, w]; 255 where there is no label."""
    judged = np.where(truth == IGNORE, 2, np.where(labels == truth, 0, 1))
    return np.where(labels == IGNORE, IGNORE, judged).astype(np.uint8)


def _palette(marks: Sequence[tuple[str, tuple[int, int, int]]]) -> np.ndarray:
    return np.array([color for _, color in marks], np.uint8)


def _marks(marks: Sequence[tuple[str, tuple[int, int, int]]]) -> str:
    items = "".join(
        f'<li><i class="swatch" style="background:rgb{color}"></i>{pieces.escape(word)}</li>'
        for word, color in (*marks, ("no label", (0, 0, 0)))
    )
    return f'<ul class="legend">{items}</ul>'
