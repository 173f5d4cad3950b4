"""The files that a new project starts from, and the presets of its parameters."""

import filecmp
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cag.config.base import as_yaml, read_parameters
from cag.config.parameters import load_all
from cag.project.repository import git_root
from cag.runtime.errors import UserError, refuse_special
from cag.runtime.files import atomic_file, require_new

PACKAGES = Path(__file__).resolve().parents[2]
PRESETS, PARAMS = Path("presets"), Path("params.yaml")
GITIGNORE, BEGUN = ".gitignore", "presets/scenes.yaml"
TEMPLATE = ("dvc.yaml", "params.yaml", ".dvcignore", GITIGNORE, ".dvc/config")
TEMPLATE += (".dvc/.gitignore", "presets", "classes", "data/README.md")


def template() -> Path:
    """The folder with `dvc.yaml`, `presets/`, `classes/`: a checkout, or what pip installed.

    A UserError if there is neither.
    """
    installed = Path(sysconfig.get_path("data")) / "share/cag"
    for folder in (PACKAGES, installed):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise UserError(f"{installed}: not found; install cag again with pip")


def start_project(folder: Path) -> Path:
    """Fill a folder with pipeline, parameters, presets and code; gives its repository's folder.

    The folder is new, empty, or a git repository's with none of these files; a `.gitignore` there
    gets more lines. Inside a repository no other is made. A UserError, before anything is written,
    if something is in the way, or git is missing or fails.
    """
    if shutil.which("git") is None:
        raise UserError("git: not found, but DVC's experiments need it; install git first")
    if not (folder / ".git").exists():
        require_new(folder)
    sources = {name: template() / name for name in TEMPLATE}
    sources |= {name: PACKAGES / name for name in ("cag", "stages")}
    sources["params.yaml"] = template() / BEGUN  # not this project's, which may have been edited
    taken = [name for name in sources if name != GITIGNORE and os.path.lexists(folder / name)]
    if taken:
        hint = "a project brings its own; move it away, or name a new folder"
        raise UserError(f"{folder / taken[0]}: is there already; {hint}")
    places = (folder.absolute(), *folder.absolute().parents)
    with TemporaryDirectory(prefix=".cag-init-", dir=next(filter(Path.is_dir, places))) as partial:
        for name, source in sources.items():
            _copy(source, Path(partial) / name)
        if (folder / GITIGNORE).exists():
            _extend(Path(partial) / GITIGNORE, folder / GITIGNORE)
        repository = git_root(folder)
        made = [] if repository else [_new_repository(Path(partial))]
        for name in [*sources, *made]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(partial) / name, folder / name)
    return repository or folder


def _new_repository(folder: Path) -> str:
    """Make a git repository; the name of its folder below this one."""
    variables = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE")}
    command = ["git", "init", "--quiet", str(folder)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise UserError(f"`git init` failed: {done.stderr.strip() or 'without a word'}")
    return ".git"


def _copy(source: Path, goal: Path) -> None:
    goal.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, goal, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, goal)


def _extend(ours: Path, theirs: Path) -> None:
    """Put the lines of a file that is there before the template's."""
    refuse_special(theirs)
    form = {"encoding": "utf-8", "errors": "surrogateescape"}  # keeps the bytes of any other
    kept, added = (path.read_text(**form).splitlines() for path in (theirs, ours))
    lines = [*kept, *(line for line in added if line not in kept), ""]
    ours.write_text("\n".join(lines), **form)


def presets(begun: str = "") -> dict[str, Path]:
    """The presets here whose names begin so, by name."""
    paths = sorted(PRESETS.glob(f"{begun}*.yaml"))
    return {path.stem: path for path in paths if path.is_file()}


def first_comment(path: Path) -> str:
    """The comment that a preset begins with."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("# "))


def params_have_changed() -> bool:
    """Whether params.yaml holds something that no preset does."""
    paths = presets().values()
    return PARAMS.exists() and not any(filecmp.cmp(PARAMS, path, shallow=False) for path in paths)


def choose_preset(path: Path) -> None:
    """Copy a preset over params.yaml."""
    with atomic_file(PARAMS) as partial:
        shutil.copyfile(path, partial)


def effective_yaml(path: Path) -> str:
    """All parameters that a file stands for, as YAML; a comment marks the defaults.

    A UserError if a value is missing or impossible, as for `load_all`.
    """
    values = load_all(path).model_dump(mode="json")
    return "\n".join(_lines(values, read_parameters(path)))


def _lines(values: Mapping[str, Any], written: Any, indent: str = "") -> Iterator[str]:
    for key, value in values.items():
        listed = isinstance(written, Mapping) and key in written
        comment = "" if listed else "  # default"
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:{comment}"
            yield from _lines(value, written[key] if listed else None, f"{indent}  ")
        else:
            yield f"{indent}{key}: {as_yaml(value)}{comment}"
