"""`python -m neural_rdm.plan`: the memory that a training run would take on each device, before any of it is taken.

python -m neural_rdm.plan exp=dit_xl_gated devices=1,8,64 memory=80
"""

from __future__ import annotations

import copy
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

from neural_rdm.cli.app import Arguments
from neural_rdm.cli.stopping import Work, stoppable, told
from neural_rdm.config.check import validate
from neural_rdm.config.compose import Composed, compose_config, parse, prepare_hydra
from neural_rdm.core.errors import ConfigError, UserError, first_line

if TYPE_CHECKING:
    from neural_rdm.backbones.contract import Backbone
    from neural_rdm.backbones.counting import Held
    from neural_rdm.training.memory import Memory

HELP = """The memory that a training run would take on each device, and what it computes, before anything is allocated.

python -m neural_rdm.plan exp=dit_xl_gated
python -m neural_rdm.plan exp=dit_xl_gated backbone.depth=112 data.batch_size=1024 devices=8,64,1024 memory=80
python -m neural_rdm.plan exp=latte_xl_gated trainer.precision=32-true strategy=fsdp2

devices=N (or a list: 8,64) is the number of devices in all, trainer.devices * trainer.num_nodes by default; memory=GiB
says what fits a device of so much memory. All other arguments are those of neural_rdm.train. A table has a row for each
way to share the state out (strategy) and to compute twice (trainer.activation_checkpointing); the choice of the
configuration is marked with *. trainer.precision=auto is planned as on a GPU, bf16-mixed.

The numbers are of a step's tensors, counted by running the network on tensors without memory. What a GPU's libraries
and its allocator take for themselves comes on top (one to a few GiB), and so do a first stage and a text encoder.
"""
MOST = 10**7  # samples of a device, more than anybody has
NODE = 8  # devices of a node, where hsdp shares out within nodes
RECOMPUTED: tuple[Any, ...] = ("none", "selective", "full")


def plan(argv: list[str]) -> str:
    """The table for these arguments.

    Raises:
        UserError: a mistake in them, or a network that cannot be planned.
    """
    own = [a for a in argv if a.partition("=")[0] in ("devices", "memory")]
    arguments = Arguments.parse([a for a in argv if a not in own])
    composed = compose_config("train", arguments.overrides, arguments.folders)
    validate(composed.cfg, "train", composed.sources)
    asked = {o.key_or_group: o for o in parse(own)}
    trainer = composed.cfg.trainer
    devices = _numbers(asked.get("devices"), "devices", int) or [trainer.devices * trainer.num_nodes]
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
    from omegaconf import OmegaConf

    from neural_rdm.backbones.counting import flops
    from neural_rdm.reports.tables import markdown_table

    OmegaConf.resolve(composed.cfg)
    cfg = composed.cfg
    net = _network(cfg)
    precision = cfg.trainer.precision
    if precision == "auto":
        precision = "32-true" if cfg.trainer.accelerator == "cpu" else "bf16-mixed"
    total, trained = (sum(p.numel() for p in net.parameters() if p.requires_grad or whole) for whole in (True, False))
    yield f"{type(net).__name__}, {total:,} parameters, {trained:,} trained; {cfg.optimizer.name}, {precision}"
    tokens = (cfg.condition or {}).get("max_length")
    a_sample = 3 * flops(net, tokens, backward=False)
    half = precision != "32-true"
    passes = _passes(cfg, net, tokens, half)
    rows: list[dict[str, Any]] = []
    for count in devices:
        parts = count * cfg.trainer.accumulate_grad_batches
        if cfg.data.batch_size % parts:
            raise ConfigError(
                f"data.batch_size={cfg.data.batch_size} is not a multiple of {parts}: {count} device(s) x "
                f"{cfg.trainer.accumulate_grad_batches} micro-step(s) (trainer.accumulate_grad_batches)"
            )
        batch = cfg.data.batch_size // parts
        computed = a_sample * cfg.data.batch_size / count / 1e12
        yield (
            f"global batch {cfg.data.batch_size}: {count} device(s) x {cfg.trainer.accumulate_grad_batches} "
            f"micro-step(s) x {batch} sample(s); {computed:,.4g} TFLOP a step and device"
        )
        rows += _rows(composed, net, passes, half, count, batch, room)
    yield f"\n{markdown_table(rows)}"
    yield "GiB of one device; most: all of a row together, at the fullest moment of a step. *: as configured."


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


def _passes(cfg: Any, net: Backbone, tokens: int | None, half: bool) -> dict[Any, Callable[[int], Held]]:
    """What the passes hold for a batch of one device, by the way to compute twice: `none`, `full`, ..."""
    from neural_rdm.backbones.counting import held_by_batch
    from neural_rdm.training.recompute import recompute

    found = {}
    for how in dict.fromkeys([*RECOMPUTED, cfg.trainer.activation_checkpointing]):
        again = copy.deepcopy(net)
        recompute(again, how)
        print(f"activation_checkpointing={how} ...", file=sys.stderr, flush=True)
        try:
            found[how] = held_by_batch(again, tokens, half)
        except UserError:
            raise
        except Exception as error:  # of a network of one's own
            raise ConfigError(f"{type(net).__name__} cannot be planned: {first_line(error)}") from error
    return found


def _rows(
    composed: Composed,
    net: Backbone,
    passes: Mapping[Any, Callable[[int], Held]],
    half: bool,
    devices: int,
    batch: int,
    room: float | None,
) -> Iterator[dict[str, Any]]:
    """A line for each strategy and each way to compute twice."""
    from neural_rdm.runs import build
    from neural_rdm.training.memory import GIB, memory

    cfg, chosen = composed.cfg, composed.choices.get("strategy")
    true = cfg.trainer.precision == "bf16-true"
    ema = (cfg.callbacks or {}).get("ema")
    averages = 0 if ema is None else 1 + len(ema.get("further") or ())
    optimizer = build.build(cfg.optimizer, "optimizer")
    shares = {"single": 1} if devices == 1 else {"ddp": 1, "fsdp2": devices}
    if devices > NODE:
        shares["hsdp"] = NODE
    for (how, held), (strategy, shards) in product(passes.items(), shares.items()):

        def of(samples: int, held: Callable[[int], Held] = held, shards: int = shards) -> Memory:
            return memory(net, optimizer, averages, held(samples), shards, half, true)

        planned = of(batch)
        configured = how == cfg.trainer.activation_checkpointing and (strategy == chosen or devices == 1)
        row = {"devices": devices, "strategy": strategy, "checkpointing": f"{how}{'*' if configured else ''}"}
        row |= {name: f"{size / GIB:.2f}" for name, size in vars(planned).items()}
        row["most"] = f"{planned.most / GIB:.2f}"
        if room is not None:
            row[f"fits {room:g} GiB"] = "yes" if planned.most <= room * GIB else "no"
            row["samples that fit"] = bisect_right(range(1, MOST), room * GIB, key=lambda n: of(n).most)
        yield row


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(HELP, end="")
        raise SystemExit(0)
    prepare_hydra()
    work = Work("plan")
    with stoppable(work), told(work):
        print(plan(sys.argv[1:]))
