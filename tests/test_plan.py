"""`python -m neural_rdm.plan`: rows of a plan, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from neural_rdm.core.errors import ConfigError
from neural_rdm.plan import plan
from neural_rdm.training import memory

SMALL = ["exp=digits_gated", "backbone.depth=2", "data.batch_size=64"]


def rows(text: str) -> Iterator[dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "|" in line]
    for line in lines[2:]:
        yield dict(zip(lines[0], line, strict=True))


def test_a_row_for_every_way_to_share_and_to_compute_twice() -> None:
    text = plan([*SMALL, "devices=1,16", "memory=0.001", "trainer.activation_checkpointing=2", "strategy=fsdp2",
                 "trainer.devices=2"])  # fmt: skip
    assert "parameters" in text
    assert "64: 16 device(s) x 1 micro-step(s); " in text
    found = list(rows(text))
    ways = ["none", "selective", "full", "2*"]
    assert [row["checkpointing"] for row in found if row["devices"] == "1"] == ways
    shared = [(name, samples) for name, samples in (("ddp", "4"), ("fsdp2", "4"), ("hsdp", "4"), ("tp tensor=4", "16"))
              for _ in ways]  # fmt: skip
    assert [(row["strategy"], row["samples"]) for row in found if row["devices"] == "16"] == shared
    assert [row["strategy"] for row in found if "*" in row["checkpointing"] and row["devices"] == "16"] == ["fsdp2"]
    assert {row["fits 0.001 GiB"] for row in found} == {"no"}
    assert {row["samples that fit"] for row in found} == {"0"}
    assert all(float(row["most"]) >= float(row["activations"]) for row in found)


def test_groups_have_more_samples_at_once_and_what_does_not_fit_is_left_out_with_a_reason() -> None:
    context = ["strategy=ddp", "strategy.context=2", "callbacks.sensitivity.time_bins=0"]
    found = list(rows(plan([*SMALL, "devices=4", *context])))
    assert [(row["strategy"], row["checkpointing"], row["samples"]) for row in found][::3] == [
        ("ddp context=2", "none*", "32"), ("fsdp2 context=2", "none", "32"), ("tp tensor=4", "none", "64"),
    ]  # fmt: skip
    text = plan([*SMALL, "devices=128"])
    assert {(row["strategy"], row["samples"]) for row in rows(text)} == {("tp tensor=4", "2")}
    assert "left out: ddp, fsdp2, hsdp on 128 device(s): data.batch_size=64 is the global batch" in text


@pytest.mark.parametrize(
    ("devices", "shards"),
    [
        (["devices=16", "strategy.replicas=4"], 4),
        (["devices=4", "strategy.replicas=2"], 2),
        (["trainer.devices=4", "trainer.num_nodes=4"], 4),  # a replica a node
        (["devices=16"], 8),
    ],
)
def test_hsdp_is_planned_with_its_own_replicas(
    devices: list[str], shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = memory.memory
    seen = []

    def told(net: Any, optimizer: Any, averages: int, held: Any, shards: int = 1, *rest: Any) -> Any:
        seen.append(shards)
        return planned(net, optimizer, averages, held, shards, *rest)

    monkeypatch.setattr(memory, "memory", told)
    found = list(rows(plan([*SMALL, "strategy=hsdp", *devices])))
    assert [row["strategy"] for row in found if "*" in row["checkpointing"]] == ["hsdp"]
    assert seen[[row["strategy"] for row in found].index("hsdp")] == shards


def test_what_fits_is_where_memory_ends() -> None:
    fitting = [int(row["samples that fit"]) for row in rows(plan([*SMALL, "memory=1"]))]
    assert 0 < fitting[0] < fitting[1] < fitting[2]
    more = rows(plan([*SMALL, "memory=1", f"data.batch_size={fitting[0] + 1}"]))
    assert [row["fits 1 GiB"] for row in more] == ["no", "yes", "yes"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["devices=0"], "devices=0: pass a positive number, or several: 8,64"),
        (["devices=3"], "ddp, fsdp2 on 3 device.*data.batch_size=64 is the global batch"),
        (["memory=much"], "memory=much: pass a positive number"),
        (["trainer.activation_checkpointing=some"], "trainer.activation_checkpointing: 'some'"),
        (["backbone.depht=3"], "depth"),
    ],
)
def test_mistakes_are_told(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan([*SMALL, *arguments])
