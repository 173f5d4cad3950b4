"""List the raw files, the sizes, the weights and the models to score: DVC notices their changes.

It runs first, so it also finds what stops a later stage: domains of different classes.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import pandas as pd

from cag.config.base import DOMAINS
from cag.config.datasets import Source, Target
from cag.config.parameters import load_all
from cag.datasets.layouts import index_folder, splits
from cag.datasets.preparation import domain_class_map
from cag.datasets.prepared import require_same_classes
from cag.runtime import files
from cag.runtime.errors import UserError
from cag.runtime.program import run_stage

DATA, INDEX = Path("data"), "data/index/{}.csv"
EVALUATED = "data/evaluation/models.csv"  # report needs its folder, even without scored models


def domain_index(domain: str, config: Source | Target) -> pd.DataFrame:
    """Path and size of each raw file; nothing for the built-in scenes."""
    if config.layout == "scenes":
        return pd.DataFrame({"path": [], "bytes": []})
    below = [folder for split in splits(domain, config) for folder in split.folders]
    return index_folder(files.inside(files.data_root(), config.folder), below)


def size_table(config: Source | Target) -> pd.DataFrame:
    """The height and width of a domain's prepared images; nothing for null.

    DVC's cache of runs ignores each key called `size`, also of parameters: without this file, it
    would take prepared images of another size for those asked for.
    """
    return pd.DataFrame([config.size] if config.size else [], columns=["height", "width"])


def weights_index(weights: str | None, find: Callable[[str], Path]) -> pd.DataFrame:
    """Name and digest of a weights file, `hub` if this machine has none; nothing for None."""
    paths = [] if weights is None else [find(weights)]
    digests = [files.sha256(path) if path.exists() else "hub" for path in paths]
    return pd.DataFrame({"path": [path.name for path in paths], "sha256": digests})


def require_own_outputs() -> None:
    """Raise a UserError if outputs would lie elsewhere through a link: DVC refuses them afterwards.

    Raw data and weights are none of its outputs.
    """
    outputs = (path for path in DATA.glob("*") if path.name not in ("raw", "weights"))
    for path in (DATA, *sorted(outputs)):
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(".")):
            problem = "is a link that leaves the project, where DVC takes no outputs"
            remedy = "put the project on that disk, too (data/raw and data/weights may be links)"
            raise UserError(f"{path}: {problem}; {remedy}")


@click.command(help=__doc__)
def main() -> None:
    """Write `data/index/`, of files and sizes, and the list of evaluated models."""
    params = load_all()
    require_own_outputs()
    class_maps = (domain_class_map(getattr(params, domain).class_map) for domain in DOMAINS)
    require_same_classes(*(class_map.label_space for class_map in class_maps))
    encoder_file = partial(files.encoder_weights_file, params.network.encoder)
    tables = {
        "source": domain_index("source", params.source),
        "target": domain_index("target", params.target),
        "weights": weights_index(params.network.encoder_weights, encoder_file),
        "warmup": weights_index(params.warmup.weights, files.model_weights_file),
    }
    for name, table in tables.items():
        files.write_csv(INDEX.format(name), table)
        print(f"index: {len(table)} files of {name}")
    for domain in DOMAINS:
        sizes = size_table(getattr(params, domain))
        files.write_csv(INDEX.format(f"{domain}_size"), sizes)
    files.write_csv(EVALUATED, pd.DataFrame({"model": params.evaluated}))


if __name__ == "__main__":
    run_stage(main)
