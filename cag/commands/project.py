"""Commands before a run: a project, its parameters and its raw data."""

from __future__ import annotations

import filecmp
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from cag.commands.template import PACKAGES, template
from cag.commands.terminal import print_table
from cag.config.parameters import load_all
from cag.datasets.labels import read_class_map
from cag.datasets.prepared import class_difference
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_file, data_root, free_bytes, inside, used_bytes

if TYPE_CHECKING:
    from cag.project.raw_data import SplitCheck

PRESETS = Path("presets")
PARAMS = Path("params.yaml")
PREPARED, FEATURES = Path("data/prepared"), Path("data/features")
DOMAINS = ("source", "target")
SHOWN_VALUES, SHOWN_PROBLEMS = 60, 30
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


@click.command(short_help="Start a project of your own.")
@click.argument("folder", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Start a project in FOLDER: pipeline, parameters, presets, and the code that they run.

    \b
    Example:
      cag init my-cameras && cd my-cameras && git add . && git commit -m "New project"
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; name a new folder")
    files = template()
    skip = shutil.ignore_patterns("__pycache__")
    for name in TEMPLATE:
        source, goal = files / name, folder / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, goal, ignore=skip)
        else:
            shutil.copyfile(source, goal)
    for package in ("cag", "stages"):
        shutil.copytree(PACKAGES / package, folder / package, ignore=skip)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    print(f"{folder}: commit it, then `cag preset` and `dvc repro`")


@click.command(short_help="Choose a parameter file (params.yaml).")
@click.argument(
    "name",
    required=False,
    shell_complete=lambda context, parameter, begun: [
        path.stem for path in sorted(PRESETS.glob(f"{begun}*.yaml"))
    ],
)
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
        if not sys.stdin.isatty():
            raise UserError(f"{PARAMS} has changes that no preset holds; --force overwrites it")
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
    print_table(table)


@click.command(short_help="Write built-in scenes as raw data to look at.")
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
    from cag.runtime.progress import progress
    from cag.scenes import write_dataset

    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; name a new folder")
    with progress("render scenes", 2 * images, "images") as advance:
        for look in ("source", "target"):
            for index in range(images):
                write_dataset(folder / look, look, seed, 1, height, width, first=index)
                advance()
    print(f"{folder}/source and {folder}/target: {images} images and labels each")


@click.group()
def data() -> None:
    """Look at raw data before they are used."""


@data.command(short_help="Read the raw data before they are used.")
@click.argument("name", type=click.Choice(["source", "target"]), required=False)
@click.option(
    "--partial", is_flag=True, help="A part of the data set on purpose: any count will do."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON, for scripts.")
def check(name: str | None, partial: bool, as_json: bool) -> None:
    """Read all raw images and labels of params.yaml: source, target, or else both.

    Counts, unreadable files, sizes, label values, classes that never occur, and the disk that
    `prepare` and `extract` will take. Labels of target training images are never opened. What is
    wrong is listed, and the exit status is then 1.

    \b
    Examples:
      cag preset gta5_to_cityscapes && cag data check source
      cag data check --json > found.json
    """
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        found = _check(name, partial)
        problems = found["problems"]
        if not as_json:
            for problem in problems[:SHOWN_PROBLEMS]:
                print(f"wrong: {problem}")
    if as_json:
        print(json.dumps(found, indent=2))
    if problems:
        more = f", {SHOWN_PROBLEMS} of them" if len(problems) > SHOWN_PROBLEMS else ""
        raise UserError(f"{len(problems)} found to be wrong; listed above{more}")


def _check(name: str | None, partial: bool) -> dict:
    """Check the domains and print what they have; all that was found, as for JSON."""
    from cag.project.raw_data import Disk, check_domain, disk_needed, feature_form, rendered

    params = load_all()
    class_maps = {key: read_class_map(Path(getattr(params, key).class_map)) for key in DOMAINS}
    spaces = [class_map.label_space for class_map in class_maps.values()]
    problems = []
    if spaces[0].names != spaces[1].names:
        problems.append(class_difference(*(space.names for space in spaces)))
    form = feature_form(params.network, spaces[0].num_classes)
    disk, domains = {}, {}
    for domain in DOMAINS if name is None else [name]:
        config, class_map = getattr(params, domain), class_maps[domain]
        if config.layout == "scenes":
            where, found = "rendered by prepare", rendered(config)
        else:
            where = inside(data_root(), config.folder)
            found = check_domain(domain, config, where, class_map, partial)
        _print_check(domain, f"{config.layout}, {where}", found)
        problems += [problem for one in found for problem in one.problems]
        domains[domain] = [_plain(one) for one in found]
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
    return {
        "domains": domains,
        "disk_bytes": {**needed._asdict(), "free": free},
        "problems": problems,
    }


def _plain(one: SplitCheck) -> dict:
    values = None if one.values is None else one.values.drop(columns="label").to_dict("records")
    fields = {key: getattr(one, key) for key in ("split", "images", "left_out", "size", "absent")}
    return fields | {"values": values}


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
        print_table(table)
        if len(one.values) > SHOWN_VALUES:
            print(f"  and {len(one.values) - SHOWN_VALUES} more label values")
        if one.absent:
            print(f"  never: {', '.join(one.absent)}")
