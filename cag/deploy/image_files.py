"""The image files of a command: files, folders and patterns."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cag.datasets.layouts import EXTENSIONS, Split, list_split, passed_over, refuse_depth
from cag.runtime.errors import UserError, absent


def list_images(patterns: Sequence[str], written: Sequence[Path] = ()) -> list[tuple[str, Path]]:
    """The images of files, folders or patterns: names (posix, no extension) and paths, sorted.

    A file is named by its stem; an image in a folder, or of a pattern, by its path below the
    folder, or below the pattern's part without wildcards. Files of an earlier run in the folders
    that the command writes are no input. A UserError if there is nothing of that name, no image,
    one name for two images, an image that the command would write over, or a link that leads back.
    """
    folders = [os.path.realpath(folder) for folder in written]  # resolve() raises for a circle
    paths: dict[str, Path] = {}
    for text in patterns:
        for name, path, chosen in _expand(text):
            if any(path.resolve().is_relative_to(folder) for folder in folders):
                if chosen:
                    raise UserError(f"{path}: lies where the results go; give another --out")
                continue
            other = paths.setdefault(name, path)
            if other.resolve() != path.resolve():
                problem = f"its results would have the same name as those of {other} ({name})"
                remedy = "give the folder above both, or label them into two folders"
                raise UserError(f"{path}: {problem}; {remedy}")
    if not paths:
        raise UserError(f"{', '.join(patterns)}: no image found")
    return sorted(paths.items())


def other_files(patterns: Sequence[str], written: Sequence[Path]) -> list[str]:
    """Files of the folders and patterns that `list_images` passes over, but for those `written`.

    They have no image's extension, or the pattern's extension in another case, or are links that
    lead to nothing, pipes and the like. What the command writes are files, or folders of files.
    """
    found: set[Path] = set()
    for text in patterns:
        path = Path(text)
        if os.path.isdir(path):
            found |= {path / other for other in passed_over(path, Split("", "", None))}
        elif not os.path.exists(path):
            stem, end = os.path.splitext(text)
            any_case = re.sub("[A-Za-z]", lambda m: f"[{m[0].lower()}{m[0].upper()}]", end)
            chosen = {match for _, match, _ in _expand(text)}
            matches = glob.iglob(stem + any_case, recursive=True)
            found |= {match for match in map(Path, matches) if not match.is_dir()} - chosen
    own = [os.path.realpath(path) for path in written]
    real = {path: Path(os.path.realpath(path)) for path in found}
    return sorted(str(p) for p in found if not any(real[p].is_relative_to(part) for part in own))


def _expand(text: str) -> Iterator[tuple[str, Path, bool]]:
    """Name and path of each image, and whether it was named itself."""
    if not text:
        raise UserError("a name of images is empty, as of a variable that is not set; name them")
    path = Path(text)
    if os.path.isdir(path):  # Path.is_dir() raises for a name that is too long
        for item in list_split(path, Split("", "", None)):
            yield item.name, path / item.image, False
    elif os.path.isfile(path):
        yield path.stem, path, True
    elif glob.has_magic(text):
        wild = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
        base = Path(*path.parts[:wild])
        if "**" in path.parts:
            _refuse_circles(base)
        for match in map(Path, sorted(glob.glob(text, recursive=True))):
            if match.suffix.lower() in EXTENSIONS and match.is_file():
                yield match.relative_to(base).with_suffix("").as_posix(), match, False
    else:
        raise absent(path, "file or folder", "check its name")


def _refuse_circles(base: Path) -> None:
    """Raise a UserError if a link leads back to a folder that it lies in: `**` would follow it.

    Also if folders are too deep, in which `**` would take very long.
    """
    for folder, below, _ in os.walk(base):
        refuse_depth(Path(folder), len(Path(folder).parts) - len(base.parts))
        for path in (Path(folder, name) for name in below):
            real = os.path.realpath(path)
            if path.is_symlink() and Path(os.path.realpath(folder)).is_relative_to(real):
                raise UserError(f"{path}: this link leads back to {real}; remove it")
