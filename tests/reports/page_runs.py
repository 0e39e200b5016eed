"""Small run folders as training leaves them, with names and texts that would do harm on a page that believed them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from neural_rdm.config.provenance import write_provenance
from neural_rdm.core.files import write_text
from neural_rdm.reports.grids import save_grid
from tests.reports import made

#: names that a page must show as they are
EVIL = "<script>document.title='harmed'</script>"
EVIL_ERROR = "<img src=x onerror=\"document.title='harmed'\"> out of memory & more"
CLASSES = ["cat", "<b>dog</b>", "'\"&"]
RULES = ("gated", "resnet", EVIL)
SEEDS = (0, 1, 2)


def make_sweep(folder: Path, clips: bool = False) -> list[Path]:
    """Nine jobs, a rule and a seed each: one failed without a run, one is unfinished. Returns the run folders."""
    jobs, states, runs = {}, {}, []
    for number, (rule, seed) in enumerate((rule, seed) for rule in RULES for seed in SEEDS):
        jobs[str(number)] = [f"residual={rule}", f"seed={seed}"]
        if (rule, seed) == ("gated", 2):
            states[str(number)] = {"state": "failed", "error": EVIL_ERROR}
            continue
        done = (rule, seed) != (EVIL, 2)
        runs.append(make_run(folder / str(number), rule, seed, done, clips))
    write_text(folder / "sweep.json", json.dumps({"arguments": [], "jobs": jobs, "states": states}))
    return runs


def make_run(folder: Path, rule: str, seed: int, done: bool, clips: bool = False) -> Path:
    """A run of 40 steps, or one that was cut at 20, with all that a page shows of it."""
    worse = RULES.index(rule) * (0.1 + 0.003 * seed)
    row = {"accuracy": 0.9 - worse, "count": 500} if done else None
    losses = {step: 1 / step + worse + 0.02 * seed for step in (20, 40)}
    protocol = "accuracy: share of samples <recognised>; step {step}; seed {seed}."
    made.make_run(folder, rule, seed, losses, row, done, protocol, sampler={"steps": 20})
    write_text(folder / "throughput.csv", f"step,seconds_per_step\n20,{0.1 + seed / 100}\n")
    lines = [f"20,{u},blocks.{u // 2}.unit,{2 - u / 9},{1 - u / 9},1,1.0,0.1,0.2" for u in range(4)]
    header = "step,unit,name,norm,normalized,gain,alpha_mean,alpha_std,beta_norm"
    write_text(folder / "sensitivity" / "sensitivity.csv", "\n".join([header, *lines, ""]))
    typed = ["exp=digits_gated", f"residual={rule}", f"seed={seed}", f"data.root='/a/long/{'path/' * 40}'"]
    machine = {"system": "Linux", "processor": "a CPU", "cores": 2, "gpus": []}
    start = {
        "time": "2026-01-02T03:04:05+00:00", "command_line": ["python", "-m", "neural_rdm.train", *typed],
        "arguments": typed, "commit": "0123456789abcdef" * 2, "dirty": seed == 1, "versions": {"torch": "2.13.0"},
        "machine": machine,
    }  # fmt: skip
    write_provenance(folder, command="train", starts=[start])
    if done:
        draw(folder / "samples", seed, RULES.index(rule), clips)
    return folder


def draw(folder: Path, seed: int, shade: int, clips: bool) -> None:
    """Grids of three classes, two samples of each; the noise is that of the seed, and the rule shades it."""
    shape = (6, 4, 1, 8, 8) if clips else (6, 3, 8, 8)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    x = (x + shade / 4).clamp(-1, 1)
    if clips:
        save_grid(x, folder / "final.gif", columns=2, row_labels=CLASSES)
        x = x[::2]
    save_grid(x, folder / "final.png", columns=2, row_labels=CLASSES)
