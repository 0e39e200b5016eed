"""`python -m neural_rdm.deepen`: a run's network, deeper, with the same output, as a run that training continues.

python -m neural_rdm.deepen checkpoint=outputs/train/dit_xl_gated/TIME depth=56
python -m neural_rdm.deepen checkpoint=last depth=56     (the newest run)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from neural_rdm.cli.app import main, print_paths
from neural_rdm.config.compose import parse
from neural_rdm.config.grammar import folder_name, literal, written
from neural_rdm.config.provenance import KEY as KEY_OF_CONFIG
from neural_rdm.config.provenance import check_checkpoint, config_hash, read_provenance, write_config, write_provenance
from neural_rdm.core.errors import CheckpointError, ConfigError
from neural_rdm.core.extras import typed
from neural_rdm.core.files import link_atomically, load_tensors, save_tensors, write_text
from neural_rdm.runs.load import newest, read_config

if TYPE_CHECKING:
    from torch import nn

    from neural_rdm.backbones.contract import Backbone
    from neural_rdm.surgery.grow import Growth


#: of outputs of about 1 in float32; an exact growth moves them by nothing at all
LARGEST_ROUNDING = 1e-4


def run_of(checkpoint: str) -> Path:
    """The run folder that `checkpoint=` means: itself, or the one around a file in its `checkpoints`."""
    path = Path(checkpoint)
    return path.parent.parent if path.is_file() else path


def complete(overrides: list[str], _: object = None) -> list[str]:
    """Name the output folder after the run's experiment; refuse what is no run before torch is loaded."""
    found = [str(o.value()) for o in parse(overrides) if o.key_or_group == "checkpoint"]
    if not found:
        raise ConfigError("which network? Pass checkpoint=DIR, a run folder, or checkpoint=DIR/checkpoints/FILE.ckpt")
    if found[-1] == "last":
        found.append(str(newest("checkpoint")))
        overrides = [*overrides, f"checkpoint={written(found[-1])}"]
    folder = run_of(found[-1])
    config = read_config(folder)
    if config.get("control") == "mlp_widened":
        raise ConfigError(
            f"checkpoint={found[-1]} is of a run of control=mlp_widened, which is not deepened: how wide its MLPs are "
            "depends on the depth; deepen a run of the rule itself"
        )
    experiment = (config.choices or {}).get("exp") or folder.resolve().name
    return [f"++experiment={literal(folder_name(experiment))}", *overrides]


def deepen(cfg: DictConfig, folder: Path) -> int:
    """Write the new run folder into `folder`; return the exit code 0.

    Kept tensors keep their optimizer moments and step. New ones have none, so that they start at step 0: with a kept
    step Adam's bias correction would be done, and the first update 3.2 times too large (1 / sqrt(1 - 0.999) over 1 /
    (1 - 0.9), for the usual betas).

    Raises:
        UserError: no usable run, or a network that cannot grow as asked.
    """
    import torch

    from neural_rdm.runs import build
    from neural_rdm.surgery.adapter import adapter_of
    from neural_rdm.surgery.grow import depth_of, grown, grown_state, plan
    from neural_rdm.training.callbacks.checkpoints import newest_readable, path_of, sick, split_network
    from neural_rdm.training.callbacks.ema import KEY
    from neural_rdm.training.optim import freeze

    config, source = read_config(run_of(cfg.checkpoint)), Path(cfg.checkpoint)
    if not source.is_file():
        source = newest_readable(source / "checkpoints") or source
    content: dict[str, Any] = dict(load_tensors(source))
    if (name := sick(content)) is not None:
        raise CheckpointError(f"{source} holds values that are not finite (first {name})")
    check_checkpoint(run_of(cfg.checkpoint), config, source, content)
    net = build.network(config)
    freeze(net, config.train_only)
    try:
        state, beside = split_network(content["state_dict"])
        net.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{source} does not fit the network of its config.yaml: {error}") from error
    try:
        growth = plan(net, cfg.depth, cfg.placement, cfg.operator)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    depth = f"backbone.{adapter_of(net).depth}"
    if OmegaConf.select(config, depth) is None:
        raise ConfigError(f"{type(net).__name__} cannot be grown: its adapter says that {depth} counts its blocks, and "
                          "there is no such key")  # fmt: skip
    deep = grown(net, growth)
    for (_, old), (name, new) in zip(_matched(net, deep, growth), deep.named_parameters(), strict=True):
        assert name
        new.requires_grad_(old.requires_grad)

    moved = {"raw": difference(net, deep)}
    content["state_dict"] = {f"net.{k}": v for k, v in deep.state_dict().items()} | beside
    if KEY in content:
        averages = content[KEY]["weights"]
        grown_averages = grown_state(net, growth, averages)
        content[KEY] = {**content[KEY], "weights": grown_averages}
        for decay, others in content[KEY].get("further", {}).items():
            content[KEY]["further"][decay] = grown_state(net, growth, others)
        net.load_state_dict(net.state_dict() | averages)
        averaged = grown(net, growth)
        averaged.load_state_dict(averaged.state_dict() | grown_averages)
        moved["ema"] = difference(net, averaged)
    if cfg.operator == "identity" and max(moved.values()) > LARGEST_ROUNDING:
        raise ConfigError(
            f"{type(net).__name__} cannot be grown: its output moved by {max(moved.values()):.3g}, since its adapter "
            "does not state all that makes a new block the identity (start)"
        )
    optimizer = build.build(config.optimizer, "optimizer")
    content["optimizer_states"] = [
        grown_optimizer(state, optimizer.names(net), optimizer.names(deep), growth)
        for state in content["optimizer_states"]
    ]

    OmegaConf.update(config, depth, cfg.depth)
    if cfg.max_steps is not None:
        config.trainer.max_steps = cfg.max_steps
    content[KEY_OF_CONFIG] = config_hash(config)
    target = path_of(folder / "checkpoints", int(content["global_step"]))
    save_tensors(target, content)
    link_atomically(target, target.with_name("last.ckpt"))
    manifest = {
        "source": str(source),
        "step": int(content["global_step"]),
        "depth": {"from": depth_of(net), "to": cfg.depth},
        "placement": cfg.placement if cfg.operator != "stack" else "stack",
        "operator": cfg.operator,
        "new_blocks": list(growth.added),
        "copied_from": list(growth.added.values()),
        "parameters": {"from": _count(net), "to": _count(deep)},
        "max_output_difference": moved,
        "torch": torch.__version__,
    }
    write_text(target.with_name("deepen.json"), json.dumps(manifest, indent=2) + "\n")
    if (data := read_provenance(run_of(cfg.checkpoint)).get("data")) is not None:
        write_provenance(folder, data=data)
    write_config(folder, config)  # last: what is there before is no run yet
    print(f"{depth_of(net)} blocks -> {cfg.depth}; the output moved by at most {max(moved.values()):.3g}")
    print("wrote:")
    print_paths([target, target.with_name("deepen.json"), folder / "config.yaml"])
    step, last, schedule = int(content["global_step"]), config.trainer.max_steps, config.optimizer.get("schedule")
    if step >= last and schedule != "constant":  # its end cannot be moved by resume=
        print(
            f"To train on, deepen with max_steps=N, N above {step}: the {schedule} schedule of its {last} steps is over"
        )
        return 0
    more = f" trainer.max_steps=N, N above {step}" if step >= last else ""
    print(f"Continue with: python -m neural_rdm.train {typed('resume', os.path.relpath(folder))}{more}")
    return 0


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _matched(net: nn.Module, deep: nn.Module, growth: Growth) -> list[tuple[str, nn.Parameter]]:
    """For every parameter of the grown network the old one that it stems from."""
    old = dict(net.named_parameters())
    sources = growth.sources([name for name, _ in deep.named_parameters()])
    return [(name, old[name]) for name, _ in sources.values()]


def difference(net: Backbone, deep: Backbone) -> float:
    """The largest difference of both networks' outputs for two random inputs."""
    from neural_rdm.surgery.outputs import outputs

    return (outputs(net) - outputs(deep)).abs().max().item()


def grown_optimizer(
    state: dict[str, Any], old_names: list[list[str]], new_names: list[list[str]], growth: Growth
) -> dict[str, Any]:
    """AdamW's state of the grown network: kept parameters keep theirs, new ones have none, and groups behind the
    network's (a learned schedule) stay as they are.

    Args:
        old_names, new_names: parameter names of each group, in the optimizer's order.
    """
    number = {name: i for i, name in enumerate(n for group in old_names for n in group)}
    flat = [name for group in new_names for name in group]
    kept = {}
    for i, (old, new) in enumerate(growth.sources(flat).values()):
        if not new and number[old] in state["state"]:
            kept[i] = state["state"][number[old]]
    groups, start = [], 0
    for place, group in enumerate(state["param_groups"]):
        count = len(new_names[place]) if place < len(new_names) else len(group["params"])
        groups.append({**group, "params": list(range(start, start + count))})
        if place >= len(new_names):
            pairs = zip(groups[-1]["params"], group["params"], strict=True)
            kept |= {new: state["state"][old] for new, old in pairs if old in state["state"]}
        start += count
    return {**state, "state": kept, "param_groups": groups}


if __name__ == "__main__":
    main("deepen", deepen, complete)
