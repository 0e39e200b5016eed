"""One entry for every command that is configured by Hydra.

    preflight (compose, check, resume)  ->  hydra.main (run folder)  ->  the command's own function

The preflight imports neither torch nor Lightning, so a mistake is refused in about a second, with exit code 2.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from neural_rdm.cli.datasets import check_layout
from neural_rdm.cli.jobs import end_with_parent
from neural_rdm.cli.stopping import Work, stoppable, told
from neural_rdm.config import resume
from neural_rdm.config.check import as_plain, choices_of, config_dir, validate
from neural_rdm.config.compose import Composed, compose_config, drop_unchosen, group_choices, parse, prepare_hydra
from neural_rdm.config.environment import check_device, check_packages
from neural_rdm.config.explained import help_text
from neural_rdm.config.grammar import as_typed, literal, written
from neural_rdm.config.grids import crossed, study
from neural_rdm.config.provenance import write_config
from neural_rdm.config.schema import constants
from neural_rdm.config.sources import Sources, refused
from neural_rdm.config.trust import own_folder, resolve, trust
from neural_rdm.core.errors import ConfigError, UserError, printable
from neural_rdm.core.locks import held
from neural_rdm.core.ranks import STARTED_BY, is_first_rank
from neural_rdm.data.encoded.manifest import check_manifest, read_manifest
from neural_rdm.runs.folders import opened

if TYPE_CHECKING:
    from neural_rdm.cli.planning import Complete, Plan

Job = Callable[[DictConfig, Path], int]


@dataclass
class Arguments:
    """The command line, split into Hydra's own options and `key=value` overrides."""

    flags: list[str]
    overrides: list[str]
    multirun: bool
    informs: bool  # --help, --cfg, --info: Hydra answers without running anything
    folders: list[str] = field(default_factory=list)
    topic: str | None = None  # --help TOPIC

    @classmethod
    def parse(cls, argv: list[str]) -> Arguments:
        """Split `argv`, and let be built what it trusts: packages by name, and what its own folders name.

        Raises:
            ConfigError: an option that would replace the command's own configuration, or no name of a package.
        """
        parser = argparse.ArgumentParser(add_help=False)
        for names in (
            ("--help", "-h"), ("--hydra-help",), ("--version",), ("--resolve",), ("--run", "-r"), ("--multirun", "-m"),
            ("--shell-completion", "-sc"),
        ):  # fmt: skip
            parser.add_argument(*names, action="store_true")
        for names in (
            ("--config-dir", "-cd"),
            ("--config-path", "-cp"),
            ("--config-name", "-cn"),
            ("--cfg", "-c"),
            ("--package", "-p"),
        ):
            parser.add_argument(*names)
        parser.add_argument("--info", "-i", nargs="?", const="all")
        known, rest = parser.parse_known_args(argv)
        if known.config_name or known.config_path:
            raise ConfigError(
                "each command has one primary configuration; add groups of your own with --config-dir DIR"
            )
        overrides = [a for a in rest if not a.startswith("-")]
        for option in (a for a in rest if a.startswith("-") and not a.startswith("--experimental")):
            raise ConfigError(
                f"there is no option {option}; a key is typed without dashes, as {option.strip('-')}=VALUE, "
                "and --help lists what there is"
            )
        topics = [o for o in overrides if known.help and re.fullmatch(r"[\w.]+", o)]
        overrides = [o for o in overrides if o not in topics]
        flags = [a for a in argv if a not in overrides]
        informs = bool(
            known.help or known.hydra_help or known.version or known.cfg or known.info or known.shell_completion
        )
        multirun = known.multirun or any(o.replace(" ", "") == "hydra.mode=MULTIRUN" for o in overrides)
        folders = [known.config_dir] if known.config_dir else []
        overrides = _without_trust(overrides)
        for folder in folders:
            own_folder(folder)
        return cls(flags, overrides, multirun, informs, folders, topics[-1] if topics else None)


def main(config_name: str, job: Job, complete: Complete | None = None) -> None:
    """Run `job(cfg, run_folder)` under the command line's configuration and exit with what it returns.

    Args:
        complete: rewrites the overrides first, for example with what an earlier run decided; its mistakes are
            UserErrors.

    Exit codes: 0 done, 2 a mistake that the user can put right, 143, 130 or 129 stopped by SIGTERM, Ctrl-C or a closed
    terminal, 1 anything else.
    """
    gc.disable()  # what composing makes lives on: to search it for cycles again and again takes a sixth of its time
    work = Work(config_name)
    try:
        with stoppable(work), told(work):
            _run(config_name, job, complete, work)
    finally:
        gc.enable()


def _run(config_name: str, job: Job, complete: Complete | None, work: Work) -> None:
    prepare_hydra()
    end_with_parent()
    run: resume.Run | None = None
    arguments = Arguments.parse(sys.argv[1:])
    if arguments.multirun and not arguments.informs:
        from neural_rdm.cli.launcher import launch  # here, because a single run has no use for it

        gc.enable()
        raise SystemExit(launch(plan(config_name, arguments, complete)))
    arguments.overrides = as_typed(arguments.overrides, config_name, arguments.folders)
    if arguments.topic is not None:
        composed = compose_config(config_name, arguments.overrides, arguments.folders)
        print(help_text(config_name, composed, arguments.topic, arguments.folders), end="")
        raise SystemExit(0)
    if not arguments.informs:
        run = preflight(config_name, arguments, complete)
        os.environ["HYDRA_FULL_ERROR"] = "1"  # what goes wrong in Hydra's own work, making the folder, comes to `told`
    if run is not None:
        end_if_finished(run, arguments)
    sys.argv[1:] = [*arguments.flags, *arguments.overrides]
    if not arguments.informs and "torch" not in sys.modules and is_first_rank():  # which takes seconds
        print("loading libraries ...", file=sys.stderr, flush=True)

    def task(cfg: DictConfig) -> None:
        work.folder = folder = Path(HydraConfig.get().runtime.output_dir)
        choices = group_choices(HydraConfig.get())
        gc.enable()
        with told(work):
            OmegaConf.set_struct(cfg, False)
            drop_unchosen(cfg, choices)
            resolve(cfg)
            with opened(folder, config_name, cfg, resumes=run is not None):
                # Another process may have finished it before this one was alone in the folder; ranks that were started
                # from outside are not, and must not decide it apart.
                if run is not None and _started_from_outside() == 1:
                    end_if_finished(resume.find_run(str(run.folder)), arguments)
                if config_name == "train":
                    resume.make_absolute(cfg)
                    cfg.choices = choices
                    if run is not None and run.config is not None:
                        cfg = resume.merge(run, cfg, parse(arguments.overrides))
                    elif is_first_rank():
                        write_config(folder, resume.lasting(cfg))
                code = job(cfg, folder)
        raise SystemExit(code)

    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(task)()


def _without_trust(overrides: list[str]) -> list[str]:
    """The overrides but `trust=[PACKAGE]`, which is the user's word alone: no file can say it."""
    said = [o for o in overrides if o.lstrip("+").startswith("trust=")]
    for value in (override.value() for override in parse(said)):
        trust(value if isinstance(value, list) else [str(value)])
    return [o for o in overrides if o not in said]


def preflight(config_name: str, arguments: Arguments, complete: Complete | None = None) -> resume.Run | None:
    """Check everything that can be checked without torch; for `resume=`, find the run and repeat its choices.

    Raises:
        UserError: a mistake, in one clear message.
    """
    if complete is not None:
        arguments.overrides = complete(arguments.overrides, arguments.folders)
    parsed = parse(arguments.overrides)
    _one_folder_for_all_ranks(parsed)
    asked = [o for o in parsed if o.key_or_group == "resume" and o.value() is not None]
    if not asked:
        _refuse_unusable(parsed)
        composed = compose_config(config_name, arguments.overrides, arguments.folders)
        if composed.cfg.get("sweep") is not None:
            _refuse_study(composed)
        _check(composed, config_name)
        check_device(composed.cfg, composed.sources)
        return None
    if asked[0].is_sweep_override():
        raise ConfigError("resume= takes one folder; start the command once for each run")
    run = resume.find_run(str(asked[0].value()))
    if not os.access(run.folder, os.W_OK):
        raise UserError(f"resume={run.folder}: you may not write there; copy the run to where you may, resume=COPY")
    if run.finished is None and is_first_rank():
        with held(run.folder, config_name):
            pass  # a run that still goes on is refused at once; `opened` holds the lock for the time of the work
    for typed in (str(p.value()) for p in parsed if p.key_or_group == "hydra.run.dir"):
        if Path(typed).resolve() != run.folder.resolve():
            raise ConfigError(f"resume={run.folder} goes on in its own folder; leave out hydra.run.dir={typed}")
    arguments.overrides = [
        o for o, p in zip(arguments.overrides, parsed, strict=True) if p.key_or_group not in ("resume", "hydra.run.dir")
    ]
    # Lightning repeats sys.argv for the other ranks: they find the same run by its folder.
    here = [f"{key}={written(str(run.folder))}" for key in ("resume", "hydra.run.dir")]
    if all(o.startswith("hydra.") for o in arguments.overrides) and run.config is not None:
        # Nothing to compose: the run's own configuration is complete, also where its groups are not at hand.
        composed = Composed(run.config.copy(), run.choices, Sources())
        arguments.overrides = [*arguments.overrides, *here]
    else:
        given = {p.key_or_group for p in parsed}
        own = [f"{g}={literal(c)}" for g, c in run.choices.items() if g not in given]
        arguments.overrides = [*own, *arguments.overrides, *here]
        composed = compose_config(config_name, arguments.overrides, arguments.folders)
        if run.config is not None:
            resolve(composed.cfg)
            composed.cfg = resume.merge(run, composed.cfg, parse(arguments.overrides))
    if run.config is not None:
        composed.sources = Sources((run.folder / "config.yaml",))
    _check(composed, config_name, resumed=True)
    check_device(composed.cfg, composed.sources)
    return run


def plan(config_name: str, arguments: Arguments, complete: Complete | None = None) -> Plan:
    """The jobs that a command line with `-m` stands for, checked; see `cli.planning`.

    Raises:
        UserError: a mistake, in one message.
    """
    from neural_rdm.cli.planning import make_plan

    overrides = as_typed(arguments.overrides, config_name, arguments.folders)
    parsed = parse(overrides)
    if any(o.key_or_group == "resume" and o.value() is not None for o in parsed):
        raise UserError("resume continues one run; leave out -m / --multirun")
    _refuse_unusable(parsed)

    def check(overrides: list[str]) -> Composed:
        alone = ["sweep=null"] if config_name == "train" else []
        composed = compose_config(config_name, [*overrides, *alone], arguments.folders)
        _check(composed, config_name)
        return composed

    return make_plan(config_name, overrides, arguments.folders, check, complete or (lambda given, _: given))


def _refuse_study(composed: Composed) -> NoReturn:
    """An experiment that is a study is many runs."""
    runs = len(crossed(study(composed.cfg.sweep), [], [], choices_of))
    name = f"exp={composed.choices['exp']}" if "exp" in composed.choices else "~exp"
    raise ConfigError(
        f"{name} is a study of up to {runs} runs: python -m neural_rdm.sweep {name} (make sweep {name}) "
        "trains and compares them; with sweep=null this command trains the one run that the experiment is without them"
    )


def _refuse_unusable(parsed: list[Override]) -> None:
    typed_folders = [str(p.value()) for p in parsed if p.key_or_group in ("hydra.run.dir", "hydra.sweep.dir")]
    for typed in typed_folders or ["outputs"]:
        if "${" in typed:
            continue
        folder = Path(typed).resolve()
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            advice = "" if typed_folders else "; pass another one with hydra.run.dir=DIR"
            raise ConfigError(f"cannot write to {typed}: {folder} is not a folder that you may write to{advice}")


def _started_from_outside() -> int:
    """How many processes torchrun or srun has started for this command; 1 where neither has."""
    return int(
        os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in os.environ else "1")
    )


def _one_folder_for_all_ranks(parsed: list[Override]) -> None:
    """Ranks that torchrun or srun starts compose on their own, each a fraction of a second later than the other."""
    world = _started_from_outside()
    if world > 1 and not any(p.key_or_group in ("hydra.run.dir", "resume") for p in parsed):
        raise ConfigError(
            f"{world} processes were started from outside (torchrun, srun): pass hydra.run.dir=DIR, "
            "one folder for all of them"
        )


def _check(composed: Composed, config_name: str, resumed: bool = False) -> None:
    validate(composed.cfg, config_name, composed.sources)
    cfg = composed.cfg
    check_packages(cfg, composed.sources)
    data, pretrained = cfg.get("data"), cfg.get("pretrained")
    if data is not None and data.get("source") == "latents":
        reading = constants(data, "data").get("reading", ())
        check_manifest(read_manifest(data.latents), as_plain(data), cfg.first_stage, cfg.condition, reading)
    elif data is not None and "root" in data and "_target_" in data:
        if data.root is None:
            raise refused("data.root has no value; pass data.root=DIR", "data.root", composed.sources)
        check_layout(data, cfg.get("backbone"))
    if pretrained is not None and pretrained.path is not None and not resumed and not Path(pretrained.path).exists():
        raise ConfigError(
            f"pretrained.path={pretrained.path}: no such file or folder "
            f"({Path(pretrained.path).resolve()}). Pass the weights that you have with pretrained.path=FILE"
        )
    metric = cfg.get("metric") or {}
    for key in ("reference", "frame_reference"):
        if metric.get(key) is not None and not Path(metric[key]).is_file():
            raise ConfigError(
                f"metric.{key}={metric[key]}: no such file ({Path(metric[key]).resolve()}). "
                "python -m neural_rdm.stats writes it"
            )


def end_if_finished(run: resume.Run, arguments: Arguments) -> None:
    """Say so and exit where a run has all the steps that are asked of it now, and its report. The ranks that another
    one has started leave that to it: they would be missed.
    """
    if run.finished is None or run.config is None or STARTED_BY in os.environ:
        return
    steps = [int(p.value()) for p in parse(arguments.overrides) if p.key_or_group == "trainer.max_steps"]  # type: ignore[arg-type]
    if run.finished["global_step"] >= (steps[-1] if steps else run.config.trainer.max_steps):
        print(f"{run.folder} is finished ({run.finished['global_step']} steps); nothing to do. Its results:")
        print_paths([run.folder / p for p in run.finished["files"]])
        raise SystemExit(0)


def print_paths(paths: list[Path]) -> None:
    """One path a line, relative to where the user stands."""
    for path in paths:
        print(f"  {printable(os.path.relpath(path))}")
