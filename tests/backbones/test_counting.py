"""What networks compute: counted FLOPs against the published figures and a count by hand."""

from __future__ import annotations

import pytest
import torch

from neural_rdm import DiT
from neural_rdm.backbones.counting import flops
from neural_rdm.core.peaks import peak_tflops


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("DiT-S/2", 6.06),
        pytest.param("DiT-B/2", 23.01, marks=pytest.mark.full),
        pytest.param("DiT-L/2", 80.71, marks=pytest.mark.full),
        pytest.param("DiT-XL/2", 118.64, marks=pytest.mark.full),
    ],
)
def test_a_forward_pass_is_what_the_paper_of_dit_says(name: str, gmacs: float) -> None:
    with torch.device("meta"):
        net = DiT.named(name, input_size=32)
    assert flops(net, backward=False) / 2e9 == pytest.approx(gmacs, rel=2e-3)


def test_every_product_is_counted() -> None:
    width, tokens, classes = 16, 4, 3
    net = DiT(4, 2, 1, width, 1, 2, num_classes=classes)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    block = 12 * width**2 * tokens + 2 * tokens**2 * width + 6 * width**2  # qkv, out, MLP; attention; modulation
    ends = 4 * width * tokens + 2 * width**2 + tokens * width * 4 * (1 + net.learn_sigma)  # patches, final layer
    times = 256 * width + width**2
    assert flops(net, backward=False) == 2 * (block + ends + times)
    assert flops(net) == 3 * 2 * (block + ends + times) - 2 * (4 * width * tokens + 256 * width)  # no input's gradient
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_blocks_are_still_compiled_afterwards() -> None:
    net = DiT(4, 2, 1, 16, 1, 2, num_classes=3)
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        seen.append(1)
        return graph.forward

    for block in net.blocks:
        block.compile(backend=backend)
    plain = flops(net, backward=False)
    assert seen == []
    net(torch.randn(1, 1, 4, 4), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    assert seen
    assert flops(net, backward=False) == plain


def test_rules_with_products_of_their_own_count_more() -> None:
    def of(rule: str) -> int:
        return flops(DiT(4, 2, 1, 16, 2, 2, residual=rule), backward=False)

    assert of("gated") == of("resnet") < of("dar")


def test_peaks_go_by_the_name_of_the_device() -> None:
    assert peak_tflops("NVIDIA H200", "bf16-mixed") == 989.4
    assert peak_tflops("NVIDIA A100-SXM4-80GB", "32-true") == 156.0
    assert peak_tflops("NVIDIA H100 PCIe", "16-mixed") == 756.0
    assert peak_tflops("some card", "bf16-mixed") is None
