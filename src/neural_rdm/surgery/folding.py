"""Gates into the weights: a gated network as the plain one of the original architecture (theory, section 7 [O]).

A unit whose branch ends in an affine layer `W h + b` with nothing behind it computes `z + alpha * (W h + b) + beta`:
alpha and beta go into that layer, exactly. Where a block's own adaLN gate stands behind the layer (DiT, Latte, most
transformers of diffusers), alpha still does and beta cannot.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from neural_rdm.core.errors import ConfigError
from neural_rdm.residual import Residual, Stack, Unit, gate_names
from neural_rdm.residual.gating import check_network
from neural_rdm.surgery.adapter import adapter_of, last_layers


def fold(model: nn.Module) -> nn.Module:
    """The plain network that computes what `model` computes, to float32 rounding; `model` stays as it is.

    Args:
        model: a DiT, Latte, UViT or UNet, or a model that `gate` has put gates into.

    Returns:
        The same class with `residual="resnet"`; for a gated model of diffusers, and for a UNet, diffusers' own class,
        which `save_pretrained` writes for stock diffusers. (A UNet's class embedder is not part of that network.)

    Raises:
        ConfigError: a unit that cannot fold, naming it and why.
        ValueError: a network without gates of ours.
    """
    return without_gates(_changed(model, in_place=False))


@torch.no_grad()
def merge_gates(model: nn.Module) -> nn.Module:
    """The same in place, without a copy: for a network of a live pipeline (`merge_gates(pipe.transformer)`).

    Args:
        model: see `fold`.

    Returns:
        The network, which is `model` itself, except for our UNet, whose network of diffusers it is.

    Raises:
        ConfigError, ValueError: as `fold` does; the network is then as it was.
    """
    return without_gates(_changed(model, in_place=True))


def folded_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the plain network of `model`'s class that computes what `model` does.

    Raises:
        ConfigError, ValueError: see `fold`.
    """
    gates, changed = gate_names(model), _changed(model, in_place=False)
    return {key: value for key, value in changed.state_dict().items() if key not in gates}


@torch.no_grad()
def _changed(model: nn.Module, in_place: bool) -> nn.Module:
    """`model`, or a copy of it, whose layers hold what its gates do; the units are still those that had them."""
    changes = _changes(model)  # which refuses before anything is copied
    result = model if in_place else copy.deepcopy(model)
    for last, (_, scale, shift) in changes.items():
        _apply(result.get_submodule(last), scale, shift)
    return result


def _changes(model: nn.Module) -> dict[str, tuple[str, Tensor | None, Tensor | None]]:
    """What folding does to each last layer, by its name: for which unit, a factor and a shift.

    Raises:
        ConfigError, ValueError: see `fold`.
    """
    check_network(model)
    if not any(isinstance(module, Unit) for module in model.modules()):
        raise ValueError(f"this {type(model).__name__} has no residual units; there is nothing to fold")
    behind = _gated_behind(model)
    spoken = {unit for block in model.modules() if hasattr(block, "last_layers") for unit in block.children()}
    changes: dict[str, tuple[str, Tensor | None, Tensor | None]] = {}
    for name, unit, last in last_layers(model):
        scale, shift = _folded(unit, name, unit in behind)
        if last is None:
            if unit not in spoken:
                raise ConfigError(f"{name} cannot fold: its block does not state the last layer of its branch")
            if scale is None and shift is None:
                continue  # a plain unit needs no layer
            raise ConfigError(f"{name} cannot fold: no layer that ends its branch is multiplied by alpha as it is")
        if last in changes and not all(map(_same, changes[last][1:], (scale, shift))):
            raise ConfigError(
                f"{name} cannot fold: it shares the layer {last} with {changes[last][0]}, and their gates differ"
            )
        if shift is not None and "bias" not in model.get_submodule(last)._parameters:
            raise ConfigError(f"{name} cannot fold: its beta is not 0, and {last} has no bias")
        changes[last] = (name, scale, shift)
    return changes


def _gated_behind(model: nn.Module) -> set[nn.Module]:
    """The units whose branch their block multiplies by a gate of its own, behind its last layer: a block names them in
    `own_gates`.
    """
    return {getattr(block, unit) for block in model.modules() for unit in getattr(block, "own_gates", ())}


def _folded(unit: Unit, name: str, gated_behind: bool) -> tuple[Tensor | None, Tensor | None]:
    """What the last layer's output is multiplied by and what is added to it; None for nothing.

    Raises:
        ConfigError: the unit's rule cannot be expressed so.
    """
    try:
        if not unit.single:
            raise ValueError("its stream is several tensors, which no plain network has")
        return unit.affine(gated_behind)
    except ValueError as error:
        advice = "Keep the run folder, or train with residual.beta_form=none, residual=rezero or resnet: these fold"
        raise ConfigError(f"{name} cannot fold: {error}. {advice}") from error


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two gates do the same."""
    return a is b if a is None or b is None else torch.equal(a, b)


def _apply(last: nn.Module, scale: Tensor | None, shift: Tensor | None) -> None:
    """Fold into weight and bias of an affine layer, in float64."""
    weight, bias = last.get_parameter("weight"), last._parameters.get("bias")
    if scale is not None:
        scale = scale.double().reshape(-1)
        weight.copy_((weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))).to(weight))
        if bias is not None:
            bias.copy_((bias.double() * scale).to(bias))
    if shift is not None:
        added = shift.double().expand(weight.shape[0])
        last.bias = nn.Parameter((added if bias is None else bias.double() + added).to(weight))


def without_gates(model: nn.Module) -> nn.Module:
    """The same layers, taken out of `model`, with plain units in our networks, diffusers' own classes in its."""
    plain = adapter_of(model).plain()
    if hasattr(plain, "register_to_config"):
        from neural_rdm.residual.foreign.models import unswap_model

        unswap_model(plain)
    for module in list(plain.modules()):
        if hasattr(module, "slots"):
            from neural_rdm.residual.diffusers_blocks import unswap

            unswap(module)
    set_units(plain, Residual("resnet"))
    return plain


def set_units(model: nn.Module, residual: Residual) -> None:
    """Put every unit of one of our networks, in place, under a rule whose stream is a tensor, as it starts."""
    like = next(model.parameters())
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Unit):
                setattr(module, name, residual.unit_at(child.place).to(like.device, like.dtype))
            elif isinstance(child, Stack):
                setattr(module, name, Stack())
