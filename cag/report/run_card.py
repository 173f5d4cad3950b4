"""What was run: parameters, versions, times, and checksums of the data."""

from collections.abc import Mapping, Sequence

import pandas as pd

from cag.config.base import dotted
from cag.report import pieces
from cag.report.contents import Run

TIMES = ("stage", "started", "seconds", "images", "images_per_second", "device")


def times_table(records: Sequence[Mapping]) -> pd.DataFrame:
    """The stages' times in the order of their start; empty where a record says nothing."""
    rows = [[record.get(key) for key in TIMES] for record in records]
    table = pd.DataFrame(rows, columns=TIMES, dtype=object)
    return table.sort_values(["started", "stage"], kind="stable", ignore_index=True, key=_text)


def section(run: Run) -> str:
    """The card, of what there is."""
    return _times(run) + _versions(run) + _fingerprints(run) + _parameters(run)


def _times(run: Run) -> str:
    if not run.records:
        return ""
    rows = []
    for row in times_table(run.records).to_dict("records"):
        seconds, rate = (
            pieces.NOTHING if pd.isna(row[key]) else f"{float(row[key]):.1f}"
            for key in ("seconds", "images_per_second")
        )
        rows.append(
            [
                pieces.th(row["stage"]),
                pieces.td(pieces.NOTHING if row["started"] is None else row["started"], "word"),
                pieces.td(seconds),
                pieces.td(pieces.count(row["images"])),
                pieces.td(rate),
                pieces.td(pieces.NOTHING if row["device"] is None else row["device"], "word"),
            ]
        )
    heads = ["stage", "started", "seconds", "images", "images/s", "device"]
    note = "Each stage's latest run here; what came out of a cache did not run."
    return f"<p>{note}</p>" + pieces.table("Times of the stages", heads, rows)


def _versions(run: Run) -> str:
    found = {
        f"{name} {version}"
        for record in run.records
        for name, version in (record.get("versions") or {}).items()
    }
    return f"<p>Versions: {pieces.escape(', '.join(sorted(found)))}.</p>" if found else ""


def _fingerprints(run: Run) -> str:
    if not run.fingerprints:
        return ""
    rows = [
        [pieces.th(what), f'<td class="word"><code>{pieces.escape(digest)}</code></td>']
        for what, digest in run.fingerprints
    ]
    note = (
        "MD5 of the manifests, which list each image's and label's size and SHA-256: "
        "equal sums are equal data."
    )
    return f"<p>{note}</p>" + pieces.table("Data", ["manifest", "MD5"], rows)


def _parameters(run: Run) -> str:
    if not run.parameters:
        return ""
    rows = [
        [
            f'<th scope="row"><code>{pieces.escape(key)}</code></th>',
            f'<td class="word"><code>{pieces.escape(_yaml(value))}</code></td>',
        ]
        for key, value in dotted(run.parameters)
    ]
    table = pieces.table("Parameters of the run", ["key", "value"], rows)
    return (
        f"<details><summary>Parameters <span>{len(rows)} values</span></summary>{table}</details>"
    )


def _yaml(value: object) -> str:
    """A value as YAML would write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    return str(value)


def _text(column: pd.Series) -> pd.Series:
    return column.map(str)
