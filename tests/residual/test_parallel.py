"""Every rule in two processes: the gradients of one."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import two_processes
from tests.residual.ranks import every_rule


def test_every_rule_learns_in_two_processes_what_it_learns_in_one(tmp_path: Path) -> None:
    two_processes(every_rule, tmp_path)
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text(encoding="utf-8") == ""
