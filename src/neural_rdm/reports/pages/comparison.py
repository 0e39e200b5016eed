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
#: headings of the figures' sections, and the beginnings of the names of those that stand there
SECTIONS = {
    "Learning curves": ("val_loss", "train_loss", "comparison_losses"),
    "Metrics over training": ("evaluation",),
    "Differences": ("differences",),
    "Metrics over depth": ("depth", "over_depth", "metric_over_depth"),
    "Sensitivity and gates over depth": ("sensitivity", "alpha", "beta", "gates"),
    "Mixing of depths": ("mixing",),
    "Learning rates": ("rates", "comparison_rates"),
    "Further figures": ("",),
}
MOST_TOLD = 16  # groups whose last values an alternative text tells


@dataclass(frozen=True)
class Drawn:
    """A figure of the page, and the same for a dark one; None where there is none."""

    picture: Picture
    dark: Picture | None
    caption: str


def write_page(study: Study, folder: Path, figures: Mapping[str, Path]) -> Path:
    """Write `index.html` into `folder`, one file that needs nothing else, and return its path.

    Args:
        figures: PNGs by name; those of charts of the study by the charts' names. Where a file `..._dark.png` stands
            beside one, a dark page shows that.

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
        pending=[each for each in found if not each.done],
        facts=facts,
        unlike=unlike,
        sections=sections(study, figures),
        samples=side_by_side(study.groups),
        made=made,
        made_by=shlex.join(made["command_line"]),
        has={name: any(getattr(c, name) is not None for c in study.costs.values()) for name in _COSTS},
        experiments=_experiments(study.groups),
    )


_COSTS = ("parameters", "flops", "seconds", "memory", "steps", "images", "train_flops")


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
    """What the signs of a metric say: a few words, and the groups that they hold for."""
    words = {
        "better": "Better than the base, settled",
        "worse": "Worse than the base, settled",
        "better?": "Better by itself, but not once all groups are tested together",
        "worse?": "Worse by itself, but not once all groups are tested together",
        "open": "Open: the runs do not tell the sign of the difference",
        "equal": "Equal to the base, seed by seed",
    }
    found = [(text, [k for k, r in metric.results.items() if r.sign == sign]) for sign, text in words.items()]
    return [(text, labels) for text, labels in found if labels]


def scale(metric: Metric) -> tuple[float, float]:
    """The ends of the axis on which all differences of a metric are drawn; 0 is on it."""
    ends = [0.0]
    for result in metric.results.values():
        if result.less is not None:
            ends += [v for v in (result.less.low, result.less.mean, result.less.high) if math.isfinite(v)]
    room = 0.04 * (max(ends) - min(ends))
    return min(ends) - room, max(ends) + room


def sections(study: Study, figures: Mapping[str, Path]) -> list[tuple[str, list[Drawn]]]:
    """The figures under their headings; a heading without one is left out."""
    left = dict(figures)
    found = []
    for heading, beginnings in SECTIONS.items():
        names = [name for beginning in beginnings for name in left if name.startswith(beginning)]
        drawn = [_figure(name, left.pop(name), study.charts.get(name)) for name in dict.fromkeys(names)]
        if drawn:
            found.append((heading, drawn))
    return found


def _figure(name: str, path: Path, chart: Chart | None) -> Drawn:
    dark = path.with_stem(f"{path.stem}_dark")
    if chart is None:
        alt = caption = name.replace("_", " ")
    else:
        band = any(math.isfinite(low) for line in chart.lines for low in line.low)
        notes = [chart.title, "the band is the 95 % interval of the mean over seeds" if band else "", chart.note]
        alt, caption = in_words(chart), "; ".join(filter(None, notes)) + "."
    return Drawn(render.picture(path, alt), render.picture(dark, alt) if dark.is_file() else None, caption)


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
