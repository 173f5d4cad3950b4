"""Experiments side by side: differing parameters, their own scores, and times."""

import json

import pandas as pd
import pytest
import yaml
from project import ROOT

from cag.project import repository
from cag.project import sweep_table as sweeps
from cag.project.repository import Experiment
from cag.runtime.errors import UserError


def stage(deps=(), outs=(), **params):
    return {
        "deps": [{"path": path, "md5": md5} for path, md5 in deps],
        "outs": [{"path": path, "md5": md5} for path, md5 in outs],
        "params": {"params.yaml": params},
    }


def lock(**changes):
    """A chain label -> adapt -> evaluate, and an unrelated stage."""
    stages = {
        "prepare": stage(outs=[("data/prepared", "p1")], source=1),
        "label": stage([("data/prepared/m.csv", "m1")], [("labels", "l1")], pseudo_label={"m": 2}),
        "adapt": stage([("labels", "l1")], [("model", "a1")], adapt={"i": 5}),
        "evaluate": stage([("model", "a1"), ("cag/x.py", "x")]),
    }
    return {"stages": stages | changes}


PARAMS = {"source": 1, "pseudo_label": {"m": 2}, "adapt": {"i": 5}, "unused": 3}


def test_a_whole_run_is_fresh():
    assert sweeps.fresh_stages(lock(), PARAMS) == {"prepare", "label", "adapt", "evaluate"}


def test_what_did_not_run_with_the_parameters_is_not_fresh_nor_what_follows():
    assert sweeps.fresh_stages(lock(), PARAMS | {"pseudo_label": {"m": 3}}) == {"prepare"}
    assert sweeps.fresh_stages(lock(), PARAMS | {"source": 2}) == set()
    # The labels are new, and what was trained on the old ones is not theirs.
    label = stage([("data/prepared/m.csv", "m1")], [("labels", "l2")], pseudo_label={"m": 3})
    found = sweeps.fresh_stages(lock(label=label), PARAMS | {"pseudo_label": {"m": 3}})
    assert found == {"prepare", "label"}


def test_a_part_of_a_section_makes_only_this_part_count():
    made = lock(label=stage(outs=[("labels", "l1")], **{"pseudo_label.m": 2}))
    for other in (1, 2):
        changed = PARAMS | {"pseudo_label": {"m": 2, "other": other}}
        assert "label" in sweeps.fresh_stages(made, changed)
    assert "label" not in sweeps.fresh_stages(made, PARAMS | {"pseudo_label": {"m": 3}})
    assert "label" not in sweeps.fresh_stages(made, PARAMS | {"pseudo_label": None})


def test_stages_that_ran_are_those_since_the_index():
    times = pd.DataFrame(
        {
            "stage": ["pretrain", "index", "adapt@round1"],
            "started": [
                "2024-05-01T10:00:00+00:00",
                "2024-05-01T12:00:00",
                "2024-05-01T12:00:09.5",
            ],
            "seconds": [60.0, 1.0, 20.0],
        }
    )
    assert list(sweeps.stages_run(times)["stage"]) == ["index", "adapt@round1"]
    assert len(sweeps.stages_run(times.iloc[[0]])) == 1


def experiment(name, state, margin, **data):
    params = {"params.yaml": {"data": {"seed": 0, "pseudo_label": {"margin": margin}}}}
    newest = {"rev": "abc1234567", "data": {"rev": "abc", "params": params, "metrics": {}, **data}}
    return {"name": name, "executor": state and {"state": state}, "revs": [newest]}


def test_experiments_of_every_state_are_named(monkeypatch):
    monkeypatch.setattr(sweeps, "_results", lambda *_: ({"round1.miou": 0.25}, set()))
    failed = experiment("bad", "failed", 3)
    failed["revs"][0]["data"] = None
    shown = [
        {"data": experiment("", None, 1)["revs"][0]["data"], "experiments": None},
        {"data": {}, "experiments": [experiment("good", "success", 2), failed]},
        {"data": {}, "experiments": [experiment(None, "queued", 4)]},
    ]
    rows = [sweeps._row(one) for one in repository._experiments(shown)]
    assert [(row["experiment"], row["state"]) for row in rows] == [
        *(("workspace", "finished"), ("good", "finished")),
        *(("bad", "failed"), ("abc1234", "queued")),
    ]
    assert [bool(row["results"]) for row in rows] == [True, True, False, False]
    assert sweeps._changed([row["params"] for row in rows]) == ["pseudo_label.margin"]


def test_a_workspace_without_results_is_stale(monkeypatch):
    monkeypatch.setattr(sweeps, "_results", lambda *_: ({}, set()))
    shown = [
        {"data": experiment("", None, 1)["revs"][0]["data"], "experiments": None},
        {"data": {}, "experiments": [experiment("good", "success", 2)]},
    ]
    rows = [sweeps._row(one) for one in repository._experiments(shown)]
    assert [row["state"] for row in rows] == ["stale", "finished"]


def test_without_a_commit_one_line_says_so():
    with pytest.raises(UserError, match="no commit yet"):
        list(repository._experiments([]))


def test_what_the_cache_has_lost_is_not_known(monkeypatch):
    class Files:
        def read_text(self, path, encoding):
            if path != sweeps.LOCK:
                raise FileNotFoundError(path)
            return yaml.safe_dump({"stages": {"pseudo_label@round1": stage(), "report": stage()}})

    monkeypatch.setattr("dvc.api.DVCFileSystem", lambda **_: Files())
    assert repository.reader(None)(repository.METRICS) is None
    lost = Experiment("lost", "finished", params={"rounds": {"round1": {}}})
    assert sweeps._results(lost) == ({}, {"pseudo_label@round1", "report"})


def write_record(folder, stage, minute, seconds, **more):
    folder.mkdir(parents=True, exist_ok=True)
    started = f"2024-05-01T10:{minute:02}:00+00:00"
    record = {"stage": stage, "started": started, "seconds": seconds, **more}
    record |= {"device": "cpu", "processes": 1, "versions": {}}
    (folder / f"{stage}.json").write_text(json.dumps(record))


def test_times_are_those_of_the_records_of_an_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / ".scratch/runs"
    write_record(runs / "mine", "adapt@round1", 2, 30.0, commit="c1")
    write_record(runs / "mine", "index", 1, 1.0, commit="c1")
    write_record(runs / "mine", "pretrain", 0, 9.0, commit="c1")  # of an earlier attempt
    write_record(runs / "mine", "report", 3, 5.0, commit="c1")  # whose inputs have changed since
    write_record(runs, "index", 5, 2.0)
    fresh = {"index", "pretrain", "adapt@round1"}
    monkeypatch.setattr(sweeps, "_results", lambda _: ({}, fresh))
    mine = Experiment("mine", "finished", "c1", "r1", {"seed": 0})
    row = sweeps._row(mine)
    assert (row["seconds"], row["stages"]) == (31.0, "index adapt@round1")
    workspace = sweeps._row(mine._replace(name="workspace", commit=None))
    assert (workspace["seconds"], workspace["stages"]) == (2.0, "index")
    for unknown in (mine._replace(commit="c2"), mine._replace(name="other")):
        assert sweeps._row(unknown)["seconds"] is None
    fresh.discard("index")  # the parameters have changed, and nothing has run since
    assert sweeps._row(mine)["seconds"] is None


def test_an_option_that_is_left_out_has_its_default(monkeypatch):
    given = yaml.safe_load((ROOT / "presets/scenes.yaml").read_text())
    other = {**given, "adapt": {**given["adapt"], "second_opinion": True}}
    rows = [sweeps._row(Experiment("a", "queued", params=params)) for params in (given, other)]
    assert sweeps._changed([row["params"] for row in rows]) == ["adapt.second_opinion"]
    assert [row["params"]["adapt.second_opinion"] for row in rows] == [False, True]


def table():
    return pd.DataFrame(
        {
            "experiment": ["workspace", "b", "a", "c", "d"],
            "state": ["finished"] * 4 + ["failed"],
            "optimizer": ["sgd", "sgd", "sgd", "adamw", "sgd"],
            "adapt.iterations": [80, 80, 80, 90, 80],
            "pseudo_label.margin": [None, 2.0, 1.0, 1.0, 9.0],
            "round1.coverage.anchor": [0.5, 0.4, 0.6, 0.7, None],
            "round1.miou": [0.2, 0.21, 0.22, 0.3, None],
            "seconds": [None, 90.0, 60.0, None, None],
            "stages": [None, "index adapt@round1", "index", None, None],
        }
    )


def test_thresholds_are_drawn_first_and_others_on_demand():
    assert sweeps.swept_parameter(table()) == "pseudo_label.margin"
    assert sweeps.swept_parameter(table(), "adapt.iterations") == "adapt.iterations"
    with pytest.raises(UserError, match="optimizer has not .*: pseudo_label.margin, adapt.iter"):
        sweeps.swept_parameter(table(), "optimizer")
    with pytest.raises(UserError, match="dvc exp run --queue"):
        sweeps.swept_parameter(table().iloc[:1])


def test_points_are_finished_sorted_and_grouped_by_what_else_differs():
    groups = dict(sweeps.swept_points(table(), "pseudo_label.margin"))
    assert {label: list(rows["experiment"]) for label, rows in groups.items()} == {
        "optimizer sgd, iterations 80": ["a", "b"],
        "optimizer adamw, iterations 90": ["c"],
    }


def test_terminal_table_by_hand():
    title, rows = sweeps.terminal_rows(table())
    assert title == "coverage and precision: round1's pseudo-labels; all in %"
    (cells,) = [list(row.values()) for row in rows if row["experiment"] == "b"]
    assert cells == ["b", "finished", "sgd", "80", "2", "40.0", "21.0", "1.5", "2"]
    assert [row["state"] for row in rows].count("failed") == 1


def test_parameters_of_the_same_name_have_columns_of_their_own():
    twice = table().rename(columns={"optimizer": "pretrain.iterations"})
    heads = list(sweeps.terminal_rows(twice)[1][0])
    assert heads[2:5] == ["pretrain.iterations", "adapt.iterations", "margin"]


def test_a_score_that_is_not_known_is_empty(monkeypatch):
    text = yaml.safe_dump({"stages": {"evaluate@m": stage()}})
    monkeypatch.setattr(repository, "reader", lambda _: {sweeps.LOCK: text}.get)
    metrics = {repository.METRICS.format("m"): {"images": 4}}  # DVC shows no null
    found, _ = sweeps._results(
        Experiment("a", "finished", params={"evaluated": ["m"]}, metrics=metrics)
    )
    assert found == {"m.miou": None}
    table = pd.DataFrame(
        [{"experiment": "a", "state": "finished", **found, "seconds": 1, "stages": ""}]
    )
    assert sweeps.terminal_rows(table)[1][0]["mIoU\nm"] == ""
