"""`cag status`: the state of each stage, the cause if stale, and the last run's record."""

import json
import shutil
from pathlib import Path

import pytest
from project import digests, finished_project, merged, read_params, write_params

from cag import cli
from cag.project.status import pipeline_status
from cag.runtime.errors import UserError
from cag.runtime.program import read_records


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return finished_project(tmp_path_factory)


@pytest.fixture
def copy(project, tmp_path) -> Path:
    return shutil.copytree(project, tmp_path / "project", symlinks=True)


def states(project: Path) -> dict[str, tuple[str, str]]:
    return {one.stage: (one.state, one.why) for one in pipeline_status(project)}


def test_after_a_run_all_is_fresh_and_recorded(project):
    statuses = pipeline_status(project)
    assert {one.state for one in statuses} == {"fresh"}
    by_name = {one.stage: one for one in statuses}
    assert by_name["extract_target@round1"].record["images_per_second"] > 0
    assert by_name["anchors@round1"].record["images_per_second"] is None
    assert [one for one in statuses if not (one.record["started"] and one.record["seconds"])] == []
    folder = project / "data/models"
    assert by_name["pretrain"].bytes == sum(
        path.stat().st_size
        for path in (folder / "pretrain.safetensors", project / "data/curves/pretrain.csv")
    )


def test_a_changed_threshold_makes_stale_what_dvc_would_run(copy):
    params = merged(read_params(copy), {"pseudo_label": {"probability": 0.5}})
    write_params(copy, params)
    found = states(copy)
    stale = {stage for stage, (state, _) in found.items() if state == "stale"}
    assert found["pseudo_label@round1"] == ("stale", "pseudo_label modified")
    assert found["adapt@round1"] == ("stale", "after pseudo_label@round1")
    extract = {"extract_source@round1", "extract_target@round1"}
    assert not stale & {"index", "pretrain", "warmup", "anchors@round1", *extract}
    assert "report" in stale


def test_a_lost_output_is_missing_and_nothing_is_changed_by_looking(copy):
    (copy / "data/rounds/round1/anchors.npy").unlink()
    before = digests(copy)
    found = states(copy)
    assert found["anchors@round1"] == ("missing", "data/rounds/round1/anchors.npy deleted")
    assert found["pseudo_label@round1"] == ("stale", "after anchors@round1")
    assert found["extract_target@round1"] == ("fresh", "")
    after = digests(copy)
    assert {path: after[path] for path in after if not path.startswith(".dvc/tmp")} == {
        path: before[path] for path in before if not path.startswith(".dvc/tmp")
    }
    (copy / ".scratch/runs/pretrain.json").write_text("{")
    assert "pretrain" not in read_records(copy / ".scratch/runs")


def test_command_prints_a_table_or_json(copy, monkeypatch, capsys):
    monkeypatch.chdir(copy)
    cli.cli.main(["status"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "extract_target@round1" in shown and "all fresh" in shown
    cli.cli.main(["status", "--json"], standalone_mode=False)
    stages = json.loads(capsys.readouterr().out)
    assert {one["state"] for one in stages} == {"fresh"}
    extract = next(one for one in stages if one["stage"] == "extract_target@round1")
    assert extract["images"] > 0 and 0 <= extract["waiting_share"] < 1
    assert "cores" in extract["device"] and extract["processes"] == 1
    assert set(extract["versions"]) == {"cag", "python", "torch"}


def test_times_are_listed_in_the_order_of_the_run(copy, monkeypatch, capsys):
    monkeypatch.chdir(copy)
    cli.cli.main(["status", "--times"], standalone_mode=False)
    heads, *lines, versions = capsys.readouterr().out.splitlines()
    assert heads.split() == ["stage", "ran", "took", "images/s", "images", "waiting"] + [
        *("processes", "device")
    ]
    names = [line.split()[0] for line in lines]
    assert names[0] == "index" and names[-1] == "report" and len(names) == len(set(names)) > 10
    assert names.index("adapt@round1") < names.index("extract_source@round2")
    assert "torch 2" in versions
    shutil.rmtree(copy / ".scratch/runs")
    with pytest.raises(UserError, match="no stage has run in this folder"):
        cli.cli.main(["status", "--times"], standalone_mode=False)


def test_outside_a_project_one_line_says_so(tmp_path):
    with pytest.raises(UserError, match="no DVC project; run this in the folder of one"):
        pipeline_status(tmp_path)


def test_broken_parameters_are_one_line(copy):
    (copy / "params.yaml").write_text("a: [")
    with pytest.raises(UserError) as caught:
        pipeline_status(copy)
    assert "\n" not in str(caught.value) and "params.yaml" in str(caught.value)
