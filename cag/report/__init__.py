"""One HTML page that shows a run: tables, figures, pictures and an explorer in one file."""

from cag.report.contents import (
    Evaluation,
    Features,
    LabelledSample,
    Maps,
    Round,
    Run,
    TrainingSample,
    ValidationSample,
)
from cag.report.page import page
from cag.report.tables import (
    BASELINE,
    baseline_of,
    iou_of,
    per_class_table,
    results_table,
)

__all__ = [
    "BASELINE",
    "Evaluation",
    "Features",
    "LabelledSample",
    "Maps",
    "Round",
    "Run",
    "TrainingSample",
    "ValidationSample",
    "baseline_of",
    "iou_of",
    "page",
    "per_class_table",
    "results_table",
]
