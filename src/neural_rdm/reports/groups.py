"""Which runs differ in their seed alone, what tells such groups apart, and which one the others are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neural_rdm.config.resume import CHANGEABLE
from neural_rdm.core.errors import DataError
from neural_rdm.reports.runs import flat, labels, progress, read_mapping, rule_of
from neural_rdm.reports.sweeps import Record, read_record

Seed = int | None
#: what runs of one group may differ in: the seed, and that on which the course of training does not depend
NOT_A_SETTING = (
    *CHANGEABLE, "seed", "choices", "sweep", "optimized_metric", "log_every_n_steps", "trainer.num_threads",
    "callbacks.samples", "callbacks.sensitivity", "callbacks.throughput", "callbacks.evaluation",
    "callbacks.validation.every_n_steps", "residual.gamma",
)  # fmt: skip
#: keys that are called by their last part in tables and labels, as people say them
_SHORT = {"gamma": "gamma", "backbone.depth": "depth", "trainer.max_steps": "steps", "optimizer.lr": "lr"}
RULE = "residual"
MAX_SETTINGS = 8  # keys; runs that differ in more are too unlike each other to be told apart by a list
#: keys that have columns of their own in every table
_SHOWN = (
    "exp", "residual", "residual.rule", "control", "gamma", "backbone.depth", "trainer.max_steps", "seed", "resume",
)  # fmt: skip
DEFAULT_BASE = "residual=resnet"


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        label: tells the group from the others, such as `gated, gamma=0.35`; unique.
        settings: key -> value of what tells it apart; `residual` is the rule or its control.
        runs: seed -> run folder, by ascending seed; None is the seed of a run without a configuration.
        failed: seed -> what became of a sweep's job that failed, was pruned, or left nothing behind.
        again: further runs of a seed that is there already; they do not count.
        config: of the first run; empty where there is none.
    """

    label: str
    settings: dict[str, Any]
    runs: dict[Seed, Path]
    failed: dict[Seed, str] = field(default_factory=dict)
    again: tuple[Path, ...] = ()
    config: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def seeds(self) -> list[Seed]:
        """Those that were planned, whether or not their run is there."""
        return list(dict.fromkeys([*self.runs, *self.failed]))


def groups(folders: Iterable[str | Path]) -> list[Group]:
    """The groups of runs, in the order in which their first run stands among `folders`.

    Of several runs of one seed the finished one counts, of equals the last. A run without a readable configuration is a
    group of its own, and so are jobs of their sweeps that left none, unless another seed of them did.
    """
    places = [Path(folder) for folder in folders]
    found: dict[Any, list[tuple[Path, dict[str, Any]]]] = {}
    for folder in places:
        config = read_mapping(folder / "config.yaml")
        found.setdefault(setting(config) if config else folder, []).append((folder, config))
    members = list(found.values())
    told = settings([runs[0][1] for runs in members])
    names = _unique([label(own) for own in told], [runs[0][0] for runs in members])
    made = [_group(name, own, runs) for name, own, runs in zip(names, told, members, strict=True)]
    return _with_failures(made, places)


def _group(name: str, own: dict[str, Any], runs: Sequence[tuple[Path, dict[str, Any]]]) -> Group:
    best: dict[Seed, Path] = {}
    again: list[Path] = []
    for folder, config in runs:
        seed = config.get("seed")
        if (other := best.get(seed)) is not None:
            keep = folder if progress(folder).finished or not progress(other).finished else other
            again.append(other if keep is folder else folder)
            folder = keep
        best[seed] = folder
    by_seed = {seed: best[seed] for seed in sorted(best, key=lambda s: (s is None, s))}
    return Group(name, own, by_seed, again=tuple(again), config=runs[0][1])


def _with_failures(made: list[Group], folders: Sequence[Path]) -> list[Group]:
    """The groups with what their sweeps say of jobs that failed, were pruned, or have left nothing behind."""
    places = {run.resolve(): (group, seed) for group in made for seed, run in group.runs.items()}
    lost: dict[str, Group] = {}
    for sweep, record in _sweeps(folders).items():
        of_sweep = {number: places[sweep / number] for number in record.jobs if sweep / number in places}
        for number, overrides in record.jobs.items():
            state = record.states.get(number, {})
            what = str(state.get("state", "not started"))
            why = f"{what}: {state['error']}" if state.get("error") else what
            if number in of_sweep:
                if what in ("failed", "pruned"):
                    group, seed = of_sweep[number]
                    group.failed[seed] = why
            elif not (sweep / number / "config.yaml").is_file():
                seed, rest = _without_seed(overrides)
                like = [each for each in of_sweep if _without_seed(record.jobs[each])[1] == rest]
                name = " ".join(o for o in record.apart(number) if o in rest) or " ".join(rest)
                group = of_sweep[like[0]][0] if like else lost.setdefault(name, Group(name, {}, {}))
                group.failed[seed] = why
    return [*made, *lost.values()]


def _sweeps(runs: Iterable[Path]) -> dict[Path, Record]:
    """Folder -> record of the sweeps that these runs are jobs of."""
    found = {}
    for folder in dict.fromkeys(run.resolve().parent for run in runs):
        try:
            found[folder] = read_record(folder)
        except (OSError, ValueError):
            continue
    return found


def base_of(runs: Iterable[Path]) -> str | None:
    """What the sweeps that these runs are jobs of compare with, where they agree."""
    bases = {record.base for record in _sweeps(runs).values()}
    return bases.pop() if len(bases) == 1 else None


def _without_seed(overrides: Iterable[str]) -> tuple[Seed, list[str]]:
    """The seed that overrides set, and the others; None where they set none."""
    seeds = [text.partition("=")[2] for text in overrides if text.startswith("seed=")]
    seed = int(seeds[-1]) if seeds and seeds[-1].isdigit() else None
    return seed, [text for text in overrides if not text.startswith("seed=")]


def setting(config: Mapping[str, Any], but: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
    """All of a configuration that makes its group, comparable; without the keys `but`."""
    kept = {key: value for key, value in flat(config).items() if _is_setting(key) and key not in but}
    return tuple(sorted((key, repr(value)) for key, value in kept.items()))


def _is_setting(key: str) -> bool:
    return not any(key == name or key.startswith(f"{name}.") for name in NOT_A_SETTING)


def settings(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What tells each configuration from the others: its rule, and the keys in which they differ (see `differences`).

    Keys of a rule (`residual.granularity`) count where they differ among configurations of one rule, or else the
    defaults of unlike rules would fill the list.
    """
    rules = [rule_of(config) for config in configs]
    flats = [flat(config) for config in configs]

    def told(key: str) -> bool:
        if not key.startswith("residual."):
            return _is_setting(key) or (key.startswith("choices.") and key != "choices.residual")
        return _is_setting(key) and any(
            len({repr(each.get(key)) for each, own in zip(flats, rules, strict=True) if own == rule}) > 1
            for rule in set(rules)
        )

    reduced = [{key: value for key, value in each.items() if told(key)} for each in flats]
    keys = [key for key in _SHORT if len({repr(each.get(key)) for each in reduced if each}) > 1]
    keys += [key for key in differences(reduced) if key not in keys]
    return [
        {RULE: rule, **{_SHORT.get(key, key): each[key] for key in keys if key in each}}
        for rule, each in zip(rules, reduced, strict=True)
    ]


def differences(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Keys in which the readable configurations differ, at most eight, and that no other column shows.

    Runs of unlike choices of a group may hold unlike keys below it. The choice gets a column then (the residual rule
    has one already), and of the keys that some lack only those in which the others differ. Where there are too many
    columns the keys that are merely lacked go first.
    """
    each = [flat(config) for config in configs if config]
    keys = [
        key
        for key in dict.fromkeys(key for other in each for key in other)
        if key not in _SHOWN and not key.endswith("_target_")
    ]
    found = {key: [other[key] for other in each if key in other] for key in keys}
    differing = {key for key in keys if len(set(map(repr, found[key]))) > 1}
    lacked = {key for key in keys if len(found[key]) < len(each)}
    unlike = {key.partition(".")[0] for key in lacked} - {"choices", "residual"}
    choices = [f"choices.{group}" for group in sorted(unlike) if f"choices.{group}" in differing]
    told = {"choices", "residual", *(choice.partition(".")[2] for choice in choices)}
    plain = [key for key in keys if key in differing and not key.startswith("choices.")]
    lacking = {key for key in lacked - differing if key.partition(".")[0] not in told}
    for shown in ([key for key in keys if key in lacking or key in plain], plain):
        if len(choices) + len(shown) <= MAX_SETTINGS:
            return choices + shown
    return choices


def label(own: Mapping[str, Any]) -> str:
    """`gated, gamma=0.35`: the rule, then the settings; a weight gamma of 0 is left out, for it supervises nothing."""
    words = [str(own[RULE])] if own.get(RULE) is not None else []
    words += [f"{key}={_short(value)}" for key, value in own.items() if key != RULE and (key != "gamma" or value)]
    return ", ".join(words)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _unique(names: Sequence[str], firsts: Sequence[Path]) -> list[str]:
    """Names of groups, those that are equal or empty told apart by their first run."""
    folders = labels(firsts)
    return [
        name if name and names.count(name) == 1 else f"{name} ({folder})" if name else folder
        for name, folder in zip(names, folders, strict=True)
    ]


def bases(found: Sequence[Group], base: str | None) -> dict[str, str]:
    """label -> label of the group that it is compared with; groups that are a base themselves have none.

    Args:
        base: a group's label, or settings such as `residual=resnet`; None for `residual=resnet` where there is such a
            group. Where several groups have these settings (a study of several depths) each is compared with the one
            that is most like it; without a single such one it is compared with none.

    Raises:
        DataError: no group is that base.
    """
    wanted = DEFAULT_BASE if base is None else base
    chosen = [group for group in found if group.label == wanted] or [g for g in found if _has(g.config, wanted)]
    if not chosen:
        if base is None:
            return {}
        names = "; ".join(group.label for group in found)
        raise DataError(f"base={base}: no group of these runs is that. Give settings that one has, or one of: {names}")
    partners = {}
    for group in found:
        if group in chosen:
            continue
        likeness = [sum(repr(group.settings.get(k)) == repr(v) for k, v in b.settings.items()) for b in chosen]
        if likeness.count(max(likeness)) == 1:
            partners[group.label] = chosen[likeness.index(max(likeness))].label
    return partners


def _has(config: Mapping[str, Any], wanted: str) -> bool:
    """Whether a configuration has the settings `KEY=VALUE ...`; it is no control unless they say so."""
    values, choices = flat(config), config.get("choices") or {}
    asked = dict(part.partition("=")[::2] for part in wanted.split())
    if (
        not config
        or not all("=" in part for part in wanted.split())
        or ("control" not in asked and values.get("control"))
    ):
        return False

    def same(key: str, text: str) -> bool:
        value = values.get(key, choices.get(key, values.get(f"{key}.rule")))
        try:
            return value is not None and float(value) == float(text)
        except (TypeError, ValueError):
            return str(value) == text

    return all(same(key, text) for key, text in asked.items())


def reasons(missing: Mapping[Seed, str]) -> str:
    """Why seeds have no number, in words."""
    return "; ".join(f"{seeds}: {why}" if seeds else why for seeds, why in by_reason(missing))


def by_reason(missing: Mapping[Seed, str]) -> list[tuple[str, str]]:
    """(`seed 3` or `seeds 6, 7, 8`, why) for each reason that seeds have; nothing stands for a run without a seed."""
    seeds: dict[str, list[str]] = {}
    for seed, why in missing.items():
        seeds.setdefault(why, []).extend([] if seed is None else [str(seed)])
    return [(f"seed{'s' * (len(each) > 1)} {', '.join(each)}" if each else "", why) for why, each in seeds.items()]
