"""The pipeline on vision transformers: small ones of timm with random weights."""

from importlib import import_module

import numpy as np
import pytest
from PIL import Image
from project import ROOT

from benchmarks.miniature import LENIENT, tiny_params, write_params
from benchmarks.networks import labelled, made
from cag import cli
from cag.anchors import read_anchors
from cag.datasets.images import read_label
from cag.deploy import export
from cag.features import read_target_store
from cag.networks import load_model

SIZE, PHOTOGRAPH, CLASSES = (48, 96), (70, 130), 7  # no side is a multiple of a photograph's
STAGES = ("index", "prepare source", "prepare target", "pretrain", "warmup")
STAGES += ("extract_source round1 warmup", "extract_target round1 warmup round1")
STAGES += ("anchors round1 round1", "pseudo_label round1", "adapt round1 warmup")
SMALL = {"decoder_intermediate_channels": [8] * 4, "decoder_fusion_channels": 16}


def parameters(architecture, options):
    """Two steps of each training; thresholds that an untrained network reaches."""
    params = tiny_params(rounds=1)
    for training in ("pretrain", "warmup", "adapt"):
        rates = {"learning_rate_decoder": 1e-3, "learning_rate_warmup": 2}
        params[training] |= {"iterations": 2, "optimizer": "adamw", "learning_rate": 1e-4} | rates
    rules = {"quantile": None, "relative_margin": 0.0, "agreement": False, "probability": 0.05}
    network = {"architecture": architecture, "encoder": "tu-test_vit", "options": options}
    return params | {
        "network": params["network"] | network,
        "anchors": params["anchors"] | LENIENT,
        "pseudo_label": params["pseudo_label"] | rules,
    }


def cag(*arguments):
    cli.cli.main([*map(str, arguments)], standalone_mode=False)


@pytest.mark.parametrize(
    ("architecture", "options", "form"),
    [
        ("Linear", {"patch_size": 14}, (64, (4, 7))),  # DINOv2's patches
        ("DPT", SMALL, (16, (24, 48))),
    ],
)
def test_the_pipeline_runs_on_a_transformer(architecture, options, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes").symlink_to(ROOT / "classes")
    write_params(tmp_path, parameters(architecture, options))
    for stage in STAGES:
        name, *arguments = stage.split()
        import_module(f"stages.{name}").main.main(arguments, standalone_mode=False)

    width, size = form
    store = read_target_store(tmp_path / "data/features/round1/target.h5", CLASSES)
    anchors = read_anchors(tmp_path / "data/rounds/round1/anchors.npy", CLASSES, width)
    assert store.width == width and anchors.isfinite().all(dim=1).any()
    labels = tmp_path / "data/rounds/round1/pseudo_labels/anchor"
    assert {read_label(path).shape for path in labels.iterdir()} == {SIZE}

    models = [tmp_path / f"data/models/{name}.safetensors" for name in ("warmup", "round1")]
    teacher, student = (load_model(path).network for path in models)
    moved = [
        name
        for (name, one), other in zip(teacher.named_parameters(), student.parameters(), strict=True)
        if not one.equal(other)
    ]
    assert len(moved) > 0.9 * len(list(teacher.parameters()))

    photograph = tmp_path / "photograph.png"
    pixels = np.random.default_rng(0).integers(0, 256, (*PHOTOGRAPH, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(photograph)
    cag("predict", models[1], photograph, "--out", tmp_path / "out", "--device", "cpu")
    assert read_label(tmp_path / "out/labels/photograph.png").shape == PHOTOGRAPH

    # The command compares the file with the network at several sizes before it keeps it.
    cag("export", models[1], "--format", "pt2", "--out", tmp_path / "model.pt2")
    run = export.load_pt2(tmp_path / "model.pt2")
    images = export.comparison_images([str(photograph)])[-1:]
    assert all(found.passed for found in export.compare(student, run, images))
    assert images[0][1].shape == (1, 3, *PHOTOGRAPH)


@pytest.mark.parametrize(
    ("encoder", "patch"), [("tu-vit_small_patch14_dinov2", 14), ("tu-vit_small_patch16_dinov3", 16)]
)
def test_features_of_the_dino_encoders_are_extracted_and_labelled(encoder, patch):
    """Patches of three colours are nearest to the anchors of their colours."""
    network = made("Linear", encoder, {}).eval()
    whole, reduced, classes = labelled(network, (3 * patch - 5, 9 * patch))
    assert whole.shape == classes.shape == (2, 3, 9)
    assert whole.equal(classes) and reduced.equal(classes)
