"""`python -m benchmarks.scaling`: memory, traffic and time of large networks on 8, 64 and 1024 GPUs, by the formulas
of `training.memory` and `training.traffic`. Nothing is measured. The numbers go into `results/scaling.json`, and from
there into the table of `docs/scaling.md`; `--page` writes the page alone, `--known` counts no network anew.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT, PAGE = ROOT / "benchmarks" / "results" / "scaling.json", ROOT / "docs" / "scaling.md"
#: name -> experiment, blocks
NETWORKS = {
    "DiT-XL/2": ("exp=dit_xl_gated", 28),
    "DiT-XL/2 of 56 blocks": ("exp=dit_xl_gated", 56),
    "DiT-XL/2 of 112 blocks": ("exp=dit_xl_gated", 112),
    "Latte-XL/2, 16 frames": ("exp=latte_xl_gated", 28),
}
BATCH = 1024  # of all devices
SMALL = (4, 6)  # blocks of the networks that are counted
GROUP = 8  # devices that compute one batch together, of a node
DEVICES, WAYS = (8, 64, 1024), ("none", "selective", "full")
MFU = 0.4  # assumed, of 989.4 TFLOP/s (`core.peaks`)
REACHED = 0.8  # assumed, of the links' speed
MEMORY = {"H100": 80e9, "H200": 141e9}


def counts(net: Callable[[], Any], groups: Sequence[str] = ("tensor", "context")) -> dict[str, Any]:
    """What is counted of a network: FLOPs of a forward pass, and bytes that its passes hold for 2 and for 4 samples, by
    the way to compute twice; the same of one device of the `groups` that compute a batch together, with the bytes that
    it sends for a sample.
    """
    from neural_rdm.backbones.counting import flops, held
    from neural_rdm.training.memory import of_one_device

    whole = net()
    found: dict[str, Any] = {"flops": flops(whole, backward=False), "held": {}}
    for how in WAYS:
        again = of_one_device(whole, how)
        found["held"][how] = [list(held(again, batch, None, True)) for batch in (2, 4)]
    return found | {which: in_group(whole, which) for which in groups}


def in_group(net: Any, which: str) -> dict[str, Any]:
    """What one device of a group holds and sends, by the way to compute twice."""
    from neural_rdm.backbones.counting import held
    from neural_rdm.training.memory import of_one_device
    from neural_rdm.training.together import Imagined

    found: dict[str, Any] = {"held": {}, "sent": {}}
    for how in WAYS:
        group: Any = Imagined(GROUP)
        part = of_one_device(net, how, **{which: group})
        two = list(held(part, 2, None, True))
        found["sent"][how] = group.sent / 2
        found["held"][how] = [two, list(held(part, 4, None, True))]
    return found


def network(exp: str, depth: int) -> tuple[Any, Any]:
    """The configuration of an experiment, and its network, so many blocks deep and without values."""
    import torch
    from omegaconf import OmegaConf

    from neural_rdm.config.compose import compose_config
    from neural_rdm.runs import build

    cfg = compose_config("train", [exp, f"backbone.depth={depth}"]).cfg
    OmegaConf.resolve(cfg)
    with torch.device("meta"):
        return cfg, build.network(cfg).train()


@cache
def shallow(exp: str, depth: int) -> dict[str, Any]:
    """The counts of an experiment's network, so many blocks deep."""
    print(exp, depth, flush=True)
    return counts(lambda: network(exp, depth)[1])


def facts(exp: str, depth: int, count: Callable[[str, int], Any] = shallow) -> Any:
    """What is counted of a deep network, from the counts of two shallow ones."""
    less, more = SMALL
    return at_depth(count(exp, less), count(exp, more), (depth - less) // (more - less))


def at_depth(less: Any, more: Any, steps: int) -> Any:
    """Counts of a deeper network from those of two shallow ones: every further block adds the same."""
    if isinstance(less, dict):
        return {key: at_depth(less[key], more[key], steps) for key in less}
    if isinstance(less, list):
        return [at_depth(a, b, steps) for a, b in zip(less, more, strict=True)]
    return less + steps * (more - less)


def rows(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each number of devices and strategy: the first way to compute twice that fits an H100."""
    from neural_rdm.backbones.counting import Held
    from neural_rdm.core.peaks import peak_tflops
    from neural_rdm.core.ranks import NODE
    from neural_rdm.runs import build
    from neural_rdm.training.memory import memory, of_one_device
    from neural_rdm.training.together import Imagined
    from neural_rdm.training.traffic import HOPPER, averaged, traffic

    exp, depth = NETWORKS[name]
    cfg, net = network(exp, depth)
    optimizer = build.build(cfg.optimizer, "optimizer")
    peak = peak_tflops("H100", "bf16-mixed")
    assert peak is not None
    tensor = of_one_device(net, tensor=Imagined(GROUP))
    made = []
    for devices in DEVICES:
        for strategy, shards in (
            ("ddp", 1), ("fsdp2", devices), ("hsdp", NODE), ("tp", 1), (f"fsdp2 context={GROUP}", devices)
        ):  # fmt: skip
            if strategy == "hsdp" and devices == NODE:
                continue
            part, group = (tensor, "tensor") if strategy == "tp" else (net, "context" if " " in strategy else "")
            size = GROUP if group else 1
            counted, samples = found[group] if group else found, BATCH * size // devices
            row: dict[str, Any] = {"network": name, "devices": devices, "strategy": strategy}
            for how in WAYS:
                small, larger = (Held(*each) for each in counted["held"][how])
                most = memory(part, optimizer, 1, small.at(samples, larger, (2, 4)), shards, True).most
                if most <= MEMORY["H100"] or how == WAYS[-1]:
                    break
            inside = counted["sent"][how] * samples if group else 0.0
            sent = averaged(part, devices // GROUP) if strategy == "tp" else traffic(net, devices, shards)
            sent = replace(sent, grouped=inside)
            again = {"none": 0.0, "selective": 1.0, "full": 1.0}[how]
            computes = (3 + again) * found["flops"] * samples / size / (MFU * peak * 1e12)
            sends = sent.seconds(HOPPER, REACHED)
            row |= {
                "checkpointing": how,
                "GiB": most / 2**30,
                "fits": [gpu for gpu, room in MEMORY.items() if most <= room],
                "sent GB": (sent.ring + sent.copied + sent.grouped) / 1e9,
                "computes s": computes,
                "sends s": sends,
                "samples/s": [BATCH / (computes + sends), BATCH / max(computes, sends)],
            }
            made.append(row)
    return made


def table(made: list[dict[str, Any]]) -> str:
    """The rows as the page has them."""
    from neural_rdm.reports.tables import markdown_table

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        low, high = row["samples/s"]
        return {
            "network": row["network"], "GPUs": row["devices"], "`strategy=`": f"`{row['strategy']}`",
            "computed twice": row["checkpointing"], "GiB": f"{row['GiB']:.1f}",
            "fits": ", ".join(row["fits"]) or "neither", "sent, GB": f"{row['sent GB']:.1f}",
            "computes, ms": f"{1e3 * row['computes s']:.0f}", "sends, ms": f"{1e3 * row['sends s']:.0f}",
            "samples/s": f"{low:,.0f} to {high:,.0f}",
        }  # fmt: skip

    return markdown_table([shown(row) for row in made])


def page(text: str, content: dict[str, Any]) -> str:
    """The text of the page with its table as the numbers have it."""
    made = table(content["rows"]).strip()
    return re.sub(r"(<!-- computed:.*?-->\n\n).*?(\n\n<!-- end -->)", lambda m: m[1] + made + m[2], text, flags=re.S)


def main() -> None:
    if "--page" not in sys.argv[1:]:
        from neural_rdm.config.compose import prepare_hydra

        prepare_hydra()
        known = json.loads(RESULT.read_text(encoding="utf-8"))["counted"] if "--known" in sys.argv[1:] else {}
        counted = known or {name: facts(*of) for name, of in NETWORKS.items()}
        made = [row for name, found in counted.items() for row in rows(name, found)]
        content = {"mfu": MFU, "reached": REACHED, "counted": counted, "rows": made}
        RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    content = json.loads(RESULT.read_text(encoding="utf-8"))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), content), encoding="utf-8")


if __name__ == "__main__":
    main()
