"""The command about pseudo-labels."""

from pathlib import Path

import click

from cag.commands.terminal import PATH
from cag.config.base import RULES

BOTH = "both"
RULE = "both: the label that either rule gives; where they give two, none."


def choice(*values: str) -> dict:
    """The keywords of an option with some values, of which the last is the default."""
    return {"type": click.Choice(values), "default": values[-1], "show_default": True}


@click.group()
def pseudo() -> None:
    """Use a round's pseudo-labels elsewhere."""


@pseudo.command(short_help="Pseudo-labels for other training programs.")
@click.option("--out", type=PATH, required=True, help="New folder.")
@click.option("--format", "layout", **choice("cityscapes"), help="Folder layout.")
@click.option("--round", "round_name", help="Its name or number. [default: the last]")
@click.option("--rule", **choice(*RULES, BOTH), help=RULE)
@click.option("--copy", is_flag=True, help="Copy the images; else they are hard links if possible.")
def export(out: Path, layout: str, round_name: str | None, rule: str, copy: bool) -> None:
    """Write a round's pseudo-labels and their images in the layout of Cityscapes.

    \b
      leftImg8bit/train/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
      gtFine/train/<city>/<city>_<sequence>_<frame>_gtFine_labelTrainIds.png   255: no label
      gtFine/train/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png
      names.csv      name of each target image and its path here
      classes.json   names and colours of the train ids

    Images and labels have the size of the prepared images. If the names of the target images are
    not of this form, they are numbered in the order of their names: target_000000_<number>.
    labelIds holds raw values of target.class_map: of each class and of what has no label the
    smallest; it is left out where a class has no value of its own, and where the raw values are
    the train ids.

    \b
    Example:
      cag pseudo export --round round3 --out pseudo-cityscapes
    """
    from cag.config.parameters import load_all
    from cag.project.pseudo_labels import chosen_round, export_cityscapes

    params = load_all()
    name = chosen_round(round_name, list(params.rounds))
    rules = RULES if rule == BOTH else (rule,)
    images, share = export_cityscapes(out, name, rules, Path(params.target.class_map), copy)
    print(f"{out}: {images} images, {share:.1%} of the pixels labelled ({name}, rule {rule})")
