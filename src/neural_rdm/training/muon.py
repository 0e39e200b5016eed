"""Muon for the matrices of a network, AdamW for everything else, as one optimizer.

    M <- momentum * M + G,  N = G + momentum * M,  W <- (1 - lr * wd) W - lr * 0.2 sqrt(max(rows, columns)) O(N)

O is the nearest orthogonal matrix, by five Newton-Schulz steps (Jordan et al. 2024); the factor gives its update the
size of AdamW's, so that learning rate and weight decay are its as well (Moonlight, arXiv 2502.16982). torch.optim.Muon
is not used: it takes a fused tensor (QKV, the six parts of adaLN) for one matrix, on which Muon plateaus, and knows
neither `found_inf` nor sharded weights. Here every part of a fused tensor is orthogonalised by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from neural_rdm.residual import gate_names, units
from neural_rdm.training.adamw import loss_of

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
#: the last parts of a weight's name -> how many matrices stand in it, one above the other
FUSED = {"qkv.weight": 3, "kv.weight": 2, "adaLN_modulation.1.weight": 6}


def matrices(net: nn.Module) -> dict[str, int]:
    """The weights that Muon optimises, those of linear and convolution layers in blocks, with the number of matrices
    in each. Embeddings, the first and the last layer, biases, norms and the residual rule stay with AdamW.
    """
    rule = gate_names(net)
    owners = tuple(name.rpartition(".")[0] for name, _ in units(net))
    found = {}
    for name, module in net.named_modules():
        inside = any(name.startswith(f"{owner}.") for owner in owners if owner)
        weight = f"{name}.weight"
        if isinstance(module, (nn.Linear, nn.Conv2d)) and inside and weight not in rule:
            found[weight] = next((count for end, count in FUSED.items() if weight.endswith(f".{end}")), 1)
    return found


class Muon(torch.optim.AdamW):
    """AdamW, fused, whose groups with `parts` are optimised by Muon instead.

    Args:
        groups: parameter groups; `parts` is the number of matrices in each of a group's tensors, absent or None for
            AdamW.
        momentum: M's, with Nesterov's look ahead.
        options: AdamW's.

    Raises:
        ValueError: weights in 16 bits, which would have to be rounded at random (see `adamw`).
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.95, **options: Any) -> None:
        if any(weight.dtype.itemsize < 4 for group in groups for weight in group["params"]):
            raise ValueError("Muon does not round at random: its weights have to be float32")
        super().__init__([{"parts": None, "momentum": momentum, **group} for group in groups], fused=True, **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both; one that `found_inf` marks changes nothing."""
        loss = loss_of(closure)
        everything = self.param_groups
        try:
            self.param_groups = [group for group in everything if group["parts"] is None]
            super().step()
        finally:
            self.param_groups = everything
        found = getattr(self, "found_inf", None)
        for group in everything:
            if group["parts"] is not None:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, group, found)
        return loss

    def _update(self, parameter: nn.Parameter, group: dict[str, Any], found: Tensor | None) -> None:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros((), device=parameter.device)  # AdamW looks for it in every loaded state
        buffer, momentum = state["momentum_buffer"], group["momentum"]
        moved = momentum * buffer + grad
        update = _orthogonal(grad + momentum * moved, group["parts"])
        rows = parameter.shape[0] // group["parts"]
        scale = 0.2 * max(rows, parameter.numel() // parameter.shape[0]) ** 0.5
        weight = (1 - group["lr"] * group["weight_decay"]) * parameter - group["lr"] * scale * update
        if found is not None:
            moved, weight = (torch.where(found > 0, old, new) for old, new in ((buffer, moved), (parameter, weight)))
        state["step"] += 1.0 if found is None else 1.0 - found
        buffer.copy_(moved)
        parameter.copy_(weight)


def _orthogonal(matrix: Tensor, parts: int) -> Tensor:
    """O of every part of a tensor [parts * rows, ...], of its shape; a sharded one is gathered and sharded again."""
    if isinstance(matrix, DTensor):
        whole = _orthogonal(matrix.full_tensor(), parts)
        everywhere = [Replicate()] * matrix.device_mesh.ndim
        shared = DTensor.from_local(whole, matrix.device_mesh, everywhere, run_check=False)
        return shared.redistribute(placements=matrix.placements)
    return torch.cat([newton_schulz(part.flatten(1)) for part in matrix.chunk(parts)]).view_as(matrix)


def newton_schulz(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest orthogonal matrix [rows, columns], with singular values about 0.7 to 1.2; in bfloat16 on a GPU.

    Args:
        steps: of the iteration X <- a X + b (X X^T) X + c (X X^T)^2 X.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if turned else x).to(matrix.dtype)
