"""Where the configuration lives and whether it can work: checked before anything heavy is imported."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neural_rdm.core import primary, schema
from neural_rdm.core.errors import ConfigError


def config_dir() -> Path:
    """The folder of the Hydra groups: inside the installed package, or at the top of the checkout.

    Raises:
        ConfigError: neither exists.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parents[1] / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(
        f"the configuration folder is missing: looked in {package / 'configs'} and {package.parents[1] / 'configs'}"
    )


def nearest(word: str, choices: Iterable[str]) -> str:
    """` Did you mean X?` for the choice most like `word`, or an empty string."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {found[0]}?" if found else ""


def flat_keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration, inner nodes included."""
    if OmegaConf.is_dict(cfg) and not cfg._is_none() and not cfg._is_missing():
        for key in cfg:
            yield f"{prefix}{key}"
            if not OmegaConf.is_missing(cfg, key) and not OmegaConf.is_interpolation(cfg, key):
                yield from flat_keys(cfg[key], f"{prefix}{key}.")


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the values of a configuration came from, to say where a wrong one stands."""

    files: tuple[Path, ...] = ()
    typed: frozenset[str] = frozenset()  # keys that were overridden on the command line

    def where(self, key: str) -> str:
        """` (command line; FILE, FILE)`: the places that hold the last part of `key`."""
        key = re.sub(r"\[\d+\]$", "", key)  # an entry of a list
        last = re.escape(key.rpartition(".")[2])
        line = re.compile(rf"(?m)^\s*['\"]?{last}['\"]?\s*:")
        places = ["command line"] if key in self.typed else []
        places += [str(p) for p in self.files if last and p.is_file() and line.search(p.read_text(encoding="utf-8"))]
        return f" ({'; '.join(places)})" if places else ""


def validate(cfg: DictConfig, command: str = "train", sources: Sources = Sources()) -> None:  # noqa: B008 (frozen)
    """Check every key, type, range and the rules between keys of a command's composed configuration.

    Args:
        cfg: the composed configuration; its interpolations are resolved in place.
        command: whose configuration it is.
        sources: where its values came from.

    Raises:
        ConfigError: the first problem found, naming the key, what is allowed, the nearest valid name and the file.
    """
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        key = _unresolved(cfg)
        raise ConfigError(f"configuration key {key}: {_first_line(error)}{sources.where(key)}") from error
    _check(cfg, primary.COMMANDS[command], "", sources)
    if command == "train":
        _check_across(cfg, sources)


def _unresolved(cfg: DictConfig) -> str:
    """The first key whose interpolation leads nowhere; OmegaConf's own error names only where it leads."""
    for key in flat_keys(cfg):
        try:
            OmegaConf.select(cfg, key)
        except OmegaConfBaseException:
            return key
    return "(in a list)"


def _check_node(node: Any, key: str, optional: bool, sources: Sources) -> None:
    if node is None and optional:
        return
    if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
        raise ConfigError(
            f"configuration key {key} must be a group choice or a node with a `_target_`, not {node!r}"
            f"{sources.where(key)}"
        )
    target = node["_target_"]
    if target in schema.TARGETS:
        _check(node, schema.TARGETS[target], key, sources)
    elif target.split(".")[0] == "neural_rdm":
        raise ConfigError(
            f"configuration key {key}._target_: no such class {target}.{nearest(target, schema.TARGETS)}"
            f"{sources.where(f'{key}._target_')}"
        )


def _check(node: DictConfig, kind: type, key: str, sources: Sources) -> None:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    prefix = f"{key}." if key else ""
    for name in map(str, node):
        if name not in fields:
            raise ConfigError(
                f"unknown configuration key {prefix}{name}.{nearest(name, fields)}{sources.where(f'{prefix}{name}')}"
            )
    for name in fields:
        if name not in set(node):  # `in node` is False for a key without a value
            raise ConfigError(f"missing configuration key {prefix}{name}{sources.where(key)}")
    try:
        checked: Any = OmegaConf.merge(OmegaConf.structured(kind), node)
    except OmegaConfBaseException as error:
        inner = error.full_key or ""
        definition = fields.get(re.split(r"[.\[]", inner)[0])
        problem = _first_line(error).rstrip(".")
        if definition is not None and not dataclasses.is_dataclass(_plain_type(definition)):
            problem += "; it takes " + re.sub(r"^Optional\[(.*)\]$", r"\1 or null", str(definition.type))
        raise ConfigError(f"configuration key {prefix}{inner}: {problem}{sources.where(f'{prefix}{inner}')}") from error
    for name, definition in fields.items():
        if OmegaConf.is_missing(checked, name):
            raise ConfigError(f"configuration key {prefix}{name} has no value; pass {prefix}{name}=...")
        value = checked[name]
        if dataclasses.is_dataclass(_plain_type(definition)):
            _check(node[name], _plain_type(definition), f"{prefix}{name}", sources)
        elif definition.metadata.get("node"):
            _check_node(node[name], f"{prefix}{name}", definition.metadata["optional"], sources)
        elif definition.metadata.get("nodes"):
            for inner, child in (node[name] or {}).items():
                _check_node(child, f"{prefix}{name}.{inner}", True, sources)
        problem = _out_of_range(value, definition.metadata)
        if problem:
            raise ConfigError(f"configuration key {prefix}{name}={value} {problem}{sources.where(f'{prefix}{name}')}")
    if hasattr(kind, "check"):
        for name, problem in OmegaConf.to_object(checked).check():  # type: ignore[union-attr]
            raise ConfigError(f"configuration key {prefix}{name}: {problem}{sources.where(f'{prefix}{name}')}")


def _plain_type(definition: dataclasses.Field) -> Any:
    return getattr(schema, definition.type, None) if isinstance(definition.type, str) else definition.type


def _out_of_range(value: Any, limits: Any) -> str:
    if value is None:
        return ""
    if "choices" in limits and value not in limits["choices"]:
        return (
            f"is not one of {', '.join(map(str, limits['choices']))}.{nearest(str(value), map(str, limits['choices']))}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if "above" in limits and not value > limits["above"]:
        return f"must be above {limits['above']}"
    if "low" in limits and "high" in limits and not limits["low"] <= value <= limits["high"]:
        return f"must be between {limits['low']} and {limits['high']}"
    if "low" in limits and not value >= limits["low"]:
        return f"must be at least {limits['low']}"
    return ""


def _check_across(cfg: DictConfig, sources: Sources) -> None:
    """Rules between groups; names are looked up softly: a backbone or data set of one's own need not have them."""
    backbone, data, trainer = cfg.backbone, cfg.data, cfg.trainer
    parts = trainer.devices * trainer.num_nodes * trainer.accumulate_grad_batches
    if data.get("batch_size") and data.batch_size % parts:
        raise ConfigError(
            f"data.batch_size={data.batch_size} is the global batch (samples per optimizer step) and must be a "
            f"multiple of trainer.devices * trainer.num_nodes * trainer.accumulate_grad_batches = {parts}; "
            f"nearest: data.batch_size={max(1, round(data.batch_size / parts)) * parts}"
        )
    if cfg.strategy._target_ == "neural_rdm.training.parallel.single" and trainer.devices * trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.devices={trainer.devices} and trainer.num_nodes={trainer.num_nodes} need a parallel strategy: "
            "add strategy=ddp (or fsdp2, deepspeed_zero2, deepspeed_zero3)"
        )
    if backbone.get("learn_sigma") is False and cfg.diffusion.get("loss") == "hybrid":
        raise ConfigError(
            "diffusion.loss=hybrid learns the variance and needs backbone.learn_sigma=true; "
            "or pass diffusion.loss=simple"
        )
    if cfg.residual.get("rule") == "rezero" and backbone.get("adaln_gate_init") == 0:
        raise ConfigError(
            "backbone.adaln_gate_init=0 with residual=rezero: alpha starts at 0 too, and two zeros in series never "
            f"learn; pass backbone.adaln_gate_init=null{sources.where('backbone.adaln_gate_init')}"
        )
    channels = cfg.first_stage.get("channels")
    if channels is not None and backbone.get("in_channels") is not None and channels != backbone.in_channels:
        raise ConfigError(
            f"first_stage.channels={channels} but backbone.in_channels={backbone.in_channels}; pass "
            f"backbone.in_channels={channels}{sources.where('backbone.in_channels')}"
        )
    classes, labels = data.get("num_classes"), _labels(backbone)
    if classes and labels and classes != labels:
        raise ConfigError(
            f"data.num_classes={classes} but backbone.num_classes={backbone.num_classes}; "
            f"pass backbone.num_classes={classes}{sources.where('backbone.num_classes')}"
        )
    frames, clip = backbone.get("num_frames"), data.get("num_frames")
    if frames is not None and clip is not None and frames != clip:
        raise ConfigError(
            f"data.num_frames={clip} but backbone.num_frames={frames}; pass data.num_frames={frames} or "
            f"backbone.num_frames={clip}{sources.where('data.num_frames')}"
        )
    _check_text(cfg, sources)
    _check_gates(cfg, sources)
    _check_sampler(cfg, sources)
    size = _latent_size(cfg)
    if size is not None and backbone.get("input_size") is not None and size != backbone.input_size:
        raise ConfigError(
            f"data.image_size={data.image_size} becomes {size} x {size} behind this first stage, but "
            f"backbone.input_size={backbone.input_size}; pass backbone.input_size={size} "
            f"or another data.image_size{sources.where('backbone.input_size')}"
        )


def _labels(backbone: DictConfig) -> int:
    """The classes that a backbone is conditioned on; 0 for none. Latte says by `extras` whether it is."""
    if backbone.get("extras", "class") not in ("class", 2):
        return 0
    return backbone.get("num_classes") or 0


def _check_text(cfg: DictConfig, sources: Sources) -> None:
    """A network that reads a text and the encoder of that text go together."""
    reads, condition = cfg.backbone.get("context_dim"), cfg.condition
    if cfg.backbone.get("extras") in ("text", 78):
        reads = 768  # 77 tokens of CLIP, as in the official Latte
    if (reads is None) != (condition is None):
        key = "backbone.context_dim" if condition is None else "condition"
        advice = "condition=clip, t5 or minilm" if condition is None else "backbone.context_dim=${condition.dim}"
        raise ConfigError(
            f"{key} is set, but a text needs both an encoder and a network that reads it; pass {advice} too"
            f"{sources.where(key)}"
        )
    if reads is None:
        return
    if condition.get("dim") is not None and condition.dim != reads:
        raise ConfigError(
            f"backbone.context_dim={reads} but condition.dim={condition.dim}; pass backbone.context_dim={condition.dim}"
            f"{sources.where('backbone.context_dim')}"
        )
    if _labels(cfg.backbone):
        raise ConfigError(
            f"backbone.context_dim={reads} with backbone.num_classes={cfg.backbone.num_classes}: no data have captions "
            f"and classes; pass backbone.num_classes=0{sources.where('backbone.num_classes')}"
        )


#: rules whose gates the supervision cannot reach, and why
UNSUPERVISED = {
    "adaln": "the norm behind its alpha cancels the scale of alpha",
    "resnet": "it has no gates",
}


def _check_gates(cfg: DictConfig, sources: Sources) -> None:
    """What is asked of the gates, of a rule that has them."""
    rule = cfg.residual.get("rule")
    if cfg.train_only != "all" and rule == "resnet":
        raise ConfigError(
            f"train_only={cfg.train_only} with residual=resnet: this rule has no gates; pass train_only=all or another "
            f"residual{sources.where('train_only')}"
        )
    if cfg.gamma > 0 and rule in UNSUPERVISED:
        raise ConfigError(
            f"gamma={cfg.gamma} with residual={rule}: its sensitivity can be measured but not supervised, since "
            f"{UNSUPERVISED[rule]}; pass gamma=0{sources.where('gamma')}"
        )
    if cfg.pretrained.reinit and cfg.pretrained.path is None:
        raise ConfigError(
            f"pretrained.reinit={list(cfg.pretrained.reinit)} without pretrained.path: there is nothing to leave out"
            f"{sources.where('pretrained.reinit')}"
        )


def _check_sampler(cfg: DictConfig, sources: Sources) -> None:
    """What would otherwise come to light at the first preview, hours into a run."""
    backbone, sampler, process = cfg.backbone, cfg.sampler, cfg.diffusion.get("process") or {}
    guided = sampler.get("cfg_scale", 1) != 1
    conditional = backbone.get("num_classes") is None or _labels(backbone) or cfg.condition is not None
    if guided and (not conditional or backbone.get("class_dropout_prob") == 0):
        raise ConfigError(
            f"sampler.cfg_scale={sampler.cfg_scale} needs a class or a text, and backbone.class_dropout_prob above 0; "
            f"pass sampler.cfg_scale=1{sources.where('sampler.cfg_scale')}"
        )
    channels, width = sampler.get("channels"), backbone.get("in_channels")
    if isinstance(channels, int) and width is not None and channels > width:
        raise ConfigError(
            f"sampler.channels={channels} but backbone.in_channels={width}; pass sampler.channels=all"
            f"{sources.where('sampler.channels')}"
        )
    total = process.get("num_timesteps")
    most = None if total is None else total - (sampler.get("name") == "dpm++" or sampler.get("steps_offset", 0))
    if most is not None and sampler.get("steps", 1) > most:
        raise ConfigError(
            f"sampler.steps={sampler.steps} but diffusion.process.num_timesteps={total}; pass sampler.steps={most} or "
            f"fewer{sources.where('sampler.steps')}"
        )
    untrained = cfg.diffusion.get("loss") == "simple" and backbone.get("learn_sigma") is True
    if untrained and sampler.get("name") == "ddpm":
        raise ConfigError(
            "diffusion.loss=simple leaves a learned variance untrained, and sampler.name=ddpm would draw with it; pass "
            "backbone.learn_sigma=false"
        )


def _latent_size(cfg: DictConfig) -> int | None:
    size = cfg.data.get("image_size")
    return None if size is None else size // cfg.first_stage.get("downsample", 1)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def as_plain(cfg: DictConfig | ListConfig) -> Any:
    """A resolved configuration as plain dicts and lists."""
    return OmegaConf.to_container(cfg, resolve=True)
