"""Every rule in two processes: the gradients of one."""

from __future__ import annotations

import socket
from pathlib import Path

import torch

from tests.residual.ranks import every_rule


def test_every_rule_learns_in_two_processes_what_it_learns_in_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(every_rule, (port, str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text(encoding="utf-8") == ""
