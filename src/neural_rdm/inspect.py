"""`python -m neural_rdm.inspect`: a network of diffusers, unit by unit, with one's own images or latents.

python -m neural_rdm.inspect model=FOLDER images=PICTURES prompts=['a red kite']
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from neural_rdm.cli.app import main, print_paths
from neural_rdm.config.compose import parse
from neural_rdm.config.grammar import folder_name, literal
from neural_rdm.core.errors import ConfigError, DataError, first_line
from neural_rdm.core.output import print_page
from neural_rdm.pipelines.folder import Folder, read_folder

if TYPE_CHECKING:
    from torch import Tensor

    from neural_rdm.pipelines.network import PipelineNet


def complete(overrides: list[str], _: object = None) -> list[str]:
    """Name the output folder after the model's; refuse a folder that cannot be looked into, before torch is loaded.

    Raises:
        ConfigError: no such folder, or one of a network that is not known here.
    """
    asked = [str(o.value()) for o in parse(overrides) if o.key_or_group == "model"]
    if not asked:
        raise ConfigError("which model? Pass model=FOLDER, one that save_pretrained of diffusers wrote")
    read_folder(asked[-1], "model")
    return [f"name={literal(folder_name(Path(asked[-1]).resolve().name))}", *overrides]


def inspect(cfg: DictConfig, folder: Path) -> int:
    """Write what `evaluation.thermometer` measures into `folder`; return the exit code 0.

    Raises:
        UserError: a folder, samples or conditions that do not fit together.
    """
    import torch

    from neural_rdm.core import seeding
    from neural_rdm.core.progress import progress_bar
    from neural_rdm.evaluation.thermometer import Thermometer
    from neural_rdm.lens import time_at
    from neural_rdm.pipelines.network import PipelineNet
    from neural_rdm.pipelines.parts import objective
    from neural_rdm.runs.load import device_of

    device = device_of(cfg.accelerator)
    source = read_folder(cfg.model, "model")
    try:
        net = PipelineNet(str(source.path), dtype=cfg.dtype, input_size=source.side or 1).to(device).eval()
    except ValueError as error:
        raise ConfigError(f"model={cfg.model}: {first_line(error)}") from error
    net.requires_grad_(False)
    loss, process = objective(source), objective(source).process
    x, condition = _samples(cfg, source, net, device)
    reading = Thermometer(net.net, process.num_timesteps, cfg.time_bins)
    u = torch.from_numpy(seeding.uniform(cfg.seed, "inspect timestep", range(len(x))))
    drawn = loss.timesteps(u).to(device)
    noise = seeding.normal(cfg.seed, "inspect noise", range(len(x)), x.shape[1:], device)
    print(f"{type(net.net).__name__}, {len(reading.names)} units, {len(x)} samples {list(x.shape[1:])}", flush=True)

    def of(part: slice, t: Tensor) -> Tensor:
        """The mean loss of some samples at their times."""
        xt = process.q_sample(x[part], t, noise[part])
        output = net(xt, t, **{name: value[part] for name, value in condition.items()})
        return loss.loss(output, x[part], xt, t, noise[part])["loss"].mean()

    parts = [slice(i, i + cfg.batch_size) for i in range(0, len(x), cfg.batch_size)]
    passes = len(parts) * (1 + len(cfg.times) * (2 * len(reading.names) + 1))
    try:
        with progress_bar("looking", passes, "passes") as advance:
            for part in parts:
                with reading.batch(drawn[part]):
                    of(part, drawn[part]).backward()
                advance()
                for share in cfg.times:
                    t = torch.full_like(drawn[part], time_at(process, share))
                    reading.look(t[0].item(), partial(of, part, t), advance)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the {type(net.net).__name__} cannot run these samples: {first_line(error)}") from error
    paths = reading.write(folder)
    print_page(folder / "importance.md")
    print("wrote:")
    print_paths(paths)
    return 0


def _samples(cfg: DictConfig, source: Folder, net: PipelineNet, device: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Latents [N, C, h, w], and what the network is shown with each, on the device."""
    import torch

    held: dict[str, Tensor] = {}
    if cfg.latents is not None:
        held = _read(Path(cfg.latents))
        if "latents" not in held or held["latents"].ndim != 4 or held["latents"].shape[1] != source.channels:
            said = {name: list(value.shape) for name, value in held.items()}
            raise DataError(f"latents={cfg.latents} has no latents [N, {source.channels}, h, w], but {said}")
        x = held["latents"][: cfg.samples].to(device, torch.float32)
    else:
        x = torch.cat(list(_encoded(cfg, source, device)))
    condition = _condition(cfg, source, net, held, len(x))
    for name, value in condition.items():
        if len(value) != len(x):
            raise DataError(f"latents={cfg.latents} holds {len(x)} latents, but {len(value)} of {name}")
    return x, {name: value.to(device) for name, value in condition.items()}


def _encoded(cfg: DictConfig, source: Folder, device: Any) -> Iterator[Tensor]:
    """The latents of the first images, in batches."""
    import torch

    from neural_rdm.evaluation.sample_files import open_samples
    from neural_rdm.pipelines.parts import first_stage

    stage, vae = first_stage(source), source.config("vae")
    if vae is None and source.channels not in (1, 3):
        raise ConfigError(
            f"images={cfg.images}: {cfg.model} has no autoencoder; pass the pipeline's folder, or latents"
        )
    found = open_samples(cfg.images)
    channels = source.channels if vae is None else vae.get("in_channels", 3)
    for i, (pixels, _) in enumerate(found.batches(cfg.batch_size, range(min(cfg.samples, len(found))))):
        if pixels.shape[-1] % stage.downsample or pixels.shape[-2] % stage.downsample:
            raise DataError(f"images={cfg.images}: their sides must be multiples of {stage.downsample}")
        x = pixels[:, :channels].to(device).float() / 127.5 - 1
        yield stage.encode(x, cfg.seed, torch.arange(len(x)) + i * cfg.batch_size)


def _condition(
    cfg: DictConfig, source: Folder, net: PipelineNet, held: dict[str, Tensor], count: int
) -> dict[str, Tensor]:
    """What the network is shown with `count` samples, one row each."""
    import torch

    from neural_rdm.conditioning.conditions import encoded
    from neural_rdm.pipelines.network import packed
    from neural_rdm.pipelines.prompts import PipelineText

    def turns(shown: Any) -> list[Any]:
        return [shown[i % len(shown)] for i in range(count)]

    if cfg.classes is not None and not source.classes:
        raise ConfigError(f"classes={list(cfg.classes)}: this {source.family.network} has none")
    if source.family.shows == "text":
        if "prompt_embeds" in held:
            tokens = held["prompt_embeds"][:count].float()
            if len(source.widths) > 1 and "pooled" not in held:
                raise DataError(f"latents={cfg.latents} holds no pooled, which a {source.family.network} reads")
            text = packed(tokens, held["pooled"][:count].float()) if len(source.widths) > 1 else tokens
            mask = held.get("prompt_mask", torch.ones(text.shape[:2]))[:count].bool()
            return {"context": text, "context_mask": mask}
        if source.pipeline is None:
            raise ConfigError(
                f"model={cfg.model} is a network alone, without text encoders: pass the pipeline's folder, or put "
                "prompt_embeds into the file of latents"
            )
        text_encoder = PipelineText(str(source.path), max(source.widths), source.tokens)
        return encoded(text_encoder, turns(list(cfg.prompts or [""])), "cpu")
    if cfg.prompts is not None:
        raise ConfigError(f"prompts={list(cfg.prompts)}: a {source.family.network} reads no text")
    if not source.classes:
        return {}
    null = net.null_class if net.null_class is not None else 0
    labels = held["labels"][:count].long() if "labels" in held else torch.tensor(turns(list(cfg.classes or [null])))
    if int(labels.min()) < 0 or int(labels.max()) > source.classes:
        raise ConfigError(f"classes={labels.unique().tolist()}: this network has {source.classes} classes")
    return {"y": labels}


def _read(path: Path) -> dict[str, Tensor]:
    """The arrays of a file."""
    import numpy as np
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise DataError(f"latents={path} cannot be read: {first_line(error)}") from error


if __name__ == "__main__":
    main("inspect", inspect, complete)
