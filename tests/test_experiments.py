"""The table of several seeds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from project import ROOT

from cag.config.parameters import load_all
from cag.project import experiments as results
from cag.project import repository
from cag.report.seeds import seeds_page
from cag.runtime.errors import UserError


def row(rows, model):
    (found,) = [cells for cells in map(list, map(dict.values, rows)) if model in cells[0]]
    return found


def test_spread_gain_and_share_of_the_gap_by_hand():
    scores = pd.DataFrame(
        {
            "variant": "",
            "seed": [0, 1, 2],
            "pretrain": [0.20, 0.30, 0.40],
            "round1": [0.26, 0.35, 0.44],
            "oracle": [0.40, 0.50, 0.60],
        }
    )
    table = results.seed_rows(scores)
    assert row(table, "source only")[1:] == ["30.0", "10.0", "20.0", "30.0", "40.0", "", "", "60 %"]
    assert row(table, "round1")[1:] == [
        *("35.0", "9.0", "26.0", "35.0", "44.0", "+5.0", "25 %", "70 %")
    ]
    assert row(table, "oracle")[1:] == ["50.0", "10.0", "40.0", "50.0", "60.0", "+20.0", "", ""]


def test_one_seed_has_no_spread_and_no_oracle_no_gap():
    table = results.seed_rows(
        pd.DataFrame([{"variant": "", "seed": 3, "pretrain": 0.5, "round1": 0.4}])
    )
    assert row(table, "round1")[1:] == ["40.0", "", "40.0", "-10.0", "", ""]


def test_grid_has_a_row_for_each_variant_by_hand():
    scores = pd.DataFrame(
        {
            "variant": ["plain", "plain", "aligned", "aligned"],
            "seed": [0, 1, 0, 1],
            "pretrain": [0.20, 0.30, 0.20, 0.30],
            "warmup": [None, None, 0.24, 0.36],
            "round1": [0.26, 0.35, 0.30, 0.50],
            "round2": [None, None, 0.40, 0.60],
        }
    )
    table = results.grid_rows(scores)
    assert row(table, "plain")[1:] == ["25.0 ± 7.1", "", "30.5 ± 6.4", "", "+5.5"]
    assert row(table, "aligned")[1:] == [
        *("25.0 ± 7.1", "30.0 ± 8.5", "40.0 ± 14.1", "50.0 ± 14.1", "+25.0")
    ]
    assert row(results.grid_rows(scores.query("seed == 1")), "plain")[1:] == [
        *("30.0", "", "35.0", "", "+5.0")
    ]


def test_scores_that_are_not_known_are_no_numbers_and_end_nothing():
    rows = [{"variant": "plain", "seed": seed, "pretrain": None, "round1": None} for seed in (0, 1)]
    scores = pd.DataFrame(rows)
    assert row(results.grid_rows(scores), "plain")[1:] == ["", "", ""]
    assert row(results.seed_rows(scores), "round1")[1:] == [*["none"] * 4, "", "", ""]
    page = seeds_page(scores.drop(columns="variant"), {})
    assert not re.search(r"\bnan\b", re.sub('<svg.*?</svg>|base64,[^"]*', "", page, flags=re.S))


def list_models(*names):
    """Write the list of evaluated models, as `index` does."""
    Path("data/evaluation").mkdir(parents=True, exist_ok=True)
    Path("data/evaluation/models.csv").write_text("\n".join(("model", *names, "")))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"miou": "x"}', '{"miou": 2}'])
def test_damaged_scores_are_one_line(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("data/evaluation/round1/metrics.json")
    path.parent.mkdir(parents=True)
    path.write_text('{"miou": 0.25, "iou": {}}')
    list_models("round1")
    assert results.workspace_scores() == {"round1": 0.25}
    path.write_text('{"miou": null}')
    assert results.workspace_scores() == {"round1": None}
    path.write_text(text)
    with pytest.raises(UserError, match=f"^{path}: not a file of scores .*; delete it") as error:
        results.workspace_scores()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "no such file"),
        ("a: [", "not readable YAML"),
        ("a: [b=1]\nc: []\na: [b=2]", "the key 'a' twice, in lines 1 and 3"),
        ('1: [b=1]\n"1": [b=2]', "two variants have one name, but for quotes"),
        ("- a=1", "expected names of variants"),
        ("", "expected names of variants"),
        ("{}", "expected names of variants"),
        ("a: b=1", "a: found 'b=1'; expected a list"),
        ("a: [b]", "expected a list of key=value"),
    ],
)
def test_bad_grid_is_one_line(text, complaint, tmp_path):
    path = tmp_path / "grid.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(results.UserError, match=complaint) as raised:
        results.read_grid(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_ablations_change_parameters_that_exist(tmp_path):
    grid = results.read_grid(ROOT / "benchmarks/ablations.yaml")
    for name, entries in grid.items():
        params = yaml.safe_load((ROOT / "presets/scenes.yaml").read_text())
        for entry in entries:
            key, _, value = entry.removeprefix("~").removeprefix("++").partition("=")
            *sections, last = key.split(".")
            section = params
            for part in sections:
                section = section[part]
            assert last in section or entry.startswith("++"), (name, key)
            if entry.startswith("~"):
                del section[last]
            else:
                section[last] = yaml.safe_load(value)
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(params))
        load_all(path)


def test_a_score_that_is_not_known_is_shown_as_such(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model, score in (("pretrain", "null"), ("round1", "0.3")):
        path = tmp_path / f"data/evaluation/{model}/metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(f'{{"miou": {score}}}')
    list_models("pretrain", "round1")
    assert row(results.workspace_rows(), "round1")[1:] == ["30.0", ""]
    assert row(results.workspace_rows(), "source only")[1:] == ["none", ""]
    assert results.workspace_scores()["pretrain"] is None


def test_workspace_table_shows_the_change_against_source_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model, miou in (("pretrain", 0.25), ("round1", 0.301)):
        path = tmp_path / "data/evaluation" / model / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"miou": miou}))
    list_models("pretrain", "round1")
    assert row(results.workspace_rows(), "round1")[1:] == ["30.1", "+5.1"]


def test_scores_of_an_earlier_runs_models_are_not_those_of_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model in ("round2", "pretrain", "round1"):
        path = Path("data/evaluation") / model / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text('{"miou": 0.5}')
    list_models("pretrain", "round1", "round3")  # round3 has no validation labels
    assert list(results.workspace_scores()) == ["pretrain", "round1"]


def test_a_damaged_list_of_models_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    list_models("pretrain")
    Path("data/evaluation/models.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="models.csv: not a list of models .*; run `dvc repro`"):
        results.workspace_scores()


def test_missing_workers_are_started_and_all_failures_awaited(monkeypatch):
    seen = iter(
        [
            ({"a": "Queued", "b": "Queued", "c": "Queued"}, 0),
            ({"a": "Failed", "b": "Running", "c": "Queued"}, 1),
            ({"a": "Failed", "b": "Success", "c": "Running"}, 1),
            ({"a": "Failed", "b": "Success", "c": "Success"}, 0),
        ]
    )
    started = []
    monkeypatch.setattr(results, "queue", lambda: next(seen))
    monkeypatch.setattr(results, "start_workers", lambda jobs, _: started.append(jobs))
    monkeypatch.setattr(results, "POLL_SECONDS", 0)
    with pytest.raises(results.UserError, match="1 of 3 experiments failed; `dvc queue logs a`"):
        results._work(["a", "b", "c"], jobs=2)
    assert started == [2, 2]  # none there; one of two gone; one is enough for the last
    assert next(seen, None) is None


def test_queue_is_read_from_dvc(monkeypatch):
    said = (
        "Task     Name      Created    Status\n"
        "ecc5fa8  seed0-a1  10:53 PM   Running\n"
        "dad2588  seed1-b2  10:53 PM   Queued\n\n"
        "Worker status: 1 active, 1 idle\n"
    )
    monkeypatch.setattr(repository, "command", lambda *_: said)
    assert repository.queue() == ({"seed0-a1": "Running", "seed1-b2": "Queued"}, 2)


def test_dvc_is_asked_in_one_module_alone():
    asks = re.compile(r"^\s*(from|import) dvc\b|\"dvc\"", re.MULTILINE)
    modules = [path for path in (ROOT / "cag").rglob("*.py") if asks.search(path.read_text())]
    assert modules == [Path(repository.__file__)]


def test_lost_scores_of_an_experiment_are_one_line(monkeypatch):
    texts = {"params.yaml": "evaluated: [pretrain]", "data/evaluation/pretrain/metrics.json": None}
    monkeypatch.setattr(results, "reader", lambda _: texts.get)
    with pytest.raises(results.UserError, match="experiment seed0-a1: DVC's cache has lost its"):
        results._scores("seed0-a1")
    texts["data/evaluation/pretrain/metrics.json"] = '{"miou": 0.5}'
    assert results._scores("seed0-a1") == {"pretrain": 0.5}


def test_a_failing_dvc_command_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(results.UserError, match="`dvc exp show` failed: .*"):
        repository.command("exp", "show")


def test_the_error_of_a_dvc_command_is_its_error_and_not_its_last_line(monkeypatch):
    said = "ERROR: unexpected error - the index is locked\n\nHaving any troubles? Hit us up\n"
    done = subprocess.CompletedProcess((), 255, "", said)
    monkeypatch.setattr(repository, "_run", lambda *_, **__: done)
    with pytest.raises(UserError, match="`dvc exp run` failed: unexpected error - the index is"):
        repository.command("exp", "run")


@pytest.fixture
def part(tmp_path, monkeypatch):
    """A DVC project in a folder of a larger repository; a tracked file is in its first commit."""

    def run(*program, cwd):
        subprocess.run(program, cwd=cwd, check=True, capture_output=True)

    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root, project = tmp_path / "mono", tmp_path / "mono/team/uda"
    project.mkdir(parents=True)
    run("git", "init", "--quiet", cwd=root)
    run(sys.executable, "-m", "dvc", "init", "--subdir", cwd=project)
    (project / "table.csv").write_text("a,b\n", encoding="utf-8")
    run(sys.executable, "-m", "dvc", "add", "table.csv", cwd=project)
    run("git", "add", "--all", cwd=root)
    who = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    run("git", *who, "commit", "--quiet", "--message", "new", cwd=root)
    monkeypatch.chdir(project)
    return root


def test_experiments_of_a_part_of_a_repository_are_read(part, tmp_path):
    read = repository.reader("HEAD")
    assert read("table.csv") == "a,b\n" and read("none.csv") is None
    assert "outs" in repository.reader(None)("table.csv.dvc")
    repository.fetch("HEAD", "table.csv", tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_text() == "a,b\n"


def test_a_parameter_file_that_dvc_cannot_read_is_no_empty_table(part):
    Path("dvc.yaml").write_text("stages: {}\nparams: [params.yaml]\n")
    Path("params.yaml").write_text("a: b: c\n")
    with pytest.raises(UserError, match="DVC: unable to read: 'params.yaml'"):
        repository.read_experiments()


def test_what_git_refuses_is_one_line(part):
    (part / ".git/config").write_text("[damaged\n")
    with pytest.raises(UserError, match="git's repository: .*; `git status` may say more"):
        repository.read_stages()


def test_what_dvc_cannot_copy_is_said_before_an_experiment(part):
    repository.require_experiments()
    config = part / ".git/config"
    before = config.read_bytes()
    config.write_bytes(before + "[user]\n\tname = Jörg\n".encode())
    with pytest.raises(UserError, match=r"\.git/config: .* ASCII; .* --global"):
        results.run_experiments({"": []}, [0], 1)
    config.write_bytes(before)
    part.rename(part.with_name("größe"))
    os.chdir(part.with_name("größe") / "team/uda")
    with pytest.raises(UserError, match="größe.* ASCII in the path of the cache; .*dvc cache dir"):
        results.run_experiments({"": []}, [0], 1)
