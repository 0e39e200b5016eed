"""What devices send, against sums written out; and the page, against the numbers that it was written from."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from benchmarks import scaling

from neural_rdm.backbones.dit import DiT
from neural_rdm.training.traffic import Links, averaged, traffic


def test_bytes_are_those_of_rings() -> None:
    with torch.device("meta"):
        net = DiT(8, 4, 1, 32, 2, 4, num_classes=10)
    total = sum(p.numel() for p in net.parameters())
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    narrow, wide = 2 * 12 * 32 * 32, 2 * 6 * 32 * 32  # of each block: qkv, proj, fc1, fc2; modulation
    assert traffic(net, 4, 1).ring == pytest.approx(2 * 3 / 4 * 4 * trained)
    gathered = 2 * (2 * narrow + 4 * wide) + 4 * (total - narrow - wide)
    assert traffic(net, 4, 4).ring == pytest.approx(3 / 4 * (gathered + 4 * trained))
    hybrid = traffic(net, 16, 8)
    assert (hybrid.ring, hybrid.copied) == pytest.approx((7 / 8 * (gathered + 4 * trained), 4 * trained / 8))
    whole = traffic(net, 4, 4, half=False)
    assert whole.ring == pytest.approx(3 / 4 * (4 * (total + narrow + wide) + 4 * trained))


def test_rings_go_as_fast_as_their_slowest_part() -> None:
    with torch.device("meta"):
        net = DiT(8, 4, 1, 32, 2, 4, num_classes=10)
    links = Links(inside=100.0, outside=10.0)
    assert traffic(net, 8, 1).seconds(links) == pytest.approx(traffic(net, 8, 1).ring / 100)
    assert traffic(net, 16, 1).seconds(links) == pytest.approx(traffic(net, 16, 1).ring / 80)  # the cards of a node
    assert traffic(net, 16, 16).seconds(links, 0.5) == pytest.approx(traffic(net, 16, 16).ring / 40)
    hybrid = traffic(net, 16, 8)
    assert hybrid.seconds(links) == pytest.approx(hybrid.ring / 100 + hybrid.copied / 10)


def test_groups_average_what_a_device_has_and_send_the_rest_inside_a_node() -> None:
    with torch.device("meta"):
        net = DiT(8, 4, 1, 32, 2, 4, num_classes=10)
    between = averaged(net, 4)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert between.copied == pytest.approx(2 * 3 / 4 * 4 * trained)
    assert replace(between, grouped=50.0).seconds(Links(100.0, 10.0)) == pytest.approx(between.copied / 10 + 0.5)


def test_every_further_block_adds_the_same() -> None:
    def net(depth: int) -> DiT:
        with torch.device("meta"):
            return DiT(8, 4, 1, 32, depth, 4, num_classes=10).train()

    found = [scaling.counts(partial(net, depth), groups=()) for depth in (4, 6, 12)]
    assert scaling.at_depth(*found[:2], 4) == found[2]


def test_the_page_has_the_numbers_that_the_formulas_give() -> None:
    content = json.loads(scaling.RESULT.read_text(encoding="utf-8"))
    text = scaling.PAGE.read_text(encoding="utf-8")
    assert scaling.page(text, content) == text
    assert scaling.table(content["rows"]).strip() in text
    name = "DiT-XL/2"
    found = [row for row in content["rows"] if row["network"] == name]
    for row, again in zip(found, scaling.rows(name, content["counted"][name]), strict=True):
        assert row == again
