"""List the raw files, the given weights and the models to score, so that changes are noticed."""

import click
import pandas as pd

from cag.config.datasets import Source, Target
from cag.config.networks import Network
from cag.config.parameters import load_all
from cag.config.warmup import Warmup
from cag.datasets.layouts import index_folder, splits
from cag.runtime.files import (
    data_root,
    encoder_weights_file,
    inside,
    model_weights_file,
    sha256,
    write_csv,
)
from cag.runtime.program import run_stage

INDEX = "data/index/{}.csv"
EVALUATED = "data/evaluation/models.csv"  # report depends on its folder, scored models or not


def domain_index(domain: str, config: Source | Target) -> pd.DataFrame:
    """Path and size of each file in the raw folders; nothing for the built-in scenes."""
    if config.layout == "scenes":
        return pd.DataFrame({"path": [], "bytes": []})
    below = [folder for split in splits(domain, config) for folder in split.folders]
    return index_folder(inside(data_root(), config.folder), below)


def weights_index(network: Network) -> pd.DataFrame:
    """The encoder's weights and, for a local file, its digest; nothing for random weights."""
    if network.encoder_weights is None:
        return pd.DataFrame({"path": [], "sha256": []})
    path = encoder_weights_file(network.encoder, network.encoder_weights)
    digest = sha256(path) if path.exists() else "hub"
    return pd.DataFrame({"path": [path.name], "sha256": [digest]})


def warmup_index(warmup: Warmup) -> pd.DataFrame:
    """The model that stands in for the warm-up, and its digest; nothing without one."""
    paths = [] if warmup.weights is None else [model_weights_file(warmup.weights)]
    digests = [sha256(path) for path in paths]
    return pd.DataFrame({"path": [path.name for path in paths], "sha256": digests})


@click.command(help=__doc__)
def main() -> None:
    """Write `data/index/{source,target,weights,warmup}.csv` and `data/evaluation/models.csv`."""
    params = load_all()
    tables = {
        "source": domain_index("source", params.source),
        "target": domain_index("target", params.target),
        "weights": weights_index(params.network),
        "warmup": warmup_index(params.warmup),
    }
    for name, table in tables.items():
        write_csv(INDEX.format(name), table)
        print(f"index: {len(table)} files of {name}")
    write_csv(EVALUATED, pd.DataFrame({"model": params.evaluated}))


if __name__ == "__main__":
    run_stage(main)
