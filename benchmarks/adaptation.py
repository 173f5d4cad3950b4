"""The grid of trainings behind the results: python -m benchmarks.adaptation run, then draw.

`run` makes each run of `adaptation.yaml` whose parameters have no scores in `adaptation.csv` yet. A
run works on the last commit, in a clone below `.scratch/adaptation/` for its pair and seed, which
shares DVC's cache with the project. A killed run continues from its last checkpoint.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any, TextIO

import click
import numpy as np
import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.measure import table as markdown
from cag.analysis.plots import LIGHT, Theme, add_legend, plot_grid, save_png, themed
from cag.commands.terminal import print_rows
from cag.config.base import Section, dotted, validated
from cag.config.parameters import load_all
from cag.config.watch import MEASURES
from cag.datasets.prepared import evenly_spaced, read_manifest
from cag.project.experiments import ORACLE_METRICS, POLL_SECONDS, environment, spread
from cag.project.repository import METRICS, PARAMS, command
from cag.runtime.errors import UserError
from cag.runtime.files import data_root, fingerprint, weights_root, write_csv
from cag.runtime.program import RECORDS, read_records, run
from cag.runtime.progress import progress
from cag.runtime.validation import parse_yaml, read_yaml

GRID, SCORES = Path("benchmarks/adaptation.yaml"), Path("benchmarks/adaptation.csv")
SCRATCH, IMAGES = Path(".scratch/adaptation"), Path("docs/images")
SOURCE, LONG, PAPER = "source only", "source only trained as long", "the paper's rounds"
DEFAULT, ORACLE = "the default", "oracle"
COMPARED = [SOURCE, LONG, PAPER, DEFAULT, ORACLE]  # the other variants are ablations
RUN = ["pair", "variant", "seed"]
SAME = ["pair", "seed", "processor"]  # of runs that are compared with each other
OF_ROUNDS = {"warmup", "extract", "anchors", "pseudo_label", "adapt", "rounds"}
OF_ORACLE = ("iterations", "batch_size")
SCORED = ["model", "miou", "iou", "label_free", "seconds"]
COLUMNS = [*RUN, *SCORED, "processor", "fingerprint", "commit"]
PICTURES = 3  # of a pair
APART = 1.0  # points of mIoU: two models that differ by less are not told apart
Cell = tuple[str, str, int]  # a value of each of RUN
_running: set[subprocess.Popen] = set()
_stopped = Event()


class Variant(Section):
    """The changes of a variant, and its pairs and seeds if it has not all of them."""

    changes: tuple[str, ...] = ()
    per_pair: dict[str, tuple[str, ...]] = {}
    pairs: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    as_long: bool = False
    oracle: bool = False


class Unseen(Section):
    """A pair that no parameter was chosen on: other data in the place of a preset's."""

    preset: str
    changes: tuple[str, ...]
    variants: tuple[str, ...]


class Grid(Section):
    """The definition of the grid; a pair is the name of a preset, or of an unseen pair."""

    seeds: tuple[int, ...]
    pairs: tuple[str, ...]
    variants: dict[str, Variant]
    unseen: dict[str, Unseen] = {}

    def cells(self) -> list[Cell]:
        """All cells, those of a variant before the next one's, those of unseen pairs last."""
        cells = [
            (pair, name, seed)
            for name, variant in self.variants.items()
            for pair in (self.pairs if variant.pairs is None else variant.pairs)
            for seed in (self.seeds if variant.seeds is None else variant.seeds)
        ]
        return cells + [
            (pair, name, seed)
            for pair, unseen in self.unseen.items()
            for name in unseen.variants
            for seed in self.seeds
        ]

    def parameters(self, pair: str, read: Callable[[str], Mapping]) -> Mapping[str, Any]:
        """A pair's parameters, from the preset that `read` gives by its name."""
        unseen = self.unseen.get(pair)
        return read(pair) if unseen is None else changed(read(unseen.preset), unseen.changes)


@dataclass(frozen=True)
class Run:
    """The run of a cell, with the whole of its params.yaml."""

    cell: Cell
    params: Mapping[str, Any]
    oracle: bool = False

    @property
    def fingerprint(self) -> str:
        """The digest of what the scores depend on, but for the code.

        Not so on the form in which features are stored. The pretraining alone reads no round, the
        oracle only how long they are.
        """
        alone = self.oracle or self.models == ["pretrain"]
        unread = {"report"} | (OF_ROUNDS if alone else set())
        read = {key: value for key, value in self.params.items() if key not in unread}
        if self.oracle:
            read["steps"] = len(self.params["rounds"]), *map(self.params["adapt"].get, OF_ORACLE)
        if "extract" in read:
            read["extract"] = {k: v for k, v in read["extract"].items() if k != "directions"}
        return fingerprint(params=read, oracle=self.oracle)[:12]

    @property
    def models(self) -> list[str]:
        """The models with scores, in their order."""
        return [ORACLE] if self.oracle else list(self.params["evaluated"])

    @property
    def clone(self) -> Path:
        """The folder where it works."""
        return SCRATCH / f"{self.cell[0]}-{self.cell[2]}"

    def file(self, suffix: str) -> Path:
        """Its own file beside the clone."""
        return Path(f"{self.clone}-{self.cell[1].replace(' ', '-').replace('/', '-')}{suffix}")

    def rows(self, scores: pd.DataFrame) -> pd.DataFrame:
        """The table's rows of its cell, with whatever parameters."""
        same = (scores[name] == value for name, value in zip(RUN, self.cell, strict=True))
        return scores[np.logical_and.reduce(list(same))]

    def is_done(self, scores: pd.DataFrame) -> bool:
        """Whether the table has its scores, with its parameters."""
        return self.fingerprint in set(self.rows(scores)["fingerprint"])


def changed(params: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Parameters with changes: "key=value" with YAML for value, or "~key" to leave a key out."""
    result = deepcopy(dict(params))
    for change in changes:
        key, equals, value = change.removeprefix("~").partition("=")
        section, (*parents, last) = result, key.split(".")
        try:
            for parent in parents:
                section = section[parent]
            if change.startswith("~"):
                del section[last]
            elif equals:
                section[last] = parse_yaml(value)
            else:
                raise KeyError(key)
        except (KeyError, TypeError, ValueError, yaml.YAMLError):
            hint = "expected key=value, or ~key of a key that is there"
            raise UserError(f"{GRID}: the change {change!r} cannot be made; {hint}") from None
    return result


def plan(cell: Cell, variant: Variant, preset: Mapping[str, Any]) -> Run:
    """The run of a cell, from its pair's preset."""
    pair, _, seed = cell
    params = changed(preset, [*variant.changes, *variant.per_pair.get(pair, ()), f"seed={seed}"])
    if variant.as_long:  # the pretraining alone, with as many steps as all trainings together
        steps = sum(params[name]["iterations"] for name in ("pretrain", "warmup"))
        steps += params["adapt"]["iterations"] * len(params["rounds"])
        params = changed(params, [f"pretrain.iterations={steps}", "evaluated=[pretrain]"])
    return Run(cell, params, variant.oracle)


def read_runs(commit: str, only: Sequence[str] = ("", "", "")) -> list[Run]:
    """The runs of the grid with a commit's presets; UserError: one has bad parameters.

    `only` are the pairs, variants and seeds to choose, each with commas; "": all.
    """
    grid = validated(Grid, read_yaml(GRID, "name the grid there", "name the grid there"), GRID)
    cells, presets, runs = grid.cells(), {}, []
    for part, (name, texts) in enumerate(zip(RUN, only, strict=True)):
        known = dict.fromkeys(str(cell[part]) for cell in cells)
        wanted = [text.strip() for text in texts.split(",") if text.strip()] or list(known)
        if unknown := [text for text in wanted if text not in known]:
            raise UserError(f"--{name}s: {unknown[0]!r} is none of {', '.join(known)}")
        cells = [cell for cell in cells if str(cell[part]) in wanted]
    SCRATCH.mkdir(parents=True, exist_ok=True)

    def preset(name: str) -> Mapping[str, Any]:
        return parse_yaml(_git(Path(), "show", f"{commit}:presets/{name}.yaml"))

    for cell in cells:
        pair, variant, _ = cell
        if pair not in presets:
            presets[pair] = grid.parameters(pair, preset)
        planned = plan(cell, grid.variants[variant], presets[pair])
        text = yaml.safe_dump(dict(planned.params), sort_keys=False)
        planned.file(".yaml").write_text(text, encoding="utf-8")
        load_all(planned.file(".yaml"))
        runs.append(planned)
    return runs


def read_scores() -> pd.DataFrame:
    """The table of `COLUMNS`, a row for each model of each run; empty if there is none.

    miou is in %; iou (in %, by class) and label_free (numbers by name) are JSON; seconds are of the
    model's training, NaN where an earlier run had trained it. The processor is `processor`'s.
    """
    if not SCORES.exists():
        return pd.DataFrame(columns=COLUMNS)
    return pd.read_csv(SCORES, dtype={"fingerprint": str, "commit": str})


def replace_rows(planned: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a run's rows at the end of the table, instead of its older ones.

    Those with the same parameters from another kind of processor stay.
    """
    scores = read_scores()
    older, new = planned.rows(scores), pd.DataFrame(rows)
    stays = older["fingerprint"].isin(new["fingerprint"])
    stays &= ~older["processor"].isin(new["processor"])
    older = older[~stays]
    kept = scores.drop(older.index).to_dict("records")
    write_csv(SCORES, pd.DataFrame([*kept, *rows], columns=COLUMNS))


def _git(folder: Path, *arguments: str) -> str:
    program = ["git", "-c", "gc.auto=0", *arguments]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"`git {' '.join(arguments)}` failed: {reason}")
    return done.stdout


def perform(planned: Run, commit: str, variables: Mapping[str, str], cache: Path) -> list[dict]:
    """Make a run in its clone and return its rows; a UserError names the log of a failed one."""
    clone, log = planned.clone, planned.file(".log")
    clone.mkdir(parents=True, exist_ok=True)
    with open(f"{clone}.lock", "w") as lock:
        _acquire(lock)
        _git(clone, "init", "--quiet")
        _git(clone, "fetch", "--quiet", str(Path.cwd()), commit)
        _git(clone, "checkout", "--quiet", "--force", "--detach", commit)
        (clone / ".dvc/config.local").write_text(f"[cache]\n    dir = {cache}\n", encoding="utf-8")
        (clone / ".dvc/tmp/rwlock").unlink(missing_ok=True)  # of a killed process
        (clone / "dvc.lock").unlink(missing_ok=True)  # of one run: DVC's cache knows them all
        shutil.rmtree(clone / RECORDS, ignore_errors=True)  # of other runs
        shutil.copyfile(planned.file(".yaml"), clone / PARAMS)
        with open(log, "w", encoding="utf-8") as output:
            for arguments in _programs(planned):
                program = [sys.executable, "-m", *arguments]
                options = {"stdout": output, "stderr": output, "stdin": subprocess.DEVNULL}
                options |= {"pass_fds": [lock.fileno()], "start_new_session": True}
                options["env"] = {**variables, "PYTHONPATH": str(clone.absolute())}
                with subprocess.Popen(program, cwd=clone, **options) as process:
                    _running.add(process)
                _running.discard(process)
                if process.returncode or _stopped.is_set():
                    lines = log.read_text(encoding="utf-8").splitlines()
                    errors = [line for line in lines if line.lower().startswith("error")]
                    raise UserError(f"{(errors or lines or ['stopped'])[0]} ({log})")
        keep_pictures(planned)
        return list(_results(planned, commit))


def keep_pictures(planned: Run) -> None:
    """Copy a few label maps of the default's and the paper's last models, for the plots.

    They are of the first seed's validation images, evenly spaced, with their truth.
    """
    pair, variant, seed = planned.cell
    if seed or variant not in (DEFAULT, PAPER):
        return
    prepared = planned.clone / "data/prepared/target"
    rows = read_manifest(prepared).query("split == 'val'")
    chosen = rows.iloc[evenly_spaced(len(rows), PICTURES)]
    models = {variant: planned.models[-1], SOURCE: "pretrain"}
    for number, row in enumerate(chosen.itertuples()):
        files = {"truth": prepared / row.label}
        for name, model in models.items():
            folder = planned.clone / "data/evaluation" / model / "predictions"
            files[name] = folder / Path(row.label).relative_to("labels/val")
        for name, path in files.items():
            goal = SCRATCH / "pictures" / pair / f"{number}-{name.replace(' ', '-')}.png"
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, goal)


def pictures_figure(folder: Path) -> Figure:
    """The kept label maps: a block of rows for each pair, a column for each model and the truth."""
    names = [SOURCE, PAPER, DEFAULT, "truth"]
    pairs = sorted(path for path in folder.iterdir() if path.is_dir())
    figure = Figure(figsize=(11, 1.45 * PICTURES * len(pairs)), layout="constrained")
    axes = figure.subplots(PICTURES * len(pairs), len(names), squeeze=False)
    for block, pair in enumerate(pairs):
        for number, column in product(range(PICTURES), range(len(names))):
            place, name = axes[block * PICTURES + number, column], names[column]
            path = pair / f"{number}-{name.replace(' ', '-')}.png"
            if path.exists():
                image = Image.open(path).convert("RGB")
                place.imshow(image, interpolation="nearest", aspect="auto")  # some are squeezed
            place.set(xticks=[], yticks=[])
            if block + number == 0:
                place.set_title(name)
        axes[block * PICTURES + PICTURES // 2, 0].set_ylabel(pair.name.replace("_", " "))
    return figure


def _acquire(lock: TextIO) -> None:
    """Wait for the processes of a killed `run`, which keep the lock of their clone."""
    while not _stopped.is_set():
        with suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print(f"{lock.name}: waits for the processes of a killed run", file=sys.stderr)
        time.sleep(POLL_SECONDS)
    raise UserError("stopped")


def _programs(planned: Run) -> Iterator[list[str]]:
    """The modules to run in the clone, with their arguments."""
    if planned.oracle:
        yield ["dvc", "repro", "prepare@source", "prepare@target", "pretrain"]
        yield ["stages.oracle"]
        return
    watched = (
        f"{'watch' if model in planned.params['rounds'] else 'watch_start'}@{model}"
        for model in planned.models
    )
    yield ["dvc", "repro", *(f"evaluate@{model}" for model in planned.models), *watched]


def _results(planned: Run, commit: str) -> Iterator[dict[str, Any]]:
    """The rows of a run that has ended, from the files in its clone."""
    records = read_records(planned.clone / RECORDS)
    for model in planned.models:
        metrics = planned.clone / (ORACLE_METRICS if planned.oracle else METRICS.format(model))
        miou = json.loads(metrics.read_text(encoding="utf-8"))["miou"]
        classes = pd.read_csv(metrics.with_name("per_class.csv")).set_index("class")["iou"]
        watched, numbers = planned.clone / f"data/watch/{model}.json", {}
        if watched.exists() and not planned.oracle:
            leaves = dotted(json.loads(watched.read_text(encoding="utf-8")))
            numbers = {key: value for key, value in leaves if isinstance(value, int | float)}
        stage = model if model in ("pretrain", "warmup", ORACLE) else f"adapt@{model}"
        miou = None if miou is None else round(100 * miou, 3)
        iou = json.dumps((100 * classes.dropna()).round(2).to_dict())
        seconds = records.get(stage, {}).get("seconds")
        values = (*planned.cell, model, miou, iou, json.dumps(numbers), seconds)
        origin = (processor(), planned.fingerprint, commit[:12])
        yield dict(zip(COLUMNS, (*values, *origin), strict=True))


def processor() -> str:
    """The kind of processor: two kinds train other weights, by their rounding."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return torch.backends.cpu.get_cpu_capability()  # "AVX2", say


def run_all(
    runs: Sequence[Run], jobs: int, make: Callable[[Run], list[dict]]
) -> Iterator[tuple[Run, Future]]:
    """Make the runs, `jobs` at a time and one at a time in a clone; yield each when it has ended.

    They start in their order, but for those whose clone is at work.
    """
    waiting, working = list(runs), {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or working:
                for planned in list(waiting):
                    busy = {other.clone for other in working.values()}
                    if len(working) < jobs and planned.clone not in busy:
                        waiting.remove(planned)
                        working[pool.submit(make, planned)] = planned
                for future in wait(working, return_when=FIRST_COMPLETED).done:
                    yield working.pop(future), future
        except BaseException:
            _stopped.set()
            for process in list(_running):
                os.killpg(process.pid, signal.SIGTERM)
            raise


@click.group(help=__doc__)
def main() -> None:
    """Run the grid, or draw its results."""


@main.command("run")
@click.option("--jobs", default=1, show_default=True, help="Runs at the same time.")
@click.option("--pairs", default="", help="Only these, with commas.")
@click.option("--variants", default="", help="Only these, with commas.")
@click.option("--seeds", default="", help="Only these, with commas.")
@click.option("--force", is_flag=True, help="Also runs whose scores are there, if DVC lacks them.")
@click.option("--list", "listing", is_flag=True, help="Show what is done and what is missing.")
def make(jobs: int, pairs: str, variants: str, seeds: str, force: bool, listing: bool) -> None:
    """Make the runs of the grid that have no scores yet."""
    commit, scores = _git(Path(), "rev-parse", "HEAD").strip(), read_scores()
    runs = read_runs(commit, (pairs, variants, seeds))
    if listing:
        return print_rows(states(runs, scores))
    todo = [planned for planned in runs if force or not planned.is_done(scores)]
    variables = environment(jobs) | {
        "CAG_DATA": str(data_root().absolute()),
        "CAG_WEIGHTS": str(weights_root().absolute()),
    }
    if (programs := str(Path(sys.executable).parent)) not in variables["PATH"].split(os.pathsep):
        variables["PATH"] = os.pathsep.join([programs, variables["PATH"]])
    cache = Path(command("cache", "dir").strip()).absolute()
    logs, began = [], time.monotonic()
    ended = run_all(todo, jobs, lambda planned: perform(planned, commit, variables, cache))
    with progress("grid", len(todo), "runs") as advance, closing(ended):
        for number, (planned, future) in enumerate(ended, 1):
            try:
                rows = future.result()
                replace_rows(planned, rows)
                said = "mIoU " + ", ".join(_text(row["miou"]) for row in rows)
            except (UserError, OSError) as error:
                logs.append(str(planned.file(".log")))
                said = f"failed: {error}"
            left = (time.monotonic() - began) / 3600 * (len(todo) - number) / number
            print(f"{number}/{len(todo)}, {left:.1f} h left: {planned.cell}: {said}", flush=True)
            advance()
    if logs:
        raise UserError(f"{len(logs)} of {len(todo)} runs failed: {', '.join(logs)}")


def states(runs: Sequence[Run], scores: pd.DataFrame) -> list[dict[str, str]]:
    """A row for each pair and variant: each seed's last mIoU in %, "older" or "missing"."""
    rows: dict[tuple, dict[str, str]] = {}
    seeds = dict.fromkeys(f"seed {seed}" for seed in sorted({p.cell[2] for p in runs}))
    for planned in runs:
        (pair, variant, seed), found = planned.cell, planned.rows(scores)
        state = "missing" if found.empty else "older"
        state = _text(found["miou"].iloc[-1]) if planned.is_done(scores) else state
        row = rows.setdefault((pair, variant), {"pair": pair, "variant": variant, **seeds})
        row[f"seed {seed}"] = state
    return list(rows.values())


def _text(value: float | None, form: str = ".1f") -> str:
    return "" if pd.isna(value) else f"{value:{form}}"


def by_seed(scores: pd.DataFrame, value: str = "miou") -> dict[str, pd.DataFrame]:
    """A value of each pair, a row for each variant, a column "seed 0" ...; NaN: missing.

    The first rows are `COMPARED`. The value is that of a variant's last model: "miou" in %, or
    "effect", its points over the default with the same seed on the same kind of processor. Source
    only is the default's `pretrain`. A cell with several kinds of processor has the one of most
    rows in the table.
    """
    commonest = list(scores["processor"].value_counts().index)
    order = scores["processor"].map(commonest.index)
    rows = scores.loc[order.sort_values(kind="stable").index]
    source = rows[(rows["variant"] == DEFAULT) & (rows["model"] == "pretrain")]
    last = rows.groupby([*RUN, "processor"], sort=False).tail(1)
    cells = pd.concat([source.assign(variant=SOURCE), last])
    default = cells[cells["variant"] == DEFAULT].set_index(SAME)["miou"].rename("default")
    cells = cells.join(default, on=SAME)
    cells["effect"] = cells["miou"] - cells["default"]
    cells = cells.drop_duplicates(RUN)
    cells["seed"] = "seed " + cells["seed"].astype(str)
    names = list(dict.fromkeys([*COMPARED, *scores["variant"]]))
    return {
        str(pair): found.pivot(index="variant", columns="seed", values=value).reindex(names)
        for pair, found in cells.groupby("pair")
    }


def variant_rows(table: pd.DataFrame, effects: pd.DataFrame) -> list[dict[str, str]]:
    """The variants of a pair in `by_seed`, with their effects, as text.

    A gain is a mean over the seeds of both.
    "worst" is a seed's least gain over source only, "gap closed" the gain's share of the oracle's.
    """
    over = {name: table - table.loc[name] for name in (SOURCE, LONG)}
    gap = over[SOURCE].loc[ORACLE].dropna()
    gains = over[SOURCE][gap.index]
    gaps = (gains.notna() * gap).sum(axis=1)  # over the seeds of both
    columns = {
        "mIoU": table.apply(spread, axis=1),
        **table.map(_text),
        "over source only": over[SOURCE].mean(axis=1).map(_text, form="+.1f"),
        "worst": over[SOURCE].min(axis=1).map(_text, form="+.1f"),
        "over trained as long": over[LONG].mean(axis=1).map(_text, form="+.1f"),
        "over the default": effects.mean(axis=1).map(_text, form="+.1f"),
        "gap closed, %": (100 * gains.sum(axis=1) / gaps.where(gaps > 0)).map(_text, form=".0f"),
    }
    rows = pd.DataFrame(columns)[table.notna().any(axis=1)]
    return rows.reset_index(names="variant").to_dict("records")


def label_free(scores: pd.DataFrame) -> pd.DataFrame:
    """The pair, seed, processor, miou and label-free numbers of a table of scores, row by row.

    A number has its sign turned where less of it is better; NaN: it is not known.
    """
    numbers = pd.json_normalize([json.loads(text) for text in scores["label_free"]])
    numbers = numbers.reindex(columns=list(MEASURES)).astype(np.float64)
    numbers *= [measure.better for measure in MEASURES.values()]
    return scores[[*SAME, "miou"]].reset_index(drop=True).join(numbers)


def watched_models(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of `label_free` that have a number, one for each of the different models."""
    models = label_free(scores)
    return models[models[list(MEASURES)].notna().any(axis=1)].drop_duplicates()


def correlations(models: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of each number of `watched_models` with the mIoU, by pair.

    It is over the models of a pair, at least 3. The numbers are the rows, the pairs the columns.
    """
    columns = {
        str(pair): rows[["miou", *MEASURES]].corr("spearman", min_periods=3)["miou"].drop("miou")
        for pair, rows in models.groupby("pair")
    }
    return pd.DataFrame(columns).dropna(how="all")


def ordered_rightly(models: pd.DataFrame) -> pd.DataFrame:
    """The share in which each number has more for the better of two models, by pair, in %.

    It is over all two models of a pair, a seed and a kind of processor whose mIoU differs by at
    least `APART`, where the number is known of both. The numbers are the rows, the pairs the
    columns; the last row counts the twos.
    """
    both = models.merge(models, on=SAME, suffixes=("", " of the worse"))
    both = both[both["miou"] - both["miou of the worse"] >= APART]
    gaps = {name: both[name] - both[f"{name} of the worse"] for name in MEASURES}
    right = {name: 100.0 * (gap > 0).where(gap.notna()) for name, gap in gaps.items()}
    groups = pd.DataFrame(right, dtype=np.float64).groupby(both["pair"])
    return groups.mean().assign(**{"twos of models": groups.size()}).T.dropna(how="all")


def regressions(scores: pd.DataFrame) -> pd.DataFrame:
    """How each label-free number tells a loss of mIoU from one model of a run to the next.

    "lost" counts the twos of models with a loss, "missed" those of them where the number gets no
    worse, "others" the other twos, "false alarms" those of them where it gets worse. The numbers
    are the rows; twos count where the number is known of both, and without any a number has no row.
    """
    models = label_free(scores)
    runs = [*(scores[key].to_numpy() for key in RUN), scores["processor"].to_numpy()]
    changes = models[["miou", *MEASURES]].groupby(runs, sort=False).diff()
    changes = models[SAME].join(changes).drop_duplicates()  # variants share models
    lost, rows = changes["miou"] < 0, {}
    for name in MEASURES:
        known, worse = changes[name].notna(), changes[name] < 0
        others = known & ~lost & changes["miou"].notna()
        parts = (known & lost, known & lost & ~worse, others, others & worse)
        if known.any():
            rows[name] = [int(part.sum()) for part in parts]
    columns = ["lost", "missed", "others", "false alarms"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


@themed
def dots_figure(
    tables: Mapping[str, pd.DataFrame],
    label: str,
    lines: Sequence[float] = (),
    form: str = ".1f",
    theme: Theme = LIGHT,
) -> Figure:
    """Draw a plot for each table, a row's values as dots and their mean as a line with its number.

    A column has its own colour and marker. `label` is of the values, `lines` are drawn across.
    """
    tables = {
        title: table.dropna(how="all").dropna(how="all", axis=1) for title, table in tables.items()
    }
    columns, height = min(2, len(tables)), max(map(len, tables.values()))
    size = (
        5.5 * columns if columns > 1 else 9,
        -(-len(tables) // columns) * (1 + 0.36 * height) + 0.6,
    )
    figure, plots = plot_grid(theme, size, len(tables), columns)
    for axes, (title, table) in zip(plots, tables.items(), strict=True):
        rows, means = np.arange(len(table)), table.mean(axis=1)
        for number, (name, values) in enumerate(table.items()):
            style = {"color": theme.cycle[number % 6], "marker": "os^Dv"[number % 5]}
            apart = 0.11 * (number - (table.shape[1] - 1) / 2)  # of dots at one place
            axes.scatter(values, rows + apart, s=26, label=name, zorder=3, **style)
        axes.vlines(means, rows - 0.33, rows + 0.33, color=theme.ink, linewidth=1.8)
        for row, mean in zip(rows, means, strict=True):
            text = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes.annotate(f"{mean:{form}}", (mean, row - 0.36), (0, 1), **text)
        axes.set_yticks(rows, table.index)
        axes.set(ylim=(len(table) - 0.4, -0.8), title=title.replace("_", " "), xlabel=label)
        axes.grid(True, axis="x")
        for x in lines:
            axes.axvline(x, color=theme.muted, linewidth=0.8)
    add_legend(figure, plots)
    return figure


@main.command()
def draw() -> None:
    """Print the tables of the scores as Markdown, and write their plots to `docs/images/`."""
    scores = read_scores()
    tables, effects = by_seed(scores), by_seed(scores, "effect")
    models = watched_models(scores)
    related = correlations(models)
    if not tables:
        raise UserError(f"{SCORES}: no scores; `python -m benchmarks.adaptation run` makes them")
    for pair, table in tables.items():
        print(f"{pair}\n\n{markdown(variant_rows(table, effects[pair]))}\n")
    compared = {pair: table.loc[COMPARED] for pair, table in tables.items()}
    effects = {pair: effect.drop(COMPARED) for pair, effect in effects.items()}
    effects = {pair: effect for pair, effect in effects.items() if effect.notna().any(axis=None)}
    figures = {"adaptation": dots_figure(compared, "mIoU, %")}
    if effects:
        label = "points over the default"
        figures["adaptation_ablation"] = dots_figure(effects, label, [0], "+.1f")
    if not related.empty:
        print_related("Rank correlation with the mIoU", related, "+.2f")
        print_related("The better of two models has more, %", ordered_rightly(models), ".0f")
        related.index = related.index.str.replace("_", " ")
        related.columns = related.columns.str.replace("_", " ")
        lines, label = [0, 0.7], "rank correlation with the mIoU"
        figures["label_free"] = dots_figure({"": related}, label, lines, "+.2f")
    if not (lost := regressions(scores)).empty:
        table = lost.astype(str).reset_index(names="number").to_dict("records")
        print(f"Losses of mIoU from a model of a run to the next\n\n{markdown(table)}\n")
    if (SCRATCH / "pictures").is_dir():
        figures["adaptation_pictures"] = pictures_figure(SCRATCH / "pictures")
    for name, figure in figures.items():
        save_png(figure, IMAGES / f"{name}.png")


def print_related(title: str, table: pd.DataFrame, form: str) -> None:
    """Print a table of a value for each number and pair, with the least of the pairs, if any."""
    if table.empty:
        return
    texts = table.assign(least=table.min(axis=1)).map(_text, form=form)
    print(f"{title}\n\n{markdown(texts.reset_index(names='number').to_dict('records'))}\n")


if __name__ == "__main__":
    run(main)
