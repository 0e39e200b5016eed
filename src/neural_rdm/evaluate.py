"""`python -m neural_rdm.evaluate`: measure the samples of a trained run.

python -m neural_rdm.evaluate run=outputs/train/digits_gated/TIME sampler.steps=20 metric.per_class=100
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from neural_rdm.cli.app import main, print_paths
from neural_rdm.cli.runs import inherit
from neural_rdm.core.files import write_text


def evaluate(cfg: DictConfig, folder: Path) -> int:
    """Write `report/metrics.{md,csv,json}`, `config.yaml` and `sampling.json` into `folder`; return the exit code 0.

    With the run's own sampler, metric and seed the numbers are those at the end of its training. `config.yaml` is the
    run's, with what was chosen here in its place, so that the report command compares evaluations as it compares runs.

    Raises:
        UserError: no usable run, or a sampler or metric that does not fit its network and data.
    """
    from neural_rdm.cli import build
    from neural_rdm.cli.runs import load_run
    from neural_rdm.diffusion.samplers import Sampler
    from neural_rdm.training.evaluation import DigitsReport

    run = load_run(Path(cfg.run), cfg.weights, cfg.accelerator)
    sampler: Sampler = build.build(cfg.sampler, "sampler")
    report: DigitsReport = build.build(cfg.metric, "metric")
    run.data.setup()
    metric, labels = report.metric(run.data), report.labels
    print(f"{len(labels)} samples from {run.checkpoint} (step {run.step}, {run.weights} weights)", flush=True)
    drawn = run.draw(
        sampler, report.condition(run.text), len(labels), cfg.seed, cfg.batch_size, lambda x: x.float().cpu()
    )
    _, paths = report.write(metric, drawn, sampler, run.weights, run.step, cfg.seed, folder / "report")

    used = run.config.copy()
    used.sampler, used.metric, used.seed = cfg.sampler, cfg.metric, cfg.seed
    write_text(folder / "config.yaml", OmegaConf.to_yaml(used))
    write_text(folder / "sampling.json", json.dumps(run.facts(sampler, seed=cfg.seed), indent=2) + "\n")
    print((folder / "report" / "metrics.md").read_text(encoding="utf-8"))
    print("wrote:")
    print_paths([*paths, folder / "config.yaml", folder / "sampling.json"])
    return 0


if __name__ == "__main__":
    main("evaluate", evaluate, partial(inherit, groups=("sampler", "metric"), keys=("seed",)))
