"""The times of `cag plan --measure` beside those of the last run: python -m benchmarks.plan.

Run it in a project whose `dvc repro` has finished on this machine, when nothing else runs. Exit
status 1: the estimate of all stages together is more than 25 % off.
"""

import sys
from collections.abc import Mapping, Sequence

import click

from benchmarks.measure import table
from cag.project.plan import StagePlan, make_plan
from cag.runtime.errors import UserError
from cag.runtime.program import read_records, run

MOST_OFF = 0.25


def comparison(
    stages: Sequence[StagePlan], records: Mapping[str, Mapping]
) -> tuple[list[dict[str, str]], float]:
    """A row for each stage that has run, one for all; and the ratio of all to their records.

    A UserError says that no stage has a record.
    """
    pairs = [
        (s.stage, s.seconds, records[s.stage]["seconds"]) for s in stages if s.stage in records
    ]
    if not pairs:
        raise UserError("no stage has run in this folder; `dvc repro` runs them")
    names, *columns = zip(*pairs, strict=True)
    planned, ran = map(sum, columns)
    rows = [
        {"stage": name, "planned, s": f"{plan:.1f}", "ran, s": f"{real:.1f}"}
        | {"ratio": f"{plan / real:.2f}"}
        for name, plan, real in [*pairs, (f"all {len(names)}", planned, ran)]
    ]
    return rows, planned / ran


@click.command(help=__doc__)
def main() -> None:
    """Print both times of each stage."""
    records = read_records()
    rows, ratio = comparison(make_plan(measured=True).stages, records)
    print(table(rows))
    print(f"\nall stages: {ratio:.2f} times the time that they took (target: 0.75 to 1.25)")
    if abs(ratio - 1) > MOST_OFF:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
