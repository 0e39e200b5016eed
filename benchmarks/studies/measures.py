"""What the studies ask of a run beside its loss: how sensitive its units are, and what its gates have become."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.training import Measure, Row, Trained, held_out, report
from neural_rdm.dynamics import probe
from neural_rdm.residual import units

BATCHES, SIZE = 8, 40  # of held-out samples that a sensitivity is measured on
TIMES = (0, 111, 222, 333, 444, 555, 666, 777, 888, 999)  # timesteps at which gates are read


def sensitivity(run: Trained) -> Row:
    """`norm`: ||s_i|| of every unit, a geometric mean over batches of held-out samples under the same timesteps and
    noise for every run; `between`: the standard deviation over those batches of log10(||s_i|| / ||s_last||).
    """
    module = run.module
    own, module.seed = module.seed, 1_000
    found = []
    for draw, batch in enumerate(_batches(run)):
        with probe(module.net) as rows:
            loss = module.losses(batch, f"sensitivity {draw}", drop=False)["loss"].mean()
        loss.backward()
        assert rows.grad is not None
        found.append(rows.grad[:, 0].double().log10() / 2)
    module.seed = own
    norms = torch.stack(found)
    relative = norms - norms[:, -1:]
    return {"norm": (10 ** norms.mean(0)).tolist(), "between": relative.std(0).tolist()}


def gates(run: Trained) -> Row:
    """A value a unit: mean and standard deviation over channels of the static `alpha` and `beta`, and at each of some
    timesteps T `own_T`, the mean of alpha there, and `effective_T`, the root mean square over classes and channels of
    `alpha * g`, with the block's own adaLN gate g: all that multiplies the branch. A rule without alpha has 1.
    """
    net: Any = run.module.net
    found = [unit for _, unit in units(net)]
    alpha = [unit.alpha.mean().item() if unit.has_alpha else 1.0 for unit in found]
    deviation = [unit.alpha.std().item() if unit.has_alpha else 0.0 for unit in found]
    row: Row = {"alpha": alpha, "alpha_sd": deviation}
    row["beta"] = [unit.beta.mean().item() if unit.has_beta else 0.0 for unit in found]
    row["beta_sd"] = [unit.beta.std().item() if unit.has_beta else 0.0 for unit in found]
    x = next(_batches(run))["x"][: net.num_classes]
    y = torch.arange(len(x))
    for t in TIMES:
        seen = _seen(net, x, torch.full((len(x),), t), y)
        row[f"effective_{t}"] = [value for value, _ in seen]
        row[f"own_{t}"] = [value for _, value in seen]
    return row


@torch.no_grad()
def _seen(net: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> list[tuple[float, float]]:
    """For each unit, in one forward pass: root mean square over samples and channels of `alpha * g`, and the mean of
    its alpha.
    """
    seen: list[tuple[float, float]] = []

    def look(unit: Any, arguments: tuple[Any, ...]) -> None:
        _, _, g, e = (*arguments, None, None)[:4]
        alpha = unit.effective("alpha", e) if unit.has_alpha else torch.ones(1)
        seen.append(((alpha if g is None else g * alpha).square().mean().sqrt().item(), alpha.mean().item()))

    handles = [unit.register_forward_pre_hook(look) for _, unit in units(net)]
    try:
        net(x, t, y=y)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _batches(run: Trained) -> Iterator[dict[str, Any]]:
    whole = list(run.data.val_dataloader())
    joined = {key: torch.cat([batch[key] for batch in whole]) for key in whole[0]}
    for i in range(BATCHES):
        yield {key: value[i * SIZE : (i + 1) * SIZE] for key, value in joined.items()}


#: by the names that a study gives them
MEASURES: dict[str, Measure] = {
    "held out": held_out,
    "digits": report("frechet_pixels", "accuracy"),
    "clips": report("frechet_pixels", "accuracy", "consistency"),
    "sensitivity": sensitivity,
    "gates": gates,
}
