"""How large the network of a run is and what it computes, counted without weights, data or time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neural_rdm.core.errors import first_line

TOKENS = 77  # of a text, where neither the network nor the configuration says how many


def counted(config: Mapping[str, Any]) -> dict[str, float | None]:
    """`parameters` of the network of a run's configuration, and `flops` of a training step for one sample.

    FLOPs are those of the matrix products, convolutions and attentions of one forward and backward pass, a multiply
    and an add counted as two (`torch.utils.flop_counter`); the optimizer's step and what is computed twice to save
    memory are not among them. What cannot be counted (a network of one's own that cannot be built here) is None, and a
    line says why.
    """
    import torch
    from omegaconf import OmegaConf
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from neural_rdm.runs import build

    found: dict[str, float | None] = {"parameters": None, "flops": None}
    try:
        # Tensors without memory; the plain attention, because the counter does not know the CPU's fused one.
        with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
            net = build.network(OmegaConf.create(dict(config))).train()
            found["parameters"] = sum(p.numel() for p in net.parameters())
            length = net.context_length or (config.get("condition") or {}).get("max_length") or TOKENS
            y = torch.zeros(1, dtype=torch.long) if net.num_classes else None
            context = torch.zeros(1, length, net.context_dim) if net.context_dim else None
            with FlopCounterMode(display=False) as counter:
                net(torch.zeros(1, *net.input_shape), torch.zeros(1), y, context).sum().backward()
        found["flops"] = counter.get_total_flops()
    except Exception as error:
        print(f"not counted: {first_line(error)}", flush=True)
    return found
