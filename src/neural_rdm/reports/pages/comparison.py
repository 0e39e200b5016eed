"""The page of a comparison: what was asked, what the numbers say, what they cost, and how to repeat them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neural_rdm.config.origin import origin
from neural_rdm.reports.curves import Chart
from neural_rdm.reports.groups import Group
from neural_rdm.reports.pages import origins, render
from neural_rdm.reports.pages.render import Picture
from neural_rdm.reports.pages.samples import side_by_side
from neural_rdm.reports.results import Metric
from neural_rdm.reports.runs import node
from neural_rdm.reports.study import Study

FILE = "index.html"
#: sign -> the words of a cell, its mark (words and marks say it, not colour alone) and its class
SIGNS = {
    "better": ("better, settled", "▲", "better"),
    "better?": ("better? not settled", "△", "open"),
    "worse": ("worse, settled", "▼", "worse"),
    "worse?": ("worse? not settled", "▽", "open"),
    "open": ("open", "○", "open"),
    "equal": ("equal, seed by seed", "=", "open"),
}
#: headings of the figures' sections, in their order
CURVES, TRAINING, DEPTH, UNITS, MIXING, RATES, OTHERS = SECTIONS = (
    "Learning curves", "Metrics over training", "Metrics over depth", "Sensitivity and gates over depth",
    "Mixing of depths", "Learning rates", "Further figures",
)  # fmt: skip
#: figures that are no charts of lines
CAPTIONS = {
    "mixing": "How much of what a unit wrote reaches what a later one reads: a row for each reader, a column for each "
    "unit that wrote.",
    "rates": "Each rule at every learning rate that it was trained at; a large mark is its best rate, a hollow one is "
    "at the edge of its grid.",
}
MOST_TOLD = 16  # groups whose last values an alternative text tells


@dataclass(frozen=True)
class Drawn:
    """A figure of the page."""

    picture: Picture
    caption: str


def write_page(study: Study, folder: Path, figures: Mapping[str, Path]) -> Path:
    """Write `index.html` into `folder`, one file that needs nothing else, and return its path.

    Args:
        figures: PNGs by name, as `drawing.draw` names them.

    Raises:
        DataError: a figure cannot be read.
    """
    found = origins.origins(study.groups, folder)
    facts, unlike = origins.shared(found)
    made = origin()
    return render.write(
        "comparison.html",
        folder / FILE,
        title=_title(study),
        question=question(study),
        study=study,
        judged=study.metrics[0],
        answer=answer(study.metrics[0]),
        signs=SIGNS,
        scale=scale(study.metrics[0]),
        origins=found,
        seeds=sorted({each.seed for each in found if each.seed is not None}),
        pending=[each for each in found if not each.done],
        facts=facts,
        unlike=unlike,
        of_metrics=_of_metrics(study, figures),
        sections=sections(study, figures),
        samples=side_by_side(study.groups),
        made=made,
        made_by=shlex.join(made["command_line"]),
        has={name: any(getattr(c, name) for c in study.costs.values()) for name in _COSTS},
        experiments=_experiments(study.groups),
    )


_COSTS = ("parameters", "flops", "seconds", "memory", "reached", "train_flops")


def question(study: Study) -> str:
    """What was compared, as one question."""
    judged = study.metrics[0].name
    if len(study.groups) == 1:
        return f"What do runs of {study.groups[0].label} reach, by {judged}?"
    others = [group.label for group in study.groups if group.label not in study.bases.values()]
    if study.base is None:
        return f"How do {_named([g.label for g in study.groups])} compare, by {judged}?"
    verb = "does" if len(others) == 1 else "do"
    return f"How {verb} {_named(others)} differ from {study.base}, by {judged}?"


def answer(metric: Metric) -> list[tuple[str, list[str]]]:
    """What the signs of a metric say, or why there is none: a few words, and the groups that they hold for."""
    words = {
        "better": "Better than the base, settled",
        "worse": "Worse than the base, settled",
        "better?": "Better by itself, but not once all groups are tested together",
        "worse?": "Worse by itself, but not once all groups are tested together",
        "open": "Open: the runs do not tell the sign of the difference",
        "equal": "Equal to the base, seed by seed",
    }
    found = {text: [k for k, r in metric.results.items() if r.sign == sign] for sign, text in words.items()}
    for label, result in metric.results.items():
        if result.note and not result.sign:
            found.setdefault(f"No sign ({result.note})", []).append(label)
    return [(text, labels) for text, labels in found.items() if labels]


def scale(metric: Metric) -> tuple[float, float]:
    """The ends of the axis on which all differences of a metric are drawn; 0 is on it."""
    ends = [0.0]
    for result in metric.results.values():
        if result.less is not None:
            ends += [v for v in (result.less.low, result.less.mean, result.less.high) if math.isfinite(v)]
    room = 0.04 * (max(ends) - min(ends))
    return min(ends) - room, max(ends) + room


def sections(study: Study, figures: Mapping[str, Path]) -> list[tuple[str, list[Drawn]]]:
    """The figures under their headings, but for those of single metrics; a heading without one is left out."""
    found: dict[str, list[Drawn]] = {heading: [] for heading in SECTIONS}
    for name in figures:
        if name not in _metric_figures(study):
            chart = study.charts.get(name)
            alt = caption = CAPTIONS.get(name, name.replace("_", " "))
            if chart is not None:
                alt, caption = in_words(chart), _caption(chart)
            found[_heading(name, chart)].append(Drawn(render.picture(figures[name], alt), caption))
    return [(heading, drawn) for heading, drawn in found.items() if drawn]


def _heading(name: str, chart: Chart | None) -> str:
    if "mixing" in name:
        return MIXING
    if "rates" in name:
        return RATES
    if chart is None:
        return OTHERS
    if chart.names:
        return UNITS
    if "step" not in chart.xlabel:
        return DEPTH
    return CURVES if name.startswith(("val_loss", "train_loss")) else TRAINING


def _metric_figures(study: Study) -> dict[str, str]:
    """Name of a figure -> the metric that it shows."""
    return {metric.name.replace("/", "_"): metric.name for metric in study.metrics}


def _of_metrics(study: Study, figures: Mapping[str, Path]) -> list[Drawn]:
    """The figures of single metrics, in the order of the metrics."""
    compared = " and its paired difference to the base" if study.bases else ""
    found = []
    for name, metric in _metric_figures(study).items():
        if name in figures:
            shown = f"{metric} of each group: a dot a seed, the mean with its 95 % interval{compared}."
            alt = f"{shown} The table above has the same numbers."
            found.append(Drawn(render.picture(figures[name], alt), shown))
    return found


def _caption(chart: Chart) -> str:
    band = any(math.isfinite(low) for line in chart.lines for low in line.low)
    notes = [chart.title, "the band is the 95 % interval of the mean over seeds" if band else "", chart.note]
    return "; ".join(filter(None, notes)) + "."


def in_words(chart: Chart) -> str:
    """What a chart shows, for who cannot see it: its axes and where its lines end."""
    ends = [f"{line.label} {line.mean[-1]:.4g}" for line in chart.lines[:MOST_TOLD]]
    more = f" and {len(chart.lines) - MOST_TOLD} more" if len(chart.lines) > MOST_TOLD else ""
    last = max(line.x[-1] for line in chart.lines)
    return (
        f"{chart.title} against {chart.xlabel}, a line a group, up to {last:g}. Last values: {'; '.join(ends)}{more}."
    )


def _title(study: Study) -> str:
    of = ", ".join(_experiments(study.groups)) or "Runs"
    return f"{of}: {len(study.groups)} groups compared" if len(study.groups) > 1 else f"{of}: {study.groups[0].label}"


def _named(labels: Sequence[str]) -> str:
    if len(labels) > 5:
        return f"{len(labels)} groups"
    return " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))


def _experiments(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(str(e) for g in groups if (e := node(g.config, "choices").get("exp"))))
