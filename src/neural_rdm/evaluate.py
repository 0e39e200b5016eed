"""`python -m neural_rdm.evaluate`: measure the samples of a trained run, or samples on disk.

python -m neural_rdm.evaluate run=outputs/train/digits_gated/TIME sampler.steps=20 metric.per_class=100
python -m neural_rdm.evaluate run=DIR metric=images metric.reference=FILE guidance=[1,1.5,4] averages=[ema,raw]
python -m neural_rdm.evaluate samples=outputs/sample/EXP/TIME/samples.npz metric=images metric.reference=FILE
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from neural_rdm.cli.app import main, print_paths
from neural_rdm.cli.compose import parse
from neural_rdm.cli.runs import inherit
from neural_rdm.core.errors import ConfigError
from neural_rdm.core.files import write_text
from neural_rdm.reports.tables import read_mapping

if TYPE_CHECKING:
    from neural_rdm.diffusion.samplers import Sampler
    from neural_rdm.training.measuring import Report


def evaluate(cfg: DictConfig, folder: Path) -> int:
    """Write `report/metrics.{md,csv,json}`, and for a run `config.yaml` and `sampling.json`; return the exit code 0.

    With the run's own sampler, metric and seed the numbers are those at the end of its training. `config.yaml` is the
    run's, with what was chosen here in its place, so that the report command compares evaluations as it compares runs.
    With `guidance` or `averages` there is a row for each combination, and a plot of them.

    Raises:
        UserError: no usable run or samples, or a sampler or metric that does not fit them.
    """
    from neural_rdm.cli import build

    report: Report = build.build(cfg.metric, "metric")
    measure = _run if cfg.samples is None else _files
    paths = measure(cfg, report, folder)
    print((folder / "report" / "metrics.md").read_text(encoding="utf-8"))
    print("wrote:")
    print_paths(paths)
    return 0


def _run(cfg: DictConfig, report: Report, folder: Path) -> list[Path]:
    """Measure what a run draws, under each of the settings that were asked for."""
    from neural_rdm.cli import build
    from neural_rdm.cli.runs import load_run
    from neural_rdm.reports.guidance import write_guidance
    from neural_rdm.reports.tables import write_metrics

    sampler: Sampler = build.build(cfg.sampler, "sampler")
    measured: list[tuple[dict[str, Any], list[dict[str, Any]], str]] = []
    for weights in cfg.averages or [cfg.weights]:
        run = load_run(Path(cfg.run), weights, cfg.accelerator)
        if not measured:
            report.check(run.data, run.net, run.pixels)
        for scale in cfg.guidance or [sampler.cfg_scale]:
            print(
                f"samples from {run.checkpoint} (step {run.step}, {weights} weights, cfg_scale {scale:g})", flush=True
            )
            subject = run.subject(replace(sampler, cfg_scale=scale), cfg.seed, cfg.batch_size)
            rows, protocol = report.rows(subject)
            measured.append(({"cfg_scale": scale, "weights": weights}, rows, protocol))
    if cfg.guidance is None and cfg.averages is None:
        paths = write_metrics(folder / "report", rows, protocol)
    else:
        settings = [{**setting, **rows[0]} for setting, rows, _ in measured]
        paths = write_guidance(folder / "report", settings, rows[1:], [protocol for *_, protocol in measured])
    used = run.config.copy()
    used.sampler, used.metric, used.seed = cfg.sampler, cfg.metric, cfg.seed
    write_text(folder / "config.yaml", OmegaConf.to_yaml(used))
    facts = run.facts(sampler, seed=cfg.seed)
    write_text(folder / "sampling.json", json.dumps(facts, indent=2) + "\n")
    return [*paths, folder / "config.yaml", folder / "sampling.json"]


def _files(cfg: DictConfig, report: Report, folder: Path) -> list[Path]:
    """Measure samples on disk; what is beside them says how they were made."""
    from neural_rdm.cli.runs import device_of
    from neural_rdm.data.sample_files import open_samples
    from neural_rdm.reports.tables import write_metrics
    from neural_rdm.training.features import FeatureReport

    if not isinstance(report, FeatureReport):
        raise ConfigError("samples= needs metric=images or metric=videos; the others measure a run: pass run=DIR")
    path = Path(cfg.samples)
    files = open_samples(path, cfg.num_frames, cfg.frame_interval)
    told = f"every {cfg.frame_interval}. frame; {origin(path)}" if cfg.frame_interval > 1 else origin(path)
    rows, protocol = report.rows_of_files(files, cfg.batch_size, device_of(cfg.accelerator), told)
    return write_metrics(folder / "report", rows, protocol)


def origin(samples: Path) -> str:
    """How samples on disk were made, for the protocol line: what the `sampling.json` in or beside them says."""
    for folder in (samples, samples.parent):
        if (folder / "sampling.json").is_file():
            facts = read_mapping(folder / "sampling.json")
            return "; ".join(f"{key} {_told(value)}" for key, value in facts.items() if value is not None) + "."
    return "there is no sampling.json that says how they were made."


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_told(inner)}" for key, inner in value.items()) + ")"
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def prepare(overrides: list[str]) -> list[str]:
    """A run's own sampler, metric and seed; samples on disk need none of them but a metric.

    Raises:
        UserError: neither or both, or no metric.
    """
    given = {o.key_or_group: o.value() for o in parse(overrides)}
    if given.get("samples") is None:
        return inherit(overrides, groups=("sampler", "metric"), keys=("seed",))
    if given.get("run") is not None:
        raise ConfigError("samples= and run= are two things to measure: pass one of them")
    if given.get("metric") is None:
        raise ConfigError("samples= needs metric=images or metric=videos, and metric.reference=FILE")
    return [*overrides, "run=null", "seed=0", "experiment=samples"]


if __name__ == "__main__":
    main("evaluate", evaluate, prepare)
