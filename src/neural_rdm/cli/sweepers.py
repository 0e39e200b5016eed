"""Which job of a sweep is next: all of a plan in their order, or what Optuna proposes.

hydra-optuna-sweeper is not used: it is written for Optuna 2, knows no pruning, and starts its trials anew where a sweep
was cut. Optuna's own ask and tell are all that is needed.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from neural_rdm.cli.jobs import State, state
from neural_rdm.cli.planning import Plan
from neural_rdm.config.check import choices_of
from neural_rdm.config.compose import as_text
from neural_rdm.config.grids import values_of
from neural_rdm.core.arguments import Count, Natural, Seed, checked
from neural_rdm.core.errors import ConfigError, UserError, first_line
from neural_rdm.core.extras import install
from neural_rdm.core.files import remove
from neural_rdm.core.records import read_rows
from neural_rdm.reports.rates import BEST_BY, is_higher, metric

if TYPE_CHECKING:
    import optuna

STORAGE = "optuna.journal"  # in the sweep's folder


class Sweeper(Protocol):
    """What decides on the jobs of a sweep."""

    total: int  # jobs, those that are finished too

    def check(self, plan: Plan) -> None:
        """Take over a plan, before anything is written.

        Raises:
            UserError: it cannot sweep over this.
        """

    def begin(self) -> None:
        """Make ready, in the folder of the plan, which is there now."""

    def next(self) -> str | None:
        """The number of a job to start now, which is in the plan's record; None where there is none."""

    def ended(self, number: str) -> None:
        """Learn that a job has ended, with the state that the record says."""

    def gives_up(self, number: str) -> bool:
        """Whether a running job is not worth its rest."""


class Grid:
    """Every job of the plan, in its order; jobs that are finished stay, failed ones are tried again."""

    def check(self, plan: Plan) -> None:
        """See `Sweeper.check`."""
        self.plan, self.total = plan, len(plan.record.jobs)

    def begin(self) -> None:
        """See `Sweeper.begin`."""
        jobs, plan = self.plan.record.jobs, self.plan
        self.queue = [n for n in jobs if state(plan.folder / n, plan.module) is not State.FINISHED]

    def next(self) -> str | None:
        """See `Sweeper.next`."""
        return self.queue.pop(0) if self.queue else None

    def ended(self, number: str) -> None:
        """Nothing follows from it."""

    def gives_up(self, number: str) -> bool:
        """Never."""
        return False


@checked()
class Optuna:
    """Settings that Optuna proposes for the best `optimized_metric`, each one job.

    What varies is typed: `optimizer.lr=tag(log,interval(1e-4,1e-2))`, `backbone.depth=range(2,12,2)`,
    `residual=gated,skip`. What is known of the trials is kept in the sweep's folder, in `optuna.journal`.

    Args:
        trials: jobs.
        sampler: tpe, or random.
        seed: of the sampler.
        pruner: median gives up a job whose `val/loss` is worse than the median of the others' at its step; null lets
            all of them end.
        pruner_startup: jobs that end before one is given up.
        pruner_warmup: steps of a job after which it can be given up.
    """

    def __init__(
        self,
        trials: Count = 20,
        sampler: Literal["tpe", "random"] = "tpe",
        seed: Seed = 0,
        pruner: Literal["median"] | None = "median",
        pruner_startup: Natural = 5,
        pruner_warmup: Natural = 0,
    ) -> None:
        self.total, self.sampler, self.seed = trials, sampler, seed
        self.pruner, self.pruner_startup, self.pruner_warmup = pruner, pruner_startup, pruner_warmup

    def check(self, plan: Plan) -> None:
        """See `Sweeper.check`. A setting of the corners is checked for every value that is listed."""
        if importlib.util.find_spec("optuna") is None:
            raise ConfigError(f"sweeper=optuna needs optuna: {install('sweepers')}")
        self.plan = plan
        self.fixed = [as_text(o) for o in plan.typed if not o.is_sweep_override()]
        self.space = {o.get_key_element(): _space(o) for o in plan.typed if o.is_sweep_override()}
        if not self.space:
            raise ConfigError(
                "sweeper=optuna: nothing varies; type for example optimizer.lr=tag(log,interval(1e-4,1e-2))"
            )
        corner = {key: values[0] for key, (values, _) in self.space.items()}
        for key, (values, _) in self.space.items():
            for value in values:
                cfg = plan.check(self._overrides({**corner, key: value})).cfg
        if cfg.get("optimized_metric") is None:
            raise ConfigError(
                "sweeper=optuna: what is it to optimise? Pass optimized_metric=val/loss, another column of metrics.csv "
                "or a number of the report"
            )
        plan.objective = str(cfg.optimized_metric)
        self.steps = cfg.trainer.max_steps

    def begin(self) -> None:
        """See `Sweeper.begin`."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        plan = self.plan
        optuna.logging.set_verbosity(logging.WARNING)
        samplers: dict[str, Callable[..., Any]] = {
            "tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler,
        }  # fmt: skip
        known = len(plan.record.jobs)
        journal = _journal(plan.folder)
        try:
            self.study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(journal))),
                study_name="sweep",
                sampler=samplers[self.sampler](seed=self.seed + known),
                pruner=optuna.pruners.MedianPruner(self.pruner_startup, self.pruner_warmup)
                if self.pruner
                else optuna.pruners.NopPruner(),
                direction="maximize" if is_higher(plan.objective or "") else "minimize",
                load_if_exists=True,
            )
            cut = self.study.get_trials(states=[optuna.trial.TrialState.RUNNING])
            self.trials = {str(t.number): optuna.trial.Trial(self.study, t._trial_id) for t in cut}
            self.told = {str(t.number): -1 if t.last_step is None else t.last_step for t in cut}
            self.queue = list(self.trials)
            for number, trial in self.trials.items():
                # not what the record or the journal says: those would be typed, and may be somebody else's
                own = {key: trial._suggest(key, distribution) for key, (_, distribution) in self.space.items()}
                plan.record.jobs[number] = self._overrides(own)
                plan.steps[number] = self.steps
        except (LookupError, ValueError, TypeError, AttributeError, AssertionError, RecursionError) as error:
            raise ConfigError(
                f"{journal} is not of a sweep over this ({first_line(error)}); choose another hydra.sweep.dir"
            ) from error

    def next(self) -> str | None:
        """A trial that was cut, or else a new one."""
        while self.queue or len(self.study.trials) < self.total:
            number = self.queue.pop(0) if self.queue else self._proposed()
            if state(self.plan.folder / number, self.plan.module) is State.FINISHED:
                self.ended(number)
                continue
            return number
        return None

    def ended(self, number: str) -> None:
        """See `Sweeper.ended`. One that was stopped is gone on with."""
        from optuna.trial import TrialState

        how = self.plan.record.states.get(number, {}).get("state")
        folder, trial = self.plan.folder / number, self.trials[number]
        if how == "pruned":
            self.study.tell(trial, state=TrialState.PRUNED)
        elif state(folder, self.plan.module) is State.FINISHED:
            value = metric(folder, self.plan.objective or "")
            lost = value is None or math.isnan(value)
            self.study.tell(trial, None if lost else value, TrialState.FAIL if lost else None)
        elif how == "failed":
            self.study.tell(trial, state=TrialState.FAIL)

    def gives_up(self, number: str) -> bool:
        """Tell Optuna the validation losses that a running job has logged, and ask it."""
        if self.pruner is None:
            return False
        trial, losses = self.trials[number], _validated(self.plan.folder / number)
        if not losses or losses[-1][0] <= self.told[number]:
            return False
        for step, value in losses:
            if step > self.told[number]:
                self.told[number] = step
                trial.report(-value if is_higher(self.plan.objective or "") else value, step)
        return trial.should_prune()

    def _proposed(self) -> str:
        trial = self.study.ask({key: distribution for key, (_, distribution) in self.space.items()})
        number = str(trial.number)
        self.trials[number], self.told[number] = trial, -1
        self.plan.record.jobs[number] = self._overrides(trial.params)
        self.plan.steps[number] = self.steps
        return number

    def _overrides(self, values: dict[str, Any]) -> list[str]:
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]


def _journal(folder: Path) -> Path:
    """Where Optuna keeps what it knows of a sweep, which is a file of its folder, and which no other process uses.

    Raises:
        ConfigError: it is a link out of it, or a pipe.
    """
    journal = folder / STORAGE
    if journal.is_symlink() or (journal.exists() and not journal.is_file()):
        raise ConfigError(f"{journal} is a link or no file; choose another hydra.sweep.dir, or remove it")
    remove(folder / f"{STORAGE}.lock")  # Optuna would wait for the process that was killed with it
    return journal


def _space(override: Override) -> tuple[list[Any], optuna.distributions.BaseDistribution]:
    """What a typed range stands for: values of it to check, and Optuna's distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            low, high = value.start, value.end
            assert low is not None
            assert high is not None
            log = "log" in value.tags
            if isinstance(low, int) and isinstance(high, int):
                return [low, high], IntDistribution(low, high, log=log)
            return [low, high], FloatDistribution(low, high, log=log)
        if isinstance(value, RangeSweep) and not value.shuffle:
            values: list[Any] = list(override.sweep_iterator())
            if all(isinstance(v, int) for v in values) and values == sorted(values):
                return [values[0], values[-1]], IntDistribution(values[0], values[-1], step=int(value.step))
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{as_text(override)}: {first_line(error)}") from error
    texts = [text.partition("=")[2] for text in values_of(override, choices_of)]
    assert isinstance(value, ChoiceSweep) or texts
    return texts, CategoricalDistribution(texts)


def _validated(run: Path) -> list[tuple[int, float]]:
    """(step, validation loss) of a run so far."""
    try:
        rows = read_rows(run / "metrics.csv")
    except (OSError, ValueError, UserError):
        return []
    return [(int(row["step"]), float(row[BEST_BY])) for row in rows if row.get(BEST_BY)]
