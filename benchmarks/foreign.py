"""What gates cost in the blocks of others at their real width: Flux, Stable Diffusion 3 and Wan 2.1 (1.3 B).

One block of each runs forward and backward with frozen weights, as when gates alone are trained: the gradient of its
input is asked for, not those of the weights. A block's own time is far too noisy to show what a gate costs, so one
addition is timed by itself, with and without a gate, and its extra time is multiplied by the additions in the block.

What a gate keeps for backward is its branch's output, of which the gradient of alpha is made. `kept` measures it, and
the two ways to do without: to run the last layer of the branch again, or to take the stream's difference behind and
before the addition, which the norms of a block keep anyway, for the branch's output.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.residual import interleaved, kept_bytes
from neural_rdm.reports.tables import markdown_table
from neural_rdm.residual import Residual, Unit, make_plain, units
from neural_rdm.residual.foreign.blocks import added
from neural_rdm.residual.gating import gate
from neural_rdm.surgery.folding import without_gates

ROUNDS, REPEATS, BLOCK_ROUNDS = 11, 4, 1
IMAGE, TEXT = 128, 32
#: `kept` takes one in so many of them: bytes need no more
FEW = 4
GATES = {"alpha and beta": Residual("gated"), "alpha alone": Residual("gated", beta_form="none")}


def flux() -> tuple[nn.Module, Callable[[nn.Module, Tensor, Tensor], Any], int]:
    """A double block of Flux: its width is 3072."""
    from diffusers.models.transformers.transformer_flux import FluxTransformerBlock

    block = FluxTransformerBlock(3072, 24, 128)

    def call(block: nn.Module, z: Tensor, text: Tensor) -> Any:
        tokens = z.shape[1] + text.shape[1]
        angles = torch.ones(tokens, 128), torch.zeros(tokens, 128)
        time = torch.ones(1, 3072, dtype=z.dtype)
        return block(hidden_states=z, encoder_hidden_states=text, temb=time, image_rotary_emb=angles)

    return block, call, 3072


def sd3() -> tuple[nn.Module, Callable[[nn.Module, Tensor, Tensor], Any], int]:
    """A joint block of Stable Diffusion 3 medium: its width is 1536."""
    from diffusers.models.attention import JointTransformerBlock

    def call(block: nn.Module, z: Tensor, text: Tensor) -> Any:
        return block(hidden_states=z, encoder_hidden_states=text, temb=torch.ones(1, 1536, dtype=z.dtype))

    return JointTransformerBlock(1536, 24, 64), call, 1536


def wan() -> tuple[nn.Module, Callable[[nn.Module, Tensor, Tensor], Any], int]:
    """A block of Wan 2.1 with 1.3 B parameters: its width is 1536."""
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock

    def call(block: nn.Module, z: Tensor, text: Tensor) -> Any:
        angles = torch.ones(1, z.shape[1], 1, 128), torch.zeros(1, z.shape[1], 1, 128)
        return (block(z, text, torch.ones(1, 6, 1536, dtype=z.dtype), angles), text)

    return WanTransformerBlock(1536, 8960, 12, cross_attn_norm=True), call, 1536


BLOCKS = {"Flux (double block)": flux, "SD3 medium": sd3, "Wan 2.1 1.3B": wan}


def types() -> list[torch.dtype]:
    """What is timed: bfloat16 only where the CPU has instructions for it; on another its time means nothing."""
    return [torch.float32] + [torch.bfloat16] * torch.cpu._is_avx512_bf16_supported()


def run() -> dict[str, Any]:
    """All measurements as plain values; a table is printed. Times are milliseconds of CPU time."""
    rows = []
    for dtype in types():
        for name, make in BLOCKS.items():
            rows += measured(name, make, dtype)
            print(markdown_table(rows[-len(GATES) :]), flush=True)
    few = [kept(name, make, dtype) for name, make in BLOCKS.items() for dtype in (torch.float32, torch.bfloat16)]
    print(markdown_table(few), flush=True)
    return {
        "method": (
            f"one block, batch 1, {IMAGE} image tokens and {TEXT} of text, weights frozen, forward and backward to the "
            f"input; block_ms is the median of {BLOCK_ROUNDS} rounds; extra_ms is what a gate adds to one addition on "
            f"the image's stream, median and quartiles over {ROUNDS} rounds of {REPEATS} each, interleaved and paired "
            "within a round; time_share: extra_ms times the additions in the block, over block_ms, with the same "
            "quartiles; saved_share: what the gated block keeps for backward over the plain one, less 1; kept: the "
            f"same with 1/{FEW} of the tokens, weights trained or frozen; again_share: operations of the branches' "
            "last layers over those of the block's two passes; difference_error: the relative Euclidean error of the "
            "gradients of all alphas (alpha 1) where the difference of the stream stands for the branch's output, "
            "weights and inputs random"
        ),
        "rows": rows,
        "kept": few,
    }


def measured(name: str, make: Callable[[], Any], dtype: torch.dtype) -> list[dict[str, Any]]:
    """A row for each kind of gates."""
    torch.manual_seed(0)
    block, call, width = make()
    block = block.to(dtype).requires_grad_(False)
    z, text = (torch.randn(1, n, width, dtype=dtype, requires_grad=True) for n in (IMAGE, TEXT))

    def step(block: nn.Module) -> None:
        sum(part.float().sum() for part in call(block, z, text)).backward()  # type: ignore[union-attr]
        z.grad = text.grad = None

    block_ms = statistics.median(interleaved({"block": partial(step, block)}, BLOCK_ROUNDS)["block"])
    weights = list(block.parameters())
    plain = kept_bytes(lambda: call(block, z, text), weights)
    rows = []
    grad, f = torch.randn(1, IMAGE, width, dtype=dtype), torch.randn(1, IMAGE, width, dtype=dtype, requires_grad=True)
    cases = {"plain": partial(addition, None, z, f, grad)}
    for kind, rule in GATES.items():
        unit = rule.unit(width).to(dtype)
        make_plain(unit)
        cases[kind] = partial(addition, unit, z, f, grad)
    times = interleaved(cases, ROUNDS)
    holder = nn.ModuleList([block])
    for kind, rule in GATES.items():
        gate(holder, rule)
        count = len(list(units(holder)))
        kept = kept_bytes(lambda: call(holder[0], z, text), weights)
        extra = sorted((g - p) / REPEATS for g, p in zip(times[kind], times["plain"], strict=True))
        low, middle, high = statistics.quantiles(extra, n=4)
        rows.append(
            {
                "block": name,
                "type": str(dtype).removeprefix("torch."),
                "gates": kind,
                "additions": count,
                "block_ms": block_ms,
                "extra_ms": middle,
                "time_share": count * middle / block_ms,
                "time_quartiles": f"{count * low / block_ms:.2%} to {count * high / block_ms:.2%}",
                "saved_share": kept / plain - 1,
            }
        )
        without_gates(holder)
    return rows


def kept(name: str, make: Callable[[], Any], dtype: torch.dtype) -> dict[str, Any]:
    """What the gates of a block keep for backward, and what the ways to do without would cost."""
    torch.manual_seed(0)
    block, call, width = make()
    block, weights = block.to(dtype), list(block.parameters())
    z, text = (torch.randn(1, n // FEW, width, dtype=dtype, requires_grad=True) for n in (IMAGE, TEXT))
    holder = nn.ModuleList([block])

    def forward() -> Any:
        return call(holder[0], z, text)

    def saved() -> dict[str, int]:
        found = {}
        for kind in ("trained", "frozen"):
            for weight in weights:  # and not the gates
                weight.requires_grad_(kind == "trained")
            found[kind] = kept_bytes(forward, weights)
        return found

    plain = saved()
    gate(holder, GATES["alpha and beta"])
    gated = saved()
    layers = dict(block.last_layers())
    exact, error, again = 0.0, 0.0, 0
    with FlopCounterMode(display=False) as counter:
        seen = watched(holder)
        sum(part.float().sum() for part in forward()).backward()  # type: ignore[union-attr]
    for unit, (before, f, after, grad) in seen.items():
        if grad is None:  # the text of a last block
            continue
        want = (grad.double() * f.double()).sum(dim=(0, 1))
        found = (grad.double() * (after - before).double()).sum(dim=(0, 1))
        exact, error = exact + want.square().sum().item(), error + (found - want).square().sum().item()
        again += 2 * f.numel() // unit.dim * layers[unit].get_parameter("weight").numel()
    return {
        "block": name,
        "type": str(dtype).removeprefix("torch."),
        **{f"{kind}_share": gated[kind] / plain[kind] - 1 for kind in plain},
        "again_share": again / counter.get_total_flops(),
        "difference_error": (error / exact) ** 0.5,
    }


def watched(model: nn.Module) -> dict[Unit, list[Any]]:
    """By unit, once a pass is through: the stream before it, its branch, the stream behind it and its gradient."""
    seen: dict[Unit, list[Any]] = {}

    def note(unit: Unit, arguments: tuple[Any, ...], out: Tensor) -> None:
        z, branch, *_ = arguments
        seen[unit] = [z.detach(), branch(None).detach(), out.detach(), None]
        out.register_hook(lambda grad: seen[unit].__setitem__(3, grad))

    for _, unit in units(model):
        unit.register_forward_hook(note)
    return seen


def addition(unit: Unit | None, z: Tensor, f: Tensor, grad: Tensor) -> None:
    """One residual addition, forward and backward, a few times."""
    for _ in range(REPEATS):
        torch.autograd.backward(z + f if unit is None else added(unit, z, f, True), grad)
        z.grad = f.grad = None
        if unit is not None:
            unit.zero_grad()
