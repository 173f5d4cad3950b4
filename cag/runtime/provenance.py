"""The code and the parameters of a running stage, as they were when it read them.

DVC records a stage with the files that are there when the stage *ends*. So a stage compares them at
its end with those that it used, and fails if they differ.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from cag.runtime.errors import UserError
from cag.runtime.files import fingerprint, sha256

PACKAGES = "cag", "stages"
Sections = Mapping[str, Any]  # parameters by section


class Used:
    """What the running stage has used.

    Attributes:
        files: The digest of each file of our packages, for modules that are loaded later.
        modules: The digest of each loaded module.
        parameters: Parameters as they were read, and how to read them again.
    """

    def __init__(self) -> None:
        """Note the code as it is now."""
        packages = [sys.modules[name] for name in PACKAGES if name in sys.modules]
        folders = [Path(folder) for package in packages for folder in package.__path__]
        self.files = {path: _digest(path) for folder in folders for path in folder.rglob("*.py")}
        self.modules = {name: self.files.get(path) for name, path in sorted(_loaded().items())}
        self.parameters: list[tuple[Sections, Callable[[], Sections]]] = []

    def changed(self) -> list[str]:
        """The files of code, and the sections of parameters, that are no longer the same."""
        loaded = sorted(_loaded().items())
        names = [
            _shown(name, path) for name, path in loaded if self.files.get(path) != _digest(path)
        ]
        for used, again in self.parameters:
            try:
                now = again()
            except UserError:  # they can no longer be read
                names.append("params.yaml")
                continue
            names += [f"{name} of params.yaml" for name in used if now[name] != used[name]]
        return names


_used: list[Used] = []  # of the stage that runs in this program, if one does


@contextmanager
def noted() -> Iterator[None]:
    """Note what a stage uses: the code that it starts with, and the parameters that it reads."""
    before, _used[:] = _used[:], [Used()]
    try:
        yield
    finally:
        _used[:] = before


def note_parameters(used: Sections, again: Callable[[], Sections]) -> None:
    """Note parameters that the stage has read; `again` reads them anew."""
    for stage in _used:
        stage.parameters.append((used, again))


def code_digest() -> str:
    """The SHA-256 (hex) of the modules that the program started with, and PyTorch's version."""
    modules = next(iter(_used), Used()).modules
    return fingerprint(modules=modules, torch=metadata.version("torch"))


def require_unchanged() -> None:
    """Raise a UserError if code or parameters are no longer those that the stage has used."""
    names = [name for stage in _used for name in stage.changed()]
    if names:
        raise UserError(
            f"{', '.join(dict.fromkeys(names))}: changed while this stage ran, which used the "
            "content from before; run it again. If you undo the change first, a finished training "
            "or extraction is taken up, not made again"
        )


def _loaded() -> dict[str, Path]:
    """The file of each loaded module of our packages."""
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    return {
        spec.name: Path(spec.origin)
        for spec in specs
        if spec and spec.origin and spec.name.partition(".")[0] in PACKAGES
    }


def _shown(module: str, path: Path) -> str:
    """A module's file below the folder of its package, as cag/runtime/files.py."""
    depth = module.count(".") + 1 + (path.stem == "__init__")
    return "/".join(path.parts[-depth:])


def _digest(path: Path) -> str | None:
    """The SHA-256 (hex) of a file, or None if it is not there."""
    return sha256(path) if path.is_file() else None
