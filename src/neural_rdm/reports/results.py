"""The numbers of groups of runs: what was measured, what is missing and why, and how each group stands to its base."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from neural_rdm.reports.figures import number
from neural_rdm.reports.groups import Group, Seed, reasons
from neural_rdm.reports.rates import is_higher
from neural_rdm.reports.rates import metric as read_metric
from neural_rdm.reports.runs import flat, generated, progress, read_report
from neural_rdm.reports.statistics import Interval, Sign, extrapolated, interval, p_value, paired, resolvable, signs

LOSS = "val/loss"
_BROKEN = "not finite"
#: what a Frechet distance is called once its bias is taken off: at infinitely many samples
UNBIASED = "_unbiased"
#: columns of a report that describe its numbers
_NO_NUMBER = re.compile(r"name|cfg_scale|count.*|weights|.*_std")
_AT_COUNT = re.compile(r"at_(\d+)_(frechet_\w+)")
#: what equal protocols of two runs may differ in
_RUNS_OWN = re.compile(r"\bstep \d+; seed \d+")
#: how many samples a protocol speaks of: `; 50 samples a class;`
_HOW_MANY = re.compile(r"; [^;.]*\bsamples\b[^;.]*(?=;)")
#: a column of metrics.csv, by its beginning, can be compared where these parts of the configurations are equal
_MADE_BY = {
    "evaluation/": ("data.", "first_stage.", "condition.", "sampler.", "metric.", "callbacks.evaluation."),
    "": ("data.", "first_stage.", "condition.", "diffusion.", "callbacks.validation."),
}
_NOT_MADE_BY = (
    "data.batch_size", "data.root", "data.num_workers", "data.max_bad_fraction", "callbacks.validation.every_n_steps",
    "callbacks.evaluation.every_n_steps",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One number of one group.

    Attributes:
        values: seed -> the number of a finished run, finite.
        missing: seed -> why there is none: unfinished, failed, not recorded, not finite, measured otherwise.
        interval: of the mean over `values`; None without any.
        protocol: how the number was made, without what is a run's own; "" where nothing is known or can differ.
        count: samples behind it; None where that does not matter (a loss), or is not known.
        pairs: seed -> difference to the base, for the seeds that both have; empty where they cannot be compared.
        less: mean and interval of `pairs`.
        p: of the t test of `pairs`, by itself.
        sign: whether that settles which is better, see `statistics.Sign`.
        resolvable: the smallest true difference that so many pairs find four times out of five.
        note: why the group is not compared with its base, "" where it is or has none.
    """

    values: dict[Seed, float]
    missing: dict[Seed, str]
    interval: Interval | None
    protocol: str = ""
    count: float | None = None
    pairs: dict[Seed, float] = field(default_factory=dict)
    less: Interval | None = None
    p: float | None = None
    sign: Sign = ""
    resolvable: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """A number of all groups, by their labels; `higher`: whether larger values are better."""

    name: str
    higher: bool
    results: dict[str, Result]

    @property
    def protocols(self) -> list[str]:
        """How its numbers were made, in the order of the groups; they can be compared where there is but one."""
        return list(dict.fromkeys(result.protocol for result in self.results.values() if result.values))


def read_metrics(found: Sequence[Group], first: str = LOSS) -> list[Metric]:
    """`first`, the validation loss, and all numbers of the reports; one that no run has is left out, but for `first`.

    Where reports are of unequal numbers of samples, and tell a Frechet distance at a smaller number too, the distance
    at infinitely many is added: it can be compared.
    """
    rows = [generated(run) for group in found for run in group.runs.values()]
    keys = dict.fromkeys(key for row in rows for key in row if not _NO_NUMBER.fullmatch(key))
    metrics = []
    for name in dict.fromkeys([first, LOSS, *keys]):
        made = _protocols(found, name)
        results = {
            g.label: _result(g, {s: _read(run, name, made[g.label]) for s, run in g.runs.items()}) for g in found
        }
        if name == first or any(result.values for result in results.values()):
            metrics.append(Metric(name, is_higher(name), results))
    if len({row.get("count") for row in rows if row.get("count") is not None}) > 1:
        metrics += _unbiased(found, keys)
    return metrics


#: a number of one run, how it was made, of how many samples; a text in place of the number says why there is none
_Reading = tuple[float | str, str, float | None]


def _read(run: Path, name: str, column_protocol: str) -> _Reading:
    value, far = read_metric(run, name), progress(run)
    if far.finished is False:
        return str(far), "", None
    if "/" in name:
        return ("not recorded" if value is None else value), column_protocol, None
    row, protocol = generated(run), without_own(read_report(run)["protocol"])
    if value is None:
        return "not recorded", protocol, None
    if at := _AT_COUNT.fullmatch(name):
        return value, _HOW_MANY.sub("", protocol), float(at[1])
    count = number(str(row.get("count_frames" if name.endswith("_frames") else "count")))
    return value, protocol, count if math.isfinite(count) else None


def without_own(protocol: str) -> str:
    """A protocol without its run's own step and seed: what protocols of runs that can be compared share."""
    return _RUNS_OWN.sub("", protocol)


def _result(group: Group, readings: Mapping[Seed, _Reading]) -> Result:
    """The readings of a group's runs; of those that were made in different ways the most frequent way counts."""
    values: dict[Seed, float] = {}
    missing: dict[Seed, str] = {}
    made = Counter(reading[1:] for reading in readings.values() if not isinstance(reading[0], str))
    usual = made.most_common(1)[0][0] if made else ("", None)
    for seed, (value, *how) in readings.items():
        if isinstance(value, str):
            missing[seed] = value
        elif not math.isfinite(value):
            missing[seed] = _BROKEN
        elif tuple(how) != usual:
            other = how[1] != usual[1]
            missing[seed] = f"of {how[1]:g} samples" if other and how[1] is not None else "measured otherwise"
        else:
            values[seed] = value
    missing |= {seed: why for seed, why in group.failed.items() if seed not in values}
    return Result(values, missing, interval([*values.values()]), *usual)


def _unbiased(found: Sequence[Group], keys: Mapping[str, None]) -> list[Metric]:
    metrics = []
    for key in dict.fromkeys(at[2] for key in keys if (at := _AT_COUNT.fullmatch(key))):
        results = {}
        for group in found:
            readings: dict[Seed, _Reading] = {}
            for seed, run in group.runs.items():
                value, protocol, count = _read(run, key, "")
                smaller = [
                    (k, n) for k in generated(run) if (m := _AT_COUNT.fullmatch(k)) and m[2] == key and (n := int(m[1]))
                ]
                if isinstance(value, str) or not smaller or count is None or count <= smaller[0][1]:
                    told = value if isinstance(value, str) else "not recorded at a smaller number of samples"
                    readings[seed] = told, protocol, None
                    continue
                name, n_small = smaller[0]
                small = number(str(generated(run)[name]))
                readings[seed] = extrapolated(value, count, small, n_small), _HOW_MANY.sub("", protocol), None
            results[group.label] = _result(group, readings)
        if any(result.values for result in results.values()):
            metrics.append(Metric(key + UNBIASED, False, results))
    return metrics


def _protocols(found: Sequence[Group], column: str) -> dict[str, str]:
    """label -> in what the making of a column of metrics.csv differs between groups, `diffusion.loss=mse`; "" where it
    is the same for all.
    """
    parts = next(parts for begin, parts in _MADE_BY.items() if column.startswith(begin))
    flats = {group.label: flat(group.config) for group in found if group.config}
    keys = dict.fromkeys(k for f in flats.values() for k in f if k.startswith(parts) and k not in _NOT_MADE_BY)
    differing = [key for key in keys if len({repr(values.get(key)) for values in flats.values()}) > 1]
    return {
        group.label: ", ".join(f"{key}={values[key]}" for key in differing if key in values)
        for group in found
        for values in [flats.get(group.label, {})]
    }


def comparable(one: Group, other: Group, column: str = LOSS) -> bool:
    """Whether a column of metrics.csv can be compared between two groups: a loss is of the same objective, data,
    latents and validation, an evaluation of the same data, sampler and number of samples.
    """
    protocols = _protocols([one, other], column)
    return protocols[one.label] == protocols[other.label]


def compared(metric: Metric, bases: Mapping[str, str]) -> Metric:
    """The metric with each group beside its base: paired differences, and signs tested for all groups together.

    Numbers that were made in different ways, or of unequal numbers of samples, are not compared.

    Args:
        bases: label -> label of the base.
    """
    results = dict(metric.results)
    for label, partner in bases.items():
        ours, theirs = results[label], results[partner]
        note = ""
        if not (ours.values and theirs.values):
            note = f"no number of {label if not ours.values else partner}"
        elif ours.count != theirs.count:
            note = f"{_samples(ours.count)} against {_samples(theirs.count)}"
        elif ours.protocol != theirs.protocol:
            note = "measured by another protocol"
        elif not (pairs := paired(ours.values, theirs.values)):
            note = "no seed in common"
        else:
            less = interval([*pairs.values()])
            assert less is not None
            p = p_value([*pairs.values()]) if len(pairs) > 1 else None
            if len(pairs) == 1:
                note = "one seed in common: no interval, no sign"
            elif _BROKEN in (*ours.missing.values(), *theirs.missing.values()):
                note = "a run broke: no sign"
            ours = replace(ours, pairs=pairs, less=less, p=p, resolvable=resolvable(less.sd, less.n))
        results[label] = replace(ours, note=note)
    broken = {label for label in results if _BROKEN in results[label].missing.values()}
    # a group of which a run broke has no sign, whatever its other runs say
    family = {
        label: [*results[label].pairs.values(), *([math.nan] if {label, base} & broken else [])]
        for label, base in bases.items()
    }
    told = signs(family, metric.higher)
    return replace(metric, results={k: replace(r, sign=told.get(k, "")) for k, r in results.items()})


def _samples(count: float | None) -> str:
    return "an unknown number of samples" if count is None else f"{count:g} samples"


def rows(found: Sequence[Group], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """A row a group, for `summary.csv`: `group`, its settings, `seeds`; then of each metric NAME `NAME_n`, `NAME_mean`,
    `..._low`, `..._high`, `..._sd`, `..._count`, `..._missing`; and where there is a base the paired difference to it,
    `NAME_less_base_mean`, `..._low`, `..._high`, `..._sd`, `..._n`, `..._p`, `..._sign`, `..._resolvable`, `..._note`.
    """
    table = []
    for group in found:
        row: dict[str, Any] = {"group": group.label, **group.settings, "seeds": len(group.seeds)}
        for metric in metrics:
            result, name = metric.results[group.label], metric.name
            row[f"{name}_n"] = len(result.values)
            row |= _told(name, result.interval)
            row |= {f"{name}_count": result.count, f"{name}_missing": reasons(result.missing) or None}
            if any(r.less or r.note for r in metric.results.values()):
                less = f"{name}_less_base"
                row |= _told(less, result.less)
                row |= {
                    f"{less}_n": len(result.pairs) or None,
                    f"{less}_p": result.p,
                    f"{less}_sign": result.sign or None,
                }
                row |= {f"{less}_resolvable": _finite(result.resolvable), f"{less}_note": result.note or None}
        table.append(row)
    return table


def _told(name: str, found: Interval | None) -> dict[str, float | None]:
    parts = ("mean", "low", "high", "sd")
    return {f"{name}_{part}": None if found is None else _finite(getattr(found, part)) for part in parts}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
