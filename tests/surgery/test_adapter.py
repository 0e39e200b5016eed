"""Networks of other packages: what their contract or adapter states works, what it does not is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from neural_rdm import DiT, fold, grow, load_official
from neural_rdm.backbones.contract import Backbone, LastLayers, blocks_of, has_units
from neural_rdm.core.errors import CheckpointError, ConfigError
from neural_rdm.residual import Plan, Residual, make_plain, units
from neural_rdm.surgery.adapter import ADAPTERS, Adapter, adapter_of, adapts
from neural_rdm.surgery.dit import DiTAdapter
from neural_rdm.surgery.export import to_diffusers, to_official


class Silent(nn.Module):
    """A block that does not state its last layer."""

    def __init__(self, plan: Plan, number: int) -> None:
        super().__init__()
        self.unit, self.linear = plan.unit("mlp", number), nn.Linear(4, 4)

    def forward(self, z: Tensor) -> Tensor:
        return self.unit(z, self.linear)


class Stated(Silent):
    def last_layers(self) -> LastLayers:
        return [(self.unit, self.linear)]


class Small(Backbone):
    """Three blocks on [B, 4]."""

    block: type[Silent] = Silent

    def __init__(self, residual: str = "gated") -> None:
        super().__init__()
        self.input_shape, self.residual = (4,), Residual.of(residual)
        plan = self.residual.plan(3, 4)
        self.blocks = nn.ModuleList(self.block(plan, number) for number in range(3))

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, context: Tensor | None, mask: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Growing(Small):
    block = Stated


class Scaled(Growing):
    """Its stream is halved in every block, outside of the units: a new block is not the identity."""

    def predict(self, x: Tensor, *rest: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x) / 2
        return x


@pytest.fixture
def adapters() -> None:
    """Adapters of these networks, for one test."""
    before = dict(ADAPTERS)

    @adapts(Small)
    class SmallAdapter(Adapter[Small]):
        no_official = None

        def no_growth(self, placement: str, operator: str) -> str | None:
            return None

    yield
    ADAPTERS.clear()
    ADAPTERS.update(before)


X, T = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])


def test_a_network_that_states_nothing_is_refused_by_its_name() -> None:
    net = Growing()
    for refused, words in (
        (lambda: grow(net, 5), "Growing cannot be grown: it states no growth"),
        (lambda: to_official(net), r"Growing cannot be converted \(to=official\): it states no official layout"),
        (lambda: to_diffusers(net), r"Growing cannot be converted \(to=diffusers\): it states no layout of diffusers"),
        (lambda: blocks_of(nn.Linear(2, 2), "compiled"), "Linear cannot be compiled: it states no blocks"),
        (lambda: has_units(nn.Linear(2, 2), "looked into"), "Linear cannot be looked into: it has no residual units"),
        (lambda: Backbone()(X, T), "Backbone does not say how it predicts"),
    ):
        with pytest.raises((ValueError, ConfigError, NotImplementedError), match=f"^{words}"):
            refused()


def test_its_own_weights_are_loaded_and_folded_without_an_adapter() -> None:
    net, plain = Growing(), Growing("resnet")
    nn.init.normal_(net.blocks[0].unit.alpha)
    assert load_official(net, plain.state_dict()) is net
    assert torch.equal(net(X, T), plain(X, T))
    for _, unit in units(net):
        nn.init.normal_(unit.alpha)
        nn.init.normal_(unit.beta)
    folded = fold(net)
    assert folded.residual == Residual("resnet")
    torch.testing.assert_close(folded(X, T), net(X, T))
    with pytest.raises(CheckpointError, match=r"missing \(6\).*"):
        load_official(net, DiT(4, 2, 1, 16, 1, 2).state_dict())


def test_what_a_block_does_not_state_is_named(adapters: None) -> None:
    with pytest.raises(ConfigError, match=r"blocks\.0\.unit cannot fold: its block does not state the last layer"):
        fold(Small())
    assert len(grow(Small("gated"), 4).blocks) == 4  # its gates alone make a new unit the identity
    with pytest.raises(ValueError, match="Small cannot be grown: Silent does not state the last layer of its unit"):
        grow(Small("skip"), 4)


@pytest.mark.parametrize("rule", ["gated", "skip"])
def test_an_adapter_lets_it_grow_and_leave(adapters: None, rule: str) -> None:
    net = Growing(rule)
    make_plain(net)
    deep = grow(net, 5)
    assert torch.equal(deep(X, T), net(X, T))
    assert [unit.place.index for _, unit in units(deep)] == [0, 1, 2, 3, 4]
    assert to_official(net).keys() == Growing("resnet").state_dict().keys()


def test_adapters_are_found_through_the_class_and_its_bases(adapters: None) -> None:
    class Own(DiT):
        pass

    assert type(adapter_of(Own(4, 2, 1, 16, 1, 2))) is DiTAdapter
    assert type(adapter_of(Scaled())) is type(adapter_of(Small()))
    assert type(adapter_of(nn.Linear(2, 2))) is Adapter
