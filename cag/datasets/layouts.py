"""Raw layouts: where the images and labels of a data set lie, and which belong together."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import pandas as pd

from cag.config.datasets import Source, Target
from cag.datasets.preparation import Item
from cag.runtime.errors import UserError, absent, printable, refuse_special, shortened
from cag.runtime.files import inside

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
# What file servers, desktops and archives put between a user's files, in lower case.
CLUTTER = frozenset({"@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot"})
CLUTTER |= {"$recycle.bin", "system volume information", "lost+found", "network trash folder"}
CLUTTER |= {"temporary items", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"}
CLUTTER |= {"@synoresource", "_thumbs"}
DEEPEST = 100  # folders below each other
CLUTTER_START, CLUTTER_END = "synophoto_thumb_", ".lrdata"  # the same of a part of a name


@dataclass(frozen=True)
class Split:
    """A split of a raw data set."""

    name: str  # "train" or "val"
    images: str  # a folder below the data set's, with its sub-folders
    labels: str | None  # the same; None: no label may be opened
    image_suffix: str = ""  # ends a name before its extension; other files are skipped
    label_suffix: str = ""  # the rest of the name is the image's
    label_size: Literal["prepared", "own"] = "prepared"  # as for `preparation.prepare_split`
    drop_mismatched: bool = False  # leave out, not refuse, an image of another size than its label
    turn_by_exif: bool | None = None  # as `Item`'s

    @property
    def folders(self) -> list[str]:
        """The folders to read."""
        return [self.images] if self.labels is None else [self.images, self.labels]


def splits(domain: Literal["source", "target"], config: Source | Target) -> list[Split]:
    """The splits to read of a domain; target training images come without labels."""
    if config.layout == "gta5":
        return [Split("train", "images", "labels", drop_mismatched=True)]
    if config.layout == "synthia":
        return [Split("train", "RGB", "GT/LABELS")]
    if config.layout == "cityscapes":
        train, val = (_cityscapes(split, config.labels) for split in ("train", "val"))
    elif config.layout == "scenes":
        train, val = (Split(name, f"{name}/images", f"{name}/labels") for name in ("train", "val"))
    elif domain == "source":
        train = Split("train", config.images, config.labels, turn_by_exif=config.turn_by_exif)
    else:
        train = Split("train", config.images, None, turn_by_exif=config.turn_by_exif)
        val = replace(train, name="val", images=config.val_images, labels=config.val_labels)
    if domain == "source":
        return [train]
    validation = [replace(val, label_size="own")] if config.has_validation else []
    return [replace(train, labels=None), *validation]


def _cityscapes(split: str, labels: str | None) -> Split:
    suffix = f"_gtFine_{labels or 'labelIds'}"
    return Split(split, f"leftImg8bit/{split}", f"gtFine/{split}", "_leftImg8bit", suffix)


def index_folder(folder: Path, below: Sequence[str] = ("",)) -> pd.DataFrame:
    """The visible files of sub-folders, as a table: path (posix, below `folder`; sorted), bytes.

    Those that other programs put there (`CLUTTER`) are left out, as in all listings. A UserError
    if a folder is missing or may not be read, or a link leads outside, in a circle or to nothing,
    or there is a pipe or the like.
    """
    sizes = dict(entry for part in below for entry in _files(Path(folder), part))
    return pd.DataFrame(sorted(sizes.items()), columns=["path", "bytes"])


def list_split(folder: Path, split: Split) -> list[Item]:
    """List the images of a split of the data set in `folder` and, matched by name, its labels.

    They are sorted by name, the path below the images' folder without suffix and extension. Names
    match whether their accents are letters of their own (Unicode's form NFD) or not (NFC). A
    UserError if a folder is missing, there is no image, an image has no label or a label no image,
    or two files have one name.
    """
    folder = Path(folder)
    images = _by_name(folder, split.images, split.image_suffix)
    if not images:
        ends = ", ".join(split.image_suffix + extension for extension in sorted(EXTENSIONS))
        where = folder / split.images
        others = [path for path, _ in _files(folder, split.images)]
        found = shortened(describe_files(others), 200) or "no file"
        problem = f"no image found; expected files that end in {ends}, found {found}"
        raise UserError(f"{where}: {problem}")
    if split.labels is None:
        return [Item(*image, None, split.turn_by_exif) for image in sorted(images.values())]
    first, second = PurePosixPath(split.images), PurePosixPath(split.labels)
    if first.is_relative_to(second) or second.is_relative_to(first):
        problem = f"images ({split.images}) and labels ({split.labels})"
        raise UserError(f"{folder}: {problem} must be two separate folders")
    labels = _by_name(folder, split.labels, split.label_suffix)
    _check_pairs(folder, split, images, labels)
    pairs = sorted((*image, labels[key].path) for key, image in images.items())
    return [Item(*pair, split.turn_by_exif) for pair in pairs]


def passed_over(folder: Path, split: Split) -> list[str]:
    """The visible files of a split's folders that by their names are none of its images, sorted.

    Paths are posix, below `folder`. A UserError as for `list_split`.
    """
    below = [split.images] if split.label_suffix else split.folders  # gtFine/ has files of its own
    paths = (path for part in below for path, _ in _files(Path(folder), part))
    return sorted({p for p in paths if not _is_image(PurePosixPath(p), split.image_suffix)})


def _is_image(path: PurePosixPath, suffix: str) -> bool:
    """Whether a file is an image by its extension, with a suffix before it."""
    return path.suffix.lower() in EXTENSIONS and path.stem.endswith(suffix)


def describe_files(paths: Sequence[str]) -> str:
    """Count files by extension in one line, with the first of each: 3 .heic (a.heic, ...)."""
    kinds = Counter(PurePosixPath(path).suffix.lower() for path in paths)
    parts = []
    for kind, count in kinds.most_common():
        first = next(path for path in paths if PurePosixPath(path).suffix.lower() == kind)
        parts.append(f"{count} {kind or 'without extension'} ({first}{', ...' * (count > 1)})")
    return printable(", ".join(parts))


def _files(root: Path, below: str) -> Iterator[tuple[str, int]]:
    """The (posix path below root, bytes) of the visible files below root/below."""
    start = inside(root, below)
    if not start.is_dir():
        data = f"`folder` in params.yaml or CAG_DATA ({os.environ.get('CAG_DATA') or 'not set'})"
        place = f"{below!r} in params.yaml" if root.is_dir() else data
        raise absent(start, "folder", f"put the data set there, or correct {place}")
    prefix = PurePosixPath(below).as_posix() + "/" if PurePosixPath(below).parts else ""
    return _walk(start, prefix, root.resolve(), (start.resolve(),))


def _walk(folder: Path, prefix: str, root: Path, ancestors: tuple) -> Iterator[tuple[str, int]]:
    refuse_depth(folder, len(ancestors))
    below = []  # followed last, so that only one folder is open at a time
    with _listed(folder) as entries:
        for entry in entries:
            name = entry.name.lower()
            if name.startswith((".", CLUTTER_START)) or name.endswith(CLUTTER_END):
                continue
            if name in CLUTTER:
                continue
            _check_entry(entry, root, ancestors)
            if entry.is_dir():
                below.append((entry.name, entry.is_symlink()))
            elif entry.is_file():
                yield prefix + entry.name, entry.stat().st_size
            else:
                refuse_special(entry.path)
    for name, is_link in below:
        path = folder / name
        real = path.resolve() if is_link else ancestors[-1] / name
        yield from _walk(path, f"{prefix}{name}/", root, (*ancestors, real))


def refuse_depth(folder: Path, depth: int) -> None:
    """Raise a UserError if a folder is more than DEEPEST folders deep."""
    if depth > DEEPEST:
        where = f"...{str(folder)[-DEEPEST:]}"
        raise UserError(f"{where}: more than {DEEPEST} folders below each other; move it higher")


def _listed(folder: Path):
    try:
        return os.scandir(folder)
    except OSError as error:
        remedy = "change its permissions, or check the disk or network drive"
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); {remedy}") from None


def _check_entry(entry: os.DirEntry, root: Path, ancestors: tuple) -> None:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{os.fsencode(entry.path)!r}: rename this file to valid UTF-8") from None
    if not entry.is_symlink():
        return
    real = Path(os.path.realpath(entry.path))  # resolve() can raise for a circle
    if not real.exists():
        raise UserError(f"{entry.path}: this link leads to nothing; remove or mend it")
    if not real.is_relative_to(root):
        problem = f"this link leaves the data set's folder {root}"
        raise UserError(f"{entry.path}: {problem}; copy the files into it")
    if real in ancestors:
        raise UserError(f"{entry.path}: this link leads back to {real}; remove it")


class _Named(NamedTuple):
    name: str
    path: str  # posix, below the root


def _by_name(root: Path, below: str, suffix: str) -> dict[str, _Named]:
    """The images below root/below by their names in Unicode's form NFC."""
    found: dict[str, _Named] = {}
    repeated = []
    for path, _ in _files(root, below):
        relative = PurePosixPath(path)
        if not _is_image(relative, suffix):
            continue
        stem = relative.relative_to(PurePosixPath(below)).with_suffix("").as_posix()
        name = stem.removesuffix(suffix)
        key = unicodedata.normalize("NFC", name)
        if key in found:
            repeated.append(sorted([found[key].path, path]))
        found[key] = _Named(name, path)
    if repeated:
        first, second = (root / path for path in min(repeated))
        problem = f"has the same name as {first} but for the extension or the form of an accent"
        raise UserError(f"{second}: {problem}; keep one of them")
    return found


def _check_pairs(folder: Path, split: Split, images: dict, labels: dict) -> None:
    for kind, paths, other, others, below, suffix in (
        ("image", images, "label", labels, split.labels, split.label_suffix),
        ("label", labels, "image", images, split.images, split.image_suffix),
    ):
        if missing := paths.keys() - others.keys():
            name = min(missing)
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            expected = f"{folder / below / f'{name}{suffix}'} with an image extension"
            problem = f"this {kind} has no {other}{more}; expected {expected}"
            raise UserError(f"{folder / paths[name].path}: {problem}; add or remove the file")
