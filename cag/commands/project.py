"""Commands before a run: a project, its parameters and its raw data."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cag.commands.terminal import PATH, json_option, print_json, print_rows, stdout_for_json
from cag.config.parameters import load_all
from cag.project import template
from cag.runtime.errors import UserError, printable

if TYPE_CHECKING:
    from cag.project.raw_data import SplitCheck

SHOWN_VALUES = 60
COUNT, SIDE, SEED = (click.IntRange(*limits) for limits in ((1, 10**6), (1, 2**14), (0, 2**32)))
EFFECTIVE = "Change nothing; print all values of NAME, or of params.yaml, with the defaults."
PARTIAL = "A part of the data set on purpose: any count will do."


@click.command(short_help="Start a project of your own.")
@click.argument("folder", type=PATH)
def init(folder: Path) -> None:
    """Start a project in FOLDER: pipeline, parameters, presets, and the code that they run.

    FOLDER is new, empty, or a git repository, such as a fresh clone with a README. Below a
    repository the project becomes a part of it.

    \b
    Examples:
      cag init my-cameras && cd my-cameras && git add . && git commit -m "New project"
      git clone URL my-cameras && cag init my-cameras
    """
    repository = template.start_project(folder)
    place = "" if repository.samefile(folder) else f" a part of the repository {repository};"
    print(f"{folder}:{place} commit it, then `cag preset` and `dvc repro`")


@click.command(short_help="Choose a parameter file (params.yaml).")
@click.argument(
    "name", required=False, shell_complete=lambda _, __, begun: list(template.presets(begun))
)
@click.option("--force", is_flag=True, help="Overwrite a changed params.yaml without asking.")
@click.option("--effective", is_flag=True, help=EFFECTIVE)
def preset(name: str | None, force: bool, effective: bool) -> None:
    """Copy presets/NAME.yaml over params.yaml; without NAME, list the presets.

    A preset leaves out options that are off by default; --effective shows them, marked by a
    comment. To set such an option for an experiment, put ++ before its name, as DVC otherwise
    changes only keys that params.yaml has.

    \b
    Examples:
      cag preset camvid_day_to_dusk
      cag preset --effective
      dvc exp run -S '++adapt.class_mix=0.5'
    """
    available = template.presets()
    if not available:
        raise UserError(f"{template.PRESETS}: no presets here; run this in the project's folder")
    if name is not None and name not in available:
        raise UserError(f"no preset '{name}'; there are {', '.join(available)}")
    if effective:
        print(template.effective_yaml(template.PARAMS if name is None else available[name]))
    elif name is None:
        abouts = {name: template.first_comment(path) for name, path in available.items()}
        print_rows([{"preset": name, "what it is": about} for name, about in abouts.items()])
    else:
        load_all(available[name])
        if template.params_have_changed() and not force:
            changes = f"{template.PARAMS} has changes that no preset holds"
            if not sys.stdin.isatty():
                raise UserError(f"{changes}; --force overwrites it")
            click.confirm(f"{changes}; overwrite it?", abort=True)
        template.choose_preset(available[name])
        print(f"{template.PARAMS} is now {available[name]}; `dvc repro` runs it")


@click.command(short_help="Write built-in scenes as raw data to look at.")
@click.argument("folder", type=PATH)
@click.option("--images", type=COUNT, default=16, show_default=True, help="Images of each look.")
@click.option("--height", type=SIDE, default=256, show_default=True, help="Pixels.")
@click.option("--width", type=SIDE, default=512, show_default=True, help="Pixels.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="The pipeline uses 0.")
def scenes(folder: Path, images: int, height: int, width: int, seed: int) -> None:
    """Write built-in scenes to FOLDER/source and FOLDER/target: images/ and labels/ (label ids).

    \b
    Example:
      cag scenes my-scenes --images 4
    """
    from cag.runtime.files import require_new
    from cag.runtime.progress import progress
    from cag.scenes import write_dataset

    require_new(folder)
    domains = ("source", "target")
    try:
        with progress("render scenes", 2 * images, "images") as advance:
            for domain in domains:
                for index in range(images):
                    write_dataset(folder / domain, domain, seed, 1, height, width, first=index)
                    advance()
    except BaseException:
        for domain in domains:
            shutil.rmtree(folder / domain, ignore_errors=True)
        raise
    print(f"{folder}/source and {folder}/target: {images} images and labels each")


@click.group()
def data() -> None:
    """Look at raw data before they are used."""


@data.command(short_help="Read the raw data before they are used.")
@click.argument("name", type=click.Choice(["source", "target"]), required=False)
@click.option("--partial", is_flag=True, help=PARTIAL)
@json_option
def check(name: str | None, partial: bool, as_json: bool) -> None:
    """Read all raw images and labels of params.yaml: source, target, or else both.

    Counts, unreadable files, sizes, label values, classes that never occur, the disk that `prepare`
    and the features will take, and the memory of a training step. Labels of target training images
    are never opened. Problems are listed; the exit status is then 1. Files with the same problem
    are one line, which counts them; --json names each. Files that are no images are named, and
    images that EXIF data turn are counted. Warnings, which leave the exit status 0:
    images that are nearly black, dark, nearly white, of one or few colours, or cut off; label maps
    that fit turned images better the other way; a network that `cag export` cannot trace; weights
    of an encoder that only the hub has; crops that do not suit the size of the images.

    \b
    Examples:
      cag preset gta5_to_cityscapes && cag data check source
      cag data check --json > found.json
    """
    from cag.project.raw_data import check_data

    with stdout_for_json(as_json):
        params = load_all()
        checked = check_data(params, name, partial, _print_domain)
        prepare, features, free = (f"{n / 1e9:.1f} GB" for n in checked["disk_bytes"].values())
        rounds = f"{len(params.rounds)} round{'s' * (len(params.rounds) != 1)}"
        print(f"disk: prepare {prepare}, features {features} in {rounds}; free {free}")
        memory = f"{checked['step_bytes'] / 1e9:.1f} GB in {checked['step_precision']}"
        step = f"a step of {checked['step_training']} takes most, {memory} on one device"
        print(f"memory: {step}; `cag plan` has every stage")
    problems = checked["problems"]
    if as_json:
        print_json(checked)
    else:
        for warning in checked["warnings"]:
            print(f"warning: {printable(warning)}")
        for problem in checked["summary"]:
            print(f"wrong: {printable(problem)}")
    if problems:
        more = " by kind; --json has all" if len(checked["summary"]) < len(problems) else ""
        raise UserError(f"{len(problems)} found to be wrong; listed above{more}")


def _print_domain(title: str, splits: list[SplitCheck]) -> None:
    from cag.datasets.layouts import describe_files

    print(title)
    for split in splits:
        left_out = f", {split.left_out} left out (label of another size)" if split.left_out else ""
        print(f"  {split.split}: {split.images} images{left_out}")
        for turn, count in split.turned.items():
            print(f"  EXIF data: {count} of {split.images} images to be {turn}")
        if split.passed_over:
            print(f"  passed over, no images by their names: {describe_files(split.passed_over)}")
        if split.values is None:
            continue
        table = split.values.rename(columns={"value": "label value"}).drop(columns="label")
        share = 100 * table.pop("pixels") / split.values["pixels"].sum()
        table.insert(2, "pixels, %", share.map("{:.3f}".format))
        print_rows(table.head(SHOWN_VALUES).to_dict("records"))
        if len(table) > SHOWN_VALUES:
            print(f"  and {len(table) - SHOWN_VALUES} more label values")
        if split.absent:
            print(f"  never: {', '.join(split.absent)}")
