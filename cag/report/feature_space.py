"""The feature space of each round: a projection, the anchors' distances, and their drift."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from cag.datasets.labels import LabelSpace
from cag.report import pieces
from cag.report.contents import Features, Round, Run

WIDTH, HEIGHT, EDGE = 720.0, 520.0, 24.0  # of a projection, in its own units


def principal_axes(anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two directions in which the anchors differ most.

    Args:
        anchors: float [K, D], K and D at least 2; rows of NaN are left out.

    Returns:
        The anchors' centre float64 [D], the directions [2, D], of length 1, and the share of the
        anchors' variance along each, [2]. The largest part of a direction is positive.
    """
    seen = anchors[~np.isnan(anchors).any(axis=1)].astype(np.float64)
    centre = seen.mean(axis=0)
    _, lengths, directions = np.linalg.svd(seen - centre, full_matrices=False)
    variance = lengths**2 / max((lengths**2).sum(), np.finfo(np.float64).tiny)
    axes = directions[:2]
    largest = np.abs(axes).argmax(axis=1)
    return centre, axes * np.sign(axes[[0, 1], largest])[:, None], variance[:2]


def anchor_distance_matrix(anchors: np.ndarray) -> np.ndarray:
    """L2 distances between anchors float [K, D], float64 [K, K]; NaN for rows of NaN."""
    anchors = anchors.astype(np.float64)
    return np.linalg.norm(anchors[:, None] - anchors[None], axis=2)


def drift_table(anchors: Mapping[str, np.ndarray], names: tuple[str, ...]) -> pd.DataFrame:
    """How far each class's anchor moved from round to round.

    Args:
        anchors: round -> float [K, D], in the order of the rounds.
        names: The K classes.

    Returns:
        columns class, and for each round but the first (round, "distance"), the L2 distance to the
        previous round's anchor, and (round, "cosine"), of the angle between them; NaN where one of
        them is missing.
    """
    table = {("", "class"): list(names)}
    rounds = list(anchors.items())
    for (_, before), (name, after) in zip(rounds, rounds[1:], strict=False):
        before, after = before.astype(np.float64), after.astype(np.float64)
        table[name, "distance"] = np.linalg.norm(after - before, axis=1)
        lengths = np.linalg.norm(after, axis=1) * np.linalg.norm(before, axis=1)
        cosine = np.full(len(lengths), np.nan)
        table[name, "cosine"] = np.divide(
            (after * before).sum(axis=1), lengths, out=cosine, where=lengths > 0
        )
    return pd.DataFrame(table)


def section(run: Run) -> str:
    """Projections, distance matrices and drift of the rounds whose features are given."""
    rounds = {name: one for name, one in run.rounds.items() if one.features is not None}
    if not rounds:
        return ""
    blocks = []
    for index, (name, one) in enumerate(rounds.items()):
        blocks.append(
            f'<div class="of of-{index}">{_projection(name, one, run.label_space)}'
            f"{_distances(name, one, run.label_space)}</div>"
        )
    note = (
        "Single-pixel features, as many of each class as there are up to a limit: of the source by "
        "true class, of the target by predicted class. The axes are the two directions in which "
        "the round's anchors differ most (their principal axes); what lies across them is not "
        "seen. Each round's features are those of another network, so the pictures of two rounds "
        "have different axes."
    )
    options = "".join(
        f'<option value="{index}">{pieces.escape(name)}</option>'
        for index, name in enumerate(run.label_space.names)
    )
    choose = (
        '<p class="scripted" hidden><label>show <select id="feature-class">'
        f'<option value="">all classes</option>{options}</select></label></p>'
    )
    content = f"<p>{note}</p>{choose}" + "".join(blocks)
    return pieces.switch("features", list(rounds), content) + _drift(run, rounds)


def _projection(name: str, one: Round, label_space: LabelSpace) -> str:
    features = one.features
    centre, axes, share = principal_axes(features.anchors)
    points = {
        "source": _projected(features.source, centre, axes),
        "target": _projected(features.target, centre, axes),
        "anchors": _projected(features.anchors, centre, axes),
    }
    drawn = np.concatenate(list(points.values()))
    drawn = drawn[~np.isnan(drawn).any(axis=1)]
    low, high = drawn.min(axis=0), drawn.max(axis=0)
    size = np.array([WIDTH, HEIGHT]) - 2 * EDGE
    # One scale for both axes, or distances would not be comparable.
    scale = (size / np.maximum(high - low, 1e-9)).min()
    corner = np.array([WIDTH, HEIGHT]) / 2 - scale * (high + low) / 2 * [1, -1]
    placed = {key: corner + scale * value * [1, -1] for key, value in points.items()}
    share_text = [pieces.percent(value) for value in share]
    alt = (
        f"Features of {name} along the two principal axes of its anchors: circles are source "
        "pixels, crosses target pixels, named diamonds anchors."
    )
    caption = (
        f"{name}: the horizontal axis shows {share_text[0]} %, the vertical one {share_text[1]} % "
        f"of the anchors' variance. Source: {len(features.source)} pixels, target: "
        f"{len(features.target)}."
    )
    return (
        f'<figure class="projection"><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{pieces.escape(alt)}"><svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
        f'aria-label="{pieces.escape(alt)}"><rect width="{WIDTH:g}" height="{HEIGHT:g}"/>'
        f"{_points(features, placed, label_space)}{_anchors(placed['anchors'], label_space)}"
        f"</svg></div>{_KEY}<figcaption>{pieces.escape(caption)}</figcaption></figure>"
    )


_KEY = (
    '<ul class="legend marks"><li><svg viewBox="0 0 12 12"><path class="dots" d="M6 6h0"/></svg>'
    'source</li><li><svg viewBox="0 0 12 12"><path class="crosses" d="M3 3l6 6m0-6l-6 6"/></svg>'
    'target</li><li><svg viewBox="0 0 12 12"><path class="anchor" d="M6 0l6 6l-6 6l-6-6z"/></svg>'
    "anchor</li></ul>"
)


def _points(features: Features, placed: Mapping[str, np.ndarray], label_space: LabelSpace) -> str:
    """One path for each class and domain: circles for the source, crosses for the target."""
    drawn = []
    for index, (name, color) in enumerate(zip(label_space.names, label_space.palette, strict=True)):
        for domain, labels, kind, mark in (
            ("source", features.source_labels, "dots", "h0"),
            ("target", features.target_labels, "crosses", "m-2.5-2.5l5 5m0-5l-5 5"),
        ):
            chosen = placed[domain][labels == index]
            if len(chosen):
                path = "".join(f"M{x:.1f} {y:.1f}{mark}" for x, y in chosen)
                drawn.append(
                    f'<path class="{kind} c{index}" style="stroke:{_rgb(color)}" d="{path}">'
                    f"<title>{pieces.escape(name)}, {domain}</title></path>"
                )
    return "".join(drawn)


def _anchors(placed: np.ndarray, label_space: LabelSpace) -> str:
    """Diamonds, and over all of them their names."""
    diamonds, names, taken = [], [], []
    for index, (name, color) in enumerate(zip(label_space.names, label_space.palette, strict=True)):
        x, y = placed[index]
        if not np.isfinite(x):
            continue
        diamonds.append(
            f'<path class="anchor c{index}" style="fill:{_rgb(color)}" '
            f'd="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7-7z"/>'
        )
        left, top = _free_place(x, y, 7.6 * len(name), taken)
        names.append(
            f'<text class="c{index}" x="{left:.1f}" y="{top + 12:.1f}">{pieces.escape(name)}</text>'
        )
    return "".join(diamonds + names)


def _free_place(x: float, y: float, width: float, taken: list) -> tuple[float, float]:
    """Left and top of a name near its diamond, where no other name stands; the place is taken."""
    height = 14.0
    shifts = [
        (10 if right else -10 - width, dy) for dy in (-8, 4, -20, 16, -32) for right in (1, 0)
    ]

    def overlap(shift: tuple[float, float]) -> float:
        left, top = x + shift[0], y + shift[1]
        outside = max(0.0, -left, left + width - WIDTH)
        across = (
            max(0.0, min(left + width, other_left + other_width) - max(left, other_left))
            * max(0.0, height - abs(top - other_top))
            for other_left, other_top, other_width in taken
        )
        return outside * height + sum(across)

    dx, dy = min(shifts, key=overlap)  # the first of equally good ones
    taken.append((x + dx, y + dy, width))
    return x + dx, y + dy


def _distances(name: str, one: Round, label_space: LabelSpace) -> str:
    """The anchors' distances as a table whose near pairs are strongly coloured."""
    seen = [i for i, row in enumerate(one.features.anchors) if not np.isnan(row).any()]
    names = [label_space.names[i] for i in seen]
    distances = anchor_distance_matrix(one.features.anchors[seen])
    largest = max(distances.max(), np.finfo(np.float64).tiny)
    rows = [
        [
            pieces.class_th(row_name, label_space),
            *(
                "<td></td>" if i == j else _heat(distance, 1 - distance / largest)
                for j, distance in enumerate(row)
            ),
        ]
        for i, (row_name, row) in enumerate(zip(names, distances, strict=True))
    ]
    caption = f"Distances between the anchors of {name}, in units of the features"
    return f'<div class="heat">{pieces.table(caption, ["class", *names], rows)}</div>'


def _heat(value: float, strength: float) -> str:
    return f'<td style="--heat:{strength:.2f}">{value:.1f}</td>'


def _drift(run: Run, rounds: Mapping[str, Round]) -> str:
    if len(rounds) < 2:
        return ""
    table = drift_table(
        {name: one.features.anchors for name, one in rounds.items()}, run.label_space.names
    )
    rows = [
        [
            pieces.class_th(row[0], run.label_space),
            *(pieces.td(pieces.decimal(value)) for value in row[1:]),
        ]
        for row in table.itertuples(index=False, name=None)
    ]
    later = list(rounds)[1:]
    heads = ["class", *(word for _ in later for word in ("distance", "cosine"))]
    groups = [("", 1), *((name, 2) for name in later)]
    note = (
        "How far each class's anchor moved from the round before: L2 distance in units of the "
        "features, and the cosine of the angle between the two. The networks differ, but each "
        "student starts from its teacher, so that the spaces are related."
    )
    return (
        f'<h3 class="part">Drift of the anchors</h3><p>{note}</p>'
        f"{pieces.table('Anchors against those of the round before', heads, rows, groups)}"
    )


def _projected(features: np.ndarray, centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return (features.astype(np.float64) - centre) @ axes.T


def _rgb(color: tuple[int, int, int]) -> str:
    return f"rgb({','.join(str(int(part)) for part in color)})"
