"""Theory, section 4, in float64 on every backbone under every rule: Eq. 12 and Eq. 14-16 unit by unit, telescoping over
segments, and the probe's four numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_rdm import UNet, UViT
from neural_rdm.backbones.dit import DiT
from neural_rdm.backbones.latte import Latte
from neural_rdm.dynamics.probe import probe
from neural_rdm.residual import Residual, Unit, units
from neural_rdm.residual.rules import AdaLN, Gated, ResNet, ReZero, Skip
from tests.dynamics.test_probe import SIZE, gradient, inputs, loss, random_dit, watched
from tests.helpers import FIVE, covering

RESIDUALS = {rule: Residual(rule) for rule in FIVE}
RESIDUALS |= {f"gated-{form}": Residual("gated", beta_form=form) for form in ("linear", "none")}

X, WORDS, CLIPS = (
    torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for shape in [(3, 8, 8), (4, 6), (4, 2, 4, 4)]
)
T, Y = torch.tensor([40, 900]), torch.tensor([4, 0])
TOKENS: dict[str, Any] = {**SIZE, "in_channels": 3}
FRAMES: dict[str, Any] = {**SIZE, "input_size": 4, "depth": 4, "num_frames": 3, "extras": "class"}
PLACES: dict[str, Any] = {
    "img_size": 8, "patch_size": 4, "in_chans": 3, "embed_dim": 16, "depth": 4, "num_heads": 2, "mlp_time_embed": True
}  # fmt: skip
MAPS: dict[str, Any] = {
    "image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 16, "attention_resolutions": [2, 1],
    "num_res_blocks": 1, "channel_mult": [1, 2], "num_head_channels": 8, "norm_num_groups": 4,
}  # fmt: skip
SPATIAL: dict[str, Any] = {"use_spatial_transformer": True, "context_dim": 6, "transformer_depth": 2}
ADM: dict[str, Any] = {"num_classes": 5, "use_scale_shift_norm": True, "resblock_updown": True}

#: how it is built, its inputs, and the units in each of its segments (those with a shortcut are in none)
NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[Any, ...], list[int]]] = {
    "dit": (random_dit, inputs(torch.float64), [4]),
    "dit-text": (partial(DiT, **TOKENS, context_dim=6), (X, T, Y, WORDS), [6]),
    "latte": (partial(Latte, **FRAMES), (CLIPS[:, :3], T, Y), [8]),
    # the image behind the frames goes round the temporal blocks: the stream forks before each and joins after it
    "latte-joint": (partial(Latte, **FRAMES), (CLIPS, T, torch.tensor([[0, 1], [5, 2]])), [2] * 4),
    "uvit": (partial(UViT, **PLACES, num_classes=6), (X, T, Y), [2] * 5),
    "uvit-text": (partial(UViT, **PLACES, clip_dim=6, num_clip_token=4), (X, T, None, WORDS), [2] * 5),
    # down: convolution and transformer, a lone transformer; middle: three; up: four; in each of the 7 transformers 6
    "unet-context": (partial(UNet, **MAPS, **SPATIAL), (X, T, None, WORDS), [2, 1, 3, 1, 1, 1, 1] + [6] * 7),
    "unet-2d": (partial(UNet, **MAPS), (X, T), [2, 1, 3, 1, 1, 1, 1]),
    "unet-2d-adm": (partial(UNet, **MAPS, **ADM), (X, T, Y), [2, 1, 3, 1, 1, 1, 1]),
}

#: a unit knows no network, only the axis of its channels, a shortcut, and that it may stand inside another one
CASES = covering(list(NETWORKS), list(RESIDUALS), whole=[("dit", ...), ("unet-context", ...), (..., "gated")])


@dataclass
class Passage:
    """One unit of one run: what it was given, and what leaves it."""

    name: str
    unit: Unit
    given: Tensor
    out: Tensor
    entry: Tensor  # s_i: the gradient of `given` through this unit alone
    exit: Tensor  # s_{i+1}: the gradient of `out`
    branch: Callable[[Tensor], Tensor]
    g: Tensor | None
    shortcut: Callable[[Tensor], Tensor] | None


@dataclass
class Equations:
    """What section 4 says of one unit, from z_i and an s_{i+1}."""

    entrance: Tensor
    leg: Tensor
    alpha: Tensor | None = None
    beta: Tensor | None = None


@dataclass
class Run:
    net: nn.Module
    arguments: tuple[Any, ...]
    lengths: list[int]
    passages: list[Passage]
    equations: list[Equations]


def randomised(build: Callable[..., nn.Module], residual: Residual) -> nn.Module:
    torch.manual_seed(0)
    net = build(residual=residual).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
            assert parameter.all()
    return net


def passages(net: nn.Module, arguments: tuple[Any, ...]) -> list[Passage]:
    """One backward pass, every unit in run order; units that hold others end after them, hence the views as keys."""
    begun: dict[str, tuple[Tensor, Tensor, Any]] = {}

    def begin(name: str, _: nn.Module, given: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        z = given[0].view_as(given[0])
        begun[name] = given[0], z, options.get("shortcut")
        return (z, *given[1:]), options

    with ExitStack() as stack:
        for name, unit in units(net):
            stack.callback(unit.register_forward_pre_hook(partial(begin, name), with_kwargs=True).remove)
        seen = stack.enter_context(watched(net))
        loss(net(*arguments)).backward(retain_graph=True)
    ended = {id(z): (out, given) for z, out, given in zip(seen.entries, seen.exits, seen.arguments, strict=True)}
    found = []
    for name, unit in units(net):
        stream, z, shortcut = begun[name]
        out, (_, branch, *rest) = ended[id(z)]
        entry, exit_ = gradient(z).clone(), gradient(out).clone()  # later passes would change them in their place
        found.append(Passage(name, unit, stream, out, entry, exit_, branch, rest[0] if rest else None, shortcut))
    return found


def equations(passage: Passage, s: Tensor) -> Equations:
    """Eq. 12 and 14-16 with z_i and s = s_{i+1} held fixed, written out for each rule: no `read` and no `write`."""
    unit, z = passage.unit, passage.given.detach().requires_grad_()
    alpha, beta = (
        gate.detach() if unit.channel_axis == -1 else gate.detach()[:, None, None]
        for gate in (getattr(unit, name, torch.ones(1)) for name in ("alpha", "beta"))
    )
    read = (alpha * z + beta if isinstance(unit, AdaLN) else z).detach().requires_grad_()
    f = passage.branch(read)
    f = f if passage.g is None else passage.g[:, None] * f  # the block's own gate belongs to the branch
    carried = z if passage.shortcut is None else passage.shortcut(z)

    def pull(s_f: Tensor) -> Tensor:
        return torch.autograd.grad(f, read, s_f)[0]

    def carry(s_c: Tensor) -> Tensor:
        return torch.autograd.grad(carried, z, s_c)[0]

    def total(x: Tensor) -> Tensor:
        return x.detach().movedim(unit.channel_axis, -1).flatten(0, -2).sum(0)

    match unit:
        case Gated(beta_form="additive"):
            return Equations(pull(alpha * s), carry(s), total(s * f), total(s))
        case Gated(beta_form="linear"):
            return Equations(pull(alpha * s), carry(s + beta * s), total(s * f), total(s * carried))
        case AdaLN():
            h = pull(s)
            return Equations(alpha * h, carry(s), total(h * z), total(h))
        case Skip():
            return Equations(pull(s), carry(alpha * s), total(s * carried), total(s))
        case ReZero() | Gated(beta_form="none"):
            return Equations(pull(alpha * s), carry(s), total(s * f))
        case ResNet():
            return Equations(pull(s), carry(s))
    raise AssertionError(unit)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def run(request: pytest.FixtureRequest) -> Run:
    network, rule = request.param
    build, arguments, lengths = NETWORKS[network]
    net = build(RESIDUALS[rule], torch.float64) if build is random_dit else randomised(build, RESIDUALS[rule])
    found = passages(net, arguments)
    return Run(net, arguments, lengths, found, [equations(p, p.exit) for p in found])


def same(actual: Tensor, expected: Tensor, about: str) -> None:
    scale = expected.abs().max().item()
    assert scale > 0, about
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-13 * scale, msg=lambda m: f"{about}: {m}")


def test_sensitivities_obey_their_recursion(run: Run) -> None:
    for passage, said in zip(run.passages, run.equations, strict=True):
        same(passage.entry, said.leg + said.entrance, passage.name)
        assert said.entrance.norm() > 1e-3 * passage.exit.norm()


def test_gates_have_the_gradients_of_equation_12(run: Run) -> None:
    for passage, said in zip(run.passages, run.equations, strict=True):
        for name in ("alpha", "beta"):
            expected = getattr(said, name)
            assert (expected is None) == (not hasattr(passage.unit, name))
            if expected is not None:
                same(gradient(getattr(passage.unit, name)), expected, f"{passage.name}.{name}")


def segments(found: list[Passage]) -> list[list[int]]:
    """Chains of units without a shortcut: what leaves one is all that the next reads, if in another order (Latte)."""
    plain = [i for i, passage in enumerate(found) if passage.shortcut is None]
    entries, exits = ({i: getattr(found[i], s).flatten().sort().values for i in plain} for s in ("entry", "exit"))
    after = {i: [j for j in plain if torch.equal(exits[i], entries[j])] for i in plain}
    chains = [[i] for i in plain if not any(i in following for following in after.values())]
    for chain in chains:
        while following := after[chain[-1]]:
            assert len(following) == 1
            chain += following
    return chains


def test_pulls_telescope_over_every_segment(run: Run) -> None:
    """Beside the branches' pulls the linear form and `skip` have a drift, `beta * s` and `(alpha - 1) * s`."""
    chains = segments(run.passages)
    holders = [run.passages[chain[0]].name.rpartition("/")[0] for chain in chains]
    inside = sorted(range(len(chains)), key=lambda c: holders[c] != "")
    assert [len(chains[c]) for c in inside] == run.lengths
    assert max(run.lengths) > 1
    for chain, holder in zip(chains, holders, strict=True):
        links = [run.passages[i] for i in chain]
        assert chain == sorted(chain)
        assert {p.name.rpartition("/")[0] for p in links} == {holder}
        summed = rolled = links[-1].exit
        for k in reversed(range(len(links))):
            said, again = run.equations[chain[k]], equations(links[k], rolled)
            summed = summed + said.entrance + (said.leg - links[k].exit)
            rolled = again.leg + again.entrance
            if k:  # Latte turns places and frames round in between
                back = partial(torch.autograd.grad, links[k].given, links[k - 1].out, retain_graph=True)
                (summed,), (rolled,) = back(summed), back(rolled)
        same(summed, links[0].entry, links[0].name)
        same(rolled, links[0].entry, links[0].name)


def test_the_four_numbers_of_the_probe_are_their_squared_norms(run: Run) -> None:
    with probe(run.net, branches=True) as rows:
        (measured,) = torch.autograd.grad(loss(run.net(*run.arguments)), rows)
    for row, passage, said in zip(measured, run.passages, run.equations, strict=True):
        parts = passage.entry, passage.exit, said.entrance, said.leg
        expected = torch.stack([part.square().sum() for part in parts])
        assert expected.all()
        torch.testing.assert_close(row, expected, rtol=1e-10, atol=0, msg=lambda m, p=passage: f"{p.name}: {m}")
