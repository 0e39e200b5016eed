"""Official weights into a network: what its adapter makes of a file is compared with what it holds itself.

Parameter names of the official code never change here, so loading is a comparison: the gates are what a file lacks, and
they are set so that every unit computes `z + F(z)`, which leaves the network's output as it was, to the last bit.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from neural_rdm.backbones.contract import Backbone
from neural_rdm.backbones.options import options_of, without_scales
from neural_rdm.core.errors import CheckpointError
from neural_rdm.core.ranks import is_first_rank
from neural_rdm.core.weights import read_weights, unwrapped
from neural_rdm.residual import gate_names, plain_state, units
from neural_rdm.surgery.adapter import Adapter, Problems, State, adapter_of
from neural_rdm.surgery.folding import without_gates
from neural_rdm.surgery.outputs import outputs

Model = TypeVar("Model", bound=nn.Module)


def load_official(model: Model, source: str | Path | State, reinit: Iterable[str] = ()) -> Model:
    """Load official weights into `model`, in place; afterwards every unit that they fill is plain, `rezero` too.

    Parts that the file cannot know and that change nothing keep their start: the gates (alpha 1, beta 0) and new
    cross-attention units, whose last projection (or, under `rezero`, whose alpha) is zero. An image Latte
    (num_frames = 1) takes the spatial blocks of a video checkpoint. A file of ours brings its own gates.

    Args:
        model: a DiT, Latte, UViT or UNet, or another network, which reads its own names or what its adapter says.
        source: a file, a folder (see `core.weights.read_weights`) or a state dict, whatever wrappers its names show.
        reinit: beginnings of parameter names that keep this network's own values, such as `y_embedder` (`label_emb`,
            `class_embedder`) for another number of classes, and patterns of them, such as `*.attn2.to_k` for another
            context; `pos_embed` (another resolution) and `temp_embed` (another number of frames) are interpolated.

    Returns:
        `model`.

    Raises:
        CheckpointError: the weights cannot be read or do not fit; one message names every key and what probably
            happened. The model is untouched.
    """
    state = unwrapped(source) if isinstance(source, Mapping) else read_weights(source)
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    adapter = adapter_of(model)
    if not isinstance(source, Mapping) and Path(source).is_dir():
        adapter.check_folder(Path(source))
    own = model.state_dict()
    found = adapter.to_ours(state, name)
    state = adapter.kept(found)
    for start in reinit:
        matching = {k for k in {*own, *state} if fnmatchcase(k, start) or fnmatchcase(k, f"{start}.*")}
        if not matching:
            parts = ", ".join(sorted({k.split(".")[0] for k in own}))
            raise CheckpointError(
                f"pretrained.reinit: there is no {start!r} in this network or in {name}; parts: {parts}"
            )
        for key in matching & set(state):
            table = adapter.table(key, found) if key in adapter.tables and key in own else None
            state.pop(key)
            if table is not None:
                state[key] = table
        state |= {k: own[k] for k in matching & set(own) if k not in state}

    state |= _gates(adapter, own, state, name)
    state |= {k: own[k] for k in adapter.idle(state)}
    problems = {
        "missing": sorted(set(own) - set(state)),
        "unexpected": sorted(set(state) - set(own)),
        "misshaped": sorted(k for k in set(own) & set(state) if own[k].shape != state[k].shape),
    }
    if any(problems.values()):
        hints = adapter.hints(problems, own, found)
        if any(re.search(r"unit\.\w+$", k) for k in problems["unexpected"]):
            hints.append("the file holds gates of another residual rule; choose the one that it was trained with")
        raise CheckpointError(_message(name, problems, own, found, hints))
    model.load_state_dict(state)
    if is_first_rank() and (said := _moved(model)) is not None:
        print(f"{name}: {said}", flush=True)
    return model


def _moved(model: nn.Module) -> str | None:
    """How far the output moves from what the file was trained for, in words: under a rule that is plain up to the eps
    of norms, and under scaled norms, which have no parameters that could undo them. None where nothing moves.
    """
    near, scaled = any(unit.plain_within for _, unit in units(model)), options_of(model).lns
    if not near and not scaled:
        return None
    assert isinstance(model, Backbone)
    plain = without_gates(copy.deepcopy(model)) if near else copy.deepcopy(model)
    assert isinstance(plain, Backbone)
    without_scales(plain)
    causes = [f"residual={model.residual.rule}"] * near + ["backbone.lns=true"] * scaled
    ours, theirs = outputs(model), outputs(plain)
    share = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))
    return f"under {' and '.join(causes)} the output of two random samples moves by {share:.1e} of its size"


def _gates(adapter: Adapter[nn.Module], own: State, state: State, name: str) -> dict[str, Tensor]:
    """The parameters of the residual rule that a file lacks, at their plain values; those of units that it does not
    know at their own start.

    Raises:
        CheckpointError: the rule never computes what the file was trained for.
    """
    gates = gate_names(adapter.model)
    lacking = gates - set(state)
    if gates and not lacking:  # a file of ours
        return {}
    try:
        plain = plain_state(adapter.model)
    except ValueError as error:
        raise CheckpointError(f"{name} cannot be loaded: {error}. residual=gated can take it") from error
    new = adapter.new_units(state)
    return {
        k: own[k] if k.rpartition(".")[0] in new else torch.as_tensor(plain[k]).to(own[k]).expand_as(own[k])
        for k in lacking
    }


def _message(name: str, problems: Problems, own: State, found: State, hints: list[str]) -> str:
    """One message: every key, by kind, and what probably happened."""
    lines = [f"{name} does not fit this network:"]
    for kind, keys in problems.items():
        if not keys:
            continue
        shown = [
            f"{k} (file {list(found[k].shape)}, network {list(own[k].shape)})"
            if kind == "misshaped" and k in found
            else k
            for k in _shortened(keys)
        ]
        lines.append(f"  {kind} ({len(keys)}): {', '.join(shown)}")
    lines += [f"  {hint}" for hint in hints]
    return "\n".join(lines)


def _shortened(keys: list[str], most: int = 8) -> list[str]:
    """Every key, where blocks repeat one another the first block's."""
    first = {re.sub(r"(blocks|resnets|attentions)\.\d+\.", r"\1.N.", k): k for k in reversed(keys)}
    kept = sorted(first.values())
    return kept if len(kept) <= most else [*kept[:most], f"and {len(kept) - most} more of the kind"]
