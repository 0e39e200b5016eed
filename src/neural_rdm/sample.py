"""`python -m neural_rdm.sample`: draw samples from a trained run.

python -m neural_rdm.sample run=outputs/train/digits_gated/TIME per_class=8 classes=[0,3] sampler.steps=100
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from neural_rdm.cli.app import main, print_paths
from neural_rdm.cli.runs import ROUNDING, LoadedRun, inherit
from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.core.files import write_atomically, write_text

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_CLASSES = 10
GRID_ROWS, GRID_COLUMNS = 32, 16  # a larger picture helps nobody; samples.npz holds every sample


def sample(cfg: DictConfig, folder: Path) -> int:
    """Write `grid.png` (clips: and `grid.gif`), `samples.npz` and `sampling.json`; return the exit code 0.

    `samples.npz` holds `arr_0`, uint8 [N, H, W, C] (clips [N, F, H, W, C]), and for a conditional network `arr_1`,
    int64 [N], the classes: the layout that the evaluation suite of guided-diffusion reads. Latents without a first
    stage to decode them are kept as float32 instead. Sample i depends on (seed, i) alone.

    Raises:
        UserError: no usable run, classes that the network does not have, or a sampler that does not fit it.
    """
    import numpy as np

    from neural_rdm.cli import build
    from neural_rdm.cli.runs import load_run
    from neural_rdm.diffusion.samplers import Sampler
    from neural_rdm.training.sampling import rows_of

    run = load_run(Path(cfg.run), cfg.weights, cfg.accelerator)
    sampler: Sampler = build.build(cfg.sampler, "sampler")
    if run.text is None and cfg.prompts is not None:
        raise ConfigError(f"prompts={list(cfg.prompts)}: this network reads no text; leave prompts out")
    if run.text is not None:
        shown: Sequence[int | str] | None = choose_prompts(run, cfg.prompts)
    else:
        shown = choose_classes(getattr(run.net, "num_classes", 0), cfg.classes)
    condition = {} if shown is None else rows_of(shown, cfg.per_class, run.text)
    count = cfg.per_class * (1 if shown is None else len(shown))
    print(f"{count} samples from {run.checkpoint} (step {run.step}, {run.weights} weights)", flush=True)
    drawn = run.draw(sampler, condition, count, cfg.seed, cfg.batch_size, partial(_kept, run))

    arrays: dict[str, Any] = {"arr_0": drawn.numpy()}
    if "y" in condition:
        arrays["arr_1"] = condition["y"].numpy()
    write_atomically(folder / "samples.npz", lambda file: np.savez(file, **arrays))
    grids = _save_grid(run, drawn, shown, cfg.per_class, folder / "grid.png")
    facts = run.facts(
        sampler,
        seed=cfg.seed,
        **({} if shown is None else {"classes" if run.text is None else "prompts": list(shown)}),
        per_class=cfg.per_class,
        samples=list(drawn.shape),
        rounding=ROUNDING if run.pixels else "none: float32 latents",
    )
    write_text(folder / "sampling.json", json.dumps(facts, indent=2) + "\n")
    print("wrote:")
    print_paths([*grids, folder / "samples.npz", folder / "sampling.json"])
    return 0


def choose_classes(num_classes: int, asked: list[int] | None) -> list[int] | None:
    """The classes to draw, in the order asked for; the first ten by default, None for an unconditional network.

    Raises:
        ConfigError: a class that the network does not have, or an empty list.
    """
    if num_classes <= 0:
        if asked is not None:
            raise ConfigError(f"classes={list(asked)}: this network is unconditional; leave classes out")
        return None
    if asked is None:
        return list(range(min(num_classes, DEFAULT_CLASSES)))
    if not asked or not all(0 <= c < num_classes for c in asked):
        raise ConfigError(f"classes={list(asked)}: give some of 0 ... {num_classes - 1}, such as classes=[0]")
    return list(asked)


def choose_prompts(run: LoadedRun, asked: list[str] | None) -> list[str]:
    """The texts to draw, in the order asked for; by default ten of the data set's own.

    Raises:
        UserError: an empty list, or no data set at hand to take them from.
    """
    if asked is not None and not asked:
        raise ConfigError("prompts=[]: give at least one, such as prompts=['a red kite']")
    if asked is None:
        try:
            asked = run.data.prompts(DEFAULT_CLASSES)
        except DataError as error:
            raise ConfigError(f"pass prompts=['...']: this run's own cannot be read ({error})") from error
    return [str(prompt) for prompt in asked or []]


def _kept(run: LoadedRun, x: Tensor) -> Tensor:
    """What is kept of a finished batch: bytes, channels last, on the CPU (latents: float32)."""
    import torch

    if run.decode is not None:
        x = run.decode(x)
    x = x.float().cpu().movedim(-3, -1).contiguous()
    return (127.5 * x.nan_to_num(nan=-1.0) + 128).clamp(0, 255).to(torch.uint8) if run.pixels else x


def _save_grid(
    run: LoadedRun, kept: Tensor, shown: Sequence[int | str] | None, per_class: int, path: Path
) -> list[Path]:
    """One row a class or text, or rows of eight. Clips play in a GIF; the picture shows the first of each."""
    from neural_rdm.reports.grids import save_grid

    x = kept.movedim(-1, -3)
    if run.pixels:
        x = (x.float() - 127.5) / 127.5  # the middle of each byte's interval: save_grid rounds it back to that byte
    if shown is None:
        x, columns, labels = x[: GRID_ROWS * 8], min(8, len(x)), None
    else:
        x = x.unflatten(0, (len(shown), per_class))[:GRID_ROWS, :GRID_COLUMNS]
        columns, x = x.shape[1], x.flatten(0, 1)
        names = run.data.class_names
        labels = [names[c] if names and isinstance(c, int) and c < len(names) else str(c) for c in shown[:GRID_ROWS]]
    if x.ndim == 4:
        return [save_grid(x, path, columns=columns, row_labels=labels)]
    playing = save_grid(x, path.with_suffix(".gif"), columns=columns, row_labels=labels)
    return [playing, save_grid(x[::columns], path, columns=columns, row_labels=labels)]


if __name__ == "__main__":
    main("sample", sample, partial(inherit, groups=("sampler",)))
