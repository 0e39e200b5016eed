"""Whether supervision of the gates brings the gains of a deep stack to 1, and what that does to the denoising loss.

The local gradient (`supervise`) beside true double backward (`sensitivity_loss`), at equal optimizer steps.
"""

from __future__ import annotations

import time
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from neural_rdm.backbones.dit import DiT
from neural_rdm.core.files import write_atomically, write_text
from neural_rdm.core.seeding import generator, normal, uniform
from neural_rdm.data.builtin.digits import Digits, TensorSet
from neural_rdm.diffusion.objectives import DDPMObjective
from neural_rdm.diffusion.process import DDPM
from neural_rdm.dynamics import probe, sensitivity_loss, stream_overlaps, supervise
from neural_rdm.reports import statistics
from neural_rdm.reports.tables import markdown_table
from neural_rdm.residual import Residual, Unit, units
from neural_rdm.training.optim import Optimizer

WIDTH, DEPTH, HEADS, BATCH, STEPS, EVERY, LR, GAMMA = 32, 24, 4, 32, 200, 50, 1e-3, 0.35
SEEDS = range(1, 6)
NONE, ISOMETRY, FLOOR, EXACT, EXACT_GATES = CASES = "gamma 0", "local isometry", "local floor", "exact", "exact gates"
Batch = tuple[Tensor, ...]  # x, y, t, noise, xt
Row = dict[str, Any]
#: alphas are log-normal, one value a unit
Start = namedtuple(
    "Start",
    "rule median log_std adaln_gate last_layer_std gate_lr_scale cases",
    defaults=("gated", 1.0, 0.0, 0.0, 0.0, 1.0, CASES[:4]),
)
STARTS = {
    "loud": Start(log_std=2.0, adaln_gate=1.0, last_layer_std=0.02, cases=CASES),
    "decay": Start("skip", median=0.8, log_std=0.1, last_layer_std=0.02),
    "decay, gate lr x10": Start("skip", median=0.8, log_std=0.1, last_layer_std=0.02, gate_lr_scale=10.0),
    "fresh": Start(),
}
METHOD = (
    f"DiT of width {WIDTH}, {DEPTH} blocks ({2 * DEPTH} units), {HEADS} heads, patch 4, on the 8x8 digits with labels; "
    f"hybrid loss; {STEPS} steps of fused AdamW at {LR:g}, batch {BATCH}, no clipping, no warm-up, float32. Within a "
    "seed all cases of a start share initial weights, images, noise and timesteps. loud: rule gated, one log-normal "
    "alpha a unit (median 1, log-std 2), adaLN gates 1; decay: rule skip, whose alpha is on the stream (median 0.8, "
    "log-std 0.1), adaLN gates 0; both with a last layer from N(0, 0.02^2); gate lr x10: gate_lr_scale=10; fresh: rule "
    "gated, official start. Decay has another rule because gains of the additive one lay above 0.97 at all random "
    f"starts we tried. Starts and gate lr x10 were chosen after pilot runs of seed 0; here seeds {SEEDS[0]} to "
    f"{SEEDS[-1]}. Cases: weight 0; `supervise` with gamma={GAMMA} (local); `sensitivity_loss` times {GAMMA} added to "
    "the loss (one forward pass for both) and differentiated in all parameters (exact), or in alpha and beta only. "
    "l_sens: isometry's, over all units, for every case by one probe on 64 held-out images; spread: largest over "
    "smallest ||s_i||; val_loss: hybrid loss, all held-out images; noise and timesteps of both are always the same. "
    "train_loss: hybrid loss, last 50 steps; cpu_ms: a training step. Values: [mean, low, high], 95 % interval "
    "(Student t over seeds), of logarithms for l_sens and spread (geometric mean); *_vs_0: paired with gamma 0 within "
    "seeds, a ratio of l_sens, a difference of val_loss, not corrected for many comparisons. directions: in the alphas "
    "before the first step, on the probe's batch, cosine of the local to the exact gradient of l_sens, ratio of their "
    "norms, and the norm of gamma times each over the denoising loss's; scalar gates give the same network. fresh: no "
    "gradient reaches a unit before the first step, so no l_sens there"
)
OBJECTIVE = DDPMObjective(DDPM())


def run() -> Row:
    """All measurements as plain values; every run is printed as it ends."""
    data = Digits()
    data.setup()
    held_out = make_batch(data.val_set, 0, "gains val", range(len(data.val_set)), every=True)
    runs, directions = [], []
    for seed in SEEDS:
        places = [range(i * BATCH, (i + 1) * BATCH) for i in range(STEPS)]
        batches = [make_batch(data.train_set, seed, "gains train", positions) for positions in places]
        for name, start in STARTS.items():
            if name in ("loud", "decay"):
                directions += [compare(name, seed, gates, held_out) for gates in ("channel", "scalar")]
            for case in start.cases:
                runs.append(train(name, case, seed, batches, held_out))
                print(runs[-1], flush=True)
    return report(runs, directions)


def report(runs: list[Row], directions: list[Row]) -> Row:
    """What the runs say together: printed, as `gains.md` and `gains.png`, and as plain values."""
    summary = [summarise(runs, name, case) for name, start in STARTS.items() for case in start.cases]
    along, numbers = [], [*directions[0]][3:]
    for name, gates in dict.fromkeys((row["start"], row["gates"]) for row in directions):
        rows = [row for row in directions if (row["start"], row["gates"]) == (name, gates)]
        along.append({"start": name, "gates": gates} | {key: interval([r[key] for r in rows]) for key in numbers})
    tables = "\n".join(markdown_table([_shown(row) for row in rows]) for rows in (summary, along))
    print(f"{STEPS} steps, {len(SEEDS)} seeds, mean [95 % interval]:\n\n{tables}")
    results = Path(__file__).parent / "results"
    write_text(results / "gains.md", f"# Gains under supervision\n\n{METHOD}.\n\n{tables}\n![curves](gains.png)\n")
    plot(runs, results / "gains.png")
    return {"method": METHOD, "summary": summary, "directions": along, "runs": runs, "directions_by_seed": directions}


def make_batch(samples: TensorSet, seed: int, name: str, positions: Sequence[int], every: bool = False) -> Batch:
    """A batch that is a function of its arguments: images drawn at random, or `every` one in order."""
    drawn = torch.from_numpy(uniform(seed, f"{name} sample", positions)) * len(samples)
    chosen = torch.tensor(positions) if every else drawn.long()
    x, y = samples.x[chosen], samples.y[chosen]
    t = OBJECTIVE.timesteps(torch.from_numpy(uniform(seed, f"{name} timestep", positions)))
    noise = normal(seed, f"{name} noise", positions, x.shape[1:])
    return x, y, t, noise, OBJECTIVE.process.q_sample(x, t, noise)


def denoising_loss(net: nn.Module, batch: Batch) -> Tensor:
    """The hybrid loss [], a mean over the batch."""
    x, y, t, noise, xt = batch
    return OBJECTIVE.loss(net(xt, t, y), x, xt, t, noise)["loss"].mean()


def build(start: Start, seed: int, granularity: Any = "channel") -> DiT:
    """The network at its start; scalar gates give the same function."""
    torch.manual_seed(seed)
    net = DiT(8, 4, 1, WIDTH, DEPTH, HEADS, num_classes=10, residual=Residual(start.rule, granularity=granularity))
    logs = start.log_std * torch.randn(2 * DEPTH, generator=generator(seed, "gains alpha"))
    with torch.no_grad():
        net.final_layer.linear.weight.normal_(std=start.last_layer_std)
        for block in net.blocks:
            block.adaLN_modulation[1].bias.view(6, -1)[[2, 5]] = start.adaln_gate
        for (_, unit), log in zip(units(net), logs, strict=True):
            unit.alpha.fill_(start.median * log.exp())
    return net


def train(name: str, case: str, seed: int, batches: list[Batch], held_out: Batch) -> Row:
    """Train one network and say what it did."""
    net = build(STARTS[name], seed)
    optimizer = Optimizer(lr=LR, gate_lr_scale=STARTS[name].gate_lr_scale).build(net)
    measured, losses, seconds = [measure(net, held_out)], [], 0.0
    for i, batch in enumerate(batches):
        begin = time.process_time()
        losses.append(backward(net, case, batch))
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.process_time() - begin
        if (i + 1) % EVERY == 0:
            measured.append(measure(net, held_out))
    curves = {key: [row[key] for row in measured] for key in measured[0]}
    curves["spread"] = curves["spread"][:: STEPS // EVERY // 2]  # start, middle, end
    last = {"train_loss": float(np.mean(losses[-50:])), "cpu_ms": 1e3 * seconds / STEPS}
    return {"start": name, "case": case, "seed": seed, **curves, **last}


def backward(net: nn.Module, case: str, batch: Batch) -> float:
    """Leave the gradients of one step in the parameters, and return the denoising loss."""
    if case in (EXACT, EXACT_GATES):
        kept: list[Tensor] = []
        l_sens = GAMMA * sensitivity_loss(net, lambda: kept.append(denoising_loss(net, batch)) or kept[0])
        if case == EXACT:
            (kept[0] + l_sens).backward()
        else:
            kept[0].backward(retain_graph=True)
            l_sens.backward(inputs=[gate for _, unit in units(net) for gate in (unit.alpha, unit.beta)])
        return kept[0].item()
    if case == NONE:
        value = denoising_loss(net, batch)
        value.backward()
        return value.item()
    squared, overlaps, value = probed(net, batch)
    supervise(net, squared, GAMMA, "floor" if case == FLOOR else "isometry", overlaps=overlaps)
    return value.item()


def measure(net: nn.Module, held_out: Batch) -> dict[str, float | None]:
    """L_sens and the spread of norms (None where no gradient reaches the units), and the validation loss."""
    squared, _, _ = probed(net, tuple(part[:64] for part in held_out))
    entry, reached = squared[:, 0].sqrt(), bool((squared[:, :2] > 0).all())
    l_sens, spread = supervise(net, squared, gamma=0.0).item(), (entry.max() / entry.min()).item()
    net.zero_grad()
    with torch.no_grad():
        val_loss = denoising_loss(net, held_out).item()
    return {"l_sens": l_sens if reached else None, "spread": spread if reached else None, "val_loss": val_loss}


def probed(net: nn.Module, batch: Batch) -> tuple[Tensor, dict[Unit, list[Tensor | None]], Tensor]:
    """Squared norms [units, 4], overlaps, and the denoising loss, whose gradients stay in the parameters."""
    with probe(net, branches=True) as rows, stream_overlaps(net) as leaves:
        value = denoising_loss(net, batch)
    value.backward()
    return rows.grad, {unit: [leaf.grad for leaf in each] for unit, each in leaves.items()}, value


def compare(name: str, seed: int, gates: str, held_out: Batch) -> Row:
    """The local beside the exact gradient of L_sens in the alphas, before the first step."""
    net = build(STARTS[name], seed, gates)
    alphas = [unit.alpha for _, unit in units(net)]
    squared, overlaps, _ = probed(net, tuple(part[:64] for part in held_out))
    denoising = torch.cat([alpha.grad for alpha in alphas])
    supervise(net, squared, gamma=1.0, overlaps=overlaps)
    local = torch.cat([alpha.grad for alpha in alphas]) - denoising
    l_sens = sensitivity_loss(net, lambda: denoising_loss(net, tuple(part[:64] for part in held_out)))
    exact = torch.cat(torch.autograd.grad(l_sens, alphas))
    cosine = torch.cosine_similarity(local, exact, dim=0).item()
    a, b, c = (vector.norm().item() for vector in (local, exact, denoising))
    norms = {"local_over_exact": a / b, "local_over_denoising": GAMMA * a / c, "exact_over_denoising": GAMMA * b / c}
    return {"start": name, "gates": gates, "seed": seed, "cosine": cosine, **norms}


def interval(values: Sequence[float | None], log: bool = False) -> list[float] | None:
    """[mean, low, high], 95 %, Student t; in logarithms where `log`. None where a value is missing."""
    if any(value is None for value in values):
        return None
    found = statistics.interval((np.log(values) if log else np.asarray(values)).tolist())
    assert found is not None
    ends = np.array([found.mean, found.low, found.high])
    return (np.exp(ends) if log else ends).tolist()


def summarise(runs: list[Row], name: str, case: str) -> Row:
    """One row of the summary."""
    mine, base = ([r for r in runs if r["start"] == name and r["case"] == c] for c in (case, NONE))
    pairs = list(zip(mine, base, strict=True))
    row: Row = {"start": name, "case": case}
    for key, middle in (("l_sens", STEPS // EVERY // 2), ("spread", 1)):
        for moment, at in (("start", 0), ("middle", middle), ("end", -1)):
            row[f"{key}_{moment}"] = interval([r[key][at] for r in mine], log=True)
    row["l_sens_vs_0"] = interval([r["l_sens"][-1] / b["l_sens"][-1] for r, b in pairs], log=True)
    row["val_loss"] = interval([r["val_loss"][-1] for r in mine])
    row["val_loss_vs_0"] = interval([r["val_loss"][-1] - b["val_loss"][-1] for r, b in pairs])
    return row | {key: interval([r[key] for r in mine]) for key in ("train_loss", "cpu_ms")}


def _shown(row: Row) -> Row:
    """Intervals as text."""
    return row | {k: "{:.3g} [{:.3g}, {:.3g}]".format(*v) for k, v in row.items() if isinstance(v, list)}


def plot(runs: list[Row], path: Path) -> None:
    """L_sens and validation loss over steps: a line a case (mean), its band from the lowest to the highest seed."""
    figure = Figure(figsize=(10.5, 2.9 * len(STARTS)), dpi=110, layout="constrained")
    looks = dict(zip(CASES, (("0.6", "-"), ("C0", (0, (5, 1))), ("C2", "--"), ("C3", "-"), ("C1", ":")), strict=True))
    for axes, name in zip(figure.subplots(len(STARTS), 2), STARTS, strict=True):
        for axis, key in zip(axes, ("l_sens", "val_loss"), strict=True):
            for case in STARTS[name].cases:
                values = np.array([r[key] for r in runs if r["start"] == name and r["case"] == case], dtype=float)
                mean = np.exp(np.log(values).mean(axis=0)) if key == "l_sens" else values.mean(axis=0)
                steps, (colour, dashes) = np.arange(len(mean)) * EVERY, looks[case]
                axis.fill_between(steps, values.min(0), values.max(0), alpha=0.13, linewidth=0, color=colour)
                axis.plot(steps, mean, color=colour, linestyle=dashes, linewidth=4 if case == NONE else 1.8, label=case)
            axis.set(ylabel=key, xlabel="step", title=name, yscale="log" if key == "l_sens" else "linear")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
