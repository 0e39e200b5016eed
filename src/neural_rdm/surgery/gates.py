"""Gates as an adapter: a file of kilobytes beside a base network that stays as it is.

The file is safetensors. It holds the parameters of the residual rule alone, and in its header what they belong to: the
class of the base, a fingerprint of its weights, the rule with its options, and the units that have it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm.core.errors import CheckpointError, first_line
from neural_rdm.core.files import write_atomically
from neural_rdm.core.given import regular
from neural_rdm.core.weights import digest_of, full
from neural_rdm.residual import Residual, gate_names, plain_state
from neural_rdm.residual.gating import check_network, gate
from neural_rdm.surgery.folding import set_units, without_gates

FORMAT = "neural-rdm gates 1"
#: entries of each weight that its fingerprint looks at
LOOKS = 64


def save_gates(model: nn.Module, file: str | Path) -> None:
    """Write the gates of a network, and nothing else of it, into a safetensors file.

    Args:
        model: a network of diffusers with gates (`pipe.transformer`, `pipe.unet`), or one of ours.
        file: where to; a file that is there already is replaced.

    Raises:
        ValueError: the network has no gates.
        WriteError: the file cannot be written.
    """
    from safetensors.torch import save

    check_network(model)
    names = gate_names(model)
    gates = {name: full(p.detach()).cpu().contiguous() for name, p in model.named_parameters() if name in names}
    if not gates:
        raise ValueError(f"this {type(model).__name__} has no gates to save; gate(model) puts some into it")
    residual, units = _rule(model)
    header = {
        "format": FORMAT,
        "base": _base(model),
        "fingerprint": fingerprint(model),
        "residual": json.dumps(residual.as_dict()),
        "units": json.dumps(units),
        "sha256": digest_of(gates),
    }
    content = save(gates, header)
    write_atomically(file, lambda opened: opened.write(content))


def load_gates(
    model: nn.Module, file: str | Path | Sequence[str] | Mapping[str, float], scale: float = 1.0
) -> nn.Module:
    """Put the gates of a file into a network, in place, or those of several at once.

    Args:
        model: the base that the gates were trained with, plain or with gates of the same rule.
        file: what `save_gates` wrote; several files in a list, or with the scale of each, `{"ink.safetensors": 1,
            "red.safetensors": 0.5}`: what they change of the plain gates adds up. They are of one rule and the same
            units.
        scale: how far they go from the plain network (0) to the gated one (1); other finite numbers are allowed. It
            multiplies the scales of several.

    Returns:
        `model`.

    Raises:
        CheckpointError: no such file, or not one of gates; gates of another network, of other weights, or of another
            rule than the network's own or than the other files; gates of a rule whose stream is several tensors, for a
            plain network.
        ValueError: a scale other than 1, or several files, and a rule that no values make plain; a scale that is no
            finite number; no file at all, one twice, or no path; a pipeline instead of a network.

        The network is then as it was.
    """
    check_network(model)
    several = [file] if isinstance(file, str | os.PathLike) or not isinstance(file, Iterable) else [*file]
    for path in several:
        if not isinstance(path, str | os.PathLike) or several.count(path) > 1:
            raise ValueError(f"gates are loaded from files, each once, and not from {path!r}")
    scales: dict[Any, float] = dict(file) if isinstance(file, Mapping) else dict.fromkeys(several, 1.0)
    for number in (scale, *scales.values()):
        if not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f"a scale of gates is a finite number, and not {number!r}")
    files = {Path(path): scale * own for path, own in scales.items()}
    if not files:
        raise ValueError("no file of gates to load")
    loaded = {path: _read(path) for path in files}
    print_of = fingerprint(model)
    for path, (header, _, _) in loaded.items():
        if header["base"] != _base(model):
            raise CheckpointError(f"{path} holds gates of a {header['base']}, and this is a {_base(model)}")
        if header["fingerprint"] != print_of:
            raise CheckpointError(f"{path} holds gates of a {header['base']} with other weights than this one's")
    file, (_, (residual, units), _) = next(iter(loaded.items()))
    for path, (_, rule, _) in loaded.items():
        if rule != (residual, units):
            raise CheckpointError(f"{path} holds gates of {rule[0]}, and {file} of {residual} or of other units")
    is_plain = not gate_names(model)
    if is_plain and not residual.unit_class.single:
        raise CheckpointError(
            f"{file} holds gates of {residual}, whose stream is several tensors: load them into a network that was "
            "built under that rule"
        )
    if not is_plain and (own := _rule(model)) != (residual, units):
        raise CheckpointError(f"{file} holds gates of {residual}, and this network has those of {own[0]} already")
    if is_plain:
        _gate(model, residual, units)
    try:
        parameters, names = dict(model.named_parameters()), gate_names(model)
        shapes = {name: parameters[name].shape for name in names}
        for path, (_, _, gates) in loaded.items():
            if {name: value.shape for name, value in gates.items()} != shapes:
                raise CheckpointError(
                    f"{path} holds other gates than this network has; the first is {min(gates, default=None)}"
                )
        _put(model, [(gates, files[path]) for path, (_, _, gates) in loaded.items()])
    except (CheckpointError, ValueError):
        if is_plain:
            _ungate(model)
        raise
    return model


@torch.no_grad()
def _put(model: nn.Module, adapters: list[tuple[dict[str, Tensor], float]]) -> None:
    """Give the gates the plain values and what each adapter changes of them, by its scale."""
    parameters = dict(model.named_parameters())
    (first, scale), alone = adapters[0], len(adapters) == 1
    plain = {} if alone and scale == 1 else plain_state(model)  # some rules have no such values
    for name, value in first.items():
        if name in plain:
            start = torch.as_tensor(plain[name], dtype=torch.float32)
            value = start + sum(s * (gates[name].float() - start) for gates, s in adapters)
        parameters[name].copy_(value)


def fingerprint(model: nn.Module) -> str:
    """A hash of the names and shapes of a network's weights, gates and LoRA aside, and of some entries of each.

    Entries are rounded to bfloat16: the same base in float32 and in bfloat16 is the same.
    """
    digest, own = hashlib.sha256(), gate_names(model)
    for name, parameter in sorted((n.replace(".base_layer.", "."), p) for n, p in model.named_parameters()):
        if name in own or ".lora_" in name:
            continue
        values = full(parameter.detach()).flatten()
        some = values[:: max(1, values.numel() // LOOKS)][:LOOKS].to("cpu", torch.bfloat16)
        digest.update(f"{name} {tuple(parameter.shape)} {some.float().tolist()}\n".encode())
    return digest.hexdigest()


def _base(model: nn.Module) -> str:
    """The name of a network's class, without gates."""
    return type(model).__name__.removeprefix("Gated")


def _rule(model: nn.Module) -> tuple[Residual, Any]:
    """The rule of a gated network, and the units that have it (None for all)."""
    if hasattr(model, "register_to_config"):
        config: Any = model.config
        return Residual(**config["residual"]), config["gated_units"]
    residual = getattr(model, "residual", None)
    if not isinstance(residual, Residual):
        raise ValueError(f"this {type(model).__name__} does not say which residual rule it has")
    return residual, None


def _gate(model: nn.Module, residual: Residual, units: Any) -> None:
    """Gates of a rule for a network without any: of diffusers, or one of ours with plain units."""
    if hasattr(model, "register_to_config"):
        gate(model, residual, units)
        return
    set_units(model, residual)
    model.__dict__["residual"] = residual  # no parameter and no module


def _ungate(model: nn.Module) -> None:
    """The network as it was before `_gate`."""
    if hasattr(model, "register_to_config"):
        without_gates(model)
    else:
        _gate(model, Residual("resnet"), None)


def _read(file: Path) -> tuple[dict[str, str], tuple[Residual, Any], dict[str, Tensor]]:
    """The header of a file, its rule and units, and its gates."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(regular(file), framework="pt") as opened:
            header = opened.metadata() or {}
            gates = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read as a file of gates: {error}") from error
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{file} is no file of gates: save_gates did not write it")
    try:
        rule = Residual(**json.loads(header["residual"])), json.loads(header["units"])
        if not isinstance(rule[1], list | None):
            raise TypeError(f"units={rule[1]!r}")
        if header["sha256"] != digest_of(gates):
            raise CheckpointError(f"{file} is damaged: its gates are not as they were written; copy it again")
        header = {key: header[key] for key in ("base", "fingerprint")}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is no file of gates: its header was changed ({first_line(error)})") from error
    for name, value in gates.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{file} holds numbers that are not finite, the first in {name}: its run diverged")
    return header, rule, gates
