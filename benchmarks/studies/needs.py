"""`python -m benchmarks.studies.needs`: what it would take to ask the paper's questions at the paper's size. Nothing is
trained: the jobs of its studies are counted, and the FLOPs of their networks. The numbers go into `results/needs.json`.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.scaling import MFU, facts, network
from benchmarks.studies import plan
from neural_rdm.config.compose import compose_config, prepare_hydra
from neural_rdm.config.grids import crossed, study
from neural_rdm.core.files import write_text
from neural_rdm.core.peaks import peak_tflops

RESULT = Path(__file__).parents[1] / "results" / "needs.json"
SEEDS = 3
#: what is asked -> the experiments that ask it
ASKED = {
    "fig6": ("paper/fig6_variants", "paper/fig6_variants_taichi", "paper/fig6_variants_ucf101"),
    "fig7": ("paper/fig7_depth",),
    "fig5": ("paper/fig5_sensitivity",),
    "gates": ("paper/table2_sky",),
    "rivals": ("dit_b_gated",),
}
#: jobs of an experiment that is no study of its own: rules, optimizers and targets of `rivals`, each at one rate
PLAIN = {"gates": 1, "rivals": len(plan.RIVALS) * len(plan.OPTIMIZERS) * 2}


def count(asked: str) -> dict[str, Any]:
    """Runs, FLOPs of all their forward and backward passes, and days of one H100 in bf16 at `MFU` of its peak. What
    supervision, sampling and evaluation add is not counted.
    """
    runs, flops = 0, 0.0
    for name in ASKED[asked]:
        cfg = compose_config("train", [f"exp={name}"]).cfg
        node = cfg.get("sweep")
        jobs = crossed(study(node), [], [], lambda _: []) if node else [[]] * PLAIN[asked]
        depths = Counter(int(_value(job, "backbone.depth") or cfg.backbone.depth) for job in jobs)
        samples = int(cfg.data.batch_size) * int(cfg.trainer.max_steps)  # a batch is that of all devices
        for depth, same in depths.items():
            runs += SEEDS * same
            flops += SEEDS * same * 3 * samples * forward(name, depth)
    peak = peak_tflops("H100", "bf16-mixed")
    assert peak is not None
    return {"runs": runs, "flops": flops, "days": flops / (MFU * peak * 1e12) / 86_400}


def forward(exp: str, depth: int) -> int:
    """FLOPs of a forward pass of an experiment's network for one sample, so many blocks deep."""
    return int(facts(f"exp={exp}", depth, _shallow))


@cache
def _shallow(exp: str, depth: int) -> int:
    from neural_rdm.backbones.counting import flops

    return flops(network(exp, depth)[1], backward=False)


def _value(job: list[str], key: str) -> str | None:
    return next((text.partition("=")[2] for text in job if text.startswith(f"{key}=")), None)


def told(asked: str) -> str:
    """`27 runs (three seeds), 1.2e21 FLOPs, 35 days of one H100`."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))["asked"][asked]
    flops = f"{found['flops']:.1e}".replace("e+", "e")
    return f"{found['runs']} runs (three seeds), {flops} FLOPs, {found['days']:,.0f} days of one H100"


def main() -> None:
    prepare_hydra()
    content = {"mfu": MFU, "seeds": SEEDS, "asked": {asked: count(asked) for asked in ASKED}}
    write_text(RESULT, json.dumps(content, indent=1) + "\n")
    for asked in ASKED:
        print(f"{asked}: {told(asked)}")


if __name__ == "__main__":
    main()
