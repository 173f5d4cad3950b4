"""Where data lies, and how files are written: atomically, hashed, never outside their folder."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from cag.runtime.errors import UserError

_EXPERIMENT_COPIES = (".dvc", "tmp", "exps")


def project_root() -> Path:
    """Return the repository root: the working directory, or what a DVC copy of it was made from.

    `dvc exp run --temp` and the queue run stages in <root>/.dvc/tmp/exps/...; raw data and weights,
    which DVC does not copy, lie below the real root.
    """
    here = Path.cwd()
    for start in range(len(here.parts) - len(_EXPERIMENT_COPIES), 0, -1):
        if here.parts[start : start + len(_EXPERIMENT_COPIES)] == _EXPERIMENT_COPIES:
            return Path(*here.parts[:start])
    return here


def data_root() -> Path:
    """Return the folder of the raw data sets: $CAG_DATA, else data/raw below the project root."""
    return _root_from("CAG_DATA", "data/raw")


def weights_root() -> Path:
    """Return the folder of local weights: $CAG_WEIGHTS, else data/weights below the root."""
    return _root_from("CAG_WEIGHTS", "data/weights")


def encoder_weights_file(encoder: str, weights: str) -> Path:
    """Return where an encoder's local weights are looked for below `weights_root`.

    Args:
        encoder: Its name.
        weights: A path that ends in .safetensors, or a name such as imagenet: then this is
            <encoder>_<weights>.safetensors.

    Raises:
        UserError: The names would lead out of the folder.
    """
    is_path = weights.endswith(".safetensors")
    return inside(weights_root(), weights if is_path else f"{encoder}_{weights}.safetensors")


def model_weights_file(weights: str) -> Path:
    """Return where a model that comes from outside the pipeline lies, below `weights_root`.

    Raises:
        UserError: It is missing, or its path would lead out of the folder.
    """
    path = inside(weights_root(), weights)
    if not path.is_file():
        raise UserError(
            f"{path}: no such model (warmup.weights); put it there (`cag weights import` makes one "
            "of the authors' checkpoint), set CAG_WEIGHTS to its folder, or set it to null"
        )
    return path


def _root_from(variable: str, default: str) -> Path:
    return project_root() / Path(os.environ.get(variable) or default).expanduser()


def is_local(relative: str) -> bool:
    """Say whether a relative posix path stays below its folder by its text alone.

    Links are not followed: DVC may link the files of its outputs to its cache. See `inside` for raw
    data.
    """
    path = PurePosixPath(relative)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in relative


def inside(folder: Path, relative: str) -> Path:
    """Join a path read from data to its folder.

    Args:
        folder: The folder that must not be left; it may itself be a symbolic link.
        relative: Posix path below the folder.

    Raises:
        UserError: The path is absolute, has a `..`, or leaves the folder through a symbolic link.
    """
    path = Path(folder) / relative
    # realpath, because resolve() raises for a circle of links before Python 3.13.
    if not is_local(relative) or not Path(os.path.realpath(path)).is_relative_to(
        os.path.realpath(folder)
    ):
        raise UserError(
            f"{folder}: the path {relative!r} leaves this folder; "
            "use a path below it, without '..' and without links that lead elsewhere"
        )
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling path that becomes `path` on success and is removed on any failure.

    The sibling is called .<name>.partial, so a writer that goes by the extension must be told the
    format. Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling folder that replaces `path` on success.

    On any failure the temporary folder is removed and `path` stays as it was. What a killed run
    left is deleted first.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    previous = path.with_name(f".{path.name}.previous")
    _remove(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        _remove(previous)
        if path.is_symlink() or path.exists():
            os.replace(path, previous)  # a folder cannot be renamed onto one that is not empty
        os.replace(partial, path)
    except BaseException:
        _remove(partial)
        raise
    _remove(previous)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(**identity: Any) -> str:
    """Return a SHA-256 (hex) over JSON of what a result depends on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def existing(path: Path) -> Path:
    """A file that a stage made.

    Raises:
        UserError: It is missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `dvc repro` makes it")
    return path


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk which holds `folder`; it need not exist yet."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def used_bytes(path: Path) -> int:
    """Return the bytes of a file, or of the files below a folder; 0 if there is none."""
    paths = [path] if path.is_file() else path.rglob("*")
    return sum(below.stat().st_size for below in paths if below.is_file())


def require_new(folder: Path) -> None:
    """Check that a folder does not exist yet or is empty.

    Raises:
        UserError: Something is there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not an empty folder; name a new one")


def require_space(folder: Path, bytes_needed: int, what: str) -> None:
    """Check that the disk which holds `folder` (it need not exist yet) can take what is to come.

    Args:
        folder: Where the files will be written.
        bytes_needed: Estimate of their size in bytes.
        what: What will be written, for the message.

    Raises:
        UserError: Less than `bytes_needed` is free.
    """
    free = free_bytes(folder)
    if free < bytes_needed:
        raise UserError(
            f"{folder}: {what} needs about {bytes_needed / 1e9:.2f} GB, "
            f"the disk has {free / 1e9:.2f} GB free; free some space or use a smaller image size"
        )


def as_json(obj: Any) -> str:
    """Return JSON: keys in the given order, indent 2, NaN and infinity as null."""
    return json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, obj: Any) -> None:
    """Write JSON atomically; see `as_json`."""
    with atomic_file(path) as partial:
        partial.write_text(as_json(obj) + "\n", encoding="utf-8")


def _plain(obj: Any) -> Any:
    if isinstance(obj, Mapping):
        return {key: _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    if isinstance(obj, np.ndarray | np.generic):
        return _plain(obj.tolist())
    if isinstance(obj, float) and not math.isfinite(obj):
        return None
    return obj


def write_csv(path: Path, dataframe: pd.DataFrame) -> None:
    r"""Write a table atomically: header, no index, lines ended by \n on every system."""
    with atomic_file(path) as partial:
        dataframe.to_csv(partial, index=False, lineterminator="\n", encoding="utf-8")
