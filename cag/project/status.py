"""The state of a project: which stages are fresh, stale or missing, their times and sizes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cag.project.repository import Stage, read_stages
from cag.runtime.files import used_bytes
from cag.runtime.program import RECORDS, read_records

FRESH, STALE, MISSING = "fresh", "stale", "missing"
_SHOWN = 3


@dataclass(frozen=True)
class StageStatus:
    """One stage of the pipeline.

    Attributes:
        stage: DVC's name, as in extract@round1.
        state: "fresh"; "stale": something it reads has changed or may change, so `dvc repro` will
            run it or fetch its outputs from DVC's cache; "missing": it lacks an output.
        why: The changes; "after ..." names the stages where they began. Empty if fresh.
        bytes: Size of its existing outputs.
        record: From `run_stage`, of its last run in this folder; empty if there is none.
    """

    stage: str
    state: str
    why: str
    bytes: int
    record: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """All of it in one level, for JSON; null where nothing is known of its times."""
        times = dict.fromkeys(("started", "seconds", "images_per_second"))
        fields = {key: value for key, value in vars(self).items() if key != "record"}
        return {**fields, **times, **self.record}


def pipeline_status(project: Path = Path()) -> list[StageStatus]:
    """The state of each stage of a project, in the pipeline's order.

    Raises:
        UserError: It is no DVC project, DVC is at work in it, or cannot understand its dvc.yaml or
            params.yaml.
    """
    root, stages = read_stages(project)
    records = read_records(root / RECORDS)
    by_name = {stage.name: stage for stage in stages}
    return [_status(stage, by_name, records.get(stage.name, {})) for stage in stages]


def _status(stage: Stage, stages: Mapping[str, Stage], record: Mapping[str, Any]) -> StageStatus:
    causes = {name for name in stage.needs if stages[name].changes}
    if not all(path.exists() for path in stage.outputs):
        state = MISSING
    else:
        state = STALE if causes or stage.changes else FRESH
    first = sorted(name for name in causes if not stages[name].needs & causes)
    if first:
        why = f"after {', '.join(first)}"
    else:
        more = len(stage.changes) - _SHOWN
        why = "; ".join([*stage.changes[:_SHOWN], *([f"{more} more"] if more > 0 else [])])
    size = sum(map(used_bytes, stage.outputs))
    return StageStatus(stage.name, state, why, size, record)
