"""Which process this is, before any process group exists."""

from __future__ import annotations

import os

#: the process that started this one, as long as it lives; known from the first moment on
PARENT = os.getppid()

#: what Lightning and torchrun leave in the environment of the processes of one job
RANK_VARIABLES = (
    "LOCAL_RANK",
    "RANK",
    "GROUP_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def is_first_rank() -> bool:
    """Whether this process is global rank 0, whoever started it (Lightning, torchrun, SLURM)."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
