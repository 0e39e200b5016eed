"""Which process this is, before any process group exists."""

from __future__ import annotations

import os
import socket
from typing import Any

#: environment variable in which the rank that starts others leaves its process number
STARTED_BY = "NEURAL_RDM_STARTED_BY"
#: the process that started this one, as long as it lives
PARENT = os.getppid()
#: rank 0, where it has started this one: it may have ended before the line above was reached
STARTER = int(os.environ.get(STARTED_BY, 0)) if os.name == "posix" else 0
#: whether torchrun has started this process: then it has each rank, the first one too, and keeps the addresses of all
BY_TORCHRUN = "TORCHELASTIC_RUN_ID" in os.environ

NODE = 8  # devices of a node, where nobody says another number

#: what Lightning, torchrun and this project leave in the environment of the processes of one job
RANK_VARIABLES = (
    "LOCAL_RANK",
    "RANK",
    "GROUP_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    STARTED_BY,
)


def torchrun_is_gone() -> bool:
    """Whether torchrun has ended before this process, one of its ranks, could remember its number: the ranks find one
    another in a store of torchrun's, which then refuses a connection that they would try for half an hour.
    """
    if not BY_TORCHRUN or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    try:
        socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass  # a slow network is no answer
    return False


def parts(trainer: Any) -> tuple[int, int]:
    """Into how many parts a Trainer's ranks share out samples, and which of them this one takes. Ranks that compute a
    part together (tensor and context parallelism; neighbours) take the same one.
    """
    together = getattr(trainer.strategy, "together", 1)
    return trainer.world_size // together, trainer.global_rank // together


def is_first_rank() -> bool:
    """Whether this process is global rank 0, whoever started it (Lightning, torchrun, SLURM)."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
