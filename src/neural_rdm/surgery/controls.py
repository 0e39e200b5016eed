"""Controls of a comparison of residual rules: networks without gates that a rule has to be better than.

`folded`: static gates behind an affine layer add no function to it. The control is the plain network that starts from
the weights of the gated one, its gates folded into them: what differs from there on is what the gates do to the
optimisation. On DiT and Latte an additive beta, which is 0 at the start, stands behind the block's own adaLN gate and
has no place in the layer: there beta is function that the control lacks.

`mlp_widened`: the plain network with as many parameters as the rule has, spent on wider MLPs.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

import torch

from neural_rdm.backbones.contract import Backbone
from neural_rdm.core.errors import ConfigError
from neural_rdm.residual import Residual
from neural_rdm.surgery.folding import folded_state

#: make(residual, **arguments): the network of a configuration from its seed, under a rule, some arguments replaced
Make = Callable[..., Backbone]
#: what backbones call the width of their stream, which `mlp_ratio` is a multiple of
WIDTHS = ("hidden_size", "embed_dim")
PLAIN = Residual("resnet")


def controlled(control: str, make: Make, residual: Residual, arguments: Mapping[str, Any]) -> Backbone:
    """The network of a control: `folded` or `mlp_widened`; its attribute `control` says in a sentence what it is.

    Args:
        residual: the rule that is controlled.
        arguments: the backbone's arguments.

    Raises:
        ConfigError: the control is not defined for this rule or network.
    """
    return folded(make, residual) if control == "folded" else mlp_widened(make, residual, arguments)


def folded(make: Make, residual: Residual) -> Backbone:
    """The plain network whose weights are those of the one under `residual`, its gates folded into them.

    Raises:
        ConfigError: the rule has no gates, or gates that do not fold.
    """
    if residual == PLAIN:
        raise ConfigError("control=folded with residual=resnet: this rule has no gates to fold; leave control out")
    if not residual.folds:
        raise ConfigError(
            f"control=folded with residual={residual.rule}: what its parameters do to a unit is not always what an "
            "affine layer can do, so they do not fold into the weights; pass control=mlp_widened, or leave control out"
        )
    state = folded_state(make(residual))
    net = make(PLAIN)
    net.load_state_dict(state)
    net.control = f"control=folded: the plain network that starts as residual={residual.rule} with its gates folded in"
    return net


def mlp_widened(make: Make, residual: Residual, arguments: Mapping[str, Any]) -> Backbone:
    """The plain network whose MLPs are as wide as the number of parameters under `residual` allows, to the nearest.

    Raises:
        ConfigError: the rule has no parameters, or the network no MLP whose width can be chosen.
    """
    width = next((arguments[key] for key in WIDTHS if arguments.get(key) is not None), None)
    if width is None or arguments.get("mlp_ratio") is None:
        raise ConfigError(
            "control=mlp_widened needs a backbone with mlp_ratio, the width of its MLPs over that of its stream; "
            "choose a transformer, or control=folded"
        )
    first = int(width * arguments["mlp_ratio"])

    @functools.cache
    def count(hidden: int) -> int:
        return _parameters(make, PLAIN, mlp_ratio=ratio(hidden, width))

    target = _parameters(make, residual)
    if target <= count(first):
        raise ConfigError(
            f"control=mlp_widened with residual={residual.rule}: this rule adds no parameters that a wider MLP could "
            "have instead; leave control out"
        )
    guess = first + round((target - count(first)) * first / (count(2 * first) - count(first)))
    near = range(max(first, guess - 16), guess + 16)  # a SwiGLU's width goes by eights
    place = min(max(1, bisect_left(near, target, key=count)), len(near) - 1)
    hidden = min(near[place - 1 : place + 1], key=lambda h: abs(count(h) - target))
    net = make(PLAIN, mlp_ratio=ratio(hidden, width))
    net.control = (
        f"control=mlp_widened: residual=resnet with MLPs of {hidden:,} columns instead of {first:,}, "
        f"{count(hidden):,} parameters; residual={residual.rule} has {target:,} (difference "
        f"{count(hidden) - target:+,})"
    )
    return net


def ratio(hidden: int, width: int) -> float:
    """The `mlp_ratio` that makes MLPs of `hidden` columns, `int(width * ratio)`."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else math.nextafter(exact, math.inf)


def _parameters(make: Make, residual: Residual, **arguments: Any) -> int:
    """How many parameters a network has, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in make(residual, **arguments).parameters())
