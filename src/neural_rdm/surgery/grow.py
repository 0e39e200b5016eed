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
from typing import TypeVar

import torch
from torch import Tensor, nn

from neural_rdm.backbones.contract import blocks_of, has_units
from neural_rdm.backbones.options import NO_GROWTH, options_of
from neural_rdm.residual import Residual, Unit, gate_names, units
from neural_rdm.surgery.adapter import Adapter, adapter_of, last_layers

Model = TypeVar("Model", bound=nn.Module)
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
    """What the network's argument `depth` counts: the blocks that grow, and not the middle one of a U-ViT."""
    return sum(len(_list(model, name)) for name in adapter_of(model).lists)


def _list(model: nn.Module, name: str) -> nn.ModuleList:
    blocks = getattr(model, name, None)
    assert isinstance(blocks, nn.ModuleList), f"{type(model).__name__}.{name} is no list of blocks"
    return blocks


def plan(model: nn.Module, depth: int, placement: str = "interleave", operator: str = "identity") -> Growth:
    """Decide where new blocks go: a DiT grows by blocks, a Latte by pairs of a spatial and a temporal one, a U-ViT by
    pairs of a block on the way in and its twin on the way out, placed in the order of the way in (`append` puts them
    next to the middle block, `prepend` outermost); any other network as its adapter says.

    Args:
        depth: blocks of the grown network.
        placement: `interleave` (each new block behind the one it copies, evenly spread), `append` (copies of the last
            blocks behind them), `prepend` (copies of the first before them) or `middle`.
        operator: `identity`, `duplicate` (plain copies), `stack` (the whole network again behind itself; it places its
            blocks itself) or `halved` (the original and its copy with half of alpha each).

    Raises:
        ValueError: a network that cannot grow, saying why; a depth, placement or operator that does not fit.
    """
    for key, value, choices in (("placement", placement, PLACEMENTS), ("operator", operator, OPERATORS)):
        if value not in choices:
            raise ValueError(f"{key}={value} is not one of {', '.join(choices)}")
    adapter, name = adapter_of(model), type(model).__name__
    option = options_of(model).changes
    if (reason := adapter.no_growth(placement, operator) or NO_GROWTH.get(option or "")) is not None:
        raise ValueError(f"{name} cannot be grown: {reason}")
    step, old = adapter.step * len(adapter.lists), depth_of(model)
    if depth <= old or (depth - old) % step:
        more = f"more than {old}" + (f", by a multiple of {step}: {name} grows by {step} blocks" if step > 1 else "")
        raise ValueError(f"depth={depth}: the network has {old} blocks; give {more}")
    has_units(model, "grown")
    rule: Residual | None = getattr(model, "residual", None)
    if rule is not None and rule.unit_class.no_growth is not None:
        raise ValueError(f"a network under the rule {rule.rule!r} cannot grow: {rule.unit_class.no_growth}")
    if operator == "halved" and (rule is None or not rule.unit_class.scales_branch):
        raise ValueError("operator=halved halves alpha, which multiplies the branch under gated and rezero only")
    if operator == "identity":
        _start(adapter)  # refuses what does not say how a new block becomes the identity
    groups, wanted = old // step, (depth - old) // step
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
    origins = {adapter.lists[0]: _each(sequence, adapter.step)}
    if len(adapter.lists) == 2:  # the twin of group g on the way in is group groups - 1 - g on the way out
        twins = [(groups - 1 - group, new) for group, new in reversed(sequence)]
        origins[adapter.lists[1]] = _each(twins, adapter.step)
    return Growth(origins, operator)


def _each(groups: list[tuple[int, bool]], step: int) -> tuple[tuple[int, bool], ...]:
    """The blocks of the groups, each of `step` blocks."""
    return tuple((group * step + k, new) for group, new in groups for k in range(step))


def grow(model: Model, depth: int, placement: str = "interleave", operator: str = "identity") -> Model:
    """A copy of `model` with `depth` blocks; with `operator="identity"` its output is the same to the last bit.

    See `plan` for the arguments and what is refused.
    """
    return grown(model, plan(model, depth, placement, operator))


@torch.no_grad()
def grown(model: Model, growth: Growth) -> Model:
    """A copy of `model` with the blocks of `growth`."""
    result, adapter = copy.deepcopy(model), adapter_of(model)
    for name, origins in growth.origins.items():
        blocks = _list(model, name)
        setattr(result, name, type(blocks)(copy.deepcopy(blocks[old]) for old, _ in origins))
    if hasattr(result, adapter.depth):
        setattr(result, adapter.depth, depth_of(result))
    for block, module in enumerate(blocks_of(result, "grown")):
        for unit in _units_of(module).values():
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
    start = _start(adapter_of(model)) if growth.operator == "identity" else {}
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


def _start(adapter: Adapter[nn.Module]) -> dict[str, Tensor]:
    """Values, by their names inside a block, that make a new one the identity: its units' and what the adapter adds.

    Raises:
        ConfigError: the network states no blocks.
        ValueError: a block does not state the last layer of a branch that has to be zero.
    """
    start = adapter.start()
    for block in blocks_of(adapter.model, "grown"):
        last = {unit: layer for _, unit, layer in last_layers(block)}
        for name, unit in _units_of(block).items():
            values = unit.identity_values()
            if values is None:  # a branch that is zero, under a rule that then leaves the stream alone
                if last[unit] is None:
                    raise ValueError(
                        f"{type(adapter.model).__name__} cannot be grown: {type(block).__name__} does not state the "
                        f"last layer of its {name}"
                    )
                start |= {f"{last[unit]}.weight": 0.0, f"{last[unit]}.bias": 0.0}
                values = unit.plain_values()
            start |= {f"{name}.{gate}": value for gate, value in values.items()}
    return {name: torch.as_tensor(value) for name, value in start.items()}


def _units_of(block: nn.Module) -> dict[str, Unit]:
    return {name: module for name, module in block.named_modules() if isinstance(module, Unit)}
