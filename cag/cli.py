"""The `cag` command."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from cag import __version__
from cag.config import load_all
from cag.datasets import class_difference
from cag.errors import UserError
from cag.files import atomic_file, data_root, free_bytes, inside, used_bytes
from cag.labels import read_class_map
from cag.stage import run

if TYPE_CHECKING:
    from torch import Tensor

PRESETS = Path("presets")
PARAMS = Path("params.yaml")
PREPARED, FEATURES = Path("data/prepared"), Path("data/features")
DOMAINS = ("source", "target")
SHOWN_VALUES, SHOWN_PROBLEMS = 60, 30
PACKAGES = Path(__file__).resolve().parents[1]
TEMPLATE = (
    "dvc.yaml",
    "params.yaml",
    ".dvcignore",
    ".gitignore",
    ".dvc/config",
    ".dvc/.gitignore",
    "presets",
    "classes",
    "data/README.md",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Adapt a segmentation network to images of another world, without labels of it.

    In the order of use:

    \b
      cag init FOLDER   start a project of your own
      cag preset NAME   choose a parameter file (params.yaml)
      cag data check    read the raw data before they are used
      dvc repro         run the pipeline: data/report/index.html shows what came out
      cag summary       print the scores of the last run
      cag results       several seeds, and what true target labels would give

    \b
    Of the paper's authors:
      cag weights import RELEASED OUT   start from their warm-up
    """


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Start a project in FOLDER: pipeline, parameters, presets, and the code that they run.

    \b
    Example:
      cag init my-cameras && cd my-cameras && git add . && git commit -m "New project"
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; name a new folder")
    template = _template()
    skip = shutil.ignore_patterns("__pycache__")
    for name in TEMPLATE:
        source, goal = template / name, folder / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, goal, ignore=skip)
        else:
            shutil.copyfile(source, goal)
    for package in ("cag", "stages"):
        shutil.copytree(PACKAGES / package, folder / package, ignore=skip)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    print(f"{folder}: commit it, then `cag preset` and `dvc repro`")


def _template() -> Path:
    checkout, installed = PACKAGES, Path(sysconfig.get_path("data")) / "share/cag"
    for folder in (checkout, installed):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise UserError(f"{installed}: not found; install cag again with pip")


@cli.command()
@click.argument("name", required=False)
@click.option("--force", is_flag=True, help="Overwrite a changed params.yaml without asking.")
def preset(name: str | None, force: bool) -> None:
    """Copy presets/NAME.yaml over params.yaml; without NAME, list the presets.

    \b
    Example:
      cag preset camvid_day_to_dusk
    """
    available = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
    if not available:
        raise UserError(f"{PRESETS}: no presets here; run this in the project's folder")
    if name is None:
        _list_presets(available)
        return
    if name not in available:
        raise UserError(f"no preset '{name}'; there are {', '.join(available)}")
    load_all(available[name])
    changed = PARAMS.exists() and not any(
        filecmp.cmp(PARAMS, path, shallow=False) for path in available.values()
    )
    if changed and not force:
        click.confirm(f"{PARAMS} has changes that no preset holds; overwrite it?", abort=True)
    with atomic_file(PARAMS) as partial:
        shutil.copyfile(available[name], partial)
    print(f"{PARAMS} is now {available[name]}; `dvc repro` runs it")


def _list_presets(available: dict[str, Path]) -> None:
    table = Table("preset", "what it is", box=None)
    for name, path in available.items():
        comment = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        lines = [line.removeprefix("# ") for line in comment if line.startswith("# ")]
        table.add_row(name, " ".join(lines))
    Console().print(table)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--images", default=16, show_default=True, help="Images of each look.")
@click.option("--height", default=256, show_default=True, help="Pixels.")
@click.option("--width", default=512, show_default=True, help="Pixels.")
@click.option("--seed", default=0, show_default=True, help="The pipeline uses 0.")
def scenes(folder: Path, images: int, height: int, width: int, seed: int) -> None:
    """Write built-in scenes to FOLDER/source and FOLDER/target: images/ and labels/ (label ids).

    \b
    Example:
      cag scenes my-scenes --images 4
    """
    from cag.scenes import write_dataset
    from cag.stage import progress

    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; name a new folder")
    with progress("render scenes", 2 * images, "images") as advance:
        for look in ("source", "target"):
            for index in range(images):
                write_dataset(folder / look, look, seed, 1, height, width, first=index)
                advance()
    print(f"{folder}/source and {folder}/target: {images} images and labels each")


@cli.group()
def data() -> None:
    """Look at raw data before they are used."""


@data.command()
@click.argument("name", type=click.Choice(["source", "target"]), required=False)
@click.option(
    "--partial", is_flag=True, help="A part of the data set on purpose: any count will do."
)
def check(name: str | None, partial: bool) -> None:
    """Read all raw images and labels of params.yaml: source, target, or both without NAME.

    Counts, unreadable files, sizes, label values, classes that never occur, and the disk that
    `prepare` and `extract` will take. Labels of target training images are never opened. What is
    wrong is listed, and the exit status is then 1.

    \b
    Example:
      cag preset gta5_to_cityscapes && cag data check source
    """
    from cag.checks import Disk, check_domain, disk_needed, feature_form, rendered

    params = load_all()
    class_maps = {key: read_class_map(Path(getattr(params, key).class_map)) for key in DOMAINS}
    spaces = [class_map.label_space for class_map in class_maps.values()]
    problems = []
    if spaces[0].names != spaces[1].names:
        problems.append(class_difference(*(space.names for space in spaces)))
    form = feature_form(params.network, spaces[0].num_classes)
    disk = {}
    for domain in DOMAINS if name is None else [name]:
        config, class_map = getattr(params, domain), class_maps[domain]
        if config.layout == "scenes":
            where, found = "rendered by prepare", rendered(config)
        else:
            where = inside(data_root(), config.folder)
            found = check_domain(domain, config, where, class_map, partial)
        _print_check(domain, f"{config.layout}, {where}", found)
        problems += [problem for one in found for problem in one.problems]
        disk[domain] = disk_needed(domain, config, found, params, spaces[0].num_classes, form)
    needed = Disk(*(sum(parts) for parts in zip(*disk.values(), strict=True)))
    there = sum(used_bytes(PREPARED / domain) for domain in disk) + used_bytes(FEATURES)
    free = free_bytes(PREPARED) + there
    print(
        f"disk: prepare {needed.prepare / 1e9:.1f} GB, extract {needed.extract / 1e9:.1f} GB in "
        f"{len(params.rounds)} rounds; free {free / 1e9:.1f} GB"
    )
    if sum(needed) > free:
        problems.append(
            f"the disk has {free / 1e9:.1f} GB for {sum(needed) / 1e9:.1f} GB; free some space, "
            "or take fewer rounds or a smaller size"
        )
    if problems:
        shown = problems[:SHOWN_PROBLEMS]
        print(*(f"wrong: {problem}" for problem in shown), sep="\n")
        more = f", {len(shown)} of them" if len(problems) > len(shown) else ""
        raise UserError(f"{len(problems)} found to be wrong; listed above{more}")


def _print_check(domain: str, what: str, found: list) -> None:
    print(f"{domain}: {what}")
    for one in found:
        left_out = f", {one.left_out} left out (label of another size)" if one.left_out else ""
        print(f"  {one.split}: {one.images} images{left_out}")
        if one.values is None:
            continue
        table = Table("label value", "class", box=None)
        for column in ("pixels, %", "images"):
            table.add_column(column, justify="right")
        total = one.values["pixels"].sum()
        for row in one.values.head(SHOWN_VALUES).itertuples():
            share = f"{100 * row.pixels / total:.3f}"
            table.add_row(str(row.value), row[2], share, str(row.images))
        Console().print(table)
        if len(one.values) > SHOWN_VALUES:
            print(f"  and {len(one.values) - SHOWN_VALUES} more label values")
        if one.absent:
            print(f"  never: {', '.join(one.absent)}")


@cli.command()
def summary() -> None:
    """Print the scores of the last `dvc repro`, and where to look."""
    from cag.results import workspace_table

    Console().print(workspace_table())
    for what, where in (
        ("pseudo-labels", "data/rounds/<round>/pseudo_labels/"),
        ("panels", "data/evaluation/<model>/panels.png"),
        ("plots, report", "data/report/index.html"),
    ):
        print(f"{what:<14}{where}")


@cli.command()
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds, with commas.")
@click.option("--set", "-S", "overrides", multiple=True, help="As `dvc exp run -S key=value`.")
@click.option("--grid", type=click.Path(path_type=Path), help="YAML file of variants to compare.")
@click.option("--jobs", default=1, show_default=True, help="Experiments at the same time.")
@click.option(
    "--oracle/--no-oracle", default=True, help="Also train with true target labels (not in a grid)."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the scores as CSV too.")
def results(
    seeds: str,
    overrides: tuple[str, ...],
    grid: Path | None,
    jobs: int,
    oracle: bool,
    out: Path | None,
) -> None:
    """Run params.yaml with several seeds through DVC's queue and print the spread of the scores.

    With --grid, each variant of a file runs with each seed: its name, then a list of key=value.

    \b
    Examples:
      cag results
      cag results --seeds 0,1,2,3,4 -S network.encoder_weights=null --jobs 2
      cag results --grid benchmarks/ablations.yaml --jobs 2 --out ablations.csv
    """
    from cag.results import grid_table, read_grid, results_table, run_experiments

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds is '{seeds}'; expected numbers with commas: 0,1,2") from None
    load_all()
    variants = {"": []} if grid is None else read_grid(grid)
    variants = {name: [*overrides, *entries] for name, entries in variants.items()}
    scores = run_experiments(variants, numbers, jobs, oracle and grid is None)
    if out is not None:
        from cag.files import write_csv

        write_csv(out, scores)
    # A file is wide enough for every column.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(results_table(scores) if grid is None else grid_table(scores))


@cli.group()
def weights() -> None:
    """Use weights from elsewhere."""


@weights.command("import")
@click.argument("released", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def import_weights(released: Path, out: Path) -> None:
    """Convert RELEASED, a file of the paper's authors, without running anything in it.

    A checkpoint (*.pkl) becomes a model of the 19 Cityscapes classes: OUT ends in .safetensors. To
    start from it instead of training a warm-up, write it to the folder that CAG_WEIGHTS names
    (default data/weights) and name it in params.yaml. The rounds then use its network and input
    normalisation; `pretrain` still trains the source-only model that they are compared with.
    Their category_anchors become anchors as numpy.load reads them, [19, 256]: OUT ends in .npy.

    \b
    Examples:
      cag weights import warmup.pkl data/weights/gta5_warmup.safetensors
      cag weights import category_anchors released_anchors.npy
    then in params.yaml:
      warmup:
        weights: gta5_warmup.safetensors
    """
    from cag.released import read_released

    found = read_released(released)
    kind, suffix = ("weights", ".safetensors") if isinstance(found, dict) else ("anchors", ".npy")
    if out.suffix != suffix:
        raise UserError(f"{released}: holds {kind}, so OUT must end in {suffix}, not '{out}'")
    try:
        _write_weights(out, found) if isinstance(found, dict) else _write_anchors(out, found)
    except UserError as error:
        raise UserError(f"{released}: {error}") from None
    print(f"{out}: the {kind} of {released}")


def _write_weights(path: Path, state: dict[str, Tensor]) -> None:
    from cag.labels import read_class_map
    from cag.networks import RELEASED_NETWORK, build, convert_released_weights, save_model

    weights = convert_released_weights(state)
    classes = read_class_map(_template() / "classes/cityscapes.yaml").label_space
    network = build(RELEASED_NETWORK, classes.num_classes)
    network.load_state_dict(weights)
    save_model(path, network, RELEASED_NETWORK, classes)


def _write_anchors(path: Path, anchors: np.ndarray) -> None:
    with atomic_file(path) as partial, open(partial, "wb") as file:
        np.save(file, anchors)


def main() -> None:
    """Entry point: a user's error is one line and exit status 1."""
    run(cli)
