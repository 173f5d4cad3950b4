"""Caching is honest: a stage reads all that it declares, and nothing else.

Each stage runs in a folder that holds only its declared dependencies and parameters, and must write
the pipeline's bytes. Its imports and the parameters that it reads must be those that it declares.
"""

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from project import digests, execute, finished_project, fresh

# Runs `python -m ...` so that the project's modules come from the working directory or not at all,
# wherever else they are installed; writes what the program imported and asked for.
TRACED = """
import importlib.machinery, json, os, runpy, sys

modules, sections = set(), set()
here = os.getcwd()

class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        modules.add(os.path.relpath(self.path, here))
        if module.__name__ == "cag.config.base":
            validate = module.validated
            def validated(model, *given):
                for name, field in model.model_fields.items():
                    part = field.annotation
                    partial = getattr(part, "model_config", {}).get("extra") == "ignore"
                    keys = part.model_fields if partial else ()
                    sections.update(f"{name}.{key}" for key in keys)
                    sections.update(() if partial else (name,))
                return validate(model, *given)
            module.validated = validated

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ("cag", "stages"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, [here] if path is None else path)
        if spec is None or (spec.origin and not spec.origin.startswith(here + os.sep)):
            raise ModuleNotFoundError(f"{name} is not in the sandbox", name=name)
        if spec.origin:
            spec.loader = Loader(name, spec.origin)
        return spec

sys.meta_path.insert(0, Finder())
record, program, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(program, run_name="__main__", alter_sys=True)
modules.add(program.replace(".", os.sep) + ".py")
with open(record, "w") as file:
    json.dump({"modules": sorted(modules), "sections": sorted(sections)}, file)
"""


@dataclass(frozen=True)
class Stage:
    """A resolved stage; paths are relative to the project."""

    name: str
    command: str
    files: tuple[str, ...]
    sections: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def code(self) -> set[str]:
        """The declared modules, and the declared folders of modules."""
        return {path for path in self.files if path.startswith(("cag/", "stages/"))}


def resolved(project: Path) -> dict[str, Stage]:
    """The stages of all pipelines, as DVC resolves them."""
    stages = {}
    with Repo(project) as repo:
        for stage in repo.index.stages:
            files, sections = [], []
            for dependency in stage.deps:
                if getattr(dependency, "params", None):
                    sections += dependency.params
                else:
                    files.append(Path(dependency.fs_path).relative_to(project).as_posix())
            outputs = [Path(o.fs_path).relative_to(project).as_posix() for o in stage.outs]
            stages[stage.name] = Stage(
                stage.name, stage.cmd, tuple(files), tuple(sections), tuple(outputs)
            )
    return stages


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A finished run."""
    return finished_project(tmp_path_factory)


@pytest.fixture(scope="module")
def stages(project) -> dict[str, Stage]:
    return resolved(project)


def copy(source: Path, target: Path) -> None:
    """Copy a file or folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)


def make_sandbox(project: Path, stage: Stage, folder: Path) -> Path:
    """A folder with only what the stage declares: no git, no DVC, no other file or parameter."""
    folder.mkdir()
    for name in stage.files:
        copy(project / name, folder / name)
    params = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    declared = {}
    for name, _, key in (section.partition(".") for section in stage.sections):
        if key:
            declared.setdefault(name, {})[key] = params[name][key]
        else:
            declared[name] = params[name]
    (folder / "params.yaml").write_text(yaml.safe_dump(declared, sort_keys=False))
    return folder


def run_traced(sandbox: Path, stage: Stage, status: int | None = 0) -> tuple[str, dict]:
    """Run a stage in its sandbox; its output, its imports and the parameters that it read."""
    launcher, *program = shlex.split(stage.command.replace("${LAUNCH:-python}", "python"))
    assert (launcher, program[0]) == ("python", "-m"), stage.command
    record = sandbox.with_name("record.json")
    printed = execute(sandbox, "python", "-c", TRACED, str(record), *program[1:], status=status)
    return printed, json.loads(record.read_text()) if record.exists() else {}


def undeclared(record: dict, stage: Stage) -> set[str]:
    """The imported modules that are in no declared module or folder of a stage."""
    return {path for path in record["modules"] if not any(within(path, d) for d in stage.code)}


def superfluous(record: dict, stage: Stage) -> set[str]:
    """The declared modules and folders from which a stage imports nothing."""
    return {d for d in stage.code if not any(within(path, d) for path in record["modules"])}


def within(path: str, declared: str) -> bool:
    """Whether a module is the declared one, or is in the declared folder."""
    return path == declared or path.startswith(f"{declared}/")


def written(sandbox: Path) -> dict[str, str]:
    """Files in a sandbox, without bytecode and the record of the run, which are no artifacts."""
    found = digests(sandbox)
    beside = ("__pycache__", ".scratch/runs/")
    return {path: one for path, one in found.items() if not any(part in path for part in beside)}


NAMES = [
    "index",
    *(f"prepare@{domain}" for domain in ("source", "target")),
    "pretrain",
    "warmup",
    *(f"extract_{domain}@round{i}" for i in (1, 2) for domain in ("source", "target")),
    *(f"anchors@round{i}" for i in (1, 2)),
    *(f"{name}@round{i}" for i in (1, 2) for name in ("pseudo_label", "adapt", "watch")),
    *(f"evaluate_pseudo_labels@round{i}" for i in (1, 2)),
    *(f"watch_start@{model}" for model in ("pretrain", "warmup")),
    *(f"evaluate@{model}" for model in ("pretrain", "round2")),
    "report",
]


def test_every_stage_is_tried(stages):
    assert sorted(stages) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_declared_is_what_is_used(name, project, stages, tmp_path):
    stage = stages[name]
    sandbox = make_sandbox(project, stage, tmp_path / "sandbox")
    before = written(sandbox)
    _, record = run_traced(sandbox, stage)

    new = {path: digest for path, digest in written(sandbox).items() if path not in before}
    expected = {
        path: digest
        for path, digest in digests(project).items()
        if any(path == out or path.startswith(out + "/") for out in stage.outputs)
    }
    assert expected
    assert new == expected
    assert before.items() <= written(sandbox).items()  # no stage changes what it reads
    assert not undeclared(record, stage)
    assert not superfluous(record, stage)
    assert set(record["sections"]) == set(stage.sections)


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        ("cag/metrics.py", "import name 'metrics'"),
        ("data/models/pretrain.safetensors", "pretrain.safetensors"),
        ("evaluate", "'evaluate' is missing"),
    ],
)
def test_missing_declaration_is_noticed(missing, complaint, project, stages, tmp_path):
    """The sandbox leaks neither modules, files nor parameters."""
    stage = stages["evaluate@pretrain"]
    sandbox = make_sandbox(project, stage, tmp_path / "sandbox")
    if missing in stage.files:
        (sandbox / missing).unlink()
    else:
        assert missing in stage.sections
        params = yaml.safe_load((sandbox / "params.yaml").read_text())
        del params[missing]
        (sandbox / "params.yaml").write_text(yaml.safe_dump(params))
    printed, record = run_traced(sandbox, stage, status=1)
    assert complaint in printed
    assert not record
    assert not (sandbox / "data/evaluation").exists()


def test_superfluous_declaration_is_noticed(project, stages, tmp_path):
    """An unused declared module or section differs from the trace."""
    stage = stages["warmup"]
    extra = Stage(
        stage.name,
        stage.command,
        (*stage.files, "cag/metrics.py"),
        (*stage.sections, "evaluate"),
        stage.outputs,
    )
    sandbox = make_sandbox(project, extra, tmp_path / "sandbox")
    _, record = run_traced(sandbox, extra)
    assert superfluous(record, extra) == {"cag/metrics.py"}
    assert set(extra.sections) - set(record["sections"]) == {"evaluate"}


def test_oracle_trains_on_true_labels_that_no_stage_has(project, tmp_path):
    """The oracle runs on a finished run's artifacts and does not change them."""
    folder = tmp_path / "oracle"
    code = ("cag", "stages", "classes", "params.yaml")
    for name in ("data/prepared", "data/models/pretrain.safetensors", *code):
        copy(project / name, folder / name)
    before = digests(folder / "data")
    execute(folder, "python", "-m", "stages.oracle", **fresh())
    scores = json.loads((folder / "data/oracle/metrics.json").read_text())
    assert scores["images"] == 4 and 0 <= scores["miou"] <= 1
    assert before.items() <= digests(folder / "data").items()
    assert not any(folder.glob(".scratch/oracle/*"))


# Stages whose declarations an edit changes, of a pipeline of two rounds; those after them run too.
STUDENT = {"adapt@round1", "adapt@round2"}
LABELS = {
    f"{stage}@round{i}" for stage in ("pseudo_label", "evaluate_pseudo_labels") for i in (1, 2)
}
WATCHED = {"watch_start@pretrain", "watch_start@warmup", "watch@round1", "watch@round2"}
EDITS = {
    "cag/adaptation.py": STUDENT,
    "cag/batch_norm.py": STUDENT,
    "cag/losses.py": STUDENT,
    "cag/mixing.py": STUDENT,
    "cag/teacher.py": STUDENT,
    "cag/augmentation.py": STUDENT,
    "cag/config/adaptation.py": STUDENT,
    "cag/config/warmup.py": {"warmup"},
    "cag/adversarial.py": {"warmup"},
    "cag/config/pseudo_labels.py": LABELS | STUDENT,
    "cag/config/watch.py": WATCHED | STUDENT,
    "cag/pseudo_labels.py": LABELS | STUDENT | WATCHED,
    "cag/watch.py": WATCHED | STUDENT,
    "params.yaml: adapt": STUDENT,
    "params.yaml: extract": {
        f"{stage}@round{i}"
        for stage in ("extract_target", "evaluate_pseudo_labels")
        for i in (1, 2)
    },
    "params.yaml: pseudo_label": LABELS | STUDENT,
    "params.yaml: watch": WATCHED | STUDENT,
}


@pytest.fixture(scope="module")
def copied(project, tmp_path_factory) -> Path:
    """A copy of the finished run for edits, which are taken back."""
    folder = tmp_path_factory.mktemp("edited") / "project"
    shutil.copytree(project, folder, symlinks=True)
    return folder


def changed(project: Path) -> set[str]:
    """The stages that `dvc status` calls changed, without `index` and `report`."""
    with Repo(project) as repo:
        names = {name.rpartition("dvc.yaml:")[2] for name in repo.status()}
    return names - {"index", "report"}


def test_without_an_edit_nothing_is_changed(copied):
    assert not changed(copied)


@pytest.mark.parametrize("edited", EDITS)
def test_an_edit_reaches_the_stages_that_it_concerns(edited, copied):
    """An edit of a student's objective, teacher or parameter retrains nothing before it."""
    file, _, section = edited.partition(": ")
    path = copied / file
    before = path.read_bytes()
    if section:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))
        params[section]["an_option_of_tomorrow"] = 1
        path.write_text(yaml.safe_dump(params, sort_keys=False))
    else:
        path.write_text(path.read_text(encoding="utf-8") + "# An edit.\n")
    found = changed(copied)
    path.write_bytes(before)
    assert found == EDITS[edited]


@pytest.fixture(scope="module")
def reads(project) -> dict[str, set[str]]:
    """Of each stage: the stages whose outputs it reads."""
    with Repo(project) as repo:
        graph = repo.index.graph
        return {stage.name: {one.name for one in graph.successors(stage)} for stage in graph}


def followers(reads: dict[str, set[str]], names: set[str]) -> set[str]:
    """The stages that read what some stages make, at first or second hand."""
    found = set()
    while new := {name for name in reads if reads[name] & (names | found)} - found:
        found |= new
    return found


@pytest.mark.parametrize(
    ("key", "value"), [("average", "pixels"), ("min_pixels", 3), ("min_recall", 0.25)]
)
def test_other_anchors_rerun_no_extraction(key, value, copied, reads):
    """But that of a later round, whose teacher has learnt from them."""
    path = copied / "params.yaml"
    before = path.read_bytes()
    params = yaml.safe_load(before)
    assert params["anchors"].get(key) != value
    params["anchors"][key] = value
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    edited = changed(copied)
    path.write_bytes(before)
    assert edited == {f"anchors@round{i}" for i in (1, 2)} | STUDENT
    stale = edited | followers(reads, edited)
    assert {"pseudo_label@round1", "adapt@round1", "extract_target@round2"} <= stale
    assert not stale & {"prepare@source", "prepare@target", "pretrain", "warmup"}
    assert not stale & {"extract_source@round1", "extract_target@round1"}
    alone = followers(reads, {"anchors@round1"}) - followers(reads, {"adapt@round1"})
    assert not [name for name in alone if name.startswith("extract")]
