"""Which pipelines of diffusers can be fine-tuned and looked into, and what their folders say. No torch.

A folder is that of a pipeline (`model_index.json`, a folder for each of its parts) or that of its network alone, as
`save_pretrained` writes either. Its numbers become keys of our own configuration (`settings`), so that a run's
config.yaml holds them, and every check of a configuration reads them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_rdm.config import reader
from neural_rdm.config.check import config_dir
from neural_rdm.config.compose import parse
from neural_rdm.config.grammar import literal
from neural_rdm.core.errors import ConfigError, first_line
from neural_rdm.core.given import programs, read_json

INDEX = "model_index.json"
EXPERIMENT, CAPTIONED = "diffusers_finetune", ("coco", "journeydb", "digits_text")
#: keys of a U-Net that reads text, by which it is told something else too
FURTHER = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")


@dataclass(frozen=True)
class Family:
    """Networks that are called in one way.

    Args:
        network: the class of the network.
        pipelines: the classes of pipelines that hold one.
        shows: what conditions it: `text`, `classes`, or nothing.
        flow: it is told the times of a flow, and predicts its velocity, where no scheduler says so.
        widths: keys of its configuration: the width of a text's tokens, and of the pooled text where it reads one.
        tokens: of a text for its T5; 0 where it has none.
        side: of its latents, where its configuration does not say.
    """

    network: str
    pipelines: tuple[str, ...] = ()
    shows: str = ""
    flow: bool = False
    widths: tuple[str, ...] = ()
    tokens: int = 0
    side: int | None = None


FAMILIES = {
    family.network: family
    for family in (
        Family("UNet2DModel", ("DDPMPipeline", "DDIMPipeline", "LDMPipeline"), "classes"),
        Family("UNet2DConditionModel", ("StableDiffusionPipeline",), "text", widths=("cross_attention_dim",)),
        Family("DiTTransformer2DModel", ("DiTPipeline",), "classes"),
        Family(
            "PixArtTransformer2DModel", ("PixArtAlphaPipeline", "PixArtSigmaPipeline"), "text",
            widths=("caption_channels",), tokens=120,
        ),
        Family(
            "SD3Transformer2DModel", ("StableDiffusion3Pipeline",), "text", flow=True,
            widths=("joint_attention_dim", "pooled_projection_dim"), tokens=256,
        ),
        Family(
            "FluxTransformer2DModel", ("FluxPipeline",), "text", flow=True,
            widths=("joint_attention_dim", "pooled_projection_dim"), tokens=512, side=128,
        ),
    )
}  # fmt: skip

#: what a scheduler says -> `diffusion.process.prediction`, `diffusion.process.schedule`
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


@dataclass(frozen=True)
class Folder:
    """What the files of a folder say.

    Args:
        path: the folder that was asked for.
        part: the folder inside it that holds the network; None where the network lies in it itself.
        family: of the network.
        network: its configuration.
        pipeline: the class of the pipeline; None for a network alone.
        parts: the names of the pipeline's parts that it has.
    """

    path: Path
    part: str | None
    family: Family
    network: dict[str, Any]
    pipeline: str | None = None
    parts: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """Channels of a latent; Flux packs two by two cells into one token."""
        packed = 4 if self.family.network == "FluxTransformer2DModel" else 1
        return int(self.network["in_channels"]) // packed

    @property
    def side(self) -> int | None:
        """Cells along a side of the latents that the network was made for; None where nothing says so."""
        size = self.network.get("sample_size") or self.family.side
        return int(size[0] if isinstance(size, Sequence) else size) if size is not None else None

    @property
    def classes(self) -> int:
        """Classes of its labels, the null class not among them."""
        if self.family.shows != "classes":
            return 0
        return int(self.network.get("num_embeds_ada_norm") or self.network.get("num_class_embeds") or 0)

    @property
    def widths(self) -> list[int]:
        """Width of a text's tokens, and of the pooled text."""
        return [int(self.network[key]) for key in self.family.widths]

    @property
    def tokens(self) -> int:
        """The most tokens of a text, those of CLIP in SD3 aside."""
        if self.pipeline == "PixArtSigmaPipeline":
            return 300
        return self.family.tokens or self.clip_tokens

    @property
    def clip_tokens(self) -> int:
        """Tokens of a text in the pipeline's CLIP."""
        return int((self.config("text_encoder") or {}).get("max_position_embeddings", 77))

    @property
    def learns_variance(self) -> bool:
        """Whether the output has a second half, the variance."""
        return bool(self.network.get("out_channels") == 2 * self.network["in_channels"])

    def config(self, part: str, file: str = "config.json") -> dict[str, Any] | None:
        """What a part of the pipeline says of itself; None where the pipeline lists no such part."""
        return _read(self.path / part / file) if part in self.parts else None


def read_folder(path: str | Path, key: str) -> Folder:
    """What a folder says of the network in it.

    Args:
        key: where it was typed, for messages.

    Raises:
        ConfigError: no such folder, or one of a network that is not known here.
    """
    path = Path(path)
    if not path.is_dir():
        raise ConfigError(
            f"{key}={path}: no such folder ({path.resolve()}). Give one that save_pretrained of diffusers wrote; "
            "`hf download OWNER/NAME --local-dir DIR` brings a published one",
            key=key,
        )
    if (path / INDEX).is_file():
        index = _read(path / INDEX)
        if (said := programs(path, index)) is not None:
            raise ConfigError(f"{key}={path}: {said}, which would be run as it is loaded", key=key)
        parts = tuple(n for n, v in index.items() if isinstance(v, list) and len(v) == 2 and v[1] is not None)
        part = next((name for name in ("transformer", "unet") if name in parts), None)
        if part is None:
            raise ConfigError(f"{key}={path}: this {index.get('_class_name')} has no transformer and no unet", key=key)
        family, network = _network(path / part, key)
        kind = str(index.get("_class_name"))
        if kind not in family.pipelines:
            known = ", ".join(p for f in FAMILIES.values() for p in f.pipelines)
            raise ConfigError(
                f"{key}={path} is a {kind}, which is not one of {known}. docs/diffusers.md shows how gates are put "
                "into any other network of diffusers, and trained, in one's own script",
                key=key,
            )
        return Folder(path, part, family, network, kind, parts)
    return Folder(path, None, *_network(path, key))


def _network(path: Path, key: str) -> tuple[Family, dict[str, Any]]:
    if not (path / "config.json").is_file():
        raise ConfigError(f"{key}={path}: it holds neither {INDEX} nor config.json of save_pretrained", key=key)
    config = _read(path / "config.json")
    kind = str(config.get("_class_name")).removeprefix("Gated")
    if kind not in FAMILIES:
        raise ConfigError(
            f"{key}={path} holds a {kind}; how such a network is called is known here for {', '.join(FAMILIES)}. "
            "docs/diffusers.md shows the few lines of Python that do the same for any other",
            key=key,
        )
    family = FAMILIES[kind]
    _holds(config, ("in_channels", *family.widths), path)
    more = [name for name in FURTHER if config.get(name) is not None]
    if more and family.shows == "text":
        said = f"{key}={path}: this {kind} is told more than latents, time and text ({more[0]}={config[more[0]]}), as"
        raise ConfigError(f"{said} Stable Diffusion XL is; docs/diffusers.md trains such a one in a script", key=key)
    return family, config


def _holds(config: dict[str, Any], keys: Sequence[str], path: Path) -> None:
    if lacking := [key for key in keys if not config.get(key)]:
        raise ConfigError(f"{path / 'config.json'} does not say {' and '.join(lacking)}: it is no whole configuration")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is no configuration of diffusers")
    return content


# -- a folder as keys of our configuration


def process_of(folder: Folder) -> dict[str, Any]:
    """The keys of `diffusion` and the sampler that go with a folder's scheduler; for a network alone, those of the
    pipeline that its class is known from.

    A flow's times are logit-normal, moved as its scheduler moves them: sigma -> s sigma / (1 + (s - 1) sigma) adds
    log(s) to the logit.

    Raises:
        ConfigError: a process that we do not have.
    """
    scheduler = folder.config("scheduler", "scheduler_config.json")
    if scheduler is None:
        if folder.pipeline is not None:
            raise ConfigError(f"{folder.path}: it has no scheduler, which says what its network predicts")
        scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler" if folder.family.flow else "DDPMScheduler"}
        if folder.family.network == "UNet2DConditionModel":
            scheduler |= {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    total = scheduler.get("num_train_timesteps", 1000)
    if (
        str(scheduler.get("_class_name")).startswith("FlowMatch")
        or scheduler.get("prediction_type") == "flow_prediction"
    ):
        shift = 1.0 if scheduler.get("use_dynamic_shifting") else float(scheduler.get("shift", 1.0))
        times = {"diffusion.logit_mean": round(math.log(shift), 6)}
        return {"diffusion": "flow", "sampler": "euler", **times, "diffusion.process.num_timesteps": total}
    betas, predicted = scheduler.get("beta_schedule", "linear"), scheduler.get("prediction_type", "epsilon")
    for wrong, said in (
        (scheduler.get("trained_betas") is not None, "trained_betas"),
        (bool(scheduler.get("rescale_betas_zero_snr")), "rescale_betas_zero_snr=true (no signal at the last timestep)"),
        (betas not in SCHEDULES, f"beta_schedule={betas}"),
        (predicted not in PREDICTIONS, f"prediction_type={predicted}"),
    ):
        if wrong:
            raise ConfigError(f"{folder.path}: its scheduler has {said}, a process that is not known here")
    ends = {"beta_start": scheduler.get("beta_start", 0.0001), "beta_end": scheduler.get("beta_end", 0.02)}
    return {
        "diffusion": "ddpm",
        "sampler": "ddim",
        "diffusion.process.schedule": SCHEDULES[betas],
        **{f"diffusion.process.{k}": None if SCHEDULES[betas] == "cosine" else v for k, v in ends.items()},
        "diffusion.process.num_timesteps": total,
        "diffusion.process.prediction": PREDICTIONS[predicted],
    }


def stage_of(folder: Folder) -> dict[str, Any]:
    """The keys of `first_stage` that are a pipeline's autoencoder; those of none where it has none."""
    vae = folder.config("vae")
    if vae is None:
        return {"first_stage": "identity"}
    if vae.get("_class_name") != "AutoencoderKL":
        raise ConfigError(f"{folder.path}: its first stage is a {vae.get('_class_name')}, and AutoencoderKL is wanted")
    _holds(vae, ("block_out_channels", "latent_channels"), folder.path / "vae")
    return {
        "first_stage": "kl_f8",
        "first_stage.path": str(folder.path),
        "first_stage.subfolder": "vae",
        "first_stage.scale": vae.get("scaling_factor", 0.18215),
        "first_stage.shift": vae.get("shift_factor") or 0.0,
        "first_stage.downsample": 2 ** (len(vae["block_out_channels"]) - 1),
        "first_stage.channels": vae["latent_channels"],
    }


def completed(overrides: list[str]) -> list[str]:
    """The overrides of a training command with what `pipeline=FOLDER` stands for in front, except what is typed.

    Raises:
        ConfigError: see `settings`.
    """
    parsed = parse(overrides)
    if any(o.key_or_group == "pipeline" and o.is_sweep_override() for o in parsed):
        raise ConfigError("pipeline= takes one folder: give each pipeline a sweep of its own", key="pipeline")
    typed = {o.key_or_group: None if o.is_delete() or o.is_sweep_override() else o.value() for o in parsed}
    if typed.get("exp") == EXPERIMENT and typed.get("pipeline") is None and "resume" not in typed:
        raise ConfigError(f"which pipeline? exp={EXPERIMENT} needs pipeline=FOLDER, one with {INDEX}", key="pipeline")
    if typed.get("pipeline") is None or "resume" in typed:
        return overrides
    if "exp" not in typed and "backbone" not in typed:
        raise ConfigError(f"pipeline={typed['pipeline']} goes with exp={EXPERIMENT}", key="pipeline")
    folder = read_folder(str(typed["pipeline"]), "pipeline")
    if folder.classes and (data := str(typed.get("data", "coco"))) in CAPTIONED:
        raise ConfigError(f"data={data} has no classes, which a {folder.pipeline} is told: try data=image_folder")
    keys = {k: v for k, v in settings(folder).items() if k not in typed and k.partition(".")[0] not in typed}
    cell, side = keys.get("first_stage.downsample", typed.get("first_stage.downsample", 1)), folder.side
    if isinstance(size := typed.get("data.image_size"), int):
        if size % int(str(cell)):
            raise ConfigError(f"data.image_size={size} is no multiple of {cell}, the pixels of a latent cell's side")
        keys["backbone.input_size"] = size // int(str(cell))
    elif side is not None and "backbone.input_size" not in typed and _is_sized(str(typed.get("data", "coco"))):
        keys["data.image_size"] = side * int(str(cell))
    return [*(_override(k, v) for k, v in keys.items()), *overrides]


def _override(key: str, value: Any) -> str:
    """How a key, or the choice of a group (None: it is left out), is typed."""
    return f"~{key}" if value is None and "." not in key else f"{'++' if '.' in key else ''}{key}={literal(value)}"


def _is_sized(data: str) -> bool:
    """Whether a choice of `data` says how large its pictures become."""
    file = config_dir() / "data" / f"{data}.yaml"
    target = re.search(r"(?m)^_target_:\s*(\S+)", file.read_text(encoding="utf-8")) if file.is_file() else None
    read = reader.signature(target[1]) if target else None
    return read is not None and "image_size" in read.arguments


def settings(folder: Folder) -> dict[str, Any]:
    """The choices and keys of a training configuration that a pipeline stands for, group choices first.

    Raises:
        ConfigError: a folder that is no pipeline, or one with a process or a first stage that we do not have.
    """
    if folder.pipeline is None:
        raise ConfigError(f"pipeline={folder.path} holds a network alone; fine-tuning needs the whole pipeline")
    result = {**process_of(folder), **stage_of(folder)}
    result |= {
        "backbone.path": str(folder.path),
        "backbone.in_channels": folder.channels,
        "backbone.learn_sigma": folder.learns_variance,
        "backbone.num_classes": folder.classes,
    }
    if folder.side is not None:
        result["backbone.input_size"] = folder.side
    if folder.family.shows == "text":
        width = max(folder.widths)
        result |= {"condition": "pipeline", "condition.path": str(folder.path), "condition.dim": width}
        result |= {"condition.max_length": folder.tokens, "backbone.context_dim": width}
    else:
        result["condition"] = None
    return {key: result[key] for key in sorted(result, key=lambda key: "." in key)}
