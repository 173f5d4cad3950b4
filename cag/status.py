"""The state of a project: which stages are fresh, stale or missing, their times and sizes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import networkx
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.stage import Stage
from rich.table import Table
from rich.text import Text

from cag.errors import UserError
from cag.files import used_bytes
from cag.stage import RECORDS, read_records

FRESH, STALE, MISSING = "fresh", "stale", "missing"
_SHOWN = 3
_STYLES = {FRESH: "green", STALE: "yellow", MISSING: "red"}


@dataclass(frozen=True)
class StageStatus:
    """One stage of the pipeline.

    Attributes:
        stage: DVC's name, as in extract@round1.
        state: "fresh"; "stale": `dvc repro` will run it or fetch its outputs from DVC's cache, as
            something it reads has changed or may change; "missing": it lacks an output.
        why: What has changed; "after ..." names the stages where that began. Empty if fresh.
        started: When it last ran in this folder, ISO 8601; None if there is no record.
        seconds: How long that took.
        images_per_second: Its rate, where it goes through images.
        bytes: Size of its outputs that are there.
    """

    stage: str
    state: str
    why: str
    started: str | None
    seconds: float | None
    images_per_second: float | None
    bytes: int


def pipeline_status(project: Path = Path()) -> list[StageStatus]:
    """The state of each stage of a project, in the pipeline's order.

    Raises:
        UserError: It is no DVC project, DVC is at work in it, or its dvc.yaml or params.yaml cannot
            be understood.
    """
    logging.getLogger("dvc").setLevel(logging.CRITICAL)  # what is wrong is said once, below
    try:
        with Repo(project) as repo:
            stages, graph = list(repo.index.stages), repo.index.graph
            found = repo.status()
            records = read_records(Path(repo.root_dir) / RECORDS)
            return list(_statuses(stages, graph, found, records))
    except LockError:
        raise UserError(
            "DVC is running in this project, and its state is changing; ask again when it is done "
            "(after a kill: delete .dvc/tmp/rwlock)"
        ) from None
    except NotDvcRepoError:
        raise UserError(
            f"{project.resolve()}: no DVC project; run this in the folder of one (`cag init`)"
        ) from None
    except DvcException as error:
        raise UserError(" ".join(str(error).split())) from None


def _statuses(
    stages: Sequence[Stage], graph: networkx.DiGraph, found: Mapping, records: Mapping[str, dict]
) -> Iterator[StageStatus]:
    changes = {stage: _changes(stage, found.get(stage.addressing, [])) for stage in stages}
    for stage in stages:
        outputs = [Path(out.fs_path) for out in stage.outs]
        before = networkx.descendants(graph, stage)  # an edge leads to what is needed
        causes = [one for one in before if changes[one]]
        if not all(path.exists() for path in outputs):
            state = MISSING
        else:
            state = STALE if causes or changes[stage] else FRESH
        first = [one for one in causes if not networkx.descendants(graph, one) & set(causes)]
        after = ", ".join(sorted(one.name for one in first))
        why = f"after {after}" if after else _some(changes[stage])
        record = records.get(stage.name, {})
        times = [record.get(key) for key in ("started", "seconds", "images_per_second")]
        size = sum(used_bytes(path) if path.is_dir() else _size(path) for path in outputs)
        yield StageStatus(stage.name, state, why, *times, size)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _some(lines: Sequence[str]) -> str:
    more = len(lines) - _SHOWN
    return "; ".join([*lines[:_SHOWN], f"{more} more"] if more > 0 else lines)


def _changes(stage: Stage, entries: Sequence) -> list[str]:
    """What DVC finds changed about a stage, a line each.

    A stage that always runs (the listing of raw files) mostly writes what it wrote before, and what
    follows it is then skipped: of such a stage only its outputs count.
    """
    lines = []
    for entry in entries:
        if isinstance(entry, str):
            lines += [] if stage.always_changed else [entry]
            continue
        for what, changed in entry.items():
            if stage.always_changed and what != "changed outs":
                continue
            for path, how in changed.items():
                if isinstance(how, Mapping):  # parameters
                    lines += [f"{key} {kind}" for key, kind in how.items()]
                else:
                    lines.append(f"{path} {how}")
    return lines


def status_table(statuses: Sequence[StageStatus]) -> Table:
    """The statuses for a terminal."""
    table = Table(box=None)
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("ran", no_wrap=True)
    for column in ("took", "images/s", "size"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for one in statuses:
        table.add_row(
            one.stage,
            Text(one.state, _STYLES[one.state]),
            _moment(one.started),
            "" if one.seconds is None else f"{one.seconds:.1f} s",
            "" if one.images_per_second is None else f"{one.images_per_second:.1f}",
            f"{one.bytes / 1e6:.1f} MB" if one.bytes else "",
            one.why,
        )
    return table


def _moment(started: str | None) -> str:
    return "" if started is None else f"{datetime.fromisoformat(started):%Y-%m-%d %H:%M}"
