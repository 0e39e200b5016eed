"""What every residual rule costs over `resnet`: time, operations, kept activations, peak memory, the stream itself.

A whole training step is too noisy (2 to 4 %) to show what a rule costs. So the residual additions of a network are run
by themselves, all of them in their order, with a branch of one operation; the time over `resnet` is given as a share of
the network's training step, measured in the same run. `costs()`, and `table()`, which needs no time, fill
`docs/rules.md`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.residual import BASE, FIVE, NETWORKS, interleaved, saved_bytes, training_step
from neural_rdm.backbones.dit import DiT
from neural_rdm.reports.tables import markdown_table
from neural_rdm.residual import Residual, Stack, gate_names, plain_state
from neural_rdm.residual.stack import Noted, tensors_of

#: name -> the rule and its options: the paper's five, then the others from one tensor to a whole history
CASES: dict[str, Residual] = {
    **{rule: Residual(rule) for rule in (*FIVE, "layerscale", "sandwich", "mvsplit", "ihc", "hc")},
    "hc dynamic=true": Residual("hc", dynamic=True),
    **{rule: Residual(rule) for rule in ("denseformer", "block_attnres", "delta", "dar")},
    "dar chunk=4": Residual("dar", chunk=4),
}
#: the most that a rule's additions may take over those of `resnet`, as a share of the network's training step
GOALS = {
    **dict.fromkeys(("gated", "adaln", "skip", "rezero", "layerscale", "sandwich", "mvsplit"), 0.02),
    **dict.fromkeys(("ihc", "hc", "delta", "dar"), 0.15),
    **dict.fromkeys(("block_attnres", "dar chunk=4"), 0.10),
}
ROUNDS = 9
STEP = "a training step"
XL = {"input_size": 32, "patch_size": 2, "hidden_size": 1152, "depth": 28, "num_heads": 16}


def run() -> dict[str, Any]:
    """All measurements as plain values; a summary is printed on the way. Times are milliseconds of CPU time."""
    torch.manual_seed(0)
    arguments, batch = NETWORKS["DiT-S/2"]
    shape, units = (batch, (arguments["input_size"] // 2) ** 2, arguments["hidden_size"]), 2 * arguments["depth"]
    stacks = {name: Additions(residual, shape, units) for name, residual in CASES.items()}
    cases = {STEP: training_step(arguments, batch), **{name: stack.step for name, stack in stacks.items()}}
    times = interleaved(cases, ROUNDS)
    peaks = {name: peak_bytes(arguments | {"residual": residual}, batch) for name, residual in CASES.items()}
    kept = {name: saved_bytes(residual, bf16=False) for name, residual in CASES.items()}
    rows = []
    for name in CASES:
        extra = [v - base for v, base in zip(times[name], times[BASE], strict=True)]
        rows.append(
            {
                "rule": name,
                "additions_ms": statistics.median(times[name]),
                "extra_ms": statistics.median(extra),
                "share_of_step": statistics.median(v / step for v, step in zip(extra, times[STEP], strict=True)),
                "share_of_minima": (min(times[name]) - min(times[BASE])) / min(times[STEP]),
                "goal": GOALS.get(name),
                "saved_bytes_over_resnet": kept[name] / kept[BASE] - 1,
                "peak_bytes_over_resnet": peaks[name] / peaks[BASE] - 1,
                "state_bytes": stacks[name].state_bytes,
                "state_tensors": stacks[name].widest,
            }
        )
    step = statistics.median(times[STEP])
    print(f"DiT-S/2, batch {batch}, a training step {step:.0f} ms; its {units} additions by themselves:\n")
    print(markdown_table(rows))
    return {
        "method": (
            "all residual additions of DiT-S/2 in their order, forward and backward, branch = sigmoid, with the "
            "block's gate; rules and a training step of the gated network interleaved A B C ... C B A; share_of_step: "
            "median over rounds of (rule - resnet) / step, paired in a round; share_of_minima: the same of the fastest "
            "of each; saved bytes: what the blocks of the whole network keep for backward; peak: the most that tensors "
            "took at once in forward and backward of the whole network, weights not counted, by the allocator's "
            "events; state: the stream where it is widest, notes included"
        ),
        "shape": list(shape),
        "units": units,
        "step_ms": step,
        "resnet_saved_bytes": kept[BASE],
        "resnet_peak_bytes": peaks[BASE],
        "rules": rows,
        "table": table(),
    }


def costs(result: dict[str, Any]) -> list[dict[str, str]]:
    """The measurements as `docs/rules.md` shows them, from the plain values of `run`."""
    return [
        {
            "rule": f"`{row['rule']}`",
            "time": f"{row['share_of_step']:+.1%}",
            "at best": f"{row['share_of_minima']:+.1%}",
            "goal": "" if row["goal"] is None else f"{row['goal']:.0%}",
            "kept for backward": f"{row['saved_bytes_over_resnet']:+.1%}",
            "peak memory": f"{row['peak_bytes_over_resnet']:+.1%}",
            "stream": f"{row['state_bytes'] / 2**20:.2f} MiB",
        }
        for row in result["rules"]
    ]


def peak_bytes(arguments: dict[str, Any], batch: int) -> int:
    """The most bytes that tensors take at once in forward and backward of a DiT, above its weights and inputs."""
    torch.manual_seed(0)
    net = DiT(**arguments)
    x, t, y = torch.randn(batch, *net.input_shape), torch.randint(0, 1000, (batch,)), torch.zeros(batch).long()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        net(x, t, y).square().mean().backward()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


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
        self.widest = self.state_bytes = 0

    def forward(self, branch: Callable[[Tensor], Tensor] = torch.sigmoid) -> Tensor:
        """z behind all units."""
        stream = self.stack.open(self.z)
        for unit in self.units:
            stream = unit(stream, branch, self.gate, self.e)
            tensors = {id(z): z for z in tensors_of(stream)}
            notes = stream.notes if isinstance(stream, Noted) else ()
            self.widest = max(self.widest, len(tensors))
            self.state_bytes = max(self.state_bytes, sum(z.nbytes for z in (*tensors.values(), *notes)))
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
        "_unsafe_view",
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
                "folds": _yes(residual.folds),
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
