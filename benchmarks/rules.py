"""What every residual rule costs over `resnet`: time, operations, kept activations, and the stream itself.

A whole training step is too noisy (2 to 4 %) to show what a rule costs. So the residual additions of a network are run
by themselves, all of them in their order, with a branch of one operation; the time over `resnet` is given as a share of
the network's training step, measured in the same run. `table()` needs no time: it fills `docs/rules.md`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.residual import BASE, FIVE, NETWORKS, interleaved, saved_bytes, step_time
from neural_rdm.backbones.dit import DiT
from neural_rdm.reports.tables import markdown_table
from neural_rdm.residual import Residual, Stack, Unit, gate_names, plain_state

#: name -> the rule and its options: the paper's five, then the others from one tensor to a whole history
CASES: dict[str, Residual] = {
    **{rule: Residual(rule) for rule in (*FIVE, "layerscale", "sandwich", "mvsplit", "ihc", "hc")},
    "hc dynamic=true": Residual("hc", dynamic=True),
    **{rule: Residual(rule) for rule in ("denseformer", "block_attnres", "delta", "dar")},
    "dar chunk=4": Residual("dar", chunk=4),
}
ROUNDS = 9
XL = {"input_size": 32, "patch_size": 2, "hidden_size": 1152, "depth": 28, "num_heads": 16}


def run() -> dict[str, Any]:
    """All measurements as plain values; a summary is printed on the way. Times are milliseconds of CPU time."""
    torch.manual_seed(0)
    arguments, batch = NETWORKS["DiT-S/2"]
    shape, units = (batch, (arguments["input_size"] // 2) ** 2, arguments["hidden_size"]), 2 * arguments["depth"]
    step = step_time(arguments, batch)
    stacks = {name: Additions(residual, shape, units) for name, residual in CASES.items()}
    times = interleaved({name: stack.step for name, stack in stacks.items()}, ROUNDS)
    base_bytes = saved_bytes(BASE, bf16=False)
    rows = []
    for name, values in times.items():
        extra = statistics.median(v - base for v, base in zip(values, times[BASE], strict=True))
        rows.append(
            {
                "rule": name,
                "additions_ms": statistics.median(values),
                "extra_ms": extra,
                "share_of_step": extra / step,
                "saved_bytes_over_resnet": saved_bytes(CASES[name], bf16=False) / base_bytes - 1,
                "stream_tensors": stacks[name].widest,
            }
        )
    print(f"DiT-S/2, batch {batch}, a training step {step:.0f} ms; its {units} additions by themselves:\n")
    print(markdown_table(rows))
    return {
        "method": (
            "all residual additions of DiT-S/2 in their order, forward and backward, branch = sigmoid, with the "
            "block's gate; rules interleaved A B C ... C B A, medians over rounds of differences paired in a round; "
            "share_of_step: over one training step of the gated network in the same run; saved bytes: what the blocks "
            "of the whole network keep for backward"
        ),
        "shape": list(shape),
        "units": units,
        "step_ms": step,
        "rules": rows,
        "table": table(),
    }


class Additions:
    """The residual additions of a network without its branches.

    Args:
        shape: [B, N, D] of the stream.
    """

    def __init__(self, residual: Residual, shape: tuple[int, int, int], units: int) -> None:
        plan = residual.plan(units, shape[-1], time_dim=shape[-1])
        self.units = nn.ModuleList(plan.unit(("attn", "mlp")[i % 2], i // 2) for i in range(units))
        self.stack: Stack = plan.stack
        self.z, self.grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
        self.gate, self.e = torch.randn(shape[0], shape[2], requires_grad=True), torch.randn(shape[0], shape[2])
        self.widest = 1

    def forward(self, branch: Callable[[Tensor], Tensor] = torch.sigmoid) -> Tensor:
        """z behind all units."""
        stream = self.stack.open(self.z)
        for unit in self.units:
            stream = unit(stream, branch, self.gate, self.e)
            if not isinstance(stream, Tensor):
                self.widest = max(self.widest, len({id(z) for z in stream}))
        return self.stack.close(stream, self.e)

    def step(self) -> None:
        """Forward and backward."""
        torch.autograd.backward(self.forward(), self.grad)
        for module in (self.units, self.stack):
            module.zero_grad()
        self.z.grad = self.gate.grad = None


class Operations(TorchDispatchMode):
    """Counts floating-point operations: 2 m n k of a matrix product, the entries read of a sum, norm or softmax, the
    entries made of anything elementwise (three times for `addcmul`: it multiplies twice and adds).
    """

    FREE = (
        "view",
        "reshape",
        "expand",
        "unsqueeze",
        "squeeze",
        "split",
        "slice",
        "select",
        "t",
        "transpose",
        "detach",
        "alias",
        "stack",
        "cat",
        "_to_copy",
        "empty",
        "zeros",
        "ones",
        "clone",
        "unbind",
        "permute",
        "copy_",
    )
    READ = ("sum", "mean", "linalg_vector_norm", "_softmax", "_fused_rms_norm")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        first = out[0] if isinstance(out, (tuple, list)) else out
        if name in ("mm", "mv", "bmm", "addmm"):
            a = args[1] if name == "addmm" else args[0]
            self.count += 2 * first.numel() * a.shape[-1]
        elif name in self.READ:
            self.count += 2 * args[0].numel()
        elif name not in self.FREE and isinstance(first, Tensor):
            self.count += first.numel() * (3 if name.startswith("addcmul") else 1)
        return out


def operations(residual: Residual) -> int:
    """Floating-point operations of all additions of a DiT-XL/2 in a forward pass over one image."""
    one, two = (_counted(residual, tokens) for tokens in (1, 2))
    return one + 255 * (two - one)  # all but what the timestep asks for grows with the tokens


def _counted(residual: Residual, tokens: int) -> int:
    additions = Additions(residual, (1, tokens, 1152), 56)
    with torch.no_grad(), Operations() as counted:
        additions.forward(lambda h: h)
    return counted.count


#: of a DiT-XL/2's forward pass over one image, 118.6 G multiply-adds (DiT, Table 4)
XL_OPERATIONS = 2 * 118.6e9


def table() -> list[dict[str, str]]:
    """Every rule on DiT-XL/2: start, parameters, operations, width of its stream, and what it can do."""
    base = operations(CASES[BASE])
    rows = []
    for name, residual in CASES.items():
        with torch.device("meta"):
            net = DiT(**XL, residual=residual)
        parameters, own, kind = dict(net.named_parameters()), gate_names(net), residual.unit_class
        additions = Additions(residual, (1, 4, 8), 56)
        additions.forward()
        start = kind.starts(**residual.options)
        within = f" within {kind.plain_within:g}" if start == "plain" and kind.plain_within else ""
        rows.append(
            {
                "rule": f"`{name}`",
                "start": start + within,
                "parameters": f"{sum(parameters[n].numel() for n in own):,}",
                "operations": f"{(operations(residual) - base) / XL_OPERATIONS:+.2%}",
                "tensors in the stream": str(additions.widest),
                "onto trained weights": _loads(additions.units),
                "grows": _yes(kind.no_growth is None),
                "folds": _yes(_folds(residual)),
                "U-ViT": _yes(kind.no_reopening is None),
                "U-Net": _yes(kind.single),
                "gamma": _yes(kind.no_supervision is None),
            }
        )
    return rows


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _loads(units: nn.ModuleList) -> str:
    """How trained plain weights come through it."""
    try:
        plain_state(units)
    except ValueError:
        return "no"
    return "nearly" if any(unit.plain_within for unit in units) else "unchanged"


def _folds(residual: Residual) -> bool:
    """Whether a unit with any values of its parameters fits into its branch's last layer (no adaLN gate behind it)."""
    if not residual.unit_class.single:
        return False
    unit: Unit = residual.unit(4)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.fill_(0.5)
    try:
        unit.affine(gated_behind=False)
    except ValueError:
        return False
    return True
