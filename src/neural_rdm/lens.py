"""`python -m neural_rdm.lens`: what a trained network would predict if it stopped at each of its units.

python -m neural_rdm.lens run=outputs/train/digits_gated/TIME samples=64 times=[0.05,0.25,0.5,0.75,0.95]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from neural_rdm.cli.app import main, print_paths
from neural_rdm.runs.load import inherit

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from neural_rdm.data.base import Batch
    from neural_rdm.diffusion.process import DDPM, Flow
    from neural_rdm.runs.loaded import LoadedRun
    from neural_rdm.training.module import NeuralRDM

DEPTHS_SHOWN = 12


def lens(cfg: DictConfig, folder: Path) -> int:
    """Write `depth.{csv,png}`, `left_out.csv`, `depth_samples.png` and, where the network has a depth-mixing matrix,
    `mixing.{csv,png}`; return the exit code 0.

    Raises:
        UserError: no usable run, or no data of it on this machine.
    """
    from neural_rdm.backbones.contract import has_units
    from neural_rdm.core.progress import progress_bar
    from neural_rdm.reports.depth import plot_depth, write_depth
    from neural_rdm.reports.mixing import plot_mixing, write_mixing
    from neural_rdm.residual import units
    from neural_rdm.runs import build
    from neural_rdm.runs.load import load_run

    run = load_run(Path(cfg.run), cfg.weights, cfg.accelerator, cfg.get("data"))
    has_units(run.net, "looked into (lens)")
    run.data.setup()
    module = build.module(run.config, run.data.space, begins=False, net=run.net).to(run.device).eval()
    batches = run.batches(cfg.samples, cfg.batch_size)
    names = [name for name, _ in units(run.net)]
    count = sum(len(b["x"]) for b in batches)
    print(f"{count} samples, {len(names)} units, {run.checkpoint} (step {run.step}, {run.weights} weights)", flush=True)
    found = [Level(time_at(run.process, share)) for share in cfg.times]
    with progress_bar("looking", len(found) * len(batches) * 2 * (len(names) + 1), "passes") as advance:
        for batch in batches:
            look = _looking(module, batch, advance, share=len(batch["x"]) / count, seed=cfg.seed)
            for level in found:
                look(level)
    facts = {"run": str(run.folder), "step": run.step, "weights": run.weights, "samples": count, "seed": cfg.seed}
    written = write_depth(folder, names, found, facts)
    written.append(plot_depth(folder / "depth.csv", folder / "left_out.csv", folder / "depth.png"))
    written += _pictures(run, found, folder / "depth_samples.png")
    matrices = {level.t: level.mixing for level in found if level.mixing is not None}
    if matrices:
        written.append(write_mixing(folder / "mixing.csv", names, matrices))
        written.append(plot_mixing(folder / "mixing.csv", folder / "mixing.png", run.folder))
    print("wrote:")
    print_paths(written)
    return 0


def time_at(process: DDPM | Flow, share: float) -> int | float:
    """The time at a share of the way to pure noise: a timestep, or of a flow a real number up to T."""
    from neural_rdm.diffusion.process import Flow

    total = process.num_timesteps
    return share * total if isinstance(process, Flow) else min(total - 1, round(share * total))


@dataclass
class Level:
    """What was seen at one time."""

    t: int | float  # a timestep, or the time of a flow
    # mean squared error of the prediction with the first 0 ... N units, [N + 1].
    errors: list[float] = field(default_factory=list)
    x0_errors: list[float] = field(default_factory=list)  # the same of the clean sample that follows from it
    left_out: list[float] = field(default_factory=list)  # what leaving out one unit alone adds to the error, [N]
    importance: list[float] = field(default_factory=list)  # the same to first order, by one backward pass, [N]
    # the predicted clean sample of the first sample at each depth, [N + 1, ...]; the last is the network's
    seen: list[Any] = field(default_factory=list)
    shown: list[Any] = field(default_factory=list)  # the first sample itself, and with the noise that the network saw
    mixing: Tensor | None = None  # the depth-mixing matrix of the first batch, [N + 1, N + 1], where there is one


def _looking(
    module: NeuralRDM, batch: Batch, advance: Callable[[], None], share: float, seed: int
) -> Callable[[Level], None]:
    """A function that adds what one batch says, `share` of all samples, at one timestep; it is encoded once for all."""
    import torch

    from neural_rdm.core import seeding
    from neural_rdm.diffusion.process import split_output
    from neural_rdm.dynamics.lens import each_left_out, stopped_early
    from neural_rdm.dynamics.mixing import depth_mixing, has_mixing
    from neural_rdm.dynamics.statistics import Statistics

    net, process = module.net, module.objective.process
    x, position = batch["x"], batch["position"]
    if module.encode:
        x = module.first_stage.encode(x, seed, position)
    noise = seeding.normal(seed, "lens noise", position, x.shape[1:], x.device)
    condition = module.condition(batch, drop=False)

    def add(values: list[float], place: int, value: float) -> None:
        if place == len(values):
            values.append(0.0)
        values[place] += share * value

    def look(level: Level) -> None:
        t = torch.full((len(x),), level.t, device=x.device)
        xt, target = process.q_sample(x, t, noise), process.target(x, t, noise)
        first = not level.seen

        def run() -> Tensor:
            output: Tensor = net(xt, t, **condition)
            return output

        def error(output: Tensor) -> Tensor:
            return (split_output(output.float(), x.shape[-3])[0] - target).square().mean()

        for kept, output in enumerate(stopped_early(net, run)):
            x0 = process.predict_x0(output.float(), xt, t)
            add(level.errors, kept, error(output).item())
            add(level.x0_errors, kept, (x0 - x).square().mean().item())
            if first:
                level.seen.append(x0[0].cpu())
                level.shown = [x[0].float().cpu(), xt[0].float().cpu()]
            advance()
        if first and has_mixing(net):
            level.mixing = depth_mixing(net, run)
        whole = error(output)
        for unit, output in enumerate(each_left_out(net, run)):
            add(level.left_out, unit, (error(output) - whole).item())
            advance()
        with Statistics(net, process.num_timesteps, bins=1) as watching:
            watching.at(t)
            error(run()).backward()
        for record in watching.records():
            add(level.importance, record.unit, -record.importance)
        advance()

    return look


def _pictures(run: LoadedRun, found: list[Level], path: Path) -> list[Path]:
    """What the network would draw of the first sample: a row for each timestep, to the right with ever more units."""
    import torch

    from neural_rdm.core.errors import CheckpointError
    from neural_rdm.reports.grids import save_grid

    count = len(found[0].seen)
    depths = sorted({round(i * (count - 1) / (DEPTHS_SHOWN - 1)) for i in range(DEPTHS_SHOWN)})
    x = torch.stack([seen for level in found for seen in (*level.shown, *(level.seen[depth] for depth in depths))])
    if x.ndim == 5:
        x = x[:, 0]  # of a clip its first frame
    if run.decode is not None:
        try:
            x = run.decode(x.to(run.device)).float().cpu()
        except CheckpointError as error:
            print(f"{path.name} shows latents: {error}")
    experiment = (run.config.get("choices") or {}).get("exp", run.folder.name)
    heads = ["true", "noisy", *map(str, depths)]
    rows = [f"t {level.t:g}" for level in found]
    title = f"{experiment}, step {run.step:,}: x0 after 0 to {depths[-1]} units"
    return [save_grid(x, path, columns=len(heads), row_labels=rows, column_labels=heads, title=title)]


if __name__ == "__main__":
    main("lens", lens, partial(inherit, keys=("seed",)))
