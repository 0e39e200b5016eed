"""`python -m neural_rdm.plan`: rows of a plan, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from neural_rdm.core.errors import ConfigError
from neural_rdm.plan import plan

SMALL = ["exp=digits_gated", "backbone.depth=2", "data.batch_size=64"]


def rows(text: str) -> Iterator[dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "|" in line]
    for line in lines[2:]:
        yield dict(zip(lines[0], line, strict=True))


def test_a_row_for_every_way_to_share_and_to_compute_twice() -> None:
    text = plan([*SMALL, "devices=1,16", "memory=0.001", "trainer.activation_checkpointing=2", "strategy=fsdp2",
                 "trainer.devices=2"])  # fmt: skip
    assert "parameters" in text
    assert "64: 16 device(s) x 1 micro-step(s) x 4 sample(s)" in text
    found = list(rows(text))
    ways = ["none", "selective", "full", "2*"]
    assert [row["checkpointing"] for row in found if row["devices"] == "1"] == ways
    assert [row["strategy"] for row in found if row["devices"] == "16"] == ["ddp", "fsdp2", "hsdp"] * 4
    assert {row["fits 0.001 GiB"] for row in found} == {"no"}
    assert {row["samples that fit"] for row in found} == {"0"}
    assert all(float(row["most"]) >= float(row["activations"]) for row in found)


def test_what_fits_is_where_memory_ends() -> None:
    fitting = [int(row["samples that fit"]) for row in rows(plan([*SMALL, "memory=1"]))]
    assert 0 < fitting[0] < fitting[1] < fitting[2]
    more = rows(plan([*SMALL, "memory=1", f"data.batch_size={fitting[0] + 1}"]))
    assert [row["fits 1 GiB"] for row in more] == ["no", "yes", "yes"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["devices=0"], "devices=0: pass a positive number, or several: 8,64"),
        (["devices=3"], "data.batch_size=64 is not a multiple of 3: 3 device"),
        (["memory=much"], "memory=much: pass a positive number"),
        (["trainer.activation_checkpointing=some"], "trainer.activation_checkpointing: 'some'"),
        (["backbone.depht=3"], "depth"),
    ],
)
def test_mistakes_are_told(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan([*SMALL, *arguments])
