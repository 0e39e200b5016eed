"""What each of two processes runs in tests of several ranks; only the standard library at the top, since a spawned
process imports this file before anything else, and `import neural_rdm` has to be its first heavy import.
"""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path


def two_ranks(rank: int, port: int, folder: Path) -> None:
    """Train under DDP and FSDP2; the first rank saves the gradients of the gates."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0",
        WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    import neural_rdm  # noqa: F401, I001
    import torch

    from neural_rdm.training import parallel
    from tests.training.test_supervision import gradients

    torch.set_num_threads(1)
    for name, residual in product(("ddp", "fsdp2"), ("gated", "skip")):
        strategy = getattr(parallel, name)(devices=2)
        label = f"{name}-{residual}"
        found = gradients(folder / label, residual=residual, strategy=strategy, devices=2, accumulate=2)
        if rank == 0:
            torch.save(found, folder / f"{label}.pt")
