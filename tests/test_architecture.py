"""The library's wings: who may import whom, and who knows where files lie."""

import ast
from functools import cache
from pathlib import Path

import networkx
import pytest
from project import ROOT

METHOD = "the method"  # the modules at the top of cag/
# From the ground up: a wing imports from wings above it in this table alone.
WINGS = {
    "runtime": set(),
    "config": {"runtime"},
    "datasets": {"runtime", "config"},
    "scenes": {"datasets"},
    "training": {"runtime", "config", "datasets", METHOD},
    METHOD: {"runtime", "config", "datasets", "training"},
    "analysis": {"runtime", "config", "datasets", METHOD},
    "report": {"runtime", "config", "datasets", METHOD, "analysis"},
    "deploy": {"runtime", "config", "datasets", "scenes", METHOD},
    "project": {"runtime", "config", "datasets", "scenes", "training", METHOD}
    | {"analysis", "deploy"},
}
FREE = {"commands", "cli", "__init__"}  # the programs, which may call everything


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the library by its dotted name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for path in sorted((ROOT / "cag").rglob("*.py"))
    }


def wing(module: str) -> str:
    """The folder of a module, or METHOD."""
    part = "__init__" if module == "cag" else module.split(".")[1]
    return part if part in FREE or (ROOT / "cag" / part).is_dir() else METHOD


def imports(tree: ast.AST) -> set[str]:
    """The library's modules that a tree imports, those of type checks left out."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.dump(tree.test):
        return set()
    found = {name for child in ast.iter_child_nodes(tree) for name in imports(child)}
    if isinstance(tree, ast.ImportFrom):
        names = [f"{tree.module}.{alias.name}" for alias in tree.names]
        found |= {name if name in modules() else tree.module for name in names}
    elif isinstance(tree, ast.Import):
        found |= {alias.name for alias in tree.names}
    return {name for name in found if name in modules() and name != "cag"}


@pytest.mark.parametrize("name", [name for name in modules() if name != "cag"])
def test_no_arrow_leads_upward(name):
    if wing(name) in FREE:
        return
    wrong = [m for m in imports(modules()[name]) if wing(m) not in {wing(name), *WINGS[wing(name)]}]
    assert not wrong


def test_there_is_no_circle():
    arrows = ((m, other) for m, tree in modules().items() for other in imports(tree))
    circles = networkx.simple_cycles(networkx.DiGraph((m, o) for m, o in arrows if m != o))
    assert not list(circles)


def test_training_needs_of_the_method_networks_alone():
    """Else an edit of the method would retrain the source-only model."""
    training = [tree for name, tree in modules().items() if wing(name) == "training"]
    needed = {module for tree in training for module in imports(tree)}
    assert {m for m in needed if wing(m) == METHOD} == {"cag.networks"}


def test_only_the_project_wing_knows_the_paths_below_data():
    for name, tree in modules().items():
        if wing(name) in {"project", *FREE}:
            continue
        documentation = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and ast.get_docstring(node) is not None
        }
        paths = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documentation
            and node.value.startswith("data/")
        ]
        # Where a user's raw data and weights lie, if no variable says so.
        assert set(paths) <= {"data/raw", "data/weights"}, name


def test_the_top_shows_the_method():
    names = {path.stem for path in Path(ROOT / "cag").glob("*.py")} - {"__init__", "cli"}
    method = {"anchors", "pseudo_labels", "losses", "adaptation", "teacher"}
    method |= {"adversarial", "mixing", "augmentation", "batch_norm"}
    around = {"networks", "deeplab", "metrics", "features", "prediction", "evaluation", "watch"}
    around |= {"extraction", "projection"}
    assert names == method | around
