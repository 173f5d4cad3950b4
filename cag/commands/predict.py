"""The command that labels photographs."""

from __future__ import annotations

import glob
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext, redirect_stdout
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import click
import numpy as np
from rich.table import Table

from cag.commands.terminal import print_table
from cag.datasets.images import overlay, read_image, resize, write_image, write_jpeg, write_label
from cag.datasets.layouts import EXTENSIONS, Split, list_split
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_file, write_json

if TYPE_CHECKING:
    from cag.datasets.labels import LabelSpace
    from cag.deploy.segmenter import Segmenter

LABELS, OVERLAYS, CONFIDENCE = OUTPUTS = ("labels", "overlays", "confidence")
SHOWN_FAILURES = 30


class Photograph(NamedTuple):
    """An image that was read."""

    name: str  # of its files below the output folders: a posix path without extension
    image: np.ndarray  # uint8 [H, W, 3]
    given: np.ndarray  # the same at the size to predict at, uint8 [h, w, 3]


Predicted = tuple[Photograph, Callable[[], tuple]]


class PixelSize(click.ParamType):
    """Two numbers, H,W, or the word own."""

    name = "H,W|own"

    def convert(self, value, param, ctx):
        """Return (height, width), or "own"."""
        if isinstance(value, tuple) or value == "own":
            return value
        sides = value.replace("x", ",").split(",")
        if len(sides) != 2 or not all(side.strip().isdecimal() and int(side) for side in sides):
            expected = "height,width in pixels, such as 512,1024, nor own"
            self.fail(f"{value!r} is neither {expected}", param, ctx)
        return int(sides[0]), int(sides[1])


@click.command(short_help="Label photographs with a model.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option("--overlay/--no-overlay", default=True, help="Write overlays/ too.")
@click.option("--confidence", is_flag=True, help="Write confidence/ too.")
@click.option(
    "--size",
    type=PixelSize(),
    help="Predict at this size, or at each image's own. [default: that of the images trained on, "
    "which the model knows]",
)
@click.option(
    "--tile",
    type=int,
    help="Side of overlapping tiles in pixels, at least 64; 0: images whole. "
    "[default: 1024 for images above 4 million pixels]",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Images of one size that are predicted together, of up to 4 million pixels.",
)
@click.option("--device", help="cpu, cuda, cuda:1 or mps. [default: the best there is]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, for scripts.")
def predict(
    model: Path,
    images: tuple[str, ...],
    out: Path,
    overlay: bool,
    confidence: bool,
    size: tuple[int, int] | str | None,
    tile: int | None,
    batch: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Label IMAGES (files, folders with all below them, or quoted patterns) with MODEL.

    Below the folder --out, at each image's own size and under its path below the folder given:
    labels/NAME.png, palette PNGs of train ids; overlays/NAME.jpg, the classes' colours over the
    image; confidence/NAME.png, the probability of the predicted class in grey, 0 to 255 for 0 to 1.
    classes.json names the classes. Images are turned as their EXIF orientation says; alpha is
    dropped; of 16 bits the upper 8 are seen. The share of the pixels of each class is printed.

    An image that cannot be read is passed over and listed at the end; the exit status is then 1.

    \b
    Examples:
      cag predict data/models/round3.safetensors photos --out labelled
      cag predict model.safetensors "drive/**/*.jpg" --out labelled --confidence --tile 1024
    """
    found = list_images(images, out)
    if not model.is_file():  # said before torch is loaded
        raise UserError(f"{model}: no such model; `dvc repro` makes data/models/*.safetensors")

    from cag import load
    from cag.deploy.segmenter import SMALLEST_TILE
    from cag.runtime.progress import progress

    if tile and tile < SMALLEST_TILE:
        raise UserError(f"--tile is {tile}; expected 0 or at least {SMALLEST_TILE} pixels")
    segmenter = load(model, device)
    _make_folder(out)
    write_json(out / "classes.json", segmenter.label_space.to_dict())
    kinds = [LABELS] + [OVERLAYS] * overlay + [CONFIDENCE] * confidence
    failures: list[tuple[Path, str]] = []
    began = time.monotonic()
    with (
        redirect_stdout(sys.stderr) if as_json else nullcontext(),
        progress("predict", len(found), "images") as advance,
    ):
        seen = segmenter.seen_size(size)
        read = photographs(found, seen, lambda *failure: failures.append(failure))
        counts = _label(segmenter, advance.waiting(read), out, kinds, tile, batch, advance)
    _summarize(segmenter, counts, len(found), failures, time.monotonic() - began, as_json)


def list_images(given: Sequence[str], out: Path | None = None) -> list[tuple[str, Path]]:
    """The images that a command was given: files, folders and patterns.

    Args:
        given: A file is named by its stem; what lies in a folder, or matches a pattern, by its path
            below the folder, or below the pattern's part without wildcards.
        out: Where the command writes; what an earlier run wrote there is no input.

    Returns:
        Names (posix paths without extension) and paths, sorted by name.

    Raises:
        UserError: There is nothing of that name, no image, one name for two images, or an image
            that the command would write over.
    """
    written = [(out / kind).resolve() for kind in OUTPUTS] if out else []
    paths: dict[str, Path] = {}
    for text in given:
        for name, path, chosen in _expand(text):
            if any(path.resolve().is_relative_to(folder) for folder in written):
                if chosen:
                    raise UserError(f"{path}: lies where the results go; give another --out")
                continue
            other = paths.setdefault(name, path)
            if other.resolve() != path.resolve():
                raise UserError(
                    f"{path}: its results would have the same name as those of {other} ({name}); "
                    "give the folder above both, or label them into two folders"
                )
    if not paths:
        raise UserError(f"{', '.join(given)}: no image found")
    return sorted(paths.items())


def _expand(text: str) -> Iterator[tuple[str, Path, bool]]:
    """Name and path of each image, and whether it was named itself."""
    path = Path(text)
    if path.is_dir():
        for item in list_split(path, Split("", "", None)):
            yield item.name, path / item.image, False
    elif path.exists():
        yield path.stem, path, True
    elif glob.has_magic(text):
        wild = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
        base = Path(*path.parts[:wild])
        for match in map(Path, sorted(glob.glob(text, recursive=True))):
            if match.suffix.lower() in EXTENSIONS and match.is_file():
                yield match.relative_to(base).with_suffix("").as_posix(), match, False
    else:
        raise UserError(f"{path}: no such file or folder; check its name")


def photographs(
    found: Sequence[tuple[str, Path]],
    size: tuple[int, int] | None,
    on_failure: Callable[[Path, str], None],
) -> Iterator[Photograph]:
    """Read images by threads, in order; those that cannot be read are reported and passed over."""
    from cag.runtime.overlap import in_order, threads

    def read(one: tuple[str, Path]) -> Photograph | UserError:
        try:
            image = read_image(one[1])
            return Photograph(one[0], image, resize(image, size))
        except UserError as error:
            return error
        except MemoryError:
            return UserError(f"{one[1]}: too large for the memory; scale it down")

    with closing(in_order(read, found, threads())) as images:
        for (_, path), image in zip(found, images, strict=True):
            if isinstance(image, UserError):
                on_failure(path, str(image))
            else:
                yield image


def batches(images: Iterator[Photograph], count: int, pixels: int) -> Iterator[list[Photograph]]:
    """Put together neighbours of one size: up to `count`, and above one up to so many pixels."""
    batch: list[Photograph] = []
    for image in images:
        shape = image.given.shape
        if batch and (
            len(batch) == count
            or shape != batch[0].given.shape
            or (len(batch) + 1) * shape[0] * shape[1] > pixels
        ):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


def predictions(
    segmenter: Segmenter,
    images: Iterator[Photograph],
    tile: int | None,
    batch: int,
    confidence: bool,
) -> Iterator[Predicted]:
    """Each image with a function that waits for its labels and, if wanted, their probability."""
    import torch

    from cag.deploy.segmenter import WHOLE_PIXELS
    from cag.prediction import full_resolution
    from cag.runtime.overlap import to_cpu

    for group in batches(images, batch, WHOLE_PIXELS):
        stacked = torch.from_numpy(np.stack([image.given for image in group]))  # (B, h, w, 3)
        try:
            logits = segmenter.logits(stacked.permute(0, 3, 1, 2), tile)
            for image, scores in zip(group, logits, strict=True):
                yield image, to_cpu(*full_resolution(scores, image.image.shape[:2], confidence))
        except torch.OutOfMemoryError:
            raise UserError(
                f"{group[0].name}: too large for the memory of {segmenter.device} "
                f"({len(group)} images of {group[0].given.shape[:2]}); give a smaller --tile or "
                "--batch, or --device cpu"
            ) from None


def _label(
    segmenter: Segmenter,
    images: Iterator[Photograph],
    out: Path,
    kinds: list[str],
    tile: int | None,
    batch: int,
    advance: Callable[[], None],
) -> np.ndarray:
    """Predict and write; return the pixels of each class, int64 [K]."""
    from cag.runtime.overlap import in_order, threads

    def write(predicted: Predicted) -> np.ndarray:
        photograph, arrived = predicted
        labels, *probability = (part.numpy() for part in arrived())
        _write(out, photograph, labels, probability, kinds, segmenter.label_space)
        return np.bincount(labels.ravel(), minlength=segmenter.num_classes)

    counts = np.zeros(segmenter.num_classes, np.int64)
    predicted = predictions(segmenter, images, tile, batch, CONFIDENCE in kinds)
    with closing(predicted), closing(in_order(write, predicted, threads())) as written:
        for pixels in written:
            counts += pixels
            advance()
    return counts


def _write(
    out: Path,
    photograph: Photograph,
    labels: np.ndarray,
    probability: list[np.ndarray],
    kinds: list[str],
    classes: LabelSpace,
) -> None:
    palette = classes.palette_array
    path = out
    try:
        for kind in kinds:
            suffix = ".jpg" if kind == OVERLAYS else ".png"
            path = out / kind / PurePosixPath(f"{photograph.name}{suffix}")
            with atomic_file(path) as partial:
                if kind == LABELS:
                    write_label(partial, labels, palette)
                elif kind == OVERLAYS:
                    write_jpeg(partial, overlay(photograph.image, labels, palette))
                else:
                    write_image(partial, (255 * probability[0]).round().astype(np.uint8))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be a folder to write to ({error.strerror})") from None


def _summarize(
    segmenter: Segmenter,
    counts: np.ndarray,
    images: int,
    failures: list[tuple[Path, str]],
    seconds: float,
    as_json: bool,
) -> None:
    done = images - len(failures)
    shares = counts / max(1, counts.sum())
    if as_json:
        classes = [
            {"class": name, "pixels": int(pixels), "share": round(float(share), 6)}
            for name, pixels, share in zip(segmenter.classes, counts, shares, strict=True)
        ]
        summary = {
            "images": done,
            "seconds": round(seconds, 3),
            "images_per_second": round(done / seconds, 3),
            "device": str(segmenter.device),
            "classes": classes,
            "failed": [{"image": str(path), "error": error} for path, error in failures],
        }
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    elif done:
        _print_shares(segmenter.classes, shares)
    if failures:
        shown = failures[:SHOWN_FAILURES]
        print(*(f"passed over: {error}" for _, error in shown), sep="\n", file=sys.stderr)
        more = f", {len(shown)} of them" if len(failures) > len(shown) else ""
        raise UserError(
            f"{len(failures)} of {images} images could not be read; listed above{more}"
            + ("; the others are labelled" if done else "")
        )


def _print_shares(classes: Sequence[str], shares: np.ndarray) -> None:
    table = Table("class", box=None)
    table.add_column("pixels, %", justify="right")
    for name, share in zip(classes, shares, strict=True):
        table.add_row(name, f"{100 * share:.2f}")
    print_table(table)
