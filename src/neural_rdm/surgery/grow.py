"""Deeper networks out of trained ones, without changing what they compute (theory, section 6 [O]).

A unit with alpha = 0 and beta = 0 is the identity, so blocks can be put anywhere into a trained network. Their branches
start as copies of a neighbour's, so alpha has a gradient at once. Rules whose alpha does not multiply the branch
(`adaln`, `skip`, `resnet`) start the copies from a zero last layer instead.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from neural_rdm.backbones.dit import DiT
from neural_rdm.backbones.latte import Latte
from neural_rdm.backbones.uvit import UViT
from neural_rdm.residual import gate_names, units

PLACEMENTS = ("interleave", "append", "prepend", "middle")
#: `identity` leaves the output as it is; the others are what the literature does, and move it
OPERATORS = ("identity", "duplicate", "stack", "halved")


@dataclass(frozen=True)
class Growth:
    """Where the blocks of a grown network come from.

    Attributes:
        origins: for every list of blocks by its name (`blocks`; `in_blocks` and `out_blocks` of a U-ViT), for every new
            block in order, the number of the old block and whether it is a new copy of it.
        operator: see `OPERATORS`.
    """

    origins: Mapping[str, tuple[tuple[int, bool], ...]]
    operator: str

    @property
    def added(self) -> dict[str, str]:
        """The new blocks, by their names in the grown network, with the names of those that they were copied from."""
        return {
            f"{blocks}.{i}": f"{blocks}.{old}"
            for blocks, origins in self.origins.items()
            for i, (old, new) in enumerate(origins)
            if new
        }

    def place(self, name: str) -> tuple[str, int, str] | None:
        """(list of blocks, number, name inside the block) of a parameter; None for one outside of these lists."""
        match = re.match(r"(\w+)\.(\d+)\.(.+)", name)
        return (match[1], int(match[2]), match[3]) if match and match[1] in self.origins else None

    def sources(self, names: list[str]) -> dict[str, tuple[str, bool]]:
        """For parameter names of the grown network, the old name and whether the parameter is new."""
        result = {}
        for name in names:
            place = self.place(name)
            if place is None:
                result[name] = (name, False)
                continue
            blocks, number, inner = place
            old, new = self.origins[blocks][number]
            result[name] = (f"{blocks}.{old}.{inner}", new)
        return result


def depth_of(model: nn.Module) -> int:
    """What the network's argument `depth` counts: its blocks, the middle one of a U-ViT left out."""
    return len(model.blocks) - isinstance(model, UViT)


def plan(model: nn.Module, depth: int, placement: str = "interleave", operator: str = "identity") -> Growth:
    """Decide where new blocks go: a DiT grows by blocks, a Latte by pairs of a spatial and a temporal one, a U-ViT by
    pairs of a block on the way in and its twin on the way out, placed in the order of the way in (`append` puts them
    next to the middle block, `prepend` outermost).

    Args:
        depth: blocks of the grown network.
        placement: `interleave` (each new block behind the one it copies, evenly spread), `append` (copies of the last
            blocks behind them), `prepend` (copies of the first before them) or `middle`.
        operator: `identity`, `duplicate` (plain copies), `stack` (the whole network again behind itself; it places its
            blocks itself) or `halved` (the original and its copy with half of alpha each).

    Raises:
        ValueError: a network that cannot grow, saying why; a depth, placement or operator that does not fit.
    """
    if placement not in PLACEMENTS or operator not in OPERATORS:
        key, value, choices = (
            ("placement", placement, PLACEMENTS) if placement not in PLACEMENTS else ("operator", operator, OPERATORS)
        )
        raise ValueError(f"{key}={value} is not one of {', '.join(choices)}")
    if not isinstance(model, (DiT, UViT)):
        reason = "its blocks change width and join long skips, so none fits anywhere else"
        raise ValueError(f"a {type(model).__name__} cannot grow: {reason}; DiT, Latte and UViT can")
    if isinstance(model, Latte) and model.num_frames == 1:
        raise ValueError(
            "an image Latte (num_frames=1) keeps the numbers of its spatial blocks; grow it as a DiT or as clips"
        )
    step = 1 if type(model) is DiT else 2
    old = depth_of(model)
    if depth <= old or (depth - old) % step:
        advice = f"more than {old}" + (f" and even: {type(model).__name__} grows in pairs" if step == 2 else "")
        raise ValueError(f"depth={depth}: the network has {old} blocks; give {advice}")
    if model.residual.unit_class.no_growth is not None:
        why = model.residual.unit_class.no_growth
        raise ValueError(f"a network under the rule {model.residual.rule!r} cannot grow: {why}")
    if operator == "halved" and not model.residual.unit_class.scales_branch:
        raise ValueError("operator=halved halves alpha, which multiplies the branch under gated and rezero only")
    if isinstance(model, Latte) and placement == "prepend":
        raise ValueError(
            "placement=prepend: a Latte's frames get their table before its first temporal block, which must stay the "
            "first; use interleave, middle or append"
        )
    if isinstance(model, UViT) and operator in ("stack", "halved"):
        raise ValueError(
            f"operator={operator}: a U-ViT's out blocks first mix a skip into their stream, so neither half of one nor "
            "the network behind itself means anything; use identity or duplicate"
        )
    if operator in ("identity", "halved") and isinstance(model, DiT):
        _refuse_dead(model)
    groups, wanted = old // step, (depth - old) // step
    origins: list[tuple[int, bool]] = []
    if operator == "stack":
        sequence = [(g, False) for g in range(groups)] + [(g % groups, True) for g in range(wanted)]
    elif placement == "interleave":
        # copy k stands behind group floor(k * groups / wanted): evenly spread, several where there are more
        copies = [k * groups // wanted for k in range(wanted)]
        sequence = [(g, new) for g in range(groups) for new in (False, *[True] * copies.count(g))]
    else:
        at = {"append": groups, "prepend": 0, "middle": (groups + 1) // 2}[placement]
        copied = [(max(at - wanted, 0) + k) % groups for k in range(wanted)]
        sequence = [(g, False) for g in range(at)]
        sequence += [(g, True) for g in copied]
        sequence += [(g, False) for g in range(at, groups)]
    if isinstance(model, UViT):  # the twin of block g on the way in is block groups - 1 - g on the way out
        out = tuple((groups - 1 - group, new) for group, new in reversed(sequence))
        return Growth({"in_blocks": tuple(sequence), "out_blocks": out}, operator)
    for group, new in sequence:
        origins += [(group * step + k, new) for k in range(step)]
    return Growth({"blocks": tuple(origins)}, operator)


def grow(model: nn.Module, depth: int, placement: str = "interleave", operator: str = "identity") -> nn.Module:
    """A copy of `model` with `depth` blocks; with `operator="identity"` its output is the same to the last bit.

    See `plan` for the arguments and what is refused.
    """
    return grown(model, plan(model, depth, placement, operator))


@torch.no_grad()
def grown(model: nn.Module, growth: Growth) -> nn.Module:
    """A copy of `model` with the blocks of `growth`."""
    result = copy.deepcopy(model)
    for name, origins in growth.origins.items():
        blocks = list(getattr(model, name))
        setattr(result, name, nn.ModuleList(copy.deepcopy(blocks[old]) for old, _ in origins))
    if isinstance(result, UViT):
        result.depth = sum(map(len, growth.origins.values()))
    for block, module in enumerate(result.blocks):
        for unit, _ in module.last_layers():
            unit.place = replace(unit.place, block=block)
    found = [unit for _, unit in units(result)]
    for index, unit in enumerate(found):
        unit.place = replace(unit.place, index=index, count=len(found))
    result.load_state_dict(grown_state(model, growth, model.state_dict()))
    return result


def grown_state(model: nn.Module, growth: Growth, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same operation on a state dict of `model`, of all its parameters or of some: its averaged weights, say.

    Args:
        model: the network before it grows: its rule and its layers, not its values.
    """
    start = _start(model) if growth.operator == "identity" else {}
    gates = gate_names(model)
    result = {name: value for name, value in state.items() if growth.place(name) is None}
    for blocks, origins in growth.origins.items():
        halved = {old for old, new in origins if new} if growth.operator == "halved" else set()
        inner: dict[int, list[str]] = {}
        for name in state:
            place = growth.place(name)
            if place is not None and place[0] == blocks:
                inner.setdefault(place[1], []).append(place[2])
        for i, (old, new) in enumerate(origins):
            for rest in inner.get(old, []):
                value = state[f"{blocks}.{old}.{rest}"].clone()
                if new and rest in start:
                    value.copy_(start[rest])
                elif old in halved and f"{blocks}.{old}.{rest}" in gates:
                    value *= 0.5
                result[f"{blocks}.{i}.{rest}"] = value
    return result


def _start(model: nn.Module) -> dict[str, Tensor]:
    """Values, by their names inside a block, that make a new one the identity: its units, and a U-ViT's `skip_linear`,
    which reads the stream and not the skip, [I, 0].
    """
    start: dict[str, Tensor | float] = {}
    if isinstance(model, UViT):
        eye = torch.eye(model.embed_dim)
        start |= {"skip_linear.weight": torch.cat([eye, torch.zeros_like(eye)], dim=1), "skip_linear.bias": 0.0}
    for block in model.blocks:
        names = {module: name for name, module in block.named_modules()}
        for unit, last in block.last_layers():
            values = unit.identity_values()
            if values is None:  # a branch that is zero, under a rule that then leaves the stream alone
                start |= {f"{names[last]}.weight": 0.0, f"{names[last]}.bias": 0.0}
                values = unit.plain_values()
            start |= {f"{names[unit]}.{gate}": value for gate, value in values.items()}
    return {name: torch.as_tensor(value) for name, value in start.items()}


def _refuse_dead(model: DiT) -> None:
    """Refuse a network in which a new unit would never receive a gradient: its adaLN gates are all zero still."""
    for name, block in model.blocks.named_children():
        last = block.adaLN_modulation[1]
        rows = last.weight if isinstance(last, nn.Linear) else model.modulation.weight
        gates = torch.cat(
            [rows.unflatten(0, (6, -1))[[2, 5]].flatten(), last.bias.unflatten(0, (6, -1))[[2, 5]].flatten()]
        )
        if not gates.any():
            raise ValueError(
                f"the adaLN gates of block {name} are all zero, as in a network that has not been trained: copies "
                "would never receive a gradient. Grow a trained network"
            )
