"""How much training a quality costs: epochs and images to a Frechet distance without guidance (EP_FID@k).

Recorded evaluations live in `<run>/evaluations.csv`, a line an evaluation during training:

| column | holds |
|---|---|
| `step` | optimizer steps behind the weights |
| `images` | training samples behind them; may be empty, then it is `step` times the run's `data.batch_size` |
| `frechet_SPACE` | a distance to the real data; SPACE names the feature network, one column for each |
| `cfg_scale` | guidance of the samples; 1 is none |
| `weights` | `ema` or `raw` |
| `count` | generated samples behind the number; `count_frames` for a SPACE of single frames, `..._frames` |
| `sampler`, `sampler_steps` | how they were drawn; optional, as the two below |
| `reference` | hash of the statistics of real samples |
| `precision` | what the network computed in |
| `train_size` | samples in one epoch; optional, see `reached` |

Further columns are ignored, and so are lines that a kill cut short. Of lines that are equal in all but the numbers (a
resumed run) the last counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from neural_rdm.core.errors import DataError
from neural_rdm.core.files import write_text
from neural_rdm.core.records import read_rows
from neural_rdm.reports.figures import canvas, log_if_wide, look, number, save, tidy, titled
from neural_rdm.reports.runs import node, progress, read_mapping
from neural_rdm.reports.tables import Row, compare_runs, markdown_table, with_protocols

FILE = "evaluations.csv"
REQUIRED = ("step", "cfg_scale", "weights", "count")
PREFIX = "frechet_"
INTERPOLATION = "interpolated between two evaluations, linearly in images against the logarithm of the distance"


@dataclass(frozen=True)
class Conditions:
    """What distances must share to be compared, besides features, guidance and weights; "" where not recorded."""

    count: int
    sampler: str = ""
    sampler_steps: str = ""
    reference: str = ""
    precision: str = ""

    def __str__(self) -> str:
        words = {
            "sampler": self.sampler and f"{self.sampler}, {self.sampler_steps} steps",
            "statistics": self.reference and f"statistics {self.reference}",
            "precision": self.precision and f"precision {self.precision}",
        }
        missing = ", ".join(name for name, text in words.items() if not text)
        told = ", ".join([f"{self.count} samples", *filter(None, words.values())])
        return f"{told}; {missing} not recorded" if missing else told


@dataclass(frozen=True)
class Evaluation:
    """One line of `evaluations.csv` for one feature network."""

    images: float
    distance: float
    conditions: Conditions
    train_size: int | None


@dataclass(frozen=True)
class Reached:
    """Where a distance was first reached."""

    images: float  # training samples until then
    epochs: float | None  # the same in epochs; None where the size of the training set is unknown
    conditions: Conditions  # those of every evaluation that was used
    bound: bool  # the first evaluation was low enough already, so that this is an upper bound


def read_evaluations(run: str | Path, space: str = "inception") -> list[Evaluation]:
    """The unguided evaluations (`cfg_scale` 1) of a run's EMA weights by ascending step; empty where the
    run has none.

    Args:
        space: feature network, as in the column `frechet_SPACE`.

    Raises:
        DataError: the file lacks a column of its schema, or neither it nor the run says how many images a step takes.
    """
    path = Path(run) / FILE
    rows = _rows(path)
    found: dict[tuple[int, Conditions], Evaluation] = {}
    batch_size = node(read_mapping(Path(run) / "config.yaml"), "data").get("batch_size")
    for row in rows:
        if row["weights"] != "ema" or number(row["cfg_scale"]) != 1:
            continue
        distance = number(row.get(PREFIX + space))
        count = number(row.get("count_frames" if space.endswith("_frames") else "count"))
        if not (math.isfinite(distance) and math.isfinite(count)):
            continue
        step, images, size = int(row["step"]), number(row.get("images")), number(row.get("train_size"))
        if not math.isfinite(images):
            if not isinstance(batch_size, int):
                raise DataError(f"{path}: step {step} has no `images`, and {Path(run) / 'config.yaml'} no batch size.")
            images = float(step * batch_size)
        train_size = int(size) if math.isfinite(size) else None
        conditions = Conditions(int(count), *(row.get(f.name) or "" for f in fields(Conditions)[1:]))
        found[step, conditions] = Evaluation(images, distance, conditions, train_size)
    return [found[key] for key in sorted(found, key=lambda key: (key[0], key[1].count))]


def reached(run: str | Path, k: float, space: str = "inception") -> Reached | None:
    """EP_FID@k of the EMA weights: images and epochs until the unguided Frechet distance is first at most `k`, else
    None.

    Between the last evaluation above `k` and the first one that is not, the logarithm of the distance is taken to be
    linear in images. Distances under different conditions cannot be compared: those are used under which there are
    most, of equals those with the largest count.

    Args:
        run: folder with `evaluations.csv` and `config.yaml`.
        k: the distance to reach, above 0.
        space: see `read_evaluations`. Epochs are of the file's `train_size`, else of the run's `data.limit`, its cap.

    Raises:
        DataError: `k` is not positive, or the file is damaged; see `read_evaluations`.
    """
    if not (math.isfinite(k) and k > 0):
        raise DataError(f"ep_fid={k}: a Frechet distance to reach is a number above 0, such as 2.")
    records = _comparable(read_evaluations(run, space))
    index = next((i for i, record in enumerate(records) if record.distance <= k), None)
    if index is None:
        return None
    after = records[index]
    images = after.images
    if index > 0:
        before = records[index - 1]
        share = _share(before.distance, max(after.distance, 1e-12), k)
        images = before.images + share * (after.images - before.images)
    limit = node(read_mapping(Path(run) / "config.yaml"), "data").get("limit")
    size = after.train_size or (limit if isinstance(limit, int) else None)
    return Reached(images, images / size if size else None, after.conditions, bound=index == 0)


def _comparable(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """Those under the conditions that most of them share, of equals the ones with the largest count."""
    groups: dict[Conditions, list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(evaluation.conditions, []).append(evaluation)
    return max(groups.values(), key=lambda group: (len(group), group[0].conditions.count), default=[])


def spaces(run: str | Path) -> list[str]:
    """The feature networks whose distances a run has recorded, in the order of their columns."""
    rows = _rows(Path(run) / FILE)
    names = [name for name in (rows[0] if rows else ()) if name.startswith(PREFIX) and not name.endswith("_spatial")]
    return [name.removeprefix(PREFIX) for name in names]


def efficiency_rows(runs: Iterable[str | Path], k: float) -> tuple[list[Row], str]:
    """A row a run and feature network: what tells the run, then `epochs` and `images` to a distance of `k`.

    `result` says how the numbers came about, or why there are none. A run without evaluations has one row.

    Returns:
        The rows, with a column `protocol` where conditions differ, and Markdown that names the conditions.
    """
    folders = [Path(run) for run in runs]
    rows, protocols = [], []
    for folder, row in zip(folders, compare_runs(folders), strict=True):
        told = {key: row[key] for key in ("run", "exp", "residual", "gates", "depth", "steps", "seed")}
        told |= {key: row[key] for key in ("state",) if key in row}
        for space in spaces(folder) or [""]:
            found = reached(folder, k, space) if space else None
            used = _comparable(read_evaluations(folder, space)) if space else []
            if not space:
                result = f"no evaluation in a file {FILE}"
            elif not used:
                result = "no unguided evaluation of the EMA weights"
            elif found is None:
                far = progress(folder)
                result = "never reached" if far.finished is not False else f"not reached so far ({far})"
            else:
                result = "at most: the first evaluation was there already" if found.bound else "interpolated"
            rows.append(
                told
                | {
                    "distance": f"{PREFIX}{space} <= {k:g}" if space else None,
                    "epochs": found.epochs if found else None,
                    "images": round(found.images) if found else None,
                    "count": used[0].conditions.count if used else None,
                    "result": result,
                }
            )
            protocols.append(str(used[0].conditions) if used else "")
    return with_protocols(rows, protocols)


def write_efficiency(runs: Iterable[str | Path], k: float, folder: str | Path) -> Path:
    """Write `efficiency.md`: the table of `efficiency_rows` and how it was made."""
    path = Path(folder) / "efficiency.md"
    rows, told = efficiency_rows(runs, k)
    page = f"# Training to a Frechet distance of {k:g} without guidance\n\n{markdown_table(rows)}{told}\n"
    page += f"EMA weights, cfg_scale 1; {INTERPOLATION}; count: generated samples behind each evaluation. Only\n"
    page += "distances of the same features and real data can be compared.\n"
    write_text(path, page)
    return path


def plot_evaluations(run: str | Path, path: str | Path) -> Path | None:
    """Draw every recorded distance over the training images, a panel a distance; None where nothing was recorded.

    Raises:
        DataError: a damaged file.
    """
    rows = _rows(Path(run) / FILE)
    names = [name for name in (rows[0] if rows else ()) if name.startswith(PREFIX)]
    if not names:
        return None
    figure = canvas(4.6 * len(names), 3.6)
    for place, name in enumerate(names, start=1):
        axes = tidy(figure.add_subplot(1, len(names), place))
        told = [c for c in ("sampler", "sampler_steps", "reference", "precision") if len({r.get(c) for r in rows}) > 1]
        kinds = [(row["weights"], row["cfg_scale"], row["count"], *(row.get(c) or "" for c in told)) for row in rows]
        for index, kind in enumerate(dict.fromkeys(kinds)):
            chosen = [row for row, own in zip(rows, kinds, strict=True) if own == kind]
            points = {number(row.get("images")): number(row[name]) for row in chosen}
            label = ", ".join([kind[0], f"cfg_scale {number(kind[1]):g}", f"{kind[2]} samples", *kind[3:]])
            axes.plot(*zip(*points.items(), strict=True), **look(index), markersize=3.5, linewidth=1.6, label=label)
        log_if_wide(axes, [number(row[name]) for row in rows], decades=1)
        axes.set_xlabel("training images")
        axes.set_title(name, fontsize=9)
        axes.legend(fontsize=8)
    figure.suptitle(titled("The metric while training", Path(run) / FILE), fontsize=10)
    return save(figure, path)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        header = path.read_text(encoding="utf-8").partition("\n")[0].split(",")
        rows = read_rows(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    missing = [name for name in REQUIRED if name not in header]
    if missing or not any(name.startswith(PREFIX) for name in header):
        lacks = missing[0] if missing else f"{PREFIX}SPACE"
        raise DataError(f"{path} lacks the column {lacks!r} of recorded evaluations (it has {', '.join(header)}).")
    return rows


def _share(before: float, after: float, k: float) -> float:
    """How far from `before` (> k) to `after` (<= k) the logarithm of the distance passes that of `k`."""
    return (math.log(before) - math.log(k)) / (math.log(before) - math.log(after))
