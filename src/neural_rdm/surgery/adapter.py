"""What can be done to the weights of a network, stated by one adapter for each class of networks:

    @adapts(Mixer)
    class MixerAdapter(Adapter[Mixer]):
        def no_growth(self, placement: str, operator: str) -> None:
            return None

It is found through the network's class, or the nearest of its bases that has one; what no adapter states is refused by
the network's name. The adapters of this package are `dit`, `latte`, `uvit` and `unet`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from neural_rdm.backbones.contract import Backbone
from neural_rdm.backbones.options import added, options_of
from neural_rdm.core.errors import CheckpointError
from neural_rdm.residual import Residual, Unit
from neural_rdm.surgery.tables import fitted

Net = TypeVar("Net", bound=nn.Module)
Problems = Mapping[str, list[str]]  # `missing`, `unexpected` and `misshaped` keys
State = Mapping[str, Tensor]

#: networks that are nobody's here, by the beginnings of their keys
STRANGERS = {
    "temporal_transformer_blocks.": (
        "diffusers' LatteTransformer3DModel, a text-to-video network of another architecture (shared modulation, "
        "cross-attention in every block) than the class-conditional Latte; use the official Latte files"
    ),
    "adaln_single.": "a PixArt network of diffusers",
}
NOT_IN_DIFFUSERS = (
    "diffusers has U-Nets and the class-conditional DiT (trained with class_dropout_prob) alone; use to=official"
)


class Adapter(Generic[Net]):
    """A network as surgery sees it. This class is that of a network that states nothing: its weights are loaded by
    their own names and folded, and it is not grown or exported.

    Attributes:
        model: the network.
    """

    #: its lists of blocks, which grow; of two the second is the way out, whose blocks are those of the first in reverse
    lists: ClassVar[tuple[str, ...]] = ("blocks",)
    #: blocks of a list that are copied together
    step: ClassVar[int] = 1
    #: the argument of its constructor that counts the blocks of these lists
    depth: ClassVar[str] = "depth"
    #: what messages call files of it, and how its files give themselves away: beginnings of keys -> whose they are
    kind: ClassVar[str] = ""
    signs: ClassVar[Mapping[str, str]] = {}
    #: position tables, which `pretrained.reinit` fits to another size instead of dropping them
    tables: ClassVar[tuple[str, ...]] = ()
    #: the arguments of its official constructor; each is an attribute of the network, too
    options: ClassVar[tuple[str, ...]] = ()
    #: why the official code has no such network; None where the names of the plain one are official
    no_official: str | None = "it states no official layout"
    #: why diffusers has no such network; None where it has
    no_diffusers: str | None = "it states no layout of diffusers"

    def __init__(self, model: Net) -> None:
        self.model = model
        if self.no_official is None and (option := options_of(model).changes) is not None:
            self.no_official = f"the official network has no {option}"

    # -- growth, see `grow`

    def no_growth(self, placement: str, operator: str) -> str | None:
        """Why it cannot grow so; None where it can."""
        return "it states no growth"

    def start(self) -> dict[str, Tensor | float]:
        """The values, by names inside a block, that make a new block the identity, beside those of its units."""
        return {}

    # -- folding and export, see `folding` and `export`

    def plain(self) -> nn.Module:
        """The network that is left once its units are plain, with its own record of the rule put right."""
        if isinstance(self.model, Backbone):
            self.model.residual = Residual("resnet")
        return self.model

    def arguments(self) -> dict[str, object]:
        """The official constructor's arguments, for a JSON file beside exported weights."""
        return {name: getattr(self.model, name) for name in self.options}

    def to_diffusers(self, plain: nn.Module) -> Any:
        """diffusers' network with the weights of `plain`, this network folded."""
        raise NotImplementedError

    def beside(self) -> dict[str, State]:
        """What diffusers' network leaves out: state dicts by the names of their files."""
        return {}

    def notes(self) -> list[str]:
        """What a person who uses diffusers' network with these must know, in sentences."""
        return []

    # -- official weights in, see `official`

    def check_folder(self, folder: Path) -> None:
        """Compare what a folder says beside its weights.

        Raises:
            CheckpointError: its network computes something else with the same weights.
        """

    def to_ours(self, state: State, name: str) -> dict[str, Tensor]:
        """A state dict under the network's own names, from any layout that it knows; `name` is the file's.

        Raises:
            CheckpointError: another network's weights.
        """
        self.refuse_others(state, name)
        if self.signs and not any(key.startswith(tuple(self.signs)) for key in state):
            shown = ", ".join(sorted(state)[:4])
            raise CheckpointError(f"{name} holds no weights of {self.kind}: its first keys are {shown}")
        return dict(state)

    def refuse_others(self, state: State, name: str) -> None:
        """Refuse the weights of another network that has an adapter, or of a stranger; both by name."""
        known = STRANGERS | {start: whose for kind in ADAPTERS.values() for start, whose in kind.signs.items()}
        for start, whose in known.items():
            if self.signs and start not in self.signs and any(key.startswith(start) for key in state):
                raise CheckpointError(f"{name} holds the weights of {whose}, and not of {self.kind}")

    def kept(self, state: State) -> dict[str, Tensor]:
        """The part of a file (under its own names) that this network has a place for."""
        return dict(state)

    def table(self, key: str, state: State) -> Tensor | None:
        """A position table of a file, fitted to this network's size; None where it cannot be."""
        return fitted(state[key], self.model.state_dict()[key])

    def new_units(self, state: State) -> dict[str, Unit]:
        """The units whose branch a file does not know, by name."""
        found = last_layers(self.model)
        return {name: unit for name, unit, last in found if last is not None and f"{last}.weight" not in state}

    def idle(self, state: State) -> set[str]:
        """The keys of new branches, and of options of the network, that contribute nothing as they stand, so that a
        file need not know them.
        """
        own = self.model.state_dict()
        return {key for key in added(self.model) if key not in state and not own[key].any()}

    def hints(self, problems: Problems, own: State, found: State) -> list[str]:
        """What probably happened, in the words of the configuration, where a file does not fit.

        Args:
            own: the network's state dict.
            found: the file's.
        """
        return []


ADAPTERS: dict[type[nn.Module], type[Adapter[Any]]] = {}
Kind = TypeVar("Kind", bound=type[Adapter[Any]])


def adapts(network: type[nn.Module]) -> Callable[[Kind], Kind]:
    """Class decorator: this is the adapter of `network`, and of its subclasses that have none of their own."""

    def register(adapter: Kind) -> Kind:
        ADAPTERS[network] = adapter
        return adapter

    return register


def adapter_of(model: nn.Module) -> Adapter[Any]:
    """The adapter of a network: of its class, of the nearest base that has one, or else one that states nothing."""
    return next((ADAPTERS[kind] for kind in type(model).__mro__ if kind in ADAPTERS), Adapter)(model)


def last_layers(model: nn.Module) -> Iterator[tuple[str, Unit, str | None]]:
    """(name, unit, name of the last affine layer of its branch) of every unit; None where its block states none.

    A block that holds units states them in a method `last_layers()`: pairs of a unit and a layer.
    """
    names = {module: name for name, module in model.named_modules()}
    last = {
        unit: names[layer] for block in names if hasattr(block, "last_layers") for unit, layer in block.last_layers()
    }
    yield from ((name, unit, last.get(unit)) for unit, name in names.items() if isinstance(unit, Unit))


def depth_in(state: State, blocks: str = "blocks") -> int:
    """How many blocks of a list a state dict holds."""
    return 1 + max((int(m[1]) for k in state if (m := re.match(rf"{blocks}\.(\d+)\.", k))), default=-1)
