"""From a checked configuration to objects: the only place that instantiates configuration nodes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, get_object, instantiate
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from neural_rdm.backbones.contract import Backbone
from neural_rdm.config.provenance import config_hash
from neural_rdm.config.resume import lasting
from neural_rdm.config.trust import check_trusted, escaped, named
from neural_rdm.core.errors import CheckpointError, ConfigError, UserError, first_line
from neural_rdm.data.base import DataModule
from neural_rdm.data.encoded.latents import Clip, Latents, stored_tokens
from neural_rdm.evaluation.measuring import Report
from neural_rdm.residual import Residual
from neural_rdm.runs import loggers
from neural_rdm.runs.finish import drawn_at_end
from neural_rdm.surgery.controls import controlled
from neural_rdm.surgery.official import load_official
from neural_rdm.training import precision as precisions
from neural_rdm.training.callbacks.checkpoints import Checkpoints, StreamedCheckpointIO, sick
from neural_rdm.training.callbacks.guards import FiniteSteps, StopOnSignal
from neural_rdm.training.callbacks.logging import Metrics
from neural_rdm.training.callbacks.pages import Pages
from neural_rdm.training.callbacks.progress import StepBar
from neural_rdm.training.callbacks.recording import EvaluationLog
from neural_rdm.training.callbacks.steps import in_order
from neural_rdm.training.callbacks.supervision import Supervision
from neural_rdm.training.launching import Launcher
from neural_rdm.training.module import NeuralRDM, module_class
from neural_rdm.training.optim import freeze

#: keys of `data` that say where training reads it, and are no arguments of a data set's class
STORAGE = ("source", "latents")


#: forward passes that an optimizer step is worth for each of its samples: going back takes two
PASSES = 3
#: whose functions are nodes too
STRATEGIES = "neural_rdm.training.parallel"


def build(node: DictConfig, key: str, **extra: Any) -> Any:
    """Instantiate one node; a data set's own class, wherever training reads it (see `data`).

    Raises:
        ConfigError: its class refuses the values, or does not exist.
    """
    _check_classes(node, key)
    if key == "data":
        node = OmegaConf.masked_copy(node, [str(name) for name in node if name not in STORAGE])
    try:
        # Hydra reads a text twice. A partial, called here: it would turn a dataclass among `extra` into a dictionary.
        twice = OmegaConf.create(escaped(escaped(node)))
        return instantiate(twice, _partial_=True, _convert_="all")(**extra)
    except (ValueError, TypeError, ImportError, InstantiationException) as error:
        cause = error.__cause__ or error if isinstance(error, InstantiationException) else error
        if isinstance(cause, UserError):
            raise cause from error
        raise ConfigError(f"configuration group {key}: {first_line(cause)}") from error


def _check_classes(node: DictConfig, key: str) -> None:
    """Everything is built here, so that here nothing is built that `config.trust` does not know; a name of this project
    must be that of a class of this project, not lead through one of its modules to what that has imported.
    """
    check_trusted(node, f"configuration group {key}")
    for where, name in named(node):
        if name.startswith("neural_rdm."):
            try:
                found = get_object(name)
            except (ImportError, ValueError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"configuration key {key}.{where}: there is no {name} ({first_line(error)})"
                ) from error
            room = str(getattr(found, "__module__", ""))
            if not (isinstance(found, type) and room.startswith("neural_rdm.")) and room != STRATEGIES:
                raise ConfigError(f"configuration key {key}.{where}: {name} is no class of this project")
            chosen = key.startswith("callbacks.") and where == "_target_" and isinstance(found, type)
            if chosen and (not issubclass(found, pl.Callback) or issubclass(found, Checkpoints)):
                raise ConfigError(f"configuration key {key}: {name} is no callback that is chosen")


def network(cfg: DictConfig) -> Backbone:
    """The backbone under its residual rule, or the control of that rule, freshly initialised from the run's seed.

    Raises:
        ConfigError: its class refuses the values, or is no backbone.
    """

    def make(rule: Residual, **arguments: Any) -> Backbone:
        torch.manual_seed(cfg.seed)
        net = build(cfg.backbone, "backbone", residual=rule, **arguments)
        if not isinstance(net, Backbone):
            raise ConfigError(
                f"backbone._target_={cfg.backbone._target_} is no backbone: a network of one's own is a subclass of "
                "neural_rdm.backbones.contract.Backbone"
            )
        return net

    rule, control = residual(cfg.residual), cfg.get("control")
    return make(rule) if control is None else controlled(control, make, rule, cfg.backbone)


def residual(node: DictConfig) -> Residual:
    """The residual rule with its options; a rule of another package is `PACKAGE.MODULE.CLASS`.

    Raises:
        ConfigError: it refuses an option, or does not exist.
    """
    if "." not in node.rule:
        return build(node, "residual")
    check_trusted(node, "configuration group residual")
    try:
        rule = get_class(node.rule)
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(
            f"residual.rule={node.rule}: there is no such class ({error}); the package has to be importable"
        ) from error
    return build(OmegaConf.masked_copy(node, [str(k) for k in node if k != "rule"]), "residual", rule=rule)


def text(cfg: DictConfig) -> Any:
    """The text encoder, not loaded before its first use; None for a network without a text.

    What was encoded together with the latents of a run (the null prompt, the prompts of previews) it knows already.
    """
    if cfg.condition is None:
        return None
    encoder = build(cfg.condition, "condition")
    if cfg.data.get("source") == "latents":
        encoder.remember(stored_tokens(cfg.data.latents))
    return encoder


def data(cfg: DictConfig, held: Mapping[str, Any] | None = None) -> DataModule:
    """The data module, not yet set up: of pixels, or of the latents that were made of them (`data.source=latents`).

    Args:
        held: what the run has written down of its data (see `data.described`): they need not be there then until the
            module is set up.
    """
    node = cfg.data
    module: DataModule
    if node.get("source") == "latents":
        module = Latents(
            node.latents,
            build(cfg.first_stage, "first_stage"),
            node.batch_size,
            node.get("num_workers", 0),
            node.get("limit"),
            node.get("flip"),
            Clip(node.num_frames, node.get("frame_interval", 1), node.get("image_frames", 0))
            if "num_frames" in node
            else None,
            None if cfg.condition is None else cfg.condition.max_length,
        )
    elif held is not None and "root" in node:
        module = build(OmegaConf.merge(node, {"root": None}), "data")  # type: ignore[arg-type]
        module.root = Path(os.path.expanduser(node.root))  # type: ignore[attr-defined]  # who has this key has it
    else:
        module = build(node, "data")
    module.configure(cfg.seed, cfg.trainer.accumulate_grad_batches)
    module.recall(held)
    return module


def module(cfg: DictConfig, space: str, begins: bool = True, net: Backbone | None = None) -> NeuralRDM:
    """The LightningModule.

    Args:
        space: what the data are: "pixels" (to be encoded), "moments" (of which latents are drawn) or "latents".
        net: a network that is there already, with its weights; by default a fresh one.
        begins: start from `pretrained.path`, if there is one; a run that goes on takes all weights from its checkpoint.

    Raises:
        UserError: weights that do not fit, or nothing to train.
    """
    first_stage, net = build(cfg.first_stage, "first_stage"), network(cfg) if net is None else net
    first_stage.reads_moments = space == "moments"
    if cfg.pretrained.path is not None and begins:
        try:
            load_official(net, cfg.pretrained.path, cfg.pretrained.reinit)
        except CheckpointError as error:
            if cfg.get("control") is None:
                raise
            advice = (
                f"control={cfg.control} trains a network without gates: leave it out, or fold the file first (convert)"
            )
            raise CheckpointError(f"{error}. {advice}") from error
        if (name := sick({"state_dict": net.state_dict()})) is not None:
            raise ConfigError(f"pretrained.path={cfg.pretrained.path} holds values that are not finite (first {name})")
    try:
        freeze(net, cfg.train_only)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return module_class(net)(
        net,
        build(cfg.diffusion, "diffusion"),
        build(cfg.optimizer, "optimizer"),
        first_stage,
        text(cfg),
        seed=cfg.seed,
        max_steps=cfg.trainer.max_steps,
        encode=space != "latents" and first_stage.downsample > 1,
        compile_blocks=cfg.trainer.compile,
        activation_checkpointing=cfg.trainer.activation_checkpointing,
    )


def trainer(cfg: DictConfig, folder: Path, report: Report | None = None) -> pl.Trainer:
    """Lightning's Trainer with the callbacks and loggers of the configuration and those that are always on.

    Args:
        report: the run's metric, for the evaluations while it trains.
    """
    quiet()
    options = cfg.trainer
    sampler = build(cfg.sampler, "sampler")
    chosen = [build(node, f"callbacks.{name}") for name, node in (cfg.callbacks or {}).items() if node is not None]
    for callback in chosen:
        if hasattr(callback, "sampler"):
            callback.sampler = sampler
        if isinstance(callback, EvaluationLog):
            callback.report = report
    metrics = Metrics(cfg.log_every_n_steps)
    always = [
        metrics,
        StepBar(metrics, drawn_at_end(chosen, report) * sampler.passes / (PASSES * cfg.data.batch_size)),
        FiniteSteps(cfg.log_every_n_steps, cfg.optimizer.get("skip_nonfinite", 0)),
        StopOnSignal(),
        Pages(),
        Checkpoints(
            folder / "checkpoints", cfg.checkpoint.every_n_steps, cfg.checkpoint.keep, config_hash(lasting(cfg))
        ),
    ]
    if cfg.gamma > 0:
        always.append(Supervision(cfg.gamma, cfg.target, cfg.supervision))
    plugins: list[Any] = [StreamedCheckpointIO(cfg.checkpoint.sharded, cfg.checkpoint["async"])]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # its handler saves in the middle of a step
    strategy = build(cfg.strategy, "strategy", devices=options.devices, num_nodes=options.num_nodes)
    device = precisions.device_of(options.accelerator)
    precision = precisions.chosen(options.precision, device)
    precisions.tf32(options.tf32, device)
    plugin = precisions.plugin(precision, device)
    if plugin is not None and not isinstance(strategy, DeepSpeedStrategy):  # which has plugins of its own
        plugins.append(plugin)
    arguments: dict[str, Any] = dict(  # noqa: C408
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=strategy,
        precision=precision if plugin is None or plugin not in plugins else None,
        max_steps=options.max_steps,
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=cfg.optimizer.get("clip"),
        callbacks=in_order([*chosen, *always]),
        logger=[
            build(node, f"logger.{name}", **loggers.arguments(str(name), node, cfg, folder))
            for name, node in (cfg.logger or {}).items()
        ],
        plugins=plugins,
        default_root_dir=folder,
        enable_progress_bar=False,  # `StepBar` is one
        use_distributed_sampler=False,  # the project's own splits the batch; Lightning's would shuffle it again
        limit_val_batches=0,  # callbacks validate, see training/callbacks/validation.py
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=cfg.log_every_n_steps,
    )
    try:
        made = pl.Trainer(**arguments)
        Launcher.install(made)
        return made
    except MisconfigurationException as error:
        raise ConfigError(
            f"trainer.accelerator={options.accelerator}, trainer.devices={options.devices}: {first_line(error)}"
        ) from error


def quiet() -> None:
    """Keep to what a user can act on: Lightning's hints about devices, workers and products are not."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*",
        ".*`isinstance.*LeafSpec.*",
        ".*lr_scheduler.step.*",
        ".*tensorboardX.*",
        "torch.distributed is disabled.*",  # `core.sharded` reads without communication
        "FSDP2-wrapped module .* returned a view tensor.*",  # which nothing changes in place
    ):
        warnings.filterwarnings("ignore", message=message)
