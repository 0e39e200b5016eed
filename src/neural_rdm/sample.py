"""`python -m neural_rdm.sample`: draw samples from a trained run.

python -m neural_rdm.sample run=outputs/train/digits_gated/TIME per_class=8 classes=[0,3] sampler.steps=100
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from neural_rdm.cli.app import main, print_paths
from neural_rdm.cli.sharing import wait_for
from neural_rdm.core.errors import ConfigError
from neural_rdm.core.files import write_text
from neural_rdm.core.given import read_json
from neural_rdm.runs.load import inherit

if TYPE_CHECKING:
    from torch import Tensor

    from neural_rdm.diffusion.samplers import Sampler
    from neural_rdm.evaluation.sample_parts import Parts
    from neural_rdm.runs.loaded import LoadedRun

PROMPTS_TOLD = 5
LISTED = 100  # so many classes or texts sampling.json names one by one
GRID_ROWS, GRID_COLUMNS = 32, 16  # a larger picture helps nobody; samples.npz holds every sample


def sample(cfg: DictConfig, folder: Path) -> int:
    """Write a grid (clips: and a GIF), the files asked for and `sampling.json`; return the exit code 0.

    Files that a finished job was not asked for before are made of its `samples.npz`.

    `samples.npz` holds `arr_0`, uint8 [N, H, W, C] (clips [N, F, H, W, C]), and for a conditional network `arr_1`,
    int64 [N], the classes: the layout that the evaluation suite of guided-diffusion reads. Latents without a first
    stage to decode them are kept as float32 instead.

    Sample i depends on (seed, i) alone. So processes that torchrun starts with one `hydra.run.dir` share the work, and
    a job that was killed goes on where it stopped when the same command is given the same `hydra.run.dir`.

    Raises:
        UserError: no usable run, classes that the network does not have, files that do not fit its samples, or a
            sampler that does not fit it.
    """
    from neural_rdm.evaluation.sample_parts import Parts, balanced, check_kinds, files_of, is_written, same_request
    from neural_rdm.media.images import ROUNDING
    from neural_rdm.runs import build
    from neural_rdm.runs.choosing import choose_classes, choose_prompts
    from neural_rdm.runs.load import load_run

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    run = load_run(Path(cfg.run), cfg.weights, cfg.accelerator, cfg.get("data")).fast(cfg.compile, cfg.precision)
    sampler: Sampler = build.build(cfg.sampler, "sampler")
    if run.text is None and cfg.prompts is not None:
        raise ConfigError(f"prompts={list(cfg.prompts)}: this network reads no text; leave prompts out")
    check_kinds(folder, cfg.files, len(run.net.input_shape) == 4, run.pixels, cfg.fps)
    classes = run.net.num_classes
    if run.text is not None:
        shown: Sequence[int | str] | None = choose_prompts(run.data, cfg.prompts, cfg.count)
    else:
        shown = choose_classes(classes, cfg.classes, cfg.count)
    if cfg.count is not None:
        each = None if shown is None else balanced(shown, cfg.count)
    else:
        each = None if shown is None else [value for value in shown for _ in range(cfg.per_class)]
    count = cfg.count or (cfg.per_class if each is None else len(each))
    facts = run.facts(
        sampler,
        seed=cfg.seed,
        **({} if shown is None else {"classes" if run.text is None else "prompts": _recorded(shown, classes)}),
        per_class=cfg.per_class if cfg.count is None else None,
        count=count,
        batch_size=cfg.batch_size,
        rounding=ROUNDING if run.pixels else "none: float32 latents",
    )
    parts, grid = Parts(folder, count, cfg.batch_size), folder / "grid.png"
    goes_on = same_request(folder / "sampling.json", facts)
    if goes_on and grid.is_file() and not parts.any() and all(is_written(folder, k, count) for k in cfg.files):
        print(f"{folder} is finished; nothing to do")
        return 0
    array = files_of(folder, "npz")
    if goes_on and array.is_file() and parts.missing():  # it was finished once: its parts were all there
        if rank == 0:
            print(f"the samples of {array} are drawn already", flush=True)
            parts.restore(array)
            _finish(cfg, run, sampler, parts, each, shown, folder, [kind for kind in cfg.files if kind != "npz"])
        return 0
    if rank == 0:
        print(f"{count} samples from {run.checkpoint} (step {run.step}, {run.weights} weights)", flush=True)
        if there := len(parts.numbers) - len(parts.missing()):
            print(f"{there} of {len(parts.numbers)} parts are there already", flush=True)
        if run.text is not None and shown is not None:
            _tell_prompts(run, [str(text) for text in shown], count)
    _draw(cfg, run, sampler, parts, [n for n in parts.missing() if n % world == rank], each, progress=rank == 0)
    if rank == 0:
        wait_for(parts.missing, "parts")
        _finish(cfg, run, sampler, parts, each, shown, folder, cfg.files)
    return 0


def _draw(
    cfg: DictConfig,
    run: LoadedRun,
    sampler: Sampler,
    parts: Parts,
    mine: list[int],
    each: Sequence[int | str] | None,
    progress: bool,
) -> None:
    """Draw and save the parts `mine`; so many at a time that the tokens of their texts fit into memory."""
    from neural_rdm.conditioning.conditions import condition_of
    from neural_rdm.core.progress import span
    from neural_rdm.evaluation import features

    begin, what = time.perf_counter(), "clips" if len(run.net.input_shape) == 4 else "images"
    at_once = max(1, features.TEXTS // cfg.batch_size) if run.text is not None else max(1, len(mine))
    rest = iter(mine)

    def keep(x: Tensor) -> Tensor:
        parts.save(next(rest), _kept(run, x).numpy())
        return x[:0].cpu()

    for start in range(0, len(mine), at_once):
        positions = [i for number in mine[start : start + at_once] for i in parts.positions(number)]
        texts = [] if each is None else [each[i] for i in positions]
        if run.text is not None:
            run.text.remember(run.data.tokens([str(text) for text in texts]))
        run.draw(sampler, condition_of(texts, run.text), positions, cfg.seed, cfg.batch_size, keep, progress)
    if progress and mine:
        drawn, passed = sum(len(parts.positions(number)) for number in mine), time.perf_counter() - begin
        print(f"drew {drawn} {what} in {span(passed)}: {drawn / passed:.3g} {what}/s", flush=True)


def _finish(
    cfg: DictConfig,
    run: LoadedRun,
    sampler: Sampler,
    parts: Parts,
    each: Sequence[int | str] | None,
    shown: Sequence[int | str] | None,
    folder: Path,
    kinds: Sequence[str],
) -> None:
    """Make files of all parts, delete these, and say where the files are."""
    from neural_rdm.evaluation.dataset_folder import write_dataset
    from neural_rdm.evaluation.sample_parts import DATASET, files_of, write_each, write_npz
    from neural_rdm.reports.figures import titled_samples

    paths = []
    for kind in kinds:
        path = files_of(folder, kind)
        if kind == DATASET:
            facts = read_json(folder / "sampling.json")
            write_dataset(path, parts, each, run.data.class_names, facts, cfg.fps)
        elif kind != "npz":
            write_each(path, parts, kind, cfg.fps)
        else:
            labels = {} if each is None or run.text is not None else {"arr_1": np.array(each, dtype=np.int64)}
            write_npz(path, parts, **labels)
        paths.append(path)
    if run.text is not None and shown is not None and len(shown) > LISTED:
        paths.append(folder / "prompts.json")
        write_text(paths[-1], json.dumps(list(shown), indent=0, ensure_ascii=False) + "\n")
    title = titled_samples(run.step, sampler.said, run.checkpoint)
    grids = _grids(run, parts, shown, cfg, folder / "grid.png", title)
    parts.remove()
    print("wrote:")
    print_paths([*grids, *paths, folder / "sampling.json"])


def _recorded(shown: Sequence[int | str], classes: int) -> Any:
    """Classes or texts as `sampling.json` says them: a long list by its length and hash, unless it is every class."""
    listed = list(shown)
    if len(listed) <= LISTED:
        return listed
    if listed == list(range(classes)):
        return f"all {classes}"
    return {"count": len(listed), "sha256": hashlib.sha256(json.dumps(listed).encode()).hexdigest()}


def _tell_prompts(run: LoadedRun, prompts: list[str], count: int) -> None:
    """Say which prompts are empty or too long, and whether some are drawn more than once for want of others."""
    from neural_rdm.data.prompts import blank, shortened

    assert run.text is not None
    for number, prompt in enumerate(prompts):
        if blank(prompt):
            print(f"prompt {number} is empty: its samples show what the network draws without a text", flush=True)
    ready = run.data.tokens(prompts)  # these were cut when they were encoded
    cut = run.text.cut([prompt for prompt in prompts if prompt not in ready])
    for prompt, (tokens, lost) in list(cut.items())[:PROMPTS_TOLD]:
        print(
            f"prompt {shortened(prompt)!r} has {tokens} tokens and is cut at condition.max_length="
            f"{run.text.max_length}; not read: {shortened(lost)!r}",
            flush=True,
        )
    if len(cut) > PROMPTS_TOLD:
        print(f"{len(cut)} of {len(prompts)} prompts are cut so", flush=True)
    if count > len(prompts):
        print(f"{count} samples of {len(prompts)} prompts, up to {-(-count // len(prompts))} of each", flush=True)


def _kept(run: LoadedRun, x: Tensor) -> Tensor:
    """What is kept of a finished batch: bytes, channels last, on the CPU (latents: float32)."""
    from neural_rdm.media.images import to_bytes

    if run.decode is not None:
        x = run.decode(x)
    x = x.float().cpu().movedim(-3, -1).contiguous()
    return to_bytes(x) if run.pixels else x


def _grids(
    run: LoadedRun, parts: Parts, shown: Sequence[int | str] | None, cfg: DictConfig, path: Path, title: str
) -> list[Path]:
    """One row a class or text, or rows of eight. Clips play in a GIF; the picture shows the first of each."""
    import torch

    from neural_rdm.reports.grids import save_grid

    if shown is None:
        places = list(range(min(parts.count, GRID_ROWS * 8)))
        columns, labels = min(8, len(places)), None
    else:
        rows = len(shown[:GRID_ROWS])
        if cfg.count is None:
            columns = min(cfg.per_class, GRID_COLUMNS)
            places = [row * cfg.per_class + column for row in range(rows) for column in range(columns)]
        else:  # sample i shows class i modulo their number
            columns = max(1, min(cfg.count // len(shown), GRID_COLUMNS))
            places = [column * len(shown) + row for row in range(rows) for column in range(columns)]
            places = [place for place in places if place < parts.count]
        names = run.data.class_names
        labels = [names[c] if names and isinstance(c, int) and c < len(names) else str(c) for c in shown[:rows]]
        labels = labels[: -(-len(places) // columns)]
    pictures = [parts.sample(place) for place in places]
    x = torch.from_numpy(np.stack(pictures)).movedim(-1, -3)
    if run.pixels:
        x = (x.float() - 127.5) / 127.5  # the middle of each byte's interval: save_grid rounds it back to that byte
    if x.ndim == 4:
        return [save_grid(x, path, columns=columns, row_labels=labels, title=title)]
    playing = save_grid(x, path.with_suffix(".gif"), columns=columns, row_labels=labels, title=title)
    return [playing, save_grid(x[::columns], path, columns=columns, row_labels=labels, title=title)]


if __name__ == "__main__":
    main("sample", sample, partial(inherit, groups=("sampler",)))
