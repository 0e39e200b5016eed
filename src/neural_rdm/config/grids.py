"""The jobs of a sweep: what an experiment's node `sweep` and the comma lists of a command line stand for.

    sweep:
      seeds: 5                    # 0 to 4; or a list
      base: residual=resnet       # what a report compares the others with
      grids:                      # the jobs are those of all grids together, each once
        - residual: [resnet, gated, rezero]
        - residual: [gated, rezero]
          gamma: [0.35]           # only where the gates can be supervised

Each grid is crossed over its keys, over what is typed, and over the seeds. A typed key takes the place of a grid's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from omegaconf import OmegaConf

from neural_rdm.config.grammar import written
from neural_rdm.config.primary_train import Sweep
from neural_rdm.config.schema import of_class
from neural_rdm.core.arguments import nearest, problem
from neural_rdm.core.errors import ConfigError

SEED = "seed"
_BARE = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_][\w./-]*", re.IGNORECASE)


def study(node: Any) -> Sweep:
    """The node `sweep` of an experiment, checked.

    Args:
        node: as it is composed, its interpolations unresolved: they are resolved in each job.

    Raises:
        ConfigError: a key, or the value of one, that it cannot have.
    """
    node = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    if not isinstance(node, dict):
        raise ConfigError(f"sweep: {node!r} is not a study; it takes seeds, base and grids", key="sweep")
    arguments = of_class(Sweep).arguments
    for name, value in node.items():
        if name not in arguments:
            raise ConfigError(f"unknown configuration key sweep.{name}.{nearest(name, arguments)}", key=f"sweep.{name}")
        if (wrong := problem(f"sweep.{name}", value, arguments[name].kind)) is not None:
            raise ConfigError(f"configuration key {wrong.at('')}", key=wrong.key)
    for place, grid in enumerate(node.get("grids") or []):
        if not grid:
            raise ConfigError(f"sweep.grids[{place}]: {grid!r} is no grid, such as residual: [gated, resnet]")
        for key, value in grid.items():
            values = value if isinstance(value, list) else [value]
            if not values or any(isinstance(each, dict) for each in values):
                instead = f"{key}.NAME: [VALUE, ...]" if values else f"at least one value, or no {key}"
                raise ConfigError(f"sweep.grids[{place}].{key}: {value!r} is no list of values; write {instead}")
    return Sweep(**node)


def seeds_of(seeds: int | Sequence[int] | None) -> list[str]:
    """The overrides of `seed` that a number of seeds, or a list of them, stands for; none for null."""
    listed = range(seeds) if isinstance(seeds, int) else seeds or ()
    return [f"{SEED}={seed}" for seed in listed]


def crossed(
    found: Sweep, typed: Sequence[Override], seeds: Sequence[str], choices: Callable[[str], list[str]]
) -> list[list[str]]:
    """The overrides of every job, each job once. All jobs of the first seed come first: a sweep that is cut short is
    a whole comparison of fewer seeds.

    Args:
        found: the study; `Sweep()` where only the command line says what varies.
        typed: the command line, read.
        seeds: typed overrides of the seed, which take the place of the study's; none to leave those.
        choices: the choices of a group, for `glob()`.

    Raises:
        ConfigError: the seeds are typed twice, or a key is typed that only an optimiser can vary.
    """
    options = {o.input_line if o.is_delete() else o.key_or_group: values_of(o, choices) for o in typed}
    if seeds and SEED in options:
        raise ConfigError(f"seeds= and seed={','.join(v.partition('=')[2] for v in options[SEED])}: give one of them")
    if seeds:
        options[SEED] = list(seeds)
    jobs: dict[frozenset[str], tuple[str, list[str]]] = {}
    for grid in found.grids or [{}]:
        lists = options | {key: _texts(key, value) for key, value in grid.items() if key not in options}
        if SEED not in lists and found.seeds is not None:
            lists[SEED] = seeds_of(found.seeds)
        for overrides in itertools.product(*lists.values()):
            seed = dict(zip(lists, overrides, strict=True)).get(SEED, "")
            jobs.setdefault(frozenset(overrides), (seed, list(overrides)))
    order = list(dict.fromkeys(seed for seed, _ in jobs.values()))
    return [overrides for _, overrides in sorted(jobs.values(), key=lambda job: order.index(job[0]))]


def values_of(override: Override, choices: Callable[[str], list[str]]) -> list[str]:
    """The overrides, each with one value, that one with a comma list, `range()` or `glob()` stands for.

    Raises:
        ConfigError: an interval, which is no list.
    """
    value = override.value()
    if isinstance(value, IntervalSweep):
        raise ConfigError(f"{override.input_line}: an interval has no end of values; pass sweeper=optuna with it")
    key = override.get_key_element()
    if isinstance(value, Glob):
        return [f"{key}={name}" for name in value.filter(choices(override.key_or_group))]
    if override.is_sweep_override():
        return [f"{key}={each}" for each in override.sweep_string_iterator()]
    return [str(override.input_line)]


def _texts(key: str, value: Any) -> list[str]:
    """The overrides that a key of a grid stands for, as one would type them."""
    values = value if isinstance(value, list) else [value]
    bare = [v if isinstance(v, str) and _BARE.fullmatch(v) else written(v) for v in values]
    return [f"{key}={text}" for text in bare]
