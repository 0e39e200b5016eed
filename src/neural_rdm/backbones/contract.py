"""The contract of a network: everything that training, sampling, evaluation and the reports ask of one.

A network is a subclass of `Backbone`, in this package or another. What it can do to trained weights (grow, fold, read
and write official layouts) is stated beside it, by an adapter (`surgery.adapter`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor, nn

from neural_rdm.backbones.options import Options
from neural_rdm.core.errors import ConfigError
from neural_rdm.residual import Residual, Unit

Net = TypeVar("Net", bound="Backbone")
#: of a block: its units, in run order, with the last affine layer of their branches
LastLayers = list[tuple[Unit, nn.Module]]


class Backbone(nn.Module):
    """A network: `net(x, t, y, context, context_mask)` -> a prediction.

    A subclass takes its rule as the argument `residual`, sets the attributes below where it differs from their
    defaults, lists its `blocks`, and computes in `predict`. Its units come from `residual.plan`, in run order (see
    `residual.unit`).

    Attributes:
        input_shape: of one sample: (C, H, W), or (F, C, H, W) of a clip.
        residual: its residual rule.
        num_classes: the classes of its labels, the null class not among them; 0 for a network without.
        class_dropout_prob: the rate at which it is trained without its condition; above 0 there is a null class.
        context_dim: width of the tokens of the text that it reads; None for no text.
        context_length: how many tokens a text has; None for any number.
        learn_sigma: whether it predicts the variance too, in a second half of its output's channels.
        options: what it does beside its residual rule, see `options.Options`; a network need not have any.
        control: of a control in a comparison of rules (see `surgery.controls`), the sentence that says what it is.
        u_shaped: whether long skips join its blocks: Neural-RDM-U.
        sizes: the published networks by name, as arguments of the constructor.
        patches: the patch sizes of each of them, where names have the form NETWORK-SIZE/PATCH.
    """

    input_shape: tuple[int, ...]
    residual: Residual
    num_classes: int = 0
    class_dropout_prob: float = 0.0
    context_dim: int | None = None
    context_length: int | None = None
    learn_sigma: bool = False
    options: Options
    control: str = ""
    u_shaped: ClassVar[bool] = False
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    patches: ClassVar[tuple[int, ...]] = ()

    if TYPE_CHECKING:

        @property
        def blocks(self) -> Iterable[nn.Module]:
            """What is compiled, sharded and checkpointed as one, in run order; not every network need state it."""

    @property
    def null_class(self) -> int | None:
        """The label that stands for "no class" in guidance, or None where the network has none."""
        return self.num_classes if self.num_classes > 0 and self.class_dropout_prob > 0 else None

    @classmethod
    def named(cls: type[Net], name: str, **arguments: Any) -> Net:
        """A published network by its name, such as `DiT.named("DiT-XL/2", input_size=32)`; further arguments replace
        its own.

        Raises:
            ValueError: no such network.
        """
        known = dict(cls.sizes)
        if cls.patches:
            known = {f"{cls.__name__}-{s}/{p}": {**known[s], "patch_size": p} for s in known for p in cls.patches}
        found = known.get(name) or known.get(f"{cls.__name__}-{name}")
        if found is None:
            raise ValueError(f"{name!r} is not one of {', '.join(known)}")
        return cls(**{**found, **arguments})

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Predict what the process asks for (noise, velocity, ...) of a noisy batch.

        Args:
            x: [B, *input_shape].
            t: timesteps [B], 0 to 999, whole or not.
            y: class labels [B], 0 to num_classes (the null class); None for a network without labels.
            context: a text's tokens [B, L, context_dim]; None for a network without a text.
            context_mask: bool [B, L], True for its tokens and False for padding; None where there is no padding.

        Returns:
            x's shape; with `learn_sigma` twice its channels, the second half the variance's interpolation.

        Raises:
            ValueError: a condition that this network does not take, or the lack of one that it does.
        """
        name = type(self).__name__
        _check(f"{name} with num_classes={self.num_classes}", "labels y", y, self.num_classes > 0)
        _check(f"{name} with context_dim={self.context_dim}", "a text, context", context, self.context_dim is not None)
        if context is not None and self.context_length not in (None, context.shape[1]):
            raise ValueError(f"{name} reads texts of {self.context_length} tokens, and was given {context.shape[1]}")
        return self.predict(x, t, y, context, context_mask)

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """What `forward` returns, its conditions checked."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it predicts (predict)")


def _check(network: str, what: str, given: Tensor | None, takes: bool) -> None:
    if (given is not None) != takes:
        raise ValueError(f"{network} was called {'without' if given is None else 'with'} {what}")


def blocks_of(net: nn.Module, done: str) -> list[nn.Module]:
    """The blocks of a network, each to be compiled, sharded or checkpointed as one.

    Args:
        done: what is to be done with them, as in "compiled (trainer.compile)".

    Raises:
        ConfigError: the network states none.
    """
    blocks = list(getattr(net, "blocks", ()))
    if not blocks:
        raise ConfigError(f"{type(net).__name__} cannot be {done}: it states no blocks")
    return blocks


def has_units(net: nn.Module, done: str) -> None:
    """Refuse a network without residual units.

    Args:
        done: what needs them, as in "looked into (lens)".

    Raises:
        ConfigError: it has none.
    """
    if not any(isinstance(module, Unit) for module in net.modules()):
        raise ConfigError(f"{type(net).__name__} cannot be {done}: it has no residual units")
