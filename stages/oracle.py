"""Train with the target's true labels, for comparison: what an adaptation could hope for.

The only program that opens labels of target training images. It starts from the pretrained model
and takes as many steps as the rounds together, with the pretraining's optimizer.
"""

from pathlib import Path

import click

from cag.config.base import load_params
from cag.datasets.prepared import read_shared_label_space
from cag.evaluation import in_words, write_scores
from cag.project import oracle
from cag.runtime.files import atomic_folder
from cag.runtime.program import run_stage
from stages.prepare import raw_folder

OUT = Path("data/oracle")


@click.command(help=__doc__)
def main() -> None:
    """Write `data/oracle/`: metrics and tables."""
    params = load_params(oracle.OracleParams)
    classes = read_shared_label_space(oracle.SOURCE, oracle.TARGET)
    with raw_folder("target", params.target, oracle=True) as raw:
        oracle.prepare_labelled(params, raw)
    confusion, scored = oracle.run_folds(params, classes)
    with atomic_folder(OUT) as folder:
        write_scores(folder, confusion, classes, scored)
    oracle.clean_up()
    print(f"oracle: {in_words(confusion, scored)}")


if __name__ == "__main__":
    run_stage(main)
