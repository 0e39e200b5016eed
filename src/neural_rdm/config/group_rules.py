"""What the groups of a training configuration must agree on: sizes, classes, texts, gates, samplers."""

from __future__ import annotations

import math
import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from neural_rdm.config.process_rules import check_process
from neural_rdm.config.schema import constants
from neural_rdm.config.sources import Sources, refused
from neural_rdm.config.strategy_rules import check_strategy
from neural_rdm.core.arguments import nearest
from neural_rdm.core.errors import ConfigError


def check_across(cfg: DictConfig, sources: Sources) -> None:
    """Rules between groups; names are looked up softly: a backbone or data set of one's own need not have them.

    Raises:
        ConfigError: two choices that do not fit together, saying what to type.
    """
    backbone, data = cfg.backbone, cfg.data
    check_strategy(cfg, sources)
    channels, (key, width) = cfg.first_stage.get("channels"), _called(backbone, CHANNELS)
    if channels is not None and width is not None and channels != width:
        raise refused(f"first_stage.channels={channels} but {key}={width}; pass {key}={channels}", key, sources)
    facts = constants(data, "data")
    classes, labels = data.get("num_classes") or facts.get("num_classes"), _labels(backbone)
    if classes and labels and classes != labels:
        key, rows = _called(backbone, CLASSES)
        says = f"data.num_classes={classes}" if "num_classes" in data else f"the data have {classes} classes"
        raise refused(f"{says} but {key}={rows}; pass {for_classes(backbone, classes)}", key, sources)
    frames, clip = backbone.get("num_frames"), data.get("num_frames")
    if frames is not None and clip is not None and frames != clip:
        raise refused(
            f"data.num_frames={clip} but backbone.num_frames={frames}; pass data.num_frames={frames} or "
            f"backbone.num_frames={clip}",
            "data.num_frames",
            sources,
        )
    _check_text(cfg, sources)
    if cfg.condition is not None and classes:
        raise refused(
            "condition needs data with captions (data=coco, journeydb or digits_text), and these have classes",
            "condition",
            sources,
        )
    _check_gates(cfg, sources)
    _check_control(cfg, sources)
    check_process(cfg, sources)
    _check_objective(cfg, sources)
    _check_sampler(cfg, sources)
    size, (key, side) = _latent_size(cfg), _called(backbone, SIZES)
    if size is not None and side is not None and size != side:
        raise refused(
            f"data.image_size={data.image_size} becomes {size} x {size} behind this first stage, but {key}={side}; "
            f"pass {key}={size} or another data.image_size",
            key,
            sources,
        )
    if channels is None:
        _check_shape(backbone, facts.get("sample_shape"), sources)


#: what the official codes of DiT and Latte, LDM and ADM, and U-ViT call one and the same
SIZES = ("input_size", "image_size", "img_size")
CHANNELS = ("in_channels", "in_chans")
CLASSES = ("num_context_classes", "num_classes")
TEXTS = ("context_dim", "clip_dim")


def _called(backbone: DictConfig, names: tuple[str, ...]) -> tuple[str, Any]:
    """(full key, value) of the first of these names that a backbone has a value for; the last name and None if none."""
    found = [name for name in names if backbone.get(name) is not None]
    return (f"backbone.{found[0]}", backbone[found[0]]) if found else (f"backbone.{names[-1]}", None)


def _labels(backbone: DictConfig) -> int:
    """The classes that a backbone is conditioned on; 0 for none. Latte says by `extras` whether it is; a U-ViT counts
    the rows of its table, the null class among them, and writes -1 for none.
    """
    if backbone.get("extras", "class") not in ("class", 2):
        return 0
    classes = _called(backbone, CLASSES)[1] or 0
    null = "img_size" in backbone and backbone.get("class_dropout_prob", 0) > 0
    return max(0, classes - null)


def for_classes(backbone: DictConfig, classes: int) -> str:
    """The override that gives a backbone so many classes, such as `backbone.num_classes=10`."""
    key, rows = _called(backbone, CLASSES)
    return f"{key}={(rows or 0) + classes - _labels(backbone)}"


def _reads(backbone: DictConfig) -> tuple[str, int | None]:
    """(full key, width) of the text that a backbone reads; None for no text. An LDM's context may be its class."""
    if backbone.get("extras") in ("text", 78):
        return "backbone.context_dim", 768  # 77 tokens of CLIP, as in the official Latte
    key, width = _called(backbone, TEXTS)
    return key, None if backbone.get("num_context_classes") is not None else width


def _check_shape(backbone: DictConfig, shape: tuple[int, ...] | None, sources: Sources) -> None:
    """Data that have one shape and are read as they are; None where the class of the data does not say."""
    for names, length in ((SIZES, shape[-1]), (CHANNELS, shape[-3])) if shape else ():
        key, wanted = _called(backbone, names)
        if wanted not in (None, length):
            raise refused(f"the data are {list(shape or ())} but {key}={wanted}; pass {key}={length}", key, sources)


def _check_text(cfg: DictConfig, sources: Sources) -> None:
    """A network that reads a text and the encoder of that text go together."""
    (name, reads), condition = _reads(cfg.backbone), cfg.condition
    if (reads is None) != (condition is None):
        key = name if condition is None else "condition"
        advice = "condition=clip, t5 or minilm" if condition is None else f"{name}=${{condition.dim}}"
        raise refused(
            f"{key} is set, but a text needs both an encoder and a network that reads it; pass {advice} too",
            key,
            sources,
        )
    if reads is None:
        return
    if condition.get("dim") is not None and condition.dim != reads:
        raise refused(f"{name}={reads} but condition.dim={condition.dim}; pass {name}={condition.dim}", name, sources)
    tokens, length = cfg.backbone.get("num_clip_token"), condition.get("max_length")
    if tokens is not None and length is not None and tokens != length:
        raise refused(
            f"backbone.num_clip_token={tokens} but condition.max_length={length}; pass condition.max_length={tokens}",
            "backbone.num_clip_token",
            sources,
        )
    if _labels(cfg.backbone):
        raise refused(
            f"{name}={reads} with {_called(cfg.backbone, CLASSES)[0]}={_labels(cfg.backbone)}: no data have captions "
            "and classes; pass backbone.num_classes=0",
            "backbone.num_classes",
            sources,
        )


def _check_gates(cfg: DictConfig, sources: Sources) -> None:
    """What is asked of the gates, of a rule that has them."""
    rule, says = cfg.residual.get("rule"), constants(cfg.residual, "residual")
    _check_fit(cfg, rule, says, sources)
    if cfg.train_only != "all" and rule == "resnet":
        raise refused(
            f"train_only={cfg.train_only} with residual=resnet: this rule has no gates; pass train_only=all or another "
            "residual",
            "train_only",
            sources,
        )
    if cfg.gamma > 0 and says.get("no_supervision"):
        raise refused(
            f"gamma={cfg.gamma} with residual={rule}: its sensitivity can be measured but not supervised, since "
            f"{says['no_supervision']}; pass gamma=0",
            "gamma",
            sources,
        )
    if cfg.gamma > 0 and cfg.supervision == "exact":
        trainer = cfg.trainer
        wrong = {
            "strategy=single": not cfg.strategy._target_.endswith(".single"),
            "trainer.devices=1": trainer.devices * trainer.num_nodes > 1,
            "trainer.accumulate_grad_batches=1": trainer.accumulate_grad_batches > 1,
            "trainer.compile=false": trainer.compile,
            "trainer.activation_checkpointing=none": trainer.activation_checkpointing != "none",
            "trainer.precision=32-true": trainer.precision == "16-mixed",
        }
        if missing := [key for key, is_wrong in wrong.items() if is_wrong]:
            raise refused(
                f"supervision=exact differentiates twice, the slow reference for one process; pass {' '.join(missing)} "
                "or supervision=local",
                "supervision",
                sources,
            )
    if cfg.pretrained.reinit and cfg.pretrained.path is None:
        raise refused(
            f"pretrained.reinit={list(cfg.pretrained.reinit)} without pretrained.path: there is nothing to leave out",
            "pretrained.reinit",
            sources,
        )


def _check_control(cfg: DictConfig, sources: Sources) -> None:
    """What the control of a rule cannot go with: it has no gates, and `mlp_widened` other MLPs than trained weights."""
    control = cfg.control
    if control is None:
        return
    wrong = {
        "gamma": (cfg.gamma > 0, "0", "this control has no gates to supervise"),
        "train_only": (cfg.train_only != "all", "all", "this control has no gates to train alone"),
        "pretrained.path": (
            control == "mlp_widened" and cfg.pretrained.path is not None,
            "null",
            "trained weights have MLPs of their own width",
        ),
    }
    for key, (is_wrong, instead, reason) in wrong.items():
        if is_wrong:
            value = OmegaConf.select(cfg, key)
            raise refused(f"{key}={value} with control={control}: {reason}; pass {key}={instead}", key, sources)


def _check_objective(cfg: DictConfig, sources: Sources) -> None:
    """A number that the run will have, as far as that is known before it is trained."""
    name = cfg.get("optimized_metric")
    if name is None:
        return
    kind, _, _ = name.rpartition("/")
    measures = constants(cfg.metric, "metric").get("measures") if cfg.metric is not None else ()
    nodes = [node for node in (cfg.callbacks or {}).values() if node is not None]
    validations = [node.every_n_steps for node in nodes if node._target_.endswith(".Validation")]
    problem = None
    if kind == "val" and min(validations, default=math.inf) > cfg.trainer.max_steps:
        problem = "nothing is validated in these steps; pass a smaller callbacks.validation.every_n_steps"
    elif kind not in ("", "train", "val") and nearest(kind, ("train", "val")):
        problem = f"the columns of metrics.csv begin with train/ and val/.{nearest(name, ('train/loss', 'val/loss'))}"
    elif not kind and cfg.metric is None:
        problem = "there is no report without a metric; choose one, or pass a column of metrics.csv such as val/loss"
    elif not kind and measures and not re.fullmatch(rf"(at_\d+_)?({'|'.join(measures)})", name):
        problem = f"this metric measures {', '.join(measures)}.{nearest(name, measures)}"
    if problem is not None:
        raise refused(f"optimized_metric={name}: {problem}", "optimized_metric", sources)


def _check_fit(cfg: DictConfig, rule: str, says: dict[str, Any], sources: Sources) -> None:
    """What a network asks of a residual rule; both say it in constants of their classes."""
    network = constants(cfg.backbone, "backbone")
    if says.get("start") == "identity" and cfg.backbone.get("adaln_gate_init") == 0:
        raise refused(
            f"backbone.adaln_gate_init=0 with residual={rule}: its gates start at 0 too, and two zeros in series never "
            "learn; pass backbone.adaln_gate_init=null",
            "backbone.adaln_gate_init",
            sources,
        )
    name = str(cfg.backbone._target_).rpartition(".")[2]
    if network.get("of_diffusers") and cfg.residual.get("time_conditioned"):
        raise refused(
            f"residual.time_conditioned=true: {name} is built of diffusers' blocks, which hand no timestep embedding "
            "to their units; pass residual.time_conditioned=false",
            "residual.time_conditioned",
            sources,
        )
    if network.get("of_diffusers") and says.get("single") is False:
        raise refused(
            f"residual={rule} cannot be had in {name}: its stream is several tensors, and the blocks of diffusers hand "
            "on one; pass another residual, or a backbone of another network",
            "residual.rule",
            sources,
        )
    if (k := cfg.backbone.get("long_skip")) is not None and says.get("no_reopening"):
        raise refused(
            f"backbone.long_skip={k} with residual={rule}: {says['no_reopening']}; pass backbone.long_skip=null",
            "backbone.long_skip",
            sources,
        )
    if cfg.backbone.get("skip") and network.get("u_shaped") and says.get("no_reopening"):
        raise refused(
            f"residual={rule} cannot be had in {name} with long skips: {says['no_reopening']}; pass backbone.skip="
            "false or another residual",
            "residual.rule",
            sources,
        )


def _check_sampler(cfg: DictConfig, sources: Sources) -> None:
    """What would otherwise come to light at the first preview, hours into a run."""
    backbone, sampler = cfg.backbone, cfg.sampler
    guided = sampler.get("cfg_scale", 1) != 1
    conditional = "num_classes" not in backbone or _labels(backbone) or cfg.condition is not None
    if guided and (not conditional or backbone.get("class_dropout_prob") == 0):
        raise refused(
            f"sampler.cfg_scale={sampler.cfg_scale} needs a class or a text, and backbone.class_dropout_prob above 0; "
            "pass sampler.cfg_scale=1",
            "sampler.cfg_scale",
            sources,
        )
    channels, (key, width) = sampler.get("channels"), _called(backbone, CHANNELS)
    if isinstance(channels, int) and width is not None and channels > width:
        raise refused(
            f"sampler.channels={channels} but {key}={width}; pass sampler.channels=all", "sampler.channels", sources
        )
    untrained = cfg.diffusion.get("loss") == "simple" and _learns_variance(backbone) is True
    if untrained and sampler.get("name") == "ddpm":
        raise ConfigError(
            "diffusion.loss=simple leaves a learned variance untrained, and sampler.name=ddpm would draw with it; pass "
            "diffusion.loss=hybrid or backbone.learn_sigma=false"
        )


def _learns_variance(backbone: DictConfig) -> bool | None:
    """Whether a backbone predicts the variance too; None where its configuration does not say."""
    if "out_channels" in backbone and "in_channels" in backbone:
        return bool(backbone.out_channels == 2 * backbone.in_channels)
    return False if "img_size" in backbone else backbone.get("learn_sigma")  # a U-ViT has no such output


def _latent_size(cfg: DictConfig) -> int | None:
    size = cfg.data.get("image_size")
    return None if size is None else size // cfg.first_stage.get("downsample", 1)
