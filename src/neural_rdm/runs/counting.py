"""How large the network of a run is and what it computes, counted without weights, data or time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neural_rdm.config.trust import escaped
from neural_rdm.core.errors import first_line


def counted(config: Mapping[str, Any]) -> dict[str, float | None]:
    """`parameters` of the network of a run's configuration, and `flops` of a training step for one sample
    (`backbones.counting`). What cannot be counted (a network of one's own that cannot be built here) is None, and a
    line says why.
    """
    import torch
    from omegaconf import OmegaConf

    from neural_rdm.backbones.counting import flops
    from neural_rdm.runs import build

    found: dict[str, float | None] = {"parameters": None, "flops": None}
    try:
        with torch.device("meta"):
            net = build.network(OmegaConf.create(escaped(dict(config)))).train()
        found["parameters"] = sum(p.numel() for p in net.parameters())
        found["flops"] = flops(net, (config.get("condition") or {}).get("max_length"))
    except Exception as error:
        print(f"not counted: {first_line(error)}", flush=True)
    return found
