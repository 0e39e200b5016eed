"""What can be done to each transformer class of diffusers, measured: the table of docs/diffusers.md."""

from __future__ import annotations

import copy
import pkgutil
import tempfile
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm import fold, gate
from neural_rdm.core.errors import ConfigError
from neural_rdm.residual import make_plain, units
from neural_rdm.surgery.adapter import last_layers
from tests.helpers import ROOT, is_gate
from tests.residual.foreign import packed, sounds, videos, wan  # noqa: F401  # they register their networks
from tests.residual.foreign.networks import NETWORKS, Inputs

PAGE = ROOT / "docs" / "diffusers.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
#: classes whose attention has no backward pass on a CPU
NO_BACKWARD = {"AnyFlowFARTransformer3DModel"}


def build(name: str) -> tuple[nn.Module, Inputs]:
    """A small network of a class, in which no parameter is zero, and inputs."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()  # that modules wished to stay in float32
    config, inputs = NETWORKS[name]
    torch.manual_seed(0)
    net = getattr(diffusers, name)(**config)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape) * 0.2 + (p.ndim == 1))
    return net, inputs()


def run(net: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Everything that a network returns."""
    torch.manual_seed(1)
    given = {k: list(v) if isinstance(v, list) else v for k, v in inputs.items()}
    return tensors(net(**given))


def tensors(value: Any) -> list[Tensor]:
    """All tensors in an output of diffusers."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [x for part in parts for x in tensors(part)]


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    """Inputs in another floating type."""
    if isinstance(inputs, Tensor):
        return inputs.to(dtype) if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {k: cast(v, dtype) for k, v in inputs.items()}
    return type(inputs)(cast(v, dtype) for v in inputs) if isinstance(inputs, (list, tuple)) else inputs


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) > 0 and all(
        torch.equal(x, y) and bool(x.isfinite().all()) for x, y in zip(a, b, strict=True)
    )


def moved(net: nn.Module, names: set[str], beta: set[str]) -> None:
    """Give the units of these names gates that do something: the same ones to all, so that shared layers agree."""
    with torch.no_grad():
        for name, unit in units(net):
            if name in names:
                unit.alpha.fill_(0.7)
                if name in beta:
                    unit.beta.fill_(0.1)


def equal_in(net: nn.Module, gated: nn.Module, inputs: Inputs, dtype: torch.dtype) -> str:
    """`yes`, `no`, or `-` where the network itself cannot be run in this type."""
    net, gated = copy.deepcopy(net).to(dtype), copy.deepcopy(gated).to(dtype)
    inputs = cast(inputs, dtype)
    with torch.no_grad():
        for training in (True, False):
            try:
                before = run(net.train(training), inputs)
            except RuntimeError:
                return "-"
            if not same(run(gated.train(training), inputs), before):
                return "no"
    return "yes"


def live(gated: nn.Module, inputs: Inputs) -> str:
    """How many units have a gradient."""
    sum(x.float().square().sum() for x in run(gated, inputs)).backward()  # type: ignore[union-attr]
    reached = [p.grad is not None and bool(p.grad.any()) for k, p in gated.named_parameters() if k.endswith(".alpha")]
    return "all" if all(reached) else f"{sum(reached)} of {len(reached)}"


def folds(gated: nn.Module, inputs: Inputs) -> str:
    """How many units fold: `all`, `tied` where they do if those of a shared layer agree, or a number."""
    gated = copy.deepcopy(gated).eval()
    behind = {getattr(block, unit) for block in gated.modules() for unit in getattr(block, "own_gates", ())}
    layers = {unit: layer for _, unit, layer in last_layers(gated)}
    names = dict(units(gated))
    can = {name for name, unit in names.items() if layers[unit] is not None}
    shared = len({layers[names[n]] for n in can}) < len(can)
    both = {n for n in can if not shared and names[n] not in behind and _bias(gated, layers[names[n]])}
    moved(gated, can, both)
    with torch.no_grad():
        want, found = run(gated, inputs), run(fold(gated), inputs)
    assert not all(torch.equal(a, b) for a, b in zip(want, run(_plain(gated), inputs), strict=True)) or not can
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
    for name in set(names) - can:
        single = copy.deepcopy(gated)
        make_plain(single)
        moved(single, {name}, set())
        try:
            fold(single)
            raise AssertionError(f"{name} folded, and states no layer")
        except ConfigError:
            pass
    return f"{len(can)} of {len(names)}" if len(can) < len(names) else "tied" if shared else "all"


def _bias(net: nn.Module, layer: str | None) -> bool:
    return layer is not None and "bias" in net.get_submodule(layer)._parameters


def _plain(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    make_plain(net)
    return net


def reloads(gated: nn.Module, inputs: Inputs) -> str:
    """Whether `save_pretrained` and `load_gated` bring the same network back."""
    from neural_rdm import load_gated

    gated = copy.deepcopy(gated).eval()
    with torch.no_grad():
        for name, p in gated.named_parameters():
            if is_gate(name):
                p.add_(0.1)
        with tempfile.TemporaryDirectory() as folder:
            gated.save_pretrained(folder)
            again = load_gated(folder).eval()
        return "yes" if same(run(again, inputs), run(gated, inputs)) else "no"


def row(name: str) -> list[str]:
    """The cells of a class: units, float32, bf16, gradients, folds, reloads; or the reason why it is refused."""
    net, inputs = build(name)
    gated = copy.deepcopy(net)
    try:
        gate(gated)
    except ValueError as error:
        return [f"refused: {str(error).split(':')[0].replace('|', '')}"]
    with torch.set_grad_enabled(name not in NO_BACKWARD):
        return [
            str(len(list(units(gated)))),
            equal_in(net, gated, inputs, torch.float32),
            equal_in(net, gated, inputs, torch.bfloat16),
            "-" if name in NO_BACKWARD else live(gated, inputs),
            folds(gated, inputs),
            reloads(gated, inputs),
        ]


def classes() -> list[str]:
    """Every transformer class of the installed diffusers."""
    import diffusers
    from diffusers.models import transformers

    found = set()
    for module in pkgutil.iter_modules(transformers.__path__):
        module_name = f"{transformers.__name__}.{module.name}"
        for name, kind in vars(import_module(module_name)).items():
            if isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin) and kind.__module__ == module_name:
                found.add(name)
    return sorted(found & set(dir(diffusers)))


def table() -> str:
    """The whole table, in Markdown."""
    lines = ["| class | units | float32 | bf16 | gradients | folds | reloads |", "|---|---|---|---|---|---|---|"]
    for name in classes():
        cells = row(name) if name in NETWORKS else ["not tried: no small configuration here"]
        lines.append(f"| {' | '.join([name, *cells, *[''] * (6 - len(cells))])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1], encoding="utf-8")
