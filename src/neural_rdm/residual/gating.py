"""The same rule in foreign networks: gates in every residual addition of a diffusers model (theory, section 1, Eq. 3).

Blocks are class-swapped in place for the small subclasses of `diffusers_blocks`, whose additions go through a `Unit`.
Parameter names stay; gates appear beside them: `...resnets.0.unit.alpha`, `...transformer_blocks.0.attn1_unit.alpha`.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from neural_rdm.residual.spec import Residual
from neural_rdm.residual.unit import Place, Unit, make_plain

Model = TypeVar("Model", bound=nn.Module)

#: blocks of diffusers whose residual additions are of another form than the five rules
OTHER_BLOCKS = {
    "JointTransformerBlock": "an output gate of its own (adaLN)",
    "FluxTransformerBlock": "an output gate of its own (adaLN)",
    "FluxSingleTransformerBlock": "an output gate of its own (adaLN)",
    "SanaTransformerBlock": "an output gate of its own (adaLN)",
    "HunyuanDiTBlock": "long skips inside the block",
    "ResnetBlockCondNorm2D": "norms that are conditioned in another way",
    "KAttentionBlock": "norms that are conditioned in another way",
    "AutoencoderTinyBlock": "an activation behind the sum",
    "TemporalConvLayer": "a residual over frames",
    "GatedSelfAttentionDense": "a gate of its own (GLIGEN)",
}


def gate(
    model: Model, residual: str | Residual = "gated", units: Iterable[str] | None = None, plain: bool = True
) -> Model:
    """Put gates into every residual unit of a diffusers model (or a list of its blocks), in place.

    The output does not move by one bit: every unit starts plain, `rezero` at alpha 1.

    Args:
        model: any network built of diffusers' ResnetBlock2D, BasicTransformerBlock, Transformer2DModel and Attention
            with a residual connection: the U-Nets, ControlNets, the autoencoders.
        residual: the rule, by name or as a `Residual`.
        units: patterns of unit names (`down_blocks.*`, `*attn1_unit`) that get the rule; the others stay plain. None
            for all of them. See `residual.units` for the names.
        plain: False leaves gates where the rule starts them, for a network that is trained from scratch.

    Returns:
        `model`. Its class is now a subclass that knows the run order of its units and saves under another file name,
        since stock diffusers would load a gated file without the gates: `surgery.fold` gives it back to diffusers.

    Raises:
        ValueError: a network with residual additions of another form, saying which; nothing to gate; a pattern without
            a unit; gates that are time-conditioned (no such block hands the timestep embedding on to its units).
    """
    from neural_rdm.residual import diffusers_blocks

    residual = Residual.of(residual)
    if not residual.unit_class.single:
        raise ValueError(
            f"residual={residual.rule!r} cannot be had in a network of diffusers: its stream is several tensors, and "
            "these blocks hand on one"
        )
    residual.unit(1)  # refuses what needs a timestep embedding: no such block hands it on to its units
    found = {name: module for name, module in model.named_modules() if diffusers_blocks.gated_class(module) is not None}
    for name, module in model.named_modules():
        reason = OTHER_BLOCKS.get(type(module).__name__) or diffusers_blocks.refusal(module)
        if reason:
            raise ValueError(
                f"{name or type(model).__name__} ({type(module).__name__}) has {reason}: this is another residual "
                "rule, which gates would not express"
            )
    if any(isinstance(module, Unit) for module in model.modules()):
        raise ValueError(f"this {type(model).__name__} has gates already; fold them first to choose another rule")
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no residual blocks that can be gated; known are diffusers' ResnetBlock2D, "
            "BasicTransformerBlock, Transformer2DModel and Attention with a residual connection"
        )
    for module in found.values():
        diffusers_blocks.swap(module)
    slots = list(diffusers_blocks.slots(model))
    names = [name for name, *_ in slots]
    chosen = _chosen(names, units)
    like = next(model.parameters())
    for index, (name, block, attribute, slot) in enumerate(slots):
        rule = residual if name in chosen else Residual("resnet")
        place = Place(*slot, index=index, count=len(slots))
        setattr(block, attribute, rule.unit_at(place).to(like.device, like.dtype))
    if plain:
        make_plain(model)
    if hasattr(model, "register_to_config"):
        diffusers_blocks.swap_model(model, residual, sorted(chosen) if len(chosen) < len(names) else None)
    return model


def _chosen(names: list[str], patterns: Iterable[str] | None) -> set[str]:
    """The names that a pattern fits.

    Raises:
        ValueError: a pattern that fits none.
    """
    if patterns is None:
        return set(names)
    chosen: set[str] = set()
    for pattern in patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
            raise ValueError(f"units={pattern!r} fits no unit; they are called {', '.join(names[:3])}, ...")
        chosen |= fitting
    return chosen
