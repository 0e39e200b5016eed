"""`python -m neural_rdm.evaluate`: measure the samples of a trained run, or samples on disk.

python -m neural_rdm.evaluate run=outputs/train/digits_gated/TIME sampler.steps=20 metric.per_class=100
python -m neural_rdm.evaluate run=DIR metric=images metric.reference=FILE guidance=[1,1.5,4] averages=[ema,raw]
python -m neural_rdm.evaluate samples=outputs/sample/EXP/TIME/samples.npz metric=images metric.reference=FILE
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from neural_rdm.cli.app import main, print_paths
from neural_rdm.config.compose import parse
from neural_rdm.core.errors import ConfigError, UserError
from neural_rdm.core.files import write_text
from neural_rdm.core.output import print_page
from neural_rdm.reports.runs import read_mapping
from neural_rdm.runs.load import inherit, read_config

if TYPE_CHECKING:
    from neural_rdm.diffusion.samplers import Sampler
    from neural_rdm.evaluation.measuring import Measured, Report
    from neural_rdm.runs.loaded import LoadedRun


def evaluate(cfg: DictConfig, folder: Path) -> int:
    """Write `report/metrics.{md,csv,json}`, and for a run `config.yaml` and `sampling.json`; return the exit code 0.

    With the run's own sampler, metric and seed the numbers are those at the end of its training, if that computed in
    float32: here samples are always drawn in float32, and the protocol line names the precision. `config.yaml` is the
    run's, with what was chosen here in its place, so that the report command compares evaluations as it compares runs.
    With `guidance` or `averages` there is a row for each combination, and a plot of them.

    Raises:
        UserError: no usable run or samples, or a sampler or metric that does not fit them.
    """
    from neural_rdm.runs import build

    report: Report = build.build(cfg.metric, "metric")
    measure = _run if cfg.samples is None else _files
    paths = measure(cfg, report, folder)
    print_page(folder / "report" / "metrics.md")
    print("wrote:")
    print_paths(paths)
    return 0


def _run(cfg: DictConfig, report: Report, folder: Path) -> list[Path]:
    """Measure what a run draws, under each of the settings that were asked for."""
    from neural_rdm.core.progress import parts
    from neural_rdm.reports.guidance import write_guidance
    from neural_rdm.reports.tables import write_metrics
    from neural_rdm.runs import build
    from neural_rdm.runs.load import load_run

    sampler: Sampler = build.build(cfg.sampler, "sampler")
    settings: list[dict[str, Any]] = []
    measured: list[Measured] = []
    wanted = [(w, scale) for w in cfg.averages or [cfg.weights] for scale in cfg.guidance or [sampler.cfg_scale]]
    run: LoadedRun | None = None
    for weights, scale in parts(wanted):
        if run is None or settings[-1]["weights"] != weights:
            run = load_run(Path(cfg.run), weights, cfg.accelerator, cfg.get("data"))
        if not measured:
            report.check(run.data, run.net, run.pixels)
        print(f"samples from {run.checkpoint} (step {run.step}, {weights} weights, cfg_scale {scale:g})", flush=True)
        measured.append(report.rows(run.subject(replace(sampler, cfg_scale=scale), cfg.seed, cfg.batch_size)))
        settings.append({"cfg_scale": scale, "weights": weights})
    assert run is not None
    used = run.config.copy()
    used.sampler, used.metric, used.seed = cfg.sampler, cfg.metric, cfg.seed
    write_text(folder / "config.yaml", OmegaConf.to_yaml(used))
    if cfg.guidance is None and cfg.averages is None:
        facts: Mapping[str, Any] = measured[0][2]
        paths = write_metrics(folder / "report", *measured[0])
    else:
        paths, facts = write_guidance(folder / "report", settings, measured)
    drawn = {**run.facts(replace(sampler, cfg_scale=facts["cfg_scale"]), seed=cfg.seed), "weights": facts["weights"]}
    write_text(folder / "sampling.json", json.dumps(drawn, indent=2) + "\n")
    return [*paths, folder / "config.yaml", folder / "sampling.json"]


def _files(cfg: DictConfig, report: Report, folder: Path) -> list[Path]:
    """Measure samples on disk; what is beside them says how they were made."""
    from neural_rdm.evaluation.sample_files import open_samples
    from neural_rdm.reports.tables import write_metrics
    from neural_rdm.runs.load import device_of

    path = Path(cfg.samples)
    made, line = origin(path)
    files = open_samples(path, cfg.num_frames, cfg.frame_interval, cfg.frame_folders)
    line = f"every {cfg.frame_interval}. frame; {line}" if cfg.frame_interval > 1 else line
    sampler = made.get("sampler") or {}
    facts = {
        key: made[key] for key in ("weights", "step", "seed", "first_stage", "precision", "rounding") if key in made
    }
    facts |= {"sampler": sampler.get("name"), "sampler_steps": sampler.get("steps")} if sampler else {}
    facts |= {key: sampler[key] for key in ("cfg_scale", "channels", "interval") if key in sampler}
    paths = write_metrics(
        folder / "report", *report.rows_of_files(files, cfg.batch_size, device_of(cfg.accelerator), line, facts)
    )
    try:  # with the configuration of the run that drew them, they stand in reports as an evaluation of that run does
        used = read_config(Path(made["run"])).copy()
    except (KeyError, UserError):
        return paths
    used.metric, used.sampler = cfg.metric, sampler and {**used.sampler, **sampler}
    write_text(folder / "config.yaml", OmegaConf.to_yaml(used))
    return [*paths, folder / "config.yaml"]


def origin(samples: Path) -> tuple[dict[str, Any], str]:
    """How samples on disk were made: what the `sampling.json` in or beside them says, and that as a line."""
    for folder in (samples, samples.parent, samples.parent.parent):
        if (folder / "sampling.json").is_file() and (made := read_mapping(folder / "sampling.json")):
            return made, "; ".join(f"{key} {_as_text(value)}" for key, value in made.items() if value is not None) + "."
    return {}, "there is no sampling.json that says how they were made."


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_as_text(inner)}" for key, inner in value.items()) + ")"
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def complete(overrides: list[str], _: object = None) -> list[str]:
    """A run's own sampler, metric and seed; samples on disk need none of them but a metric.

    Raises:
        UserError: neither or both, or no metric.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "evaluate is one process: let torchrun draw the samples with neural_rdm.sample count=N hydra.run.dir=DIR, "
            "then evaluate samples=DIR"
        )
    given = {o.key_or_group: o.value() for o in parse(overrides)}
    if given.get("samples") is None:
        return inherit(overrides, groups=("sampler", "metric"), keys=("seed",))
    if given.get("run") is not None:
        raise ConfigError("samples= and run= are two things to measure: pass one of them")
    unused = [key for key in given if key in ("weights", "seed", "metric.count") or key.split(".")[0] == "sampler"]
    if unused:
        raise ConfigError(
            f"{unused[0]}= says how to draw; samples= are measured as they are, all of them: leave it out"
        )
    if given.get("metric") is None:
        raise ConfigError("samples= needs metric=images or metric=videos, and metric.reference=FILE")
    return [*overrides, "run=null", "seed=0", "experiment=samples"]


if __name__ == "__main__":
    main("evaluate", evaluate, complete)
