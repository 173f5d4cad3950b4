"""A new threshold of the anchor rule takes only a row of the table and a parameter."""

import json
import re
import shutil

import extending
import h5py
import numpy as np
import pandas as pd
import pytest
from project import dvc, execute, finished_project, merged, ran, read_params, write_params

from cag.datasets.images import image_size

STAGES = ("pseudo_label round1", "evaluate_pseudo_labels round1 warmup")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A finished run with the threshold added and set to the median distance of a pixel."""
    finished = finished_project(tmp_path_factory)
    folder = tmp_path_factory.mktemp("threshold") / "project"
    shutil.copytree(finished, folder, symlinks=True)
    files = extending.apply("A threshold of the anchor rule", folder)
    assert files == ["cag/pseudo_labels.py", "cag/config/pseudo_labels.py"]
    with h5py.File(folder / "data/pseudo_label_evaluation/round1/samples.h5") as file:
        median = float(f"{np.median([file[key]['nearest_distance'][:] for key in file]):.3g}")
    changes = {"pseudo_label": {"quantile": None, "largest_distance": median}}
    write_params(folder, merged(read_params(folder), changes))
    return folder


def test_it_reruns_what_the_labels_make(project):
    stale = ran(dvc(project, "repro", "--dry"))
    assert {"pseudo_label@round1", "evaluate_pseudo_labels@round1"} <= set(stale)
    unchanged = ("prepare", "pretrain", "warmup", "extract_target@round1", "anchors@round1")
    assert not [name for name in stale if name.startswith(unchanged)]


def test_labels_curves_inspection_and_figures_know_it(project):
    threshold = read_params(project)["pseudo_label"]["largest_distance"]
    pictures = [
        project / "data/rounds/round1/threshold_curves.png",
        project / "data/pseudo_label_evaluation/round1/curves.png",
    ]
    before = [image_size(path) for path in pictures]
    for stage in STAGES:
        name, *arguments = stage.split()
        execute(project, "python", "-m", f"stages.{name}", *arguments)

    coverage = pd.read_csv(project / "data/rounds/round1/coverage.csv")
    curves = pd.read_csv(project / "data/rounds/round1/threshold_curves.csv")
    rows = curves[curves["rule"] == "largest_distance"]
    used = rows[np.isclose(rows["threshold"], threshold)]
    assert used["pixels"].tolist() == coverage["anchor"].tolist()
    assert 0 < coverage["anchor"].sum() < coverage["nearest"].sum()
    pixels = rows.groupby("threshold")["pixels"].sum()
    assert pixels.is_monotonic_increasing and pixels.iloc[0] == 0

    evaluation = project / "data/pseudo_label_evaluation/round1"
    with h5py.File(evaluation / "samples.h5") as file:
        distances = np.stack([file[key]["nearest_distance"][:] for key in file])
    passed = distances <= np.float32(threshold)
    scores = json.loads((evaluation / "metrics.json").read_text())
    assert scores["anchor"]["coverage"] == pytest.approx(passed.mean())

    command = "from cag.cli import cli; cli()"
    arguments = ("inspect", "target_00003", "--round", "1", "--xy", "40,20", "--json")
    pixel = json.loads(execute(project, "python", "-c", command, *arguments))["pixel"]
    (rule,) = (rule for rule in pixel["rules"] if rule["rule"] == "largest_distance")
    assert rule["threshold"] == threshold and rule["value"] == pixel["nearest_distance"]
    assert rule["passes"] == (rule["value"] <= threshold) == (pixel["labels"]["anchor"] is not None)

    after = [image_size(path) for path in pictures]
    assert after[0][0] > before[0][0]  # a third row of plots
    assert after[1] == before[1]


def test_without_any_threshold_the_error_names_it_too(project):
    params = read_params(project)
    write_params(project, merged(params, {"pseudo_label": {"largest_distance": None}}))
    try:
        printed = execute(project, "python", "-m", "stages.pseudo_label", "round1", status=1)
    finally:
        write_params(project, params)
    expected = "one of margin, relative_margin, quantile and largest_distance must be a number"
    assert re.search(expected, printed)
