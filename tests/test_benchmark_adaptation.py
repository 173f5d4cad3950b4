"""The grid of trainings: which runs it has, which are left, and what is drawn of their scores."""

import json
import threading
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image
from project import ROOT, execute, git, make_project, tiny_params

from benchmarks import adaptation
from benchmarks.adaptation import COLUMNS, Grid, Run, Variant, plan
from cag.config.base import validated
from cag.config.parameters import load_all
from cag.datasets.labels import read_class_map
from cag.runtime.errors import UserError

PRESET = {  # as much of one as is read here
    "seed": 0,
    "rounds": {"round1": {}, "round2": {}, "round3": {}},
    "evaluated": ["pretrain", "round3"],
    "pretrain": {"iterations": 400, "augmentation": {"photometric": {"hue": 0.1}}},
    "warmup": {"iterations": 0},
    "adapt": {"iterations": 80, "power": 0.9},
    "report": {"images": 8},
}
OLD = "0" * 12


def grid(**changes) -> Grid:
    variants = {"the default": {}, "other": {}} | changes
    content = {"seeds": (0, 1), "pairs": ("a", "b"), "variants": variants}
    return Grid.model_validate(content)


def rows(
    pair, variant, scores, model="round1", fingerprint=OLD, label_free="{}", processor="AVX512"
):
    """Rows of a variant, with the mIoU by seed."""
    return [
        dict(zip(COLUMNS, (pair, variant, seed, model, miou, "{}", label_free), strict=False))
        | {"processor": processor, "fingerprint": fingerprint, "commit": OLD}
        for seed, miou in scores.items()
    ]


def table(*groups):
    return pd.DataFrame([row for group in groups for row in group], columns=COLUMNS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    return tmp_path


# The grid


def test_a_variant_may_have_fewer_pairs_and_seeds():
    cells = grid(few={"pairs": ("b",), "seeds": (1,)}).cells()
    assert cells[:4] == [(p, "the default", s) for p in "ab" for s in (0, 1)]
    assert len(cells) == 9 and cells[-1] == ("b", "few", 1)


def test_changes_replace_and_remove_and_differ_per_pair():
    changes = ("adapt.iterations=7", "~rounds.round3", "pretrain.augmentation.photometric=null")
    variant = Variant(changes=changes, per_pair={"a": ("adapt.iterations=9",)})
    first, second = (plan((pair, "x", 5), variant, PRESET).params for pair in "ab")
    assert (first["adapt"]["iterations"], second["adapt"]["iterations"]) == (9, 7)
    assert list(first["rounds"]) == ["round1", "round2"] and first["seed"] == 5
    assert first["pretrain"]["augmentation"]["photometric"] is None
    assert PRESET["adapt"]["iterations"] == 80 and len(PRESET["rounds"]) == 3


@pytest.mark.parametrize("change", ["adapt.power", "~adapt.nothing", "nothing.x=1", "seed.x=1"])
def test_a_change_that_cannot_be_made_is_one_line(change):
    with pytest.raises(UserError, match="cannot be made; expected key=value"):
        adaptation.changed(PRESET, [change])


def test_source_only_trains_as_long_as_all_trainings_together():
    run = plan(("a", "x", 0), Variant(as_long=True, changes=("warmup.iterations=50",)), PRESET)
    assert run.params["pretrain"]["iterations"] == 400 + 50 + 3 * 80
    assert run.models == ["pretrain"]
    assert plan(("a", "x", 0), Variant(oracle=True), PRESET).models == ["oracle"]


def test_fingerprint_is_of_what_the_scores_depend_on():
    def digest(*changes, **fields):
        return plan(("a", "x", 0), Variant(changes=changes, **fields), PRESET).fingerprint

    assert digest() == digest("report.images=3") == digest("adapt.iterations=80")
    assert len({digest(), digest("adapt.iterations=81"), digest(oracle=True)}) == 3
    assert digest() != plan(("a", "x", 1), Variant(), PRESET).fingerprint
    shorter, other_rate = "adapt.iterations=79", "adapt.power=0.8"
    assert digest(oracle=True) == digest(other_rate, oracle=True) != digest(shorter, oracle=True)
    assert digest(as_long=True) == digest(other_rate, as_long=True)
    assert digest(as_long=True) != digest(shorter, as_long=True)
    assert digest() != digest(other_rate)
    stored = PRESET | {"extract": {"batch_size": 2}}  # how, is not what the scores depend on
    reduced = stored | {"extract": {"batch_size": 2, "directions": 40}}
    other = stored | {"extract": {"batch_size": 4}}
    digests = [plan(("a", "x", 0), Variant(), p).fingerprint for p in (stored, reduced, other)]
    assert digests[0] == digests[1] != digests[2]


def read_preset(name):
    return yaml.safe_load((ROOT / f"presets/{name}.yaml").read_text())


def test_an_unseen_pair_has_other_data_and_nothing_else():
    content = yaml.safe_load((ROOT / adaptation.GRID).read_text())
    read = validated(Grid, content, adaptation.GRID)
    assert len(read.unseen) > 1
    for pair, unseen in read.unseen.items():
        preset, params = read_preset(unseen.preset), read.parameters(pair, read_preset)
        different = {key for key in preset if preset[key] != params[key]}
        assert params.keys() == preset.keys() and different <= {"source", "target", "oracle"}
        names = [
            read_class_map(ROOT / params[domain]["class_map"]).label_space.names
            for domain in ("source", "target")
        ]
        assert names[0] == names[1]
        assert (pair, adaptation.DEFAULT, 2) in read.cells()


def test_the_grid_of_the_project_is_valid(tmp_path):
    content = yaml.safe_load((ROOT / adaptation.GRID).read_text())
    read = validated(Grid, content, adaptation.GRID)
    names = list(read.variants)
    assert names[0] == adaptation.DEFAULT and set(adaptation.COMPARED[1:]) <= set(names)
    assert not [name for name in names if "," in name]  # it separates names in --variants
    path = tmp_path / "params.yaml"
    for pair, name, _ in read.cells():
        preset = read.parameters(pair, read_preset)
        params = plan((pair, name, 0), read.variants[name], preset).params
        path.write_text(yaml.safe_dump(params))
        load_all(path)


@pytest.mark.parametrize(
    ("only", "complaint"),
    [
        (("moon", "", ""), "--pairs: 'moon' is none of a, b"),
        (("", "other,more", ""), "--variants: 'more' is none of the default, other"),
        (("", "", "0, 7"), "--seeds: '7' is none of 0, 1"),
    ],
)
def test_an_unknown_name_is_one_line(only, complaint, folder):
    content = grid().model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(content, sort_keys=False)
    (folder / adaptation.GRID).write_text(text)
    with pytest.raises(UserError, match=complaint):
        adaptation.read_runs("HEAD", only)


# What is done


def test_a_run_is_done_once_its_parameters_have_scores(folder):
    run = plan(("a", "x", 0), Variant(), PRESET)
    others = [*rows("a", "x", {1: 10}), *rows("a", "y", {0: 11}), *rows("b", "x", {0: 12})]
    adaptation.replace_rows(run, [*others, *rows("a", "x", {0: 20})])
    assert not run.is_done(adaptation.read_scores())
    found = adaptation.states([run], adaptation.read_scores())
    assert found == [{"pair": "a", "variant": "x", "seed 0": "older"}]

    new = rows("a", "x", {0: 30}, "pretrain", run.fingerprint)
    adaptation.replace_rows(run, [*new, *rows("a", "x", {0: 31}, "round1", run.fingerprint)])
    scores = adaptation.read_scores()
    assert run.is_done(scores)
    assert scores["miou"].tolist() == [10, 11, 12, 30, 31]
    assert adaptation.states([run], scores)[0]["seed 0"] == "31.0"
    assert adaptation.states([run], table())[0]["seed 0"] == "missing"


def test_scores_of_another_kind_of_processor_stay(folder):
    run = plan(("a", "x", 0), Variant(), PRESET)
    mine = {"fingerprint": run.fingerprint, "processor": "AVX2"}
    adaptation.replace_rows(run, rows("a", "x", {0: 10}))  # of other parameters
    adaptation.replace_rows(run, rows("a", "x", {0: 20}, fingerprint=run.fingerprint))
    adaptation.replace_rows(run, rows("a", "x", {0: 30}, **mine))
    assert adaptation.read_scores()["miou"].tolist() == [20, 30]
    adaptation.replace_rows(run, rows("a", "x", {0: 31}, **mine))
    scores = adaptation.read_scores()
    assert scores["miou"].tolist() == [20, 31] and run.is_done(scores)
    assert scores["processor"].tolist() == ["AVX512", "AVX2"]


def test_fingerprints_and_commits_are_text_even_of_digits(folder):
    run = Run(("a", "x", 0), {})
    adaptation.replace_rows(run, rows("a", "x", {0: 1}, fingerprint="00000012e456"))
    assert adaptation.read_scores()["fingerprint"].tolist() == ["00000012e456"]


def test_runs_of_one_clone_never_meet_and_a_failure_stops_none():
    runs = [Run((pair, name, 0), {}) for name in "xyz" for pair in "ab"]
    working, most, lock = [], [], threading.Lock()

    def make(run):
        with lock:
            assert run.clone not in working
            working.append(run.clone)
            most.append(len(working))
        threading.Event().wait(0.02)
        with lock:
            working.remove(run.clone)
        if run.cell[1] == "y":
            raise UserError("broken")
        return []

    ended = [(run, future.exception()) for run, future in adaptation.run_all(runs, 3, make)]
    assert {run.cell for run, _ in ended} == {run.cell for run in runs}
    assert {run.cell[1] for run, error in ended if isinstance(error, UserError)} == {"y"}
    assert not [error for _, error in ended if isinstance(error, AssertionError)]
    assert max(most) == 2 and {run.cell[1] for run, _ in ended[:2]} == {"x"}


# What is drawn

SCORES = table(
    rows("a", "the default", {0: 40, 1: 42, 2: 44}, "pretrain"),
    rows("a", "the default", {0: 41, 1: 99, 2: 45}, "round1"),  # not the last model
    rows("a", "the default", {0: 43, 1: 47, 2: 45}, "round2"),
    rows("a", "source only trained as long", {0: 41, 1: 43}, "pretrain"),
    rows("a", "oracle", {0: 50, 1: 52}, "oracle"),
    rows("a", "without mixing", {1: 45, 2: 44}, "pretrain"),
    rows("b", "the default", {0: 20}, "pretrain"),
    rows("b", "the default", {0: 19}, "round1"),
)


def test_table_by_hand():
    tables = adaptation.by_seed(SCORES)
    effects = adaptation.by_seed(SCORES, "effect")
    read = {pair: adaptation.variant_rows(tables[pair], effects[pair]) for pair in "ab"}
    found = {row.pop("variant"): list(row.values()) for row in read["a"]}
    # mIoU, seeds 0 to 2, over source only, worst, over trained as long, over the default, gap
    assert found == {
        "source only": [
            *("42.0 ± 2.0", "40.0", "42.0", "44.0"),
            *("+0.0", "+0.0", "-1.0", "-3.0", "0"),
        ],
        "source only trained as long": [
            *("42.0 ± 1.4", "41.0", "43.0", ""),
            *("+1.0", "+1.0", "+0.0", "-3.0", "10"),
        ],
        "the default": [
            *("45.0 ± 2.0", "43.0", "47.0", "45.0"),
            *("+3.0", "+1.0", "+3.0", "+0.0", "40"),
        ],
        "oracle": [*("51.0 ± 1.4", "50.0", "52.0", ""), *("+10.0", "+10.0", "+9.0", "+6.0", "100")],
        "without mixing": [
            *("44.5 ± 0.7", "", "45.0", "44.0"),
            *("+1.5", "+0.0", "+2.0", "-1.5", "30"),
        ],
    }
    alone = read["b"]
    assert [row["variant"] for row in alone] == ["source only", "the default"]
    assert [row["over source only"] for row in alone] == ["+0.0", "-1.0"]
    assert {row["gap closed, %"] for row in alone} == {""}


def test_an_effect_is_over_the_default_of_the_same_kind_of_processor():
    scores = table(
        SCORES.to_dict("records"),
        rows("a", "the default", {0: 30}, "pretrain", processor="AVX2"),
        rows("a", "the default", {0: 40}, "round2", processor="AVX2"),
        rows("a", "with blur", {0: 41.5, 1: 50}, processor="AVX2"),
        rows("a", "without mixing", {1: 1}, processor="AVX2"),
    )
    values, effects = (adaptation.by_seed(scores, v)["a"].T for v in ("miou", "effect"))
    assert values["the default"].tolist() == [43, 47, 45]  # AVX512: of most rows
    assert values["source only"].tolist() == [40, 42, 44]
    assert values["with blur"].tolist()[:2] == [41.5, 50]
    assert effects["with blur"].iloc[0] == 1.5 and pd.isna(effects["with blur"].iloc[1])
    assert effects["without mixing"].tolist()[1:] == [-2, -1]
    assert effects["the default"].tolist() == [0, 0, 0]


def test_rank_correlation_by_hand():
    def watched(pair, variant, values):
        for seed, (miou, agreement, entropy) in values.items():
            numbers = {"agreement": agreement, "entropy": entropy}
            yield from rows(pair, variant, {seed: miou}, label_free=json.dumps(numbers))

    values = {0: (40, 0.5, 3), 1: (42, 0.7, 2), 2: (44, 0.6, 1)}
    scores = table(
        [row for name in ("x", "y") for row in watched("a", name, values)],  # the same models
        watched("b", "x", {0: (1, 1, 1), 1: (2, 2, 2)}),  # too few
        rows("a", "oracle", {0: 90}),
    )
    found = adaptation.correlations(adaptation.watched_models(scores))
    assert list(found.index) == ["agreement", "entropy"]
    assert found["a"].tolist() == pytest.approx([0.5, 1.0])  # less entropy is better
    assert found["b"].isna().all()
    assert adaptation.correlations(adaptation.watched_models(SCORES)).empty


def test_the_better_of_two_models_of_a_seed_by_hand():
    numbers = [(40, 0.5, 3), (42, 0.7, 2), (44, 0.6, 4), (44.5, 0.1, 9)]  # the last two: too near
    models = [
        rows("a", name, {0: miou}, label_free=json.dumps({"agreement": a, "entropy": e}))[0]
        for name, (miou, a, e) in zip("wxyz", numbers, strict=True)
    ]
    models += rows("a", "w", {1: 90}, label_free=json.dumps({"agreement": 0, "entropy": 9}))
    models += rows("a", "w", {0: 10}, label_free='{"agreement": 1, "entropy": 0}', processor="AVX2")
    found = adaptation.ordered_rightly(adaptation.watched_models(table(models)))["a"]
    assert found.to_dict() == {"agreement": 40, "entropy": 20, "twos of models": 5}


def test_losses_that_a_number_misses_and_its_false_alarms_by_hand():
    def run(variant, *values, seed=0, **same):
        for number, (miou, agreement, entropy) in enumerate(values):
            numbers = json.dumps({"agreement": agreement, "entropy": entropy})
            yield from rows("a", variant, {seed: miou}, f"m{number}", label_free=numbers, **same)

    scores = table(
        run("x", (40, 0.5, 3), (41, 0.4, 2), (39, 0.3, 1)),  # a false alarm; missed by entropy
        run("y", (40, 0.5, 3), (41, 0.4, 2)),  # the same models again
        run("x", (50, 0.5, None), (49, 0.6, 1), seed=1),  # missed; not known of entropy
        run("x", (30, 0.1, 1), (30, 0.1, 2), processor="AVX2"),  # a false alarm of entropy
        rows("a", "oracle", {0: 90}),
    )
    found = adaptation.regressions(scores)
    assert list(found) == ["lost", "missed", "others", "false alarms"]
    assert found.loc["agreement"].tolist() == [2, 1, 2, 1]
    assert found.loc["entropy"].tolist() == [1, 1, 2, 1]
    assert list(found.index) == ["agreement", "entropy"]  # no other number is known of two models


@pytest.mark.parametrize(("name", "kind"), [("pretrain", "watch_start"), ("round3", "watch")])
def test_a_run_measures_its_models_without_labels(name, kind):
    run = plan(("a", "x", 0), Variant(), PRESET)
    (program,) = adaptation._programs(run)
    assert program[:2] == ["dvc", "repro"]
    assert f"evaluate@{name}" in program and f"{kind}@{name}" in program


def test_dots_stand_at_the_values_and_the_line_at_their_mean():
    figure = adaptation.dots_figure(adaptation.by_seed(SCORES), "mIoU, %")
    first, second = figure.axes
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names[2] == "the default" and len(names) == 5
    dots = [c.get_offsets()[2] for c in first.collections[:3]]
    assert [x for x, _ in dots] == [43, 47, 45] and len({y for _, y in dots}) == 3
    assert [text.get_text() for text in first.texts] == ["42.0", "42.0", "45.0", "51.0", "44.5"]
    assert len(second.get_yticklabels()) == 2


def test_draw_prints_tables_and_writes_plots_from_the_scores_alone(folder, capsys):
    run, label_free = Run(("c", "x", 0), {}), [json.dumps({"entropy": -i}) for i in range(3)]
    watched = [rows("a", "w", {i: 40 + i}, label_free=label_free[i])[0] for i in range(3)]
    for model, miou, entropy in (("pretrain", 43, -3), ("round1", 39, 1)):  # a loss that it shows
        numbers = json.dumps({"entropy": entropy})
        watched += rows("a", "w", {3: miou}, model, label_free=numbers)
    adaptation.replace_rows(run, [*SCORES.to_dict("records"), *watched])
    adaptation.draw.main([], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "| entropy |    1 |      0 |      0 |            0 |" in printed
    assert "| without mixing " in printed and "| entropy | +1.00 | +1.00 |" in printed
    for name in ("adaptation", "adaptation_ablation", "label_free"):
        with Image.open(folder / f"docs/images/{name}.png") as image:
            assert image.width > 400

    (folder / adaptation.SCORES).unlink()
    with pytest.raises(UserError, match="no scores"):
        adaptation.draw.main([], standalone_mode=False)


# A run


def test_one_command_makes_what_is_missing(tmp_path):
    """With a clone, DVC and the pipeline, on tiny data; the pretraining alone."""
    project = make_project(tmp_path / "project", rounds=1)
    preset = tiny_params(1) | {"evaluated": ["pretrain"]}
    preset["pretrain"] |= {"iterations": 2}
    preset["network"] |= {"encoder_weights": None}
    (project / "presets/tiny.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
    definition = {"seeds": [0], "pairs": ["tiny"], "variants": {"the default": {}}}
    definition["variants"]["broken"] = {"changes": ["source.class_map=classes/none.yaml"]}
    (project / "benchmarks").mkdir()
    (project / adaptation.GRID).write_text(yaml.safe_dump(definition, sort_keys=False))
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=grid")
    (project / "stages/pretrain.py").write_text("an unfinished edit")
    arguments = ("python", "-m", "benchmarks.adaptation", "run")

    printed = execute(project, *arguments, status=1, PYTHONPATH=str(ROOT))
    log = Path(".scratch/adaptation/tiny-0-broken.log")
    assert "1 of 2 runs failed" in printed and str(log) in printed and "Traceback" not in printed
    assert "classes/none.yaml" in (project / log).read_text()
    (score,) = pd.read_csv(project / adaptation.SCORES).to_dict("records")
    assert (score["pair"], score["variant"], score["model"]) == ("tiny", "the default", "pretrain")
    assert 0 <= score["miou"] <= 100 and score["seconds"] > 0 and len(json.loads(score["iou"])) > 5
    assert git(project, "rev-parse", "HEAD").startswith(score["commit"])
    assert score["processor"] == adaptation.processor()

    kept = project / ".scratch/adaptation/pictures"
    numbers, models = range(adaptation.PICTURES), ("source-only", "the-default", "truth")
    names = {f"{number}-{name}.png" for number in numbers for name in models}
    assert {path.name for path in (kept / "tiny").iterdir()} == names
    figure = adaptation.pictures_figure(kept)
    shown = [bool(axes.images) for axes in figure.axes]
    assert (
        shown == [True, False, True, True] * adaptation.PICTURES
    )  # the paper's rounds did not run
    assert (figure.axes[0].images[0].get_array() > 0).any()

    only = ("--variants", "the default")
    again = execute(project, *arguments, *only, PYTHONPATH=str(ROOT))
    assert "0 runs" in again
