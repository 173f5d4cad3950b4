"""Parameters: every preset is valid, and a bad value gives a line that names its key."""

import copy
import functools
import re
from pathlib import Path

import pytest
import yaml
from project import merged
from pydantic import create_model

from cag.config.adaptation import Adapt
from cag.config.base import Section, about, load_params, validated
from cag.config.parameters import Parameters, load_all
from cag.datasets.labels import read_class_map
from cag.runtime.errors import UserError

PRESETS = sorted((Path(__file__).parent.parent / "presets").glob("*.yaml"))
SECTIONS = list(Parameters.model_fields)
REQUIRED = [name for name, field in Parameters.model_fields.items() if field.is_required()]
REMOVED = object()


SMALL, STRONG = "scenes", ("strong", "strong_80gb", "strong_dinov2", "strong_dinov2_80gb")


@functools.cache
def presets():
    """The contents of all presets."""
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in PRESETS]


def preset(layout="folder"):
    """A complete parameter set of two rounds whose source, or else target, has a layout."""
    chosen = next(
        content
        for domain in ("source", "target")
        for content in presets()
        if content[domain]["layout"] == layout
    )
    return copy.deepcopy(chosen) | {
        "evaluated": ["pretrain", "round2"],
        "rounds": {
            "round1": {"teacher": "warmup", "anchors": "round1"},
            "round2": {"teacher": "round1", "anchors": "round2"},
        },
    }


def error(tmp_path, key, value=REMOVED, layout="folder"):
    """The message about a parameter set whose `key` (a dotted path) is set to `value`."""
    content = preset(layout)
    *outer, last = (int(part) if part.isdigit() else part for part in key.split("."))
    section = content
    for part in outer:
        section = section[part]
    if value is REMOVED:
        del section[last]
    else:
        section[last] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_all(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500
    return message.removeprefix(f"{path}: ")


def sections(*names):
    """A model of some of the parameters' sections."""
    fields = {name: Parameters.model_fields[name] for name in names}
    return create_model(
        "Some", __base__=Section, **{name: (f.annotation, f) for name, f in fields.items()}
    )


def names(message, key):
    """Whether a message names a dotted key, not only one that begins or ends like it."""
    return re.search(rf"(?<![\w.]){re.escape(key)}(?![\w]|\.\w)", message) is not None


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_valid(path):
    params = load_all(path)
    assert sorted(vars(params)) == sorted(SECTIONS)
    assert params.seed == 0
    assert all(size > 0 for size in params.pretrain.augmentation.crop)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_presets_class_maps_exist_and_agree(path):
    params = load_all(path)
    source, target = (
        read_class_map(path.parent.parent / domain.class_map).label_space
        for domain in (params.source, params.target)
    )
    assert source.names == target.names
    assert source.palette == target.palette


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("gta5_to_cityscapes", 19),
        ("synthia_to_cityscapes", 16),
        ("synthia13_to_cityscapes", 13),
    ],
)
def test_the_papers_settings(name, classes):
    params = load_all(next(path for path in PRESETS if path.stem == name))
    class_map = read_class_map(PRESETS[0].parent.parent / params.target.class_map)
    assert class_map.label_space.num_classes == classes
    assert params.network.normalization.model_dump() == {"mean": (0, 0, 0), "std": (1, 1, 1)}
    assert (params.adapt.batch_size, params.adapt.iterations) == (4, 90000)
    assert (params.adapt.optimizer, params.adapt.learning_rate, params.adapt.power) == (
        *("sgd", 1e-4, 0.9),
    )
    assert (params.adapt.momentum, params.adapt.weight_decay) == (0.9, 2e-4)
    assert params.adapt.augmentation.crop == (512, 896)
    widths = [factor * params.target.size[1] for factor in params.adapt.augmentation.scale]
    assert widths == pytest.approx([0.5 * 2200, 1.5 * 2200], rel=1e-3)
    assert (params.adapt.target_labels, params.adapt.distance_weight) == ("both", 0.7)
    assert (params.pseudo_label.margin, params.pseudo_label.probability) == (2.5, 0.95)
    assert (params.anchors.average, params.anchors.min_pixels) == ("images", 10)
    assert {entry.anchors for entry in params.rounds.values()} == {"round1"}
    assert params.target.size == (1024, 2048)


def without(section, *names):
    """A section's values without some keys."""
    return {key: value for key, value in section.model_dump().items() if key not in names}


@pytest.mark.parametrize("pair", ["gta5_to_cityscapes", "synthia_to_cityscapes"])
@pytest.mark.parametrize("kind", ["online", *STRONG])
def test_large_presets_train_the_student_as_the_small_ones(pair, kind):
    """But for what their comments name: the scale, the optimizer, the images."""
    large, small = (
        load_all(PRESETS[0].parent / f"{name}.yaml") for name in (f"{pair}_{kind}", SMALL)
    )
    scale = ("iterations", "blur", "teacher_momentum", "anchor_momentum", "augmentation")
    optimizer = ("optimizer", "learning_rate", "learning_rate_decoder", "learning_rate_warmup")
    optimizer += ("batch_size", "power", "momentum", "weight_decay")
    adapt, other = large.adapt, small.adapt
    assert without(adapt, *scale, *optimizer) == without(other, *scale, *optimizer)
    assert adapt.augmentation.photometric == other.augmentation.photometric
    assert (adapt.blur, adapt.teacher_momentum, adapt.anchor_momentum) == (0.5, 0.999, 0.999)
    assert without(large.anchors, "min_pixels") == without(small.anchors, "min_pixels")
    assert large.rounds == small.rounds
    if kind == "online":
        assert large.pseudo_label.agreement
        assert large.pretrain == load_all(PRESETS[0].parent / f"{pair}.yaml").pretrain
    else:
        assert large.pseudo_label == small.pseudo_label
        assert large.pretrain.class_balance == small.pretrain.class_balance > 0
        assert large.pretrain.augmentation == adapt.augmentation


@pytest.mark.parametrize("pair", ["gta5_to_cityscapes", "synthia_to_cityscapes"])
@pytest.mark.parametrize(
    ("kind", "batch", "crop", "rate"),
    [
        ("strong", 8, 512, 6e-5),
        ("strong_80gb", 4, 1024, 6e-5),
        ("strong_dinov2", 4, 518, 1e-5),
        ("strong_dinov2_80gb", 4, 1022, 1e-5),
    ],
)
def test_the_strong_presets_have_daformers_optimizer_and_differ_in_size(
    pair, kind, batch, crop, rate
):
    params, gta5 = (
        load_all(PRESETS[0].parent / f"{name}_{kind}.yaml") for name in (pair, "gta5_to_cityscapes")
    )
    assert without(params, "source", "target") == without(gta5, "source", "target")
    assert params.target.size == gta5.target.size == (crop, 2 * crop)
    assert all(side >= crop for side in params.source.size)
    for training in (params.pretrain, params.warmup, params.adapt):
        assert (training.batch_size, training.augmentation.crop) == (batch, (crop, crop))
        assert (training.optimizer, training.power, training.weight_decay) == ("adamw", 1.0, 0.01)
        rates = training.learning_rate, training.learning_rate_decoder
        assert rates == pytest.approx((rate, 10 * rate)) and training.learning_rate_warmup == 1500
        assert training.iterations in (0, 40000)


def test_there_are_presets():
    assert "scenes" in [path.stem for path in PRESETS]


def test_values_are_the_files():
    params = load_params(sections("adapt", "source", "rounds"), path=PRESETS[0])
    content = yaml.safe_load(PRESETS[0].read_text(encoding="utf-8"))
    assert params.adapt.model_dump(mode="json", exclude_unset=True) == content["adapt"]
    dumped = params.source.model_dump(mode="json", exclude_defaults=True)
    assert dumped == content["source"]
    assert {k: v.model_dump() for k, v in params.rounds.items()} == content["rounds"]
    assert list(params.model_dump()) == ["adapt", "source", "rounds"]


OFF = {  # what a file without the key means
    "adapt.class_mix": 0.0,
    "adapt.batch_norm": "mixed",
    "adapt.class_balance": 0.0,
    "adapt.augmentation.photometric": None,
    "adapt.augmentation.photometric.hue": 0.0,
    "warmup.weights": None,
    "warmup.batch_norm": "mixed",
    "extract.target_views": {"scales": (1.0,), "gammas": (1.0,), "flip": False},
    "extract.target_views.flip": False,
    "anchors.min_recall": 0.0,
    "pseudo_label.margin": None,
    "pseudo_label.relative_margin": None,
    "pseudo_label.quantile": None,
    "pseudo_label.agreement": False,
    "network.options": {},
    "oracle.labels": None,
}


@pytest.mark.parametrize("key", OFF)
def test_without_its_key_an_option_is_off(tmp_path, key):
    content = preset()
    content["pseudo_label"]["margin"] = 1.0 if key == "pseudo_label.relative_margin" else None
    *outer, last = key.split(".")
    section = content
    for part in outer:
        section = section[part]
    section.pop(last, None)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    value = load_all(path).model_dump()
    for part in key.split("."):
        value = value[part]
    assert value == OFF[key]


def test_a_new_option_with_a_default_leaves_every_preset_valid():
    class MoreAdapt(Adapt):
        sharpening: float = about("a new option", default=0.0)

    More = create_model("More", __base__=Section, adapt=(MoreAdapt, ...))
    for path in PRESETS:
        assert load_params(More, path).adapt.sharpening == 0.0


def test_every_default_is_a_valid_value():
    """Defaults are valid like values of a file; pydantic itself does not check them."""
    for path in PRESETS:
        params = load_all(path).model_dump(mode="json")
        assert validated(Parameters, params, path).model_dump(mode="json") == params


def test_a_section_that_is_not_asked_for_is_not_checked(tmp_path):
    content = preset() | {"adapt": {"broken": 1}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert load_params(sections("seed"), path=tmp_path / "params.yaml").seed == 0
    with pytest.raises(UserError):
        load_params(sections("adapt"), path=tmp_path / "params.yaml")


def test_parameters_cannot_be_changed():
    params = load_params(sections("evaluate"), path=PRESETS[0])
    with pytest.raises(ValueError, match="frozen"):
        params.evaluate.panels = 1


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_section_is_named(tmp_path, name):
    message = error(tmp_path, name)
    assert message.startswith(f"'{name}' is missing")


def test_a_section_of_defaults_may_be_missing(tmp_path):
    content = preset()
    del content["watch"]
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert set(SECTIONS) - set(REQUIRED) == {"watch"} and load_all(path).watch.images == 60


@pytest.mark.parametrize(
    ("key", "layout"),
    [
        ("pseudo_label.probability", "folder"),
        ("source.folder", "folder"),
        ("source.layout", "folder"),
        ("target.val_images", "scenes"),
        ("source.folder", "gta5"),
        ("target.labels", "cityscapes"),
        ("network.normalization.mean", "folder"),
        ("pretrain.augmentation.crop", "folder"),
        ("rounds.round2.teacher", "folder"),
        ("warmup.adversarial_weight", "scenes"),  # whatever the iterations
    ],
)
def test_a_missing_key_is_named(tmp_path, key, layout):
    assert error(tmp_path, key, layout=layout).startswith(f"'{key}' is missing: ")


@pytest.mark.parametrize(
    ("key", "layout"),
    [
        ("adapt.batch_nrom", "folder"),
        ("source.val_images", "scenes"),
        ("target.folder", "scenes"),
        ("source.images", "gta5"),
        ("source.labels", "synthia"),
        ("target.val_images", "cityscapes"),
        ("source.scenes", "folder"),
        ("pretrain.augmentation.rotate", "folder"),
        ("network.normalization.stdd", "folder"),
        ("warmup.iteration", "folder"),
        ("warmup.discriminator", "folder"),
        ("rounds.round1.student", "folder"),
    ],
)
def test_an_unknown_key_is_named(tmp_path, key, layout):
    assert error(tmp_path, key, 1, layout) == f"unknown key '{key}'; check its spelling"


def test_an_unknown_section_is_named_beside_the_known_ones(tmp_path):
    message = error(tmp_path, "pretraining", {"iterations": 1})
    assert message == f"unknown key 'pretraining'; known are {', '.join(SECTIONS)}"


@pytest.mark.parametrize(
    ("key", "value", "layout"),
    [
        ("seed", "0", "folder"),
        ("seed", True, "folder"),
        ("seed", 1.0, "folder"),
        ("pretrain.iterations", "400", "folder"),
        ("pretrain.iterations", 400.0, "folder"),
        ("pretrain.iterations", True, "folder"),
        ("pretrain.learning_rate", "0.1", "folder"),
        ("pretrain.learning_rate", True, "folder"),
        ("pretrain.learning_rate", None, "folder"),
        ("pretrain.augmentation", None, "folder"),
        ("adapt.augmentation.flip", False, "folder"),
        ("adapt.augmentation.crop.1", "128", "folder"),
        ("extract", 8, "folder"),
        ("evaluated", "round1", "folder"),
        ("evaluated.0", 1, "folder"),
        ("source", [1, 2], "folder"),
        ("source.folder", None, "folder"),
        ("source.images", "200", "scenes"),
        ("source.images", True, "scenes"),
        ("source.size.0", 128.0, "folder"),
        ("source.size.1", "256", "scenes"),
        ("source.size", 128, "folder"),
        ("target.size", None, "scenes"),
        ("network.options", None, "folder"),
        ("network.encoder_weights", 3, "folder"),
        ("warmup.weights", True, "folder"),
    ],
)
def test_a_value_of_another_type_is_named(tmp_path, key, value, layout):
    message = error(tmp_path, key, value, layout)
    assert names(message, key)
    assert f" is {value!r}: " in message
    assert not re.search("tuple|dictionary", message)  # words of Python, not of YAML


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("rounds.round1.teacher", "a" * 51),  # a part of files' names
        ("precision", "fp8"),
        ("source.size.0", 0),
        ("pretrain.learning_rate", -0.1),
        ("pretrain.learning_rate", 0),
        ("pretrain.learning_rate", float("nan")),
        ("pretrain.learning_rate", float("inf")),
        ("pretrain.batch_size", 0),
        ("pretrain.momentum", 1),
        ("pretrain.optimizer", "adam"),
        ("warmup.iterations", -1),
        ("warmup.objective", "ls"),
        ("warmup.adversarial_weight", -0.001),
        ("warmup.discriminator_learning_rate", 0),
        ("warmup.batch_norm", "source"),
        ("adapt.batch_norm", "none"),
        ("adapt.class_mix", 1.5),
        ("extract.target_views.scales.0", 0),
        ("extract.target_views.gammas.0", -1),
        ("adapt.distance_kind", "mean"),
        ("adapt.distance_weight", -0.1),
        ("adapt.augmentation.flip", 1.1),
        ("adapt.augmentation.scale", [2, 1]),
        ("adapt.augmentation.scale.0", 0),
        ("adapt.augmentation.photometric.hue", 0.6),
        ("network.normalization.std.1", 0),
        ("pseudo_label.quantile", 0),
        ("pseudo_label.quantile", 1.01),
        ("pseudo_label.margin", -1),
        ("pseudo_label.relative_margin", 1.5),
        ("pseudo_label.probability", -0.1),
        ("anchors.average", "median"),
        ("source.layout", "video"),
    ],
)
def test_an_impossible_value_is_named(tmp_path, key, value):
    message = error(tmp_path, key, value)
    assert names(message, key)
    assert f" is {value!r}: " in message


@pytest.mark.parametrize("crop", [[31, 64], [64, 31]])
def test_the_discriminator_needs_32_pixels(tmp_path, crop):
    message = error(tmp_path, "warmup.augmentation.crop", crop)
    assert message == (
        f"warmup.augmentation: crop is {crop}; the discriminator needs at least 32 x 32 pixels"
    )


@pytest.mark.parametrize("size", [[128], [128, 256, 3]])
def test_a_size_has_two_numbers(tmp_path, size):
    assert "source.size" in error(tmp_path, "source.size", size)


def test_without_any_threshold_there_are_no_pseudo_labels(tmp_path):
    thresholds = {"margin": None, "relative_margin": None, "quantile": None}
    thresholds |= {"agreement": True, "probability": 0.9}
    message = error(tmp_path, "pseudo_label", thresholds)
    assert message == ("pseudo_label: one of margin, relative_margin and quantile must be a number")


def test_validation_images_need_labels(tmp_path):
    message = error(tmp_path, "target.val_labels", None)
    assert message == "target: val_images and val_labels must both be given or both be null"


@pytest.mark.parametrize(
    "key",
    ["target.val_images", "target.val_labels", "source.images", "source.labels", "oracle.labels"],
)
@pytest.mark.parametrize("end", ["", "/x"])
def test_training_images_hold_nothing_else(tmp_path, key, end):
    target, (section, name) = preset()["target"], key.split(".")
    folders = {"images": "game/images", "labels": "game/labels"}
    options = {part: target[part] for part in ("layout", "folder", "class_map", "size")}
    content = {"source": folders | options, "target": target, "oracle": preset()["oracle"]}[section]
    content = content | {name: target["images"] + end}
    if not end and name.endswith("images"):  # the same images for two purposes are allowed
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(preset() | {section: content}))
        load_all(tmp_path / "params.yaml")
        return
    message = error(tmp_path, section, content)
    assert names(message, key.removeprefix("target."))
    assert f"images ({target['images']}) holds" in message


def test_nothing_is_evaluated_without_validation_images(tmp_path):
    target = preset()["target"] | {"val_images": None, "val_labels": None}
    message = error(tmp_path, "target", target)
    assert names(message, "target.val_images") and "evaluated" in message


def test_nothing_is_evaluated_without_labels_of_cityscapes(tmp_path):
    message = error(tmp_path, "target.labels", None, "cityscapes")
    assert message == "target.labels is null, so `evaluated` must be []"


@pytest.mark.parametrize("labels", ["labelids", "color", ""])
def test_cityscapes_labels_are_of_a_known_kind(tmp_path, labels):
    message = error(tmp_path, "target.labels", labels, "cityscapes")
    assert message.startswith(f"target.labels is {labels!r}: input should be 'labelIds' or")


def test_a_source_only_layout_is_no_target(tmp_path):
    assert "target.layout is 'gta5': expected one of" in error(tmp_path, "target.layout", "gta5")


@pytest.mark.parametrize("text", ["2e-05", "1e-4", "0.00002", "2.0e-05", "1"])
def test_numbers_are_those_that_dvc_writes(tmp_path, text):
    content = re.sub(r"(learning_rate): .*", rf"\1: {text}", PRESETS[0].read_text(encoding="utf-8"))
    (tmp_path / "params.yaml").write_text(content, encoding="utf-8")
    assert load_all(tmp_path / "params.yaml").adapt.learning_rate == float(text)


@pytest.mark.parametrize(
    ("key", "value", "layout"),
    [
        ("seed", 2**63, "folder"),
        ("max_batch_per_device", 10**6, "folder"),
        ("pretrain.iterations", 10**9, "folder"),
        ("warmup.iterations", 10**9, "folder"),
        ("pretrain.batch_size", 10**6, "folder"),
        ("pretrain.learning_rate", 1e300, "folder"),
        ("pretrain.power", 1e300, "folder"),
        ("pretrain.weight_decay", 1e300, "folder"),
        ("pretrain.augmentation.crop", [10**9, 10**9], "folder"),
        ("pretrain.augmentation.crop", [10**4, 10**4], "folder"),
        ("pretrain.augmentation.scale", [1.0, 1e9], "folder"),
        ("pretrain.augmentation.scale", [1e-9, 1.0], "folder"),
        ("pretrain.augmentation.photometric.brightness", 1e30, "folder"),
        ("warmup.adversarial_weight", 1e300, "folder"),
        ("warmup.discriminator_learning_rate", 1e300, "folder"),
        ("extract.batch_size", 10**9, "folder"),
        ("extract.samples_per_class", 10**9, "folder"),
        ("extract.target_views.scales", [1.0] * 17, "folder"),
        ("extract.target_views.scales.0", 1e-300, "folder"),
        ("extract.target_views.gammas", [1.0] * 17, "folder"),
        ("extract.target_views.gammas.0", 1e-300, "folder"),
        ("anchors.min_pixels", 10**30, "folder"),
        ("pseudo_label.margin", 1e300, "folder"),
        ("pseudo_label.quantile", 1e-300, "folder"),
        ("adapt.distance_weight", 1e300, "folder"),
        ("adapt.anchor_temperature", 1e-300, "folder"),
        ("watch.images", 10**9, "folder"),
        ("evaluate.panels", 10**9, "folder"),
        ("report.images", 10**9, "folder"),
        ("oracle.folds", 10**9, "folder"),
        ("source.images", 10**9, "scenes"),
        ("target.val_images", 10**9, "scenes"),
        ("source.size", [10**9, 64], "scenes"),
        ("target.size", [10**4, 10**4], "folder"),
        ("network.normalization.std", [1e-300, 1.0, 1.0], "folder"),
        ("network.normalization.mean", [1e300, 0.0, 0.0], "folder"),
        ("network.options.decoder_channels", 10**12, "folder"),
        ("network.options.decoder_channels", [64, 10**12], "folder"),
        ("network.options.decoder_channels", {"a": {"b": 1}}, "folder"),
    ],
)
def test_a_number_out_of_all_proportion_is_named(tmp_path, key, value, layout):
    named = key.removesuffix(".decoder_channels")
    assert error(tmp_path, key, value, layout).startswith(named)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"adapt": {"batch_size": 4096, "augmentation": {"crop": [8192, 8192]}}},
            "adapt: batch_size 4096 times augmentation.crop [8192, 8192] is 274,877,906,944 "
            "pixels; expected at most 4,294,967,296",
        ),
        (
            {"warmup": {"augmentation": {"scale": [1.0, 20.0]}}, "target": {"size": [2048, 4096]}},
            "warmup.augmentation.scale 20, squared, times target.size [2048, 4096] is "
            "3,355,443,200 pixels; expected at most 268,435,456",
        ),
        (
            {"extract": {"batch_size": 4096}, "source": {"size": [2048, 4096]}},
            "extract.batch_size 4096 times source.size [2048, 4096] is 34,359,738,368 pixels; "
            "expected at most 4,294,967,296",
        ),
        (
            {"extract": {"batch_size": 1024, "target_views": {"scales": [0.5, 4.0]}}}
            | {"target": {"size": [512, 1024]}},
            "extract.batch_size 1024 times target_views.scales 4, squared, times target.size [512, "
            "1024] is 8,589,934,592 pixels; expected at most 4,294,967,296",
        ),
    ],
)
def test_numbers_whose_product_is_absurd_are_named(tmp_path, changes, expected):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(merged(preset(), changes)), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_all(path)
    assert str(caught.value) == f"{path}: {expected}"


def test_every_number_has_bounds():
    """A number without a bound ends in a full memory, a hang or an overflow."""

    def free(schema, key=""):
        if schema.get("type") in ("integer", "number"):
            both = (
                {"maximum", "exclusiveMaximum"} & set(schema),
                {"minimum", "exclusiveMinimum"} & set(schema),
            )
            yield from [key] if not all(both) else []
        for name, part in schema.items():
            parts = part if isinstance(part, list) else [part]
            for inner in parts:
                if isinstance(inner, dict):
                    yield from free(inner, f"{key}.{name}")

    assert not list(free(Parameters.model_json_schema()))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rounds.round1.teacher", "round1"),  # itself
        ("rounds.round1.teacher", "round2"),  # later
        ("rounds.round2.teacher", "rund1"),  # none
        ("rounds.round1.anchors", "round2"),
        ("rounds.round2.anchors", "warmup"),  # a model, not a round
        ("evaluated.1", "round9"),
    ],
)
def test_a_reference_to_what_is_not_there_yet_is_named(tmp_path, key, value):
    message = error(tmp_path, key, value)
    assert message.startswith(f"{key} is '{value}'; at this point there are ")


def test_active_pixels_of_a_crop_need_a_margin_and_no_quantile(tmp_path):
    content = preset() | {"adapt": preset()["adapt"] | {"active_only": True}}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert load_all(path).adapt.active_only
    content["pseudo_label"]["quantile"] = 0.5
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"adapt.active_only is true, but pseudo_label.quantile"):
        load_all(path)
    content["adapt"]["teacher"] = "cached"  # which reads neither
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert load_all(path).pseudo_label.quantile == 0.5


def test_an_online_teacher_leaves_no_choice_among_the_rounds_labels(tmp_path):
    content = preset() | {"adapt": preset()["adapt"] | {"target_labels": "anchor"}}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"adapt.target_labels is 'anchor'.*teacher to 'cached'"):
        load_all(path)
    content["adapt"]["teacher"] = "cached"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert load_all(path).adapt.target_labels == "anchor"


def test_models_have_names_of_their_own(tmp_path):
    rounds = {"warmup": {"teacher": "pretrain", "anchors": "warmup"}}
    assert names(error(tmp_path, "rounds", rounds), "rounds.warmup")
    assert names(error(tmp_path, "evaluated", ["pretrain", "pretrain"]), "evaluated.1")


@pytest.mark.parametrize("name", ["../round1", "round 1", "1", ""])
def test_a_round_has_a_name_that_can_be_a_files(tmp_path, name):
    message = error(tmp_path, "rounds", {name: {"teacher": "warmup", "anchors": name}})
    assert message.startswith(f"rounds.{name} is {name!r}: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: [0\n", "not readable YAML"),
        ("seed: 2026-13-45\n", "not readable YAML"),
        (
            "seed: 1\nrounds: {}\nseed: 2\n",
            "not readable YAML (the key 'seed' twice, in lines 1 and 3",
        ),
        ("- seed\n", "holds no mapping"),
        ("", "holds no mapping"),
        (b"seed: \xff\n", "not readable YAML"),
    ],
)
def test_a_file_that_holds_no_parameters_is_named(tmp_path, text, expected):
    path = tmp_path / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        load_params(sections("seed"), path=path)
    assert str(caught.value).startswith(f"{path}: {expected}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="params.yaml: no such file"):
        load_params(sections("seed"), path=tmp_path / "params.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        load_params(sections("seed"), path=tmp_path)
