"""`python -m neural_rdm.train`: train a network from a composed configuration, then write its report.

python -m neural_rdm.train exp=digits_gated residual=rezero backbone.depth=8
python -m neural_rdm.train resume=last
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from neural_rdm.cli.app import main, print_paths
from neural_rdm.cli.stopping import saved
from neural_rdm.core.extras import typed
from neural_rdm.core.files import write_text
from neural_rdm.core.output import print_page
from neural_rdm.core.ranks import is_first_rank
from neural_rdm.core.signals import Stopped

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from neural_rdm.backbones.contract import Backbone
    from neural_rdm.data.base import DataModule
    from neural_rdm.evaluation.measuring import Report
    from neural_rdm.latents.first_stage import Autoencoder
    from neural_rdm.training.module import NeuralRDM


def train(cfg: DictConfig, folder: Path) -> int:
    """Train as `cfg` says in the run folder `folder`, continuing from its newest readable checkpoint if it has one.

    Returns:
        The exit code: 0, or 143 (130, 129) where SIGTERM (Ctrl-C, a closed terminal) stopped the run after its step was
        saved.

    Raises:
        UserError: anything that the user can put right.
    """
    # Everything heavy is imported here, after the configuration has been checked.
    import torch

    from neural_rdm.config.provenance import check_checkpoint, read_provenance, write_config, write_provenance
    from neural_rdm.config.resume import lasting
    from neural_rdm.core.errors import ConfigError
    from neural_rdm.core.records import truncate
    from neural_rdm.core.sharded import load_rest
    from neural_rdm.data.described import check_same, described
    from neural_rdm.data.prompts import tell_too_long
    from neural_rdm.latents.first_stage import Autoencoder
    from neural_rdm.runs import build, loggers
    from neural_rdm.training.callbacks.checkpoints import newest_readable
    from neural_rdm.training.launching import watched

    if cfg.trainer.num_threads is not None:
        torch.set_num_threads(cfg.trainer.num_threads)
    checkpoint = newest_readable(folder / "checkpoints")
    step = 0
    if checkpoint is not None:
        content = load_rest(checkpoint)
        check_checkpoint(folder, cfg, checkpoint, content)
        step = content["global_step"]
    held = None if cfg.accept_data else read_provenance(folder).get("data")
    data = build.data(cfg)
    data.report_folder = folder
    data.setup()
    if is_first_rank():
        found = described(data)
        if held is not None:
            check_same(held, found)
        else:
            write_provenance(folder, data=found)
    module = build.module(cfg, data.space, begins=checkpoint is None)
    classes = module.net.num_classes  # 0: an unconditional network takes any data
    if classes and data.num_classes and classes != data.num_classes:
        raise ConfigError(
            f"the data have {data.num_classes} classes but backbone.num_classes={module.net.num_classes}; "
            f"pass backbone.num_classes={data.num_classes}"
        )
    if classes and data.num_classes is None:
        raise ConfigError(
            f"backbone.num_classes={classes}, but these data have no labels; pass backbone.num_classes=0, or data with "
            "classes"
        )
    if module.text is not None and data.prompts(1) is None:
        raise ConfigError(
            f"condition needs data with captions (data=coco, journeydb or digits_text), not {type(data).__name__}"
        )
    if module.text is not None:
        module.text.encode([""])  # an encoder that cannot be loaded is found now
        if is_first_rank() and getattr(data, "length", None) is None:  # stored tokens were cut, and said so, by encode
            tell_too_long(module.text, data.train_set, cfg.seed)
    shape = tuple(module.net.input_shape)
    if images := getattr(data, "image_frames", 0):  # joint training: independent images behind the clip's frames
        if len(shape) != 4:
            raise ConfigError("data.image_frames needs a network of clips (backbone=latte, num_frames above 1)")
        shape = (shape[0] + images, *shape[1:])
    if module.encode and isinstance(module.first_stage, Autoencoder) and module.first_stage.scale is None:
        _measure_scale(module.first_stage, data, cfg, folder)
    if not module.encode and data.sample_shape != shape:
        raise ConfigError(
            f"the data are {list(data.sample_shape)} but the network takes {list(shape)}; "
            "set backbone.in_channels, backbone.input_size and, for clips, backbone.num_frames"
        )
    cell = module.first_stage.downsample
    if module.encode and data.space == "pixels" and data.sample_shape[-1] != cell * shape[-1]:
        raise ConfigError(
            f"the data are {data.sample_shape[-1]} pixels wide, behind the first stage {data.sample_shape[-1] // cell} "
            f"cells, but the network takes {shape[-1]}; pass backbone.input_size={data.sample_shape[-1] // cell}"
        )
    report = build.build(cfg.metric, "metric") if cfg.metric is not None else None
    if report is not None:
        report.check(
            data, module.net, pixels=module.encode or data.space == "pixels"
        )  # what cannot be measured is refused now, not after training
    if is_first_rank():  # nothing is refused any more: from here on the folder changes
        write_config(folder, lasting(cfg))
        measured = [f"sensitivity/{name}" for name in ("sensitivity", "units", "alarms")]
        for name in ("metrics", "throughput", "evaluations", *measured):
            truncate(folder / f"{name}.csv", step)
    trainer = build.trainer(cfg, folder, report)
    loggers.begin(trainer, cfg, folder)
    _announce(cfg, module.net, data.train_size, folder, checkpoint, step)
    launcher = trainer.strategy.launcher
    with watched(trainer.global_rank, trainer.world_size, lambda: saved(folder, folder), launcher):
        return _fit_and_report(cfg, folder, trainer, module, data, checkpoint, report)


def _fit_and_report(
    cfg: DictConfig,
    folder: Path,
    trainer: pl.Trainer,
    module: NeuralRDM,
    data: DataModule,
    checkpoint: Path | None,
    report: Report | None,
) -> int:
    """Train, then write the report of a run that has done all its steps; return the exit code."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from neural_rdm.reports.rates import recorded
    from neural_rdm.runs import build, loggers
    from neural_rdm.runs.finish import finish
    from neural_rdm.runs.folders import PAGE
    from neural_rdm.training import parallel
    from neural_rdm.training.callbacks.guards import StopOnSignal
    from neural_rdm.training.held import callbacks_of

    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException:  # what our handler raised was swallowed, as Python does in what it calls around a fork
        raise Stopped(signal.SIGTERM) from None  # Lightning's has heard it too, and would end with exit code 0
    (stop,) = callbacks_of(trainer, StopOnSignal)
    if stop.received and trainer.global_step < cfg.trainer.max_steps:
        if is_first_rank():
            print(f"stopped by {stop.signal.name} after step {trainer.global_step}, which is saved.")
            print(f"Continue with {typed('resume', folder)}", flush=True)
        # Lightning kills the first rank when another one ends with an error code.
        return stop.exit_code if is_first_rank() else 0

    module.to(trainer.strategy.root_device)  # fit moved it to the CPU
    numbers, paths = finish(trainer, module, build.build(cfg.sampler, "sampler"), report, folder)
    loggers.end(trainer, cfg, folder, numbers)
    if is_first_rank():
        page = [path for path in (folder / PAGE,) if path.is_file()]  # of all this; it is written once more at the end
        name = cfg.optimized_metric
        objective = None if name is None else recorded(folder, name)
        if name is not None and objective is None:
            print(f"optimized_metric={name}: this run has recorded no such number", flush=True)
        content = {
            "global_step": trainer.global_step,
            "world_size": parallel.processes(),
            "objective": objective,
            "files": [str(p.relative_to(folder)) for p in [*paths, *page]],
        }
        write_text(folder / "finished.json", json.dumps(content, indent=2) + "\n")
        if report is not None:
            print_page(folder / "report" / "metrics.md")
        print(f"finished {trainer.global_step} steps. Look at:")
        print_paths([*paths, folder / "checkpoints" / "last.ckpt", *page])
    return 0


def complete(overrides: list[str], folders: object = None) -> list[str]:
    """Put what a pipeline says in front of the overrides; see `pipelines.folder.completed`."""
    from neural_rdm.pipelines.folder import completed

    return completed(overrides)


def _measure_scale(first_stage: Autoencoder, data: DataModule, cfg: DictConfig, folder: Path) -> None:
    """Measure the scale of the latents on the first training batch, the same on every rank, and write it down: from now
    on it is a number of this run's configuration.
    """
    from neural_rdm.config.provenance import write_config
    from neural_rdm.config.resume import lasting
    from neural_rdm.latents.first_stage import measured_scale

    x, positions = data.first_batch(most=64)
    scale = measured_scale(first_stage, x, cfg.seed, positions)
    first_stage.scale = cfg.first_stage.scale = scale
    if is_first_rank():
        print(f"first_stage.scale={scale:.6g}, measured on {len(x)} training samples", flush=True)
        write_config(folder, lasting(cfg))


def _announce(cfg: DictConfig, net: Backbone, samples: int, folder: Path, checkpoint: Path | None, step: int) -> None:
    if not is_first_rank():
        return
    from neural_rdm.config.strategy_rules import sharing
    from neural_rdm.residual import gate_names
    from neural_rdm.runs import build
    from neural_rdm.training import precision

    named, rule_names = list(net.named_parameters()), gate_names(net)
    total, gates = sum(p.numel() for _, p in named), sum(p.numel() for n, p in named if n in rule_names)
    devices = cfg.trainer.devices * cfg.trainer.num_nodes
    key, together = sharing(cfg.strategy, devices)
    groups = f" in groups of {together} ({key})" if together > 1 else ""
    rule = "resnet" if net.control else build.residual(cfg.residual).rule
    micro_steps = cfg.trainer.accumulate_grad_batches
    trained = sum(p.numel() for _, p in named if p.requires_grad)
    print(f"{type(net).__name__}, {total:,} parameters, {gates:,} of them gates (residual={rule}), {trained:,} trained")
    if net.control:
        print(net.control)
    if cfg.pretrained.path is not None and checkpoint is None:
        print(f"starting from {cfg.pretrained.path}")
    batch = f"global batch {cfg.data.batch_size}: {devices} device(s){groups} x {micro_steps} micro-step(s)"
    print(f"{samples:,} training samples; {batch}")
    print(f"learning rate {cfg.optimizer.lr:g}, never scaled")
    print(precision.told(cfg.trainer.precision, cfg.trainer.accelerator, cfg.trainer.tf32))
    print(
        f"run folder {folder}"
        + (f"; continuing after step {step} from {checkpoint.name}" if checkpoint is not None else ""),
        flush=True,
    )


if __name__ == "__main__":
    main("train", train, complete)
