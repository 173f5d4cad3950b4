"""The state of a project: which stages are fresh, stale or missing, their times and sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cag.project.repository import Stage, read_stages
from cag.runtime.files import used_bytes
from cag.runtime.program import RECORDS, read_records

FRESH, STALE, MISSING = "fresh", "stale", "missing"
_SHOWN = 3


class StageStatus(NamedTuple):
    """One stage of the pipeline.

    It is missing if it lacks an output, stale if something it reads has changed or may change:
    `dvc repro` then runs it, or fetches its outputs from DVC's cache.
    """

    stage: str  # DVC's name, as in extract@round1
    state: str  # fresh, stale or missing
    why: str  # the changes; "after ..." names the stages where they began
    bytes: int  # of its existing outputs
    record: Mapping[str, Any]  # of its last run in this folder, from `run_stage`; or empty

    def plain(self) -> dict[str, Any]:
        """All of it in one level, for JSON; null where nothing is known of its times."""
        times = dict.fromkeys(("started", "seconds", "images_per_second"))
        fields = self._asdict() | times
        return fields | fields.pop("record")


def pipeline_status(project: Path = Path()) -> list[StageStatus]:
    """The state of each stage of a project, in the pipeline's order; errors as of `opened`."""
    root, stages = read_stages(project)
    records = read_records(root / RECORDS)
    by_name = {stage.name: stage for stage in stages}
    return [_status(stage, by_name, records.get(stage.name, {})) for stage in stages]


def _status(stage: Stage, stages: Mapping[str, Stage], record: Mapping[str, Any]) -> StageStatus:
    causes = {name for name in stage.needs if stages[name].changes}
    state = STALE if causes or stage.changes else FRESH
    if not all(path.exists() for path in stage.outputs):
        state = MISSING
    first = sorted(name for name in causes if not stages[name].needs & causes)
    if first:
        why = f"after {', '.join(first)}"
    else:
        more = len(stage.changes) - _SHOWN
        why = "; ".join([*stage.changes[:_SHOWN], *[f"{more} more"] * (more > 0)])
    size = sum(map(used_bytes, stage.outputs))
    return StageStatus(stage.name, state, why, size, record)
