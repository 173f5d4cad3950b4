"""A new loss term takes three files and a row of the ablations, and retrains only the students."""

import json
import shutil

import extending
import pytest
import yaml
from project import ROOT, digests, dvc, execute, finished_project, ran

from benchmarks.miniature import FOLDERS

TITLE = "A loss term, from the parameter to the ablation"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A finished run to whose code the loss term was added."""
    folder = tmp_path_factory.mktemp("loss") / "project"
    shutil.copytree(finished_project(tmp_path_factory), folder, symlinks=True)
    extending.apply(TITLE, folder)
    return folder


def test_it_touches_three_files(project):
    changed = [
        path.relative_to(ROOT).as_posix()
        for name in FOLDERS
        for path in sorted((ROOT / name).rglob("*.[py][ya]*"))
        if path.is_file() and path.read_bytes() != (project / path.relative_to(ROOT)).read_bytes()
    ]
    expected = ["cag/adaptation.py", "cag/config/adaptation.py", "cag/losses.py"]
    assert sorted(p for p in changed if "__pycache__" not in p) == expected


def test_it_reruns_nothing_before_the_students(project):
    stale = ran(dvc(project, "repro", "--dry"))
    assert "adapt@round1" in stale
    earlier = ("prepare", "pretrain", "warmup", "extract_target@round1", "anchors@round1")
    assert not [name for name in stale if name.startswith((*earlier, "pseudo_label@round1"))]


def test_without_its_weight_nothing_changes_and_with_it_the_student_does(project, tmp_path):
    model = "models/round1.safetensors"
    before = digests(project / "data")[model]
    adapt = ("python", "-m", "stages.adapt", "round1", "warmup")
    execute(project, *adapt)
    assert digests(project / "data")[model] == before

    (row,) = yaml.safe_load(extending.section(TITLE).split("```yaml\n")[1].split("```")[0]).values()
    key, value = row[0].removeprefix("++adapt.").split("=")
    params = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    models = []
    for changes in ({"teacher": "ema"}, {"teacher": "ema", key: float(value)}):
        params["adapt"] |= changes
        (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        execute(project, *adapt)
        models.append(digests(project / "data")[model])
    assert models[0] != models[1]


def test_a_wrong_weight_is_one_line(project):
    params = json.loads(json.dumps(yaml.safe_load((project / "params.yaml").read_text())))
    params["adapt"]["entropy_weight"] = -1.0
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    printed = execute(project, "python", "-m", "stages.adapt", "round1", "warmup", status=1)
    assert printed.startswith("error: params.yaml: adapt.entropy_weight is -1.0: ")
