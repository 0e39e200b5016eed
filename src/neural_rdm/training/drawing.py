"""Samples of a network in training, shared out over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from neural_rdm.core.ranks import parts
from neural_rdm.diffusion.guidance import Condition
from neural_rdm.diffusion.samplers import Sampler, sample
from neural_rdm.evaluation.measuring import Subject, Use, stage_text
from neural_rdm.training.held import data_of
from neural_rdm.training.module import NeuralRDM


def draw(
    module: NeuralRDM,
    sampler: Sampler,
    shape: tuple[int, ...],
    condition: Condition,
    positions: range,
    progress: bool,
    use: Callable[[Tensor, range], None] | None = None,
) -> Tensor:
    """Latents or pixels [N, *shape] (float32, CPU), one for each row of `condition` (empty: unconditional).

    Sample i depends on (seed, i) alone. The ranks share the work; every rank must call it, and every rank gets the
    result. With `use` a rank hands each batch of its own samples, on its device, and their positions to it instead, and
    nothing is kept.
    """
    (world, rank), count = parts(module.trainer), len(positions)
    together = module.trainer.world_size // world
    uses = module.trainer.global_rank % together == 0  # of ranks that draw together, one hands on
    share = math.ceil(count / world)
    # Every rank draws as many, the last ones some twice: collectives inside a sharded network must match.
    mine = [min(i, count - 1) for i in range(rank * share, (rank + 1) * share)]
    own, start = positions[rank * share : (rank + 1) * share], 0

    def finish(x: Tensor) -> Tensor:
        nonlocal start
        if use is None:
            return x.float().cpu()
        batch = own[start : start + len(x)]
        start += len(x)
        if len(batch) and uses:
            use(x[: len(batch)].float(), batch)
        return x[:0].float().cpu()

    with module.trainer.precision_plugin.forward_context():  # the precision of training, bf16 on a GPU
        drawn = sample(
            module.net,
            module.objective.process,
            sampler,
            shape,
            [positions[i] for i in mine],
            seed=module.seed,
            condition={name: rows[mine] for name, rows in condition.items()},
            null=module.null_condition(),
            batch_size=min(64, share),
            device=module.device,
            finish=finish,
            progress=progress and rank == 0 and uses,
        )
    if world > 1 and use is None:
        gathered: Any = module.all_gather(drawn.to(module.device))
        drawn = gathered[::together].reshape(-1, *shape).cpu()
    return drawn[:count]


def subject_of(trainer: pl.Trainer, module: NeuralRDM, sampler: Sampler, weights: str, progress: bool) -> Subject:
    """A network in training, as it is at this moment; the ranks share the drawing."""

    def draws(sampler: Sampler, condition: dict[str, Tensor], positions: range, use: Use | None = None) -> Tensor:
        return draw(module, sampler, module.net.input_shape, condition, positions, progress, use)

    return Subject(
        net=module.net,
        text=module.text,
        data=data_of(trainer),
        draws=draws,
        sampler=sampler,
        weights=weights,
        step=trainer.global_step,
        seed=module.seed,
        decode=module.first_stage.decode if module.encode else None,
        device=module.device,
        first_stage=stage_text(module.first_stage),
        precision=trainer.precision_plugin.precision,
        writes=trainer.is_global_zero,
    )
