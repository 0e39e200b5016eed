"""`python -m neural_rdm.encode`: make the latents of a data set once, for training that only reads them.

python -m neural_rdm.encode exp=dit_xl_gated data.root=/path/to/imagenet
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from neural_rdm.cli.app import main, print_paths
from neural_rdm.cli.sharing import wait_for
from neural_rdm.config.check import as_plain, leaves, validate
from neural_rdm.config.compose import compose_config, parse
from neural_rdm.config.grammar import written
from neural_rdm.config.primary import Encode
from neural_rdm.config.schema import constants
from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.data.encoded.manifest import MANIFEST, REQUEST, content
from neural_rdm.runs.load import device_of

if TYPE_CHECKING:
    from neural_rdm.conditioning.text import TextEncoder
    from neural_rdm.data.base import DataModule
    from neural_rdm.data.encoded.encoder import Encoder
    from neural_rdm.latents.first_stage import Autoencoder
    from neural_rdm.latents.shards import Shards

IMAGES, VIDEOS = 256, 16  # samples of a shard: some ten megabytes of ImageNet, some fifty of UCF-101, in float16
PROMPTS = 64  # of previews, whose tokens lie ready in one file; the shards hold those of all captions


def encode(cfg: DictConfig, folder: Path) -> int:
    """Write the shards that are missing in `folder` and its manifest; return the exit code 0.

    What a shard holds follows from its number. So processes that torchrun starts with one `hydra.run.dir` share the
    work, a job that was killed goes on where it stopped when the same command is given the same `hydra.run.dir`, and
    all of them write the same bytes.

    Raises:
        UserError: data, first stage or text encoder cannot be read; the folder holds other latents; the disk is full.
    """
    from neural_rdm.data.encoded.encoder import Encoder
    from neural_rdm.data.prompts import tell_too_long
    from neural_rdm.latents.shards import Shards
    from neural_rdm.runs import build

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    build.quiet()
    data: DataModule = build.build(cfg.data, "data")
    data.setup()
    stage: Autoencoder = build.build(cfg.first_stage, "first_stage")
    text: TextEncoder | None = None if cfg.condition is None else build.build(cfg.condition, "condition")
    prompts = data.prompts(PROMPTS)
    if text is not None and prompts is None:
        raise ConfigError(f"condition: {type(data).__name__} has no captions; leave condition out")
    sources, counts = data.sources, data.sizes
    for source in sources.values():
        if len(source) and source.name(0) is None:
            raise ConfigError(f"samples of a {type(source).__name__} are not files: there is nothing to encode once")
    videos = any(source.frames is not None for source in sources.values())
    size = cfg.shard_size or (VIDEOS if videos else IMAGES)
    splits = {name: Shards(folder / name, counts[name], size) for name in sources if counts[name]}
    request = _request(cfg, data, stage, splits, size, show=rank == 0)
    _claim(folder, request)
    if (folder / MANIFEST).is_file() and not _missing(splits):
        print(f"{folder} is finished; nothing to do")
        return 0
    if rank == 0:
        if text is not None:
            tell_too_long(text, data.train_set, 0)
        sizes = " and ".join(f"{shards.count:,} {name}" for name, shards in splits.items())
        print(f"{sizes} samples of {cfg.data.root} through {cfg.first_stage.path}, into {folder}", flush=True)
        if there := sum(len(s.numbers) for s in splits.values()) - len(_missing(splits)):
            print(f"{there} shards are there already", flush=True)
    encoder = Encoder(
        folder,
        stage,
        text,
        cfg.dtype,
        device_of(cfg.accelerator),
        data.num_workers,
        data.max_bad_fraction,
        mirrored={name for name in splits if name == "train" and sources[name].flip},
    )
    work = list(enumerate((name, number) for name, shards in splits.items() for number in shards.numbers))
    missing = set(_missing(splits))
    for name, shards in splits.items():
        mine = [number for i, (n, number) in work if n == name and i % world == rank and (n, number) in missing]
        encoder.write(name, sources[name], shards, mine, show=rank == 0)
    if rank > 0:
        return 0
    wait_for(lambda: _missing(splits), "shards")
    paths = _finish(folder, cfg, data, request, splits, encoder, prompts)
    print("wrote:")
    print_paths([*(folder / name for name in splits), *paths])
    print(f"Train with data.source=latents data.latents={os.path.relpath(folder)}")
    return 0


def complete(overrides: list[str], folders: list[str] | None = None) -> list[str]:
    """`exp=NAME`: put the data, first stage and text encoder of that experiment in place of its name.

    Raises:
        ConfigError: nothing to encode, or an experiment that training would refuse.
    """
    parsed = parse(overrides)
    given = {o.key_or_group: o for o in parsed}
    choice = given.get("exp")
    if choice is None:
        missing = [name for name in ("data", "first_stage") if name not in given and f"{name}._target_" not in given]
        if missing:
            raise ConfigError(
                f"{' and '.join(missing)}: encode what, with what? Pass exp=NAME, or for example data=imagenet "
                "data.root=DIR first_stage=kl_f8"
            )
        name = given["data"].value() if "data" in given else "data"
        return [f"experiment={written(name)}", *overrides] if "experiment" not in given else overrides
    if any(o.is_sweep_override() for o in parsed):
        raise ConfigError("exp= with several values: start the command once for each")
    groups = ("data", "first_stage", "condition")
    own = {f.name for f in dataclasses.fields(Encode)} - {*groups, "backbone"}
    is_own = [o.key_or_group in own or o.key_or_group.startswith("hydra.") for o in parsed]
    for_train = [text for text, own in zip(overrides, is_own, strict=True) if not own]
    composed = compose_config("train", for_train, folders)
    validate(composed.cfg, "train", composed.sources)
    values: dict[str, Any] = {"experiment": str(choice.value())}
    for group in groups:
        if composed.cfg[group] is not None:
            values |= dict(leaves(as_plain(composed.cfg[group]), group))
    rest = [text for text, own in zip(overrides, is_own, strict=True) if own and not text.startswith("experiment=")]
    return [*(f"++{key}={written(value)}" for key, value in values.items()), *rest]


def _request(
    cfg: DictConfig, data: DataModule, stage: Autoencoder, splits: dict[str, Shards], size: int, show: bool
) -> dict[str, Any]:
    """What decides every byte of the shards; two commands that differ in none of it may share a folder."""
    first_stage = as_plain(cfg.first_stage)
    condition = None if cfg.condition is None else as_plain(cfg.condition)
    root = Path(os.path.abspath(os.path.expanduser(cfg.data.root)))
    return {
        "first_stage": {**first_stage, "kind": stage.kind, "sha256": stage.fingerprint()},
        "data": content(as_plain(cfg.data), constants(cfg.data, "data").get("reading", ())),
        "condition": condition and {key: value for key, value in condition.items() if key != "cache"},
        "crop": data.crop,
        "dtype": cfg.dtype,
        "shard_size": size,
        "source": {
            name: {"samples": shards.count, "sha256": data.sources[name].fingerprint(root, shards.count, show)}
            for name, shards in splits.items()
        },
    }


def _claim(folder: Path, request: dict[str, Any]) -> None:
    """Write down what a folder's latents are made of, or compare with what is written there.

    Raises:
        ConfigError: it holds latents of another request.
    """
    from neural_rdm.evaluation.sample_parts import same_request

    same_request(folder / REQUEST, request, "latents")


def _missing(splits: dict[str, Shards]) -> list[tuple[str, int]]:
    return [(name, number) for name, shards in splits.items() for number in shards.missing()]


def _finish(
    folder: Path,
    cfg: DictConfig,
    data: DataModule,
    request: dict[str, Any],
    splits: dict[str, Shards],
    encoder: Encoder,
    prompts: list[str] | None,
) -> list[Path]:
    """Write the tokens of the prompts, the list of broken samples and, last, the manifest; return the files."""
    import torch
    from safetensors.torch import save

    from neural_rdm.core.files import sweep, write_atomically, write_text
    from neural_rdm.data.encoded.encoder import list_broken
    from neural_rdm.data.encoded.latents import TEXT_FILE
    from neural_rdm.latents.shards import Shard, crc_of

    written: list[Path] = []
    sweep(folder)  # a process of this job may have been killed beside this one
    facts: dict[str, Any] = {}
    bad: dict[str, dict[int, tuple[str, str]]] = {}
    cells: list[int] = []
    for name, shards in splits.items():
        opened = [Shard(shards.path(number)) for number in shards.numbers]
        counts = [len(shard) for shard in opened]
        bad[name] = {index: why for shard in opened for index, why in shard.bad.items()}
        facts[name] = {
            "count": sum(counts),
            "counts": counts,
            "flipped": name in encoder.mirrored,
            "bad": sorted(bad[name]),
            "source": request["source"][name],
        }
        if not sum(counts):
            raise DataError(f"none of the {shards.count} {name} samples of {cfg.data.root} can be read")
        cells = next(list(shard[0].moments.shape[1:]) for shard in opened if len(shard))
    if (listed := list_broken(folder, data.sources, bad)) is not None:
        written.append(listed)
    channels = int(cfg.first_stage.channels)
    if encoder.text is not None:
        tokens = encoder.tokens(["", *(prompts or [])])
        sums = torch.tensor([crc_of(t) for t in tokens])
        ends = torch.tensor([len(t) for t in tokens]).cumsum(0)
        held = save({"tokens": torch.cat(tokens), "token_ends": ends, "token_crc": sums})
        write_atomically(folder / TEXT_FILE, lambda file: file.write(held))
        written.append(folder / TEXT_FILE)
    manifest = {
        **{key: value for key, value in request.items() if key != "source"},
        "moments": "mean and standard deviation" if cells[0] == 2 * channels else "values; they are not random",
        "shape": [channels, *cells[1:]],
        "rows": "every frame of every video" if data.sources["train"].frames is not None else "images",
        "root": str(cfg.data.root),
        "num_classes": data.num_classes,
        "class_names": data.class_names,
        "prompts": prompts,
        "splits": facts,
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return [*written, folder / MANIFEST]


if __name__ == "__main__":
    main("encode", encode, complete)
