"""The files of a comparison: `comparison.md`, `comparison.csv`, `summary.csv` and the figures, made of a `Study`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neural_rdm.core.files import write_text
from neural_rdm.reports import costs, rates
from neural_rdm.reports.drawing import draw
from neural_rdm.reports.groups import reasons
from neural_rdm.reports.results import Metric, without_own
from neural_rdm.reports.runs import read_report
from neural_rdm.reports.study import Study
from neural_rdm.reports.tables import as_markdown, compare_runs, csv_text, markdown_table, with_protocols

METHOD = (
    "`±` is half the 95 % interval (Student's t) of the mean over seeds. Differences are paired: of runs of the same "
    "seed. The sign is *better* or *worse* where a t test settles it at 5 % for all groups of the metric together "
    "(Holm), with a *?* where it does so only for that group by itself, else *open*; *equal* where all pairs are. "
    "`resolvable`: the true difference that so many seeds would settle four times out of five. Groups stand in the "
    "order of the plan: means whose order is open are not ranked. Metrics are not corrected for one another."
)


def write_comparison(study: Study, folder: Path) -> list[Path]:
    """Write the comparison of a study's runs; return the paths, `comparison.md` first.

    `summary.csv` has a row a group, `comparison.csv` a row a run (`tables.compare_runs`). Where a rule was trained at
    several learning rates, the page tells each rule's best one, and `comparison_rates.csv` and `comparison_rates.png`
    are written.
    """
    runs = study.runs
    rows, told = with_protocols(compare_runs(runs), [read_report(run)["protocol"] for run in runs], same=without_own)
    if any("state" in row for row in rows):
        told += "\nNot all of these runs are finished (column `state`): an unfinished one may still change its place.\n"
    pictures = draw(study, folder)
    page = f"# Comparison of {len(rows)} runs\n\n{overview(study)}"
    page += f"## Every run\n\n{markdown_table(rows)}{told}"
    write_text(folder / "comparison.csv", csv_text(rows))
    write_text(folder / "summary.csv", csv_text(study.rows()))
    written = [folder / "comparison.md", folder / "comparison.csv", folder / "summary.csv", *pictures.values()]
    best_by = study.metrics[0].name
    if cases := rates.cases(study.groups, study.metrics[0]):
        table = [row for case in cases for row in rates.rows_of(case, best_by)]
        write_text(folder / "comparison_rates.csv", csv_text(table))
        written += [folder / "comparison_rates.csv", rates.plot_rates(cases, best_by, folder / "comparison_rates.png")]
        page += (
            f"\n## Each rule at its own learning rate\n\nBy `{best_by}`, the mean over seeds; beside it stand the "
            "rates that no test tells from it. A best rate at the edge of its grid may not be the best there is.\n\n"
            f"{markdown_table(rates.summary(cases, best_by))}\n![learning rates](comparison_rates.png)\n"
        )
    page += "".join(f"\n![{name}]({path.name})\n" for name, path in pictures.items())
    write_text(folder / "comparison.md", page)
    return written


def overview(study: Study) -> str:
    """What the groups say, as Markdown: notes, a table for each metric, and the costs; "" where every group is one run
    and there is nothing to compare it with.
    """
    notes = "".join(f"- {as_markdown(note)}\n" for note in study.notes)
    page = f"{notes}\n" if notes else ""
    if study.base is None and all(len(group.seeds) < 2 for group in study.groups):
        return page
    page += f"Compared with `{as_markdown(study.base)}`.\n\n" if study.base else ""
    for metric in study.metrics:
        better = "higher" if metric.higher else "lower"
        page += f"## {metric.name} ({better} is better)\n\n{markdown_table(metric_rows(study, metric))}\n"
    page += f"{METHOD}\n\n"
    if table := costs.rows(study.costs):
        until = (
            f"a validation loss of {study.quality:g}"
            if study.quality is not None
            else "the last one of the base's run of the seed"
        )
        page += f"## What it costs\n\n{markdown_table(table)}\n"
        page += f"`steps`, `images` and `FLOPs` are those until {until}, linear between two records. FLOPs are "
        page += "those of the products of one forward and backward pass, two for a multiply and an add.\n\n"
    return page


def metric_rows(study: Study, metric: Metric) -> list[dict[str, Any]]:
    """A row a group for people: `group`, `seeds`, `mean ± half`, the difference to the base, its sign, what could be
    resolved, and why something is missing. Where numbers were made in several ways, `protocol` says in which.
    """
    rows = []
    compared = any(result.less or result.note for result in metric.results.values())
    for group in study.groups:
        result = metric.results[group.label]
        row: dict[str, Any] = {"group": group.label, "seeds": f"{len(result.values)} of {len(group.seeds)}"}
        row |= {metric.name: str(result.interval) if result.interval else None}
        if compared:
            row |= {"less the base": f"{result.less:+}" if result.less else None, "sign": result.sign or None}
            row |= {"resolvable": f"{result.resolvable:.2g}" if result.less and result.less.n > 1 else None}
        if len(metric.protocols) > 1 and result.values:
            row["protocol"] = f"[{metric.protocols.index(result.protocol) + 1}]"
        if why := "; ".join(filter(None, [result.note, reasons(result.missing)])):
            row["note"] = why
        rows.append(row)
    return rows
