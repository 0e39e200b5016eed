"""Only global rank 0 is the first rank, whoever started the processes."""

from __future__ import annotations

import socket

import pytest

from neural_rdm.core import ranks
from neural_rdm.core.ranks import RANK_VARIABLES, is_first_rank, torchrun_is_gone


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, True),  # torchrun
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),  # the first rank of the second node
        ({"LOCAL_RANK": "1"}, False),  # Lightning's own children
        ({"NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "0"}, False),
    ],
)
def test_is_first_rank(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], first: bool) -> None:
    for name in (*RANK_VARIABLES, "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_rank() is first


def test_torchrun_is_gone_where_its_store_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as store:
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.getsockname()[1])}
        for name, value in {**variables, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(ranks, "BY_TORCHRUN", True)
        assert not torchrun_is_gone()
    assert torchrun_is_gone()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")  # rank 0 makes the store, later
    assert not torchrun_is_gone()
    monkeypatch.setattr(ranks, "BY_TORCHRUN", False)
    assert not torchrun_is_gone()
