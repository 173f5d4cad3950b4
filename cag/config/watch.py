"""Parameters of the measures that need no labels, `watch`, and the list of these measures."""

from typing import NamedTuple

from cag.config.base import Images, Section, about


class Watch(Section):
    """Measures of a model that need no label of the target."""

    images: Images = about(
        "the most images of each domain that are looked at; more: steadier numbers, more time",
        "images",
        default=60,
    )


class Measure(NamedTuple):
    """A number of a model."""

    meaning: str
    better: int  # 1 or -1: whether the better of two models should have more or less of it
    per_class: bool = True  # whether it is also a mean over each predicted class's pixels


MEASURES = {
    "agreement": Measure("the share of pixels whose nearest anchor is the predicted class", 1),
    "relative_margin": Measure("the mean of (d2 - d1) / (d2 + d1) of the anchors' distances", 1),
    "confidence": Measure("the mean probability of the predicted class", 1),
    "coverage": Measure("the share of pixels whose predicted class has a probability above 0.9", 1),
    "entropy": Measure("the mean entropy of the probabilities; 1: all classes are alike", -1),
    "flip_consistency": Measure("the share of pixels predicted alike in the mirrored image", 1),
    "colour_consistency": Measure("the same in a darker and in a lighter image, their mean", 1),
    "teacher_agreement": Measure(
        "the share of pixels predicted as by the model that the round started from", 1
    ),
    "information": Measure("the entropy of the mean probabilities less the mean entropy", 1, False),
    "share_divergence": Measure("how far the class shares are from the source labels'", -1, False),
    "neighbourhood_density": Measure("high where a pixel has many like it, in nats", 1, False),
}
