"""What a network predicts for two random inputs: for comparing it with what became of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neural_rdm.backbones.contract import Backbone
from neural_rdm.core.seeding import normal


@torch.no_grad()
def outputs(net: Backbone) -> Tensor:
    """The prediction [2, ...] of a network in evaluation, the same inputs every time; its mode stays as it is."""
    kind, mode = next(net.parameters()), net.training
    x, t = normal(0, "deepen", [0, 1], net.input_shape).to(kind), torch.tensor([20, 700], device=kind.device)
    condition: dict[str, Any] = {}
    if net.num_classes:
        condition["y"] = torch.tensor([0, net.num_classes - 1], device=kind.device)
    if net.context_dim is not None:
        shape = (net.context_length or 77, net.context_dim)
        condition["context"] = normal(0, "deepen text", [0, 1], shape).to(kind)
    found: Tensor = net.eval()(x, t, **condition)
    net.train(mode)
    return found
