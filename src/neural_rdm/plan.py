"""`python -m neural_rdm.plan`: the memory that a training run would take on each device, before any of it is taken.

python -m neural_rdm.plan exp=dit_xl_gated devices=1,8,64 memory=80
"""

from __future__ import annotations

import copy
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cache
from math import gcd
from typing import TYPE_CHECKING, Any, NamedTuple

from neural_rdm.cli.app import Arguments
from neural_rdm.cli.stopping import Work, stoppable, told
from neural_rdm.config.check import validate
from neural_rdm.config.compose import Composed, compose_config, parse, prepare_hydra
from neural_rdm.config.strategy_rules import ROOM, check_strategy, sharing
from neural_rdm.config.trust import resolve
from neural_rdm.core.errors import ConfigError, UserError, first_line
from neural_rdm.core.ranks import NODE

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from neural_rdm.backbones.contract import Backbone
    from neural_rdm.training.memory import Memory

HELP = """The memory that a training run would take on each device, and what it computes, before anything is allocated.

python -m neural_rdm.plan exp=dit_xl_gated
python -m neural_rdm.plan exp=dit_xl_gated backbone.depth=112 data.batch_size=1024 devices=8,64,1024 memory=80
python -m neural_rdm.plan exp=latte_xl_gated trainer.precision=32-true strategy=fsdp2

devices=N (or a list: 8,64) is the number of devices in all, trainer.devices * trainer.num_nodes by default; memory=GiB
says what fits a device of so much memory. All other arguments are those of neural_rdm.train. A table has a row for each
way to share out the network (strategy) and to compute twice (trainer.activation_checkpointing); the choice of the
configuration is marked with *. Rows of tp are of groups of strategy.tensor devices, by default as many of a node as
divide the heads; with strategy.context=N those of ddp, fsdp2 and hsdp are of groups of N. hsdp keeps strategy.replicas
copies of the network, by default one a node. samples are those that a device has at once, with the rest of its group.
trainer.precision=auto is planned as on a GPU, bf16-mixed.

The numbers are of a step's tensors, counted by running the network on tensors without memory. What a GPU's libraries
and its allocator take for themselves comes on top (one to a few GiB), and so do a first stage and a text encoder.
"""
MOST = 10**7  # samples of a device, more than anybody has
RECOMPUTED: tuple[Any, ...] = ("none", "selective", "full")


class Way(NamedTuple):
    """A way to share out a network among devices.

    Attributes:
        strategy: its name.
        shards: devices that share out weights, gradients, optimizer and averages.
        tensor: devices of a group that shares out blocks.
        context: devices of a group that shares out tokens.
    """

    strategy: str
    shards: int = 1
    tensor: int = 1
    context: int = 1

    @property
    def group(self) -> int:
        """Devices that have the same samples."""
        return self.tensor * self.context

    @property
    def key(self) -> str:
        """What the strategy calls their number."""
        return "tensor" if self.strategy == "tp" else "context"

    def __str__(self) -> str:
        return f"{self.strategy} {self.key}={self.group}" if self.group > 1 else self.strategy


def plan(argv: list[str]) -> str:
    """The table for these arguments.

    Raises:
        UserError: a mistake in them, or a network that cannot be planned.
    """
    own = [a for a in argv if a.partition("=")[0] in ("devices", "memory")]
    arguments = Arguments.parse([a for a in argv if a not in own])
    composed = compose_config("train", arguments.overrides, arguments.folders)
    asked = {o.key_or_group: o for o in parse(own)}
    devices = _numbers(asked.get("devices"), "devices", int)
    trainer = composed.cfg.trainer
    if devices and not composed.cfg.strategy._target_.endswith(".single"):  # which has to fit the most of them
        _spread(trainer, max(devices))
    validate(composed.cfg, "train", composed.sources)
    devices = devices or [trainer.devices * trainer.num_nodes]
    room = _numbers(asked.get("memory"), "memory", float)
    print("loading libraries ...", file=sys.stderr, flush=True)
    return "\n".join(_told(composed, devices, room[0] if room else None))


def _numbers(override: Any, key: str, kind: type) -> list[Any]:
    """The positive numbers that were typed for a key of this command."""
    if override is None:
        return []
    typed = override.input_line.partition("=")[2].strip("[] ")
    try:
        found = [kind(part) for part in typed.split(",")]
    except ValueError:
        found = [0]
    if min(found) <= 0:
        raise ConfigError(f"{key}={typed}: pass a positive number" + (", or several: 8,64" if key == "devices" else ""))
    return found


def _told(composed: Composed, devices: list[int], room: float | None) -> Iterator[str]:
    from neural_rdm.backbones.counting import flops
    from neural_rdm.reports.tables import markdown_table

    resolve(composed.cfg)
    cfg = composed.cfg
    net = _network(cfg)
    precision = cfg.trainer.precision
    if precision == "auto":
        precision = "32-true" if cfg.trainer.accelerator == "cpu" else "bf16-mixed"
    total, trained = (sum(p.numel() for p in net.parameters() if p.requires_grad or whole) for whole in (True, False))
    yield f"{type(net).__name__}, {total:,} parameters, {trained:,} trained; {cfg.optimizer.name}, {precision}"
    tokens = (cfg.condition or {}).get("max_length")
    a_sample = 3 * flops(net, tokens, backward=False)
    half, micro_steps = precision != "32-true", cfg.trainer.accumulate_grad_batches
    needed = _needed(cfg, net, tokens, half)
    rows: list[dict[str, Any]] = []
    left_out: dict[str, list[str]] = {}
    for count in devices:
        computed = a_sample * cfg.data.batch_size / count / 1e12
        yield (
            f"global batch {cfg.data.batch_size}: {count} device(s) x {micro_steps} micro-step(s); {computed:,.4g} "
            "TFLOP a step and device"
        )
        for way in _ways(cfg, net, count):
            try:
                _check(composed, way, count)
                rows += _rows(composed, way, needed, count, room)
            except ConfigError as error:
                if way.strategy == composed.choices.get("strategy"):
                    raise
                left_out.setdefault(f"on {count} device(s): {error}", []).append(str(way))
    reasons = [f"{', '.join(ways)} {reason}" for reason, ways in left_out.items()]
    if not rows:
        raise ConfigError(". ".join(reasons))
    yield f"\n{markdown_table(rows)}"
    yield from (f"left out: {reason}" for reason in reasons)
    yield "GiB of one device; most: all of a row together, at the fullest moment of a step. *: as configured."


def _ways(cfg: Any, net: Backbone, devices: int) -> Iterator[Way]:
    """The ways to share out a network among so many devices."""
    if devices == 1:
        yield Way("single")
        return
    context = cfg.strategy.get("context", 1)
    yield Way("ddp", context=context)
    yield Way("fsdp2", devices, context=context)
    replicas = _replicas(cfg, devices)
    if devices > NODE or replicas > 1:
        yield Way("hsdp", devices // replicas, context=context)
    tensor = cfg.strategy.get("tensor") or gcd(devices, NODE, getattr(net, "num_heads", 0))
    if tensor > 1:
        yield Way("tp", tensor=tensor)


def _replicas(cfg: Any, devices: int) -> int:
    """Copies of the network that hsdp keeps on so many devices: as configured, or one for each node."""
    trainer, asked = cfg.trainer, cfg.strategy.get("replicas")
    nodes = trainer.num_nodes if devices == trainer.devices * trainer.num_nodes else _nodes(devices)
    return int(asked or nodes)


def _nodes(devices: int) -> int:
    """The whole nodes that so many devices fill; one where they fill none."""
    return devices // NODE if devices % NODE == 0 else 1


def _spread(trainer: DictConfig, devices: int) -> None:
    """So many devices, over whole nodes where they fill some."""
    trainer.num_nodes = _nodes(devices)
    trainer.devices = devices // trainer.num_nodes


def _check(composed: Composed, way: Way, devices: int) -> None:
    """Refuse a way to share out that does not fit so many devices, or the rest of the configuration. What is compiled
    holds what it holds uncompiled, as far as it is planned.

    Raises:
        ConfigError: saying why.
    """
    cfg = copy.deepcopy(composed.cfg)
    _spread(cfg.trainer, devices)
    cfg.trainer.compile = False
    cfg.strategy = {"_target_": f"{ROOM}{way.strategy}", way.key: way.group}
    if way.strategy == "hsdp":
        cfg.strategy.replicas = _replicas(composed.cfg, devices)
    check_strategy(cfg, composed.sources)


def _network(cfg: Any) -> Backbone:
    import torch

    from neural_rdm.runs import build
    from neural_rdm.training.optim import freeze

    with torch.device("meta"):
        net = build.network(cfg).train()
    try:
        freeze(net, cfg.train_only)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return net


def _needed(cfg: Any, net: Backbone, tokens: int | None, half: bool) -> Callable[[Any, Way], Callable[[int], Memory]]:
    """What a step needs, by the way to compute twice (`none`, `full`, ...), the way to share out, and the samples that
    a device has at once."""
    from neural_rdm.backbones.counting import Held, held_by_batch
    from neural_rdm.runs import build
    from neural_rdm.training.memory import memory, of_one_device
    from neural_rdm.training.together import Imagined

    true, ema = cfg.trainer.precision == "bf16-true", (cfg.callbacks or {}).get("ema")
    averages = 0 if ema is None else 1 + len(ema.get("further") or ())
    optimizer = build.build(cfg.optimizer, "optimizer")
    reshards = cfg.strategy.get("reshard_after_forward", True)

    @cache
    def passes(how: Any, tensor: int, context: int) -> tuple[Backbone, Callable[[int], Held]]:
        groups = f" tensor={tensor}" * (tensor > 1) + f" context={context}" * (context > 1)
        print(f"activation_checkpointing={how}{groups} ...", file=sys.stderr, flush=True)
        try:
            part = of_one_device(net, how, Imagined(tensor), Imagined(context))
            return part, held_by_batch(part, tokens, half)
        except UserError:
            raise
        except Exception as error:  # of a network of one's own
            raise ConfigError(f"{type(net).__name__} cannot be planned: {first_line(error)}") from error

    def needed(how: Any, way: Way) -> Callable[[int], Memory]:
        part, held = passes(how, way.tensor, way.context)
        return lambda samples: memory(part, optimizer, averages, held(samples), way.shards, half, true, reshards)

    return needed


def _rows(
    composed: Composed,
    way: Way,
    needed: Callable[[Any, Way], Callable[[int], Memory]],
    devices: int,
    room: float | None,
) -> list[dict[str, Any]]:
    """A line for each way to compute twice.

    Raises:
        ConfigError: the network cannot be shared out so.
    """
    from neural_rdm.training.memory import GIB

    cfg, chosen = composed.cfg, composed.choices.get("strategy")
    batch = cfg.data.batch_size * way.group // (devices * cfg.trainer.accumulate_grad_batches)
    own = devices == 1 or (way.strategy == chosen and way.group == sharing(cfg.strategy, devices)[1])
    rows = []
    for how in dict.fromkeys([*RECOMPUTED, cfg.trainer.activation_checkpointing]):
        of = needed(how, way)
        planned = of(batch)
        mark = "*" if own and how == cfg.trainer.activation_checkpointing else ""
        row = {"devices": devices, "strategy": str(way), "checkpointing": f"{how}{mark}", "samples": batch}
        row |= {name: f"{size / GIB:.2f}" for name, size in vars(planned).items()}
        row["most"] = f"{planned.most / GIB:.2f}"
        if room is not None:
            row[f"fits {room:g} GiB"] = "yes" if planned.most <= room * GIB else "no"
            row["samples that fit"] = _most(of, room * GIB)
        rows.append(row)
    return rows


def _most(of: Callable[[int], Memory], room: float) -> int:
    """How many samples take at most so many bytes."""
    return bisect_right(range(1, MOST), room, key=lambda samples: of(samples).most)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(HELP, end="")
        raise SystemExit(0)
    prepare_hydra()
    work = Work("plan")
    with stoppable(work), told(work):
        print(plan(sys.argv[1:]))
