"""The same rule in foreign networks: gates in every residual addition of a diffusers model (theory, section 1, Eq. 3).

Blocks are class-swapped in place: those of U-Nets for the subclasses of `diffusers_blocks`, any other for one that
`foreign` writes from its source; their additions go through a `Unit`. Parameter names stay; gates appear beside them:
`...resnets.0.unit.alpha`, `...transformer_blocks.0.attn1_unit.alpha`.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from neural_rdm.residual.spec import Residual
from neural_rdm.residual.unit import Place, Unit, gate_names, make_plain

#: blocks of an encoder of conditions, which average two branches and have no stream
OF_CONDITIONS = {"MotionEncoderResBlock"}

Model = TypeVar("Model", bound=nn.Module)

#: blocks of diffusers whose residual additions are of another form than the five rules
OTHER_BLOCKS = {
    "ResnetBlockCondNorm2D": "norms that are conditioned in another way",
    "KAttentionBlock": "norms that are conditioned in another way",
    "AutoencoderTinyBlock": "an activation behind the sum",
    "TemporalConvLayer": "a residual over frames",
    "GatedSelfAttentionDense": "a gate of its own (GLIGEN)",
    "TransformerSpatioTemporalModel": "a residual over frames",
}


def gate(
    model: Model, residual: str | Residual = "gated", units: Iterable[str] | None = None, plain: bool = True
) -> Model:
    """Put gates into every residual unit of a diffusers model (or a list of its blocks), in place.

    The output does not move by one bit: every unit starts plain, `rezero` at alpha 1.

    Args:
        model: a transformer, U-Net, ControlNet or autoencoder of diffusers. See docs/diffusers.md for the classes.
        residual: the rule, by name or as a `Residual`.
        units: patterns of unit names (`down_blocks.*`, `*attn1_unit`) that get the rule; the others stay plain. None
            for all of them. See `residual.units` for the names.
        plain: False leaves gates where the rule starts them, for a network that is trained from scratch.

    Returns:
        `model`. Its class is now a subclass that knows the run order of its units and saves under another file name,
        since stock diffusers would load a gated file without the gates: `surgery.fold` gives it back to diffusers.

    Raises:
        ValueError: a whole pipeline; a network with residual additions of another form, or that are not understood,
            saying which; nothing to gate; a pattern without a unit; gates that are time-conditioned (no such block
            hands the timestep embedding on to its units); a rule that changes what branches read, where a block was
            rewritten.
    """
    from neural_rdm.residual import diffusers_blocks
    from neural_rdm.residual.foreign.blocks import Written
    from neural_rdm.residual.foreign.models import swap_model

    residual = Residual.of(residual)
    check_network(model)
    if not residual.unit_class.single:
        raise ValueError(
            f"residual={residual.rule!r} cannot be had in a network of diffusers: its stream is several tensors, and "
            "these blocks hand on one"
        )
    residual.unit(1)  # refuses what needs a timestep embedding: no such block hands it on to its units
    for name, module in model.named_modules():
        reason = OTHER_BLOCKS.get(type(module).__name__) or diffusers_blocks.refusal(module)
        if reason:
            raise ValueError(
                f"{name or type(model).__name__} ({type(module).__name__}) has {reason}: this is another residual "
                "rule, which gates would not express"
            )
    if any(isinstance(module, Unit) for module in model.modules()):
        raise ValueError(f"this {type(model).__name__} has gates already; fold them first to choose another rule")
    _swap(model, residual)
    slots = list(diffusers_blocks.slots(model))
    names = [name for name, *_ in slots]
    chosen = _chosen(names, units)
    like = next(model.parameters())
    for index, (name, block, attribute, slot) in enumerate(slots):
        rule = residual if name in chosen else Residual("resnet")
        place = Place(*slot, index=index, count=len(slots))
        unit = rule.unit_at(place).to(like.device, like.dtype)
        unit.entered = isinstance(block, Written)
        setattr(block, attribute, unit)
    if plain:
        make_plain(model)
    if hasattr(model, "register_to_config"):
        swap_model(model, residual, sorted(chosen) if len(chosen) < len(names) else None)
    return model


def check_network(model: object) -> None:
    """Refuse a whole pipeline, and whatever else is no network.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"a {type(model).__name__} is no network; of a pipeline pass pipe.transformer or pipe.unet")


def freeze_silent(model: nn.Module) -> list[str]:
    """Freeze the gates that the last backward pass did not reach, and return their names.

    Some branches never reach a network's output: that of the text in its last block, or one whose input a call leaves
    out. DistributedDataParallel stops on parameters without a gradient; so call this after one backward pass, before
    the network is wrapped.

    Raises:
        ValueError: no gate has a gradient: no backward pass was made.
    """
    own = gate_names(model)
    gates = {name: p for name, p in model.named_parameters() if name in own}
    silent = [name for name, p in gates.items() if p.grad is None]
    if len(silent) == len(gates):
        raise ValueError("no gate has a gradient; run one backward pass first")
    for name in silent:
        gates[name].requires_grad_(False)
    return silent


def _swap(model: nn.Module, residual: Residual) -> None:
    """Swap every block of a network, or none.

    Raises:
        ValueError: one that is not understood, or none at all.
    """
    from neural_rdm.residual import diffusers_blocks
    from neural_rdm.residual.foreign.blocks import Written

    swapped: dict[str, nn.Module] = {}
    try:
        for name, module in list(model.named_modules()):
            try:
                done = diffusers_blocks.swap(module)
            except ValueError as error:
                raise ValueError(f"{name} ({type(module).__name__}) {error}: its gates cannot be had") from error
            if done:
                swapped[name] = module
        written = next((module for module in swapped.values() if isinstance(module, Written)), None)
        if written is not None and residual.unit_class.read is not Unit.read:
            raise ValueError(
                f"residual={residual.rule!r} changes what a branch reads, and in {type(written).__name__} only what is "
                "written can be had; choose gated, skip, rezero or resnet"
            )
        for name, module in model.named_modules():
            if _is_block(name, module) and not any(n == name or n.startswith(f"{name}.") for n in swapped):
                raise ValueError(
                    f"{name} ({type(module).__name__}) adds to its stream in a way that is not understood, or not at "
                    "all: half of a network is not gated"
                )
        if not swapped:
            raise ValueError(f"{type(model).__name__} has no residual blocks that can be gated")
    except ValueError:
        for module in swapped.values():
            diffusers_blocks.unswap(module)
        raise


def _is_block(name: str, module: nn.Module) -> bool:
    """Whether a module is one of a list of blocks of diffusers, which add to a stream."""
    kind = type(module)
    listed = name[-1:].isdigit() and kind.__module__.startswith("diffusers.") and kind.__name__.endswith("Block")
    return listed and kind.__name__ not in OF_CONDITIONS


def _chosen(names: list[str], patterns: Iterable[str] | None) -> set[str]:
    """The names that a pattern fits.

    Raises:
        ValueError: a pattern that fits none, or is no text, or no pattern.
    """
    if patterns is None:
        return set(names)
    patterns = [patterns] if isinstance(patterns, str) or not isinstance(patterns, Iterable) else [*patterns]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"units={patterns!r} are no names of units, or patterns of them")
    chosen: set[str] = set()
    for pattern in patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
            raise ValueError(f"units={pattern!r} fits no unit; they are called {', '.join(names[:3])}, ...")
        chosen |= fitting
    if not chosen:
        raise ValueError("units names no unit; leave it out for all of them")
    return chosen
