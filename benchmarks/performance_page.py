"""`docs/results/performance.md`, made of `results/peer_*.json` and `results/overhead.json`: no number is typed."""
# ruff: noqa: E501 - lines of Markdown, long before their numbers are filled in

from __future__ import annotations

import json
from typing import Any

from benchmarks.pages import PAGES, RESULTS, percent, read
from neural_rdm.core.files import write_text
from neural_rdm.reports.tables import markdown_table

NOTE = "<!-- written by `python -m benchmarks.performance_page` from benchmarks/results/peer_*.json and overhead.json: change those, not this -->\n\n"
PARTS = ("forward", "backward", "optimizer", "average")


def races() -> list[dict[str, Any]]:
    """All races of all repositories, each with where its repository is to be had."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("peer_*.json"))]
    return [race | {"source": file["source"]} for file in files for race in file["races"]]


def verdict(row: dict[str, Any]) -> str:
    """Whether a goal is met, as far as the interval tells."""
    if "goal" not in row:
        return ""
    if row["ratio"] <= row["goal"]:
        return "met" if row["high"] <= row["goal"] else "met, within the noise"
    return "missed" if row["low"] > row["goal"] else f"missed by {row['ratio'] - row['goal']:.2f}, within the noise"


def ratio(row: dict[str, Any]) -> str:
    """A ratio with its interval."""
    return f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def steps() -> str:
    """The training steps."""
    rows = []
    for race in races():
        for row in race["step"][1:]:
            rows.append(
                {
                    "network, batch": f"{race['network']}, {race['batch']}",
                    "ours": row["case"].removeprefix("ours, "),
                    "official, ms": f"{race['step'][0]['total']:.0f}",
                    "ours, ms": f"{row['total']:.0f}",
                    "ours over official": ratio(row),
                    "of minima": f"{row['ratio of minima']:.3f}" if "ratio of minima" in row else "",
                    "goal": f"{row['goal']:.2f}" if "goal" in row else "",
                    "": verdict(row),
                }
            )
    return markdown_table(rows)


def parts() -> str:
    """Where the time of the steps goes."""
    rows = [
        {"network": race["network"], "step": row["case"]} | {f"{part}, ms": f"{row[part]:.0f}" for part in PARTS}
        for race in races()
        for row in race["step"]
    ]
    return markdown_table(rows)


def samplers() -> str:
    """The samplers."""
    rows = [
        {
            "network": race["network"],
            "samples": race["sampler"],
            "ours": row["case"].removeprefix("ours, "),
            "official, ms": f"{race['sampling'][0]['total']:.0f}",
            "ours, ms": f"{row['total']:.0f}",
            "ours over official": ratio(row),
            "times as fast": f"{row['official over it']:.3f}",
        }
        for race in races()
        if "sampling" in race
        for row in race["sampling"][1:]
    ]
    return markdown_table(rows)


def differences() -> str:
    """How far what is timed is from the official code."""
    rows = [{"network": race["network"]} | {k: f"{v:.1e}" for k, v in race["differences"].items()} for race in races()]
    return markdown_table(rows)


def sources() -> str:
    """What was raced."""
    found = dict.fromkeys((race["source"], race["commit"]) for race in races())
    return ", ".join(f"{source} at {(commit or 'an unknown commit')[:7]}" for source, commit in found)


def sampling() -> str:
    """The section of the samplers; nothing of them where none was raced."""
    if not any("sampling" in race for race in races()):
        return "No sampler has been timed yet: `make bench peer=DIR` does it, beside the steps.\n\n"
    return f"""## Sampling

From the same noise, guidance as the official scripts have it, as one batch of both halves. `compiled` is `make sample
args="compile=true"`; eager, ours takes the modulation of all steps from tables (`backbones.modulation`).

{samplers()}
"""


def beside() -> str:
    """The section of Lightning; nothing of it where it was not measured."""
    if not (RESULTS / "overhead.json").is_file():
        return "What Lightning and the callbacks cost beside a step has not been measured yet: `make bench args=overhead`.\n"
    overhead = read("overhead")
    whole, own = (row["ms"] for row in overhead["rows"])
    return f"""## Lightning and the callbacks

The real command `train` (DiT-S, 512 tokens a step, EMA, metrics every 10 steps, throughput, checkpoints, the bar), with a clock around
the step's own work, which is that of a raw loop: forward and backward pass, norm and clipping of the gradient, optimizer and average,
{own:.0f} ms of {whole:.0f} ms. Everything else takes {overhead["rest_ms"]["median"]:.1f} ms in the median step and {overhead["rest_ms"]["mean"]:.1f} ms in the mean:
**{percent(overhead["share"], 2)} of the step** ([overhead.json](../../benchmarks/results/overhead.json); the goal is 1 %).
"""


def performance() -> str:
    """The page."""
    machine = races()[0]["machine"]
    return f"""{NOTE}# Speed against the official code

`make bench peer=DIR` races the official repository that is checked out in DIR against this project, in one process, in turns
A B C C B A: the same weights (loaded through `load_official`), the same inputs; outputs, losses and samples are compared first, and
nothing is timed where they differ. The official step is its own network and loss with AdamW as PyTorch builds it and an average
tensor by tensor, as its script has them; ours is the module, the optimizer and the EMA of a run, rule `gated`. Raced here:
{sources()}. Beside this project's packages Latte, U-ViT and latent-diffusion need `einops`, and SiT `torchdiffeq`.

One thread of a CPU ({machine["cpu_capability"]}, torch {machine["torch"]}, {machine["date"]}), CPU time of the process, medians; the intervals are 95 % (bootstrap of the rounds).
**The machine was busy with other work all the time**: a difference within its interval says nothing.
No GPU has been measured: `benchmarks/gpu.sh` is for that.

## A training step

{steps()}
Where it goes:

{parts()}
What is gained is the optimizer's (fused AdamW) and the average's (one foreach operation): it counts where a network has many
parameters for its tokens (DiT-B/4), and little where matrix products are nearly all (DiT-S/2).

{sampling()}## Is it the same?

The largest difference over the standard deviation, of outputs, loss and samples; the race is refused above 1e-4 (samples 1e-3).

{differences()}
{beside()}"""


def write() -> None:
    """Write the page."""
    write_text(PAGES / "performance.md", performance())


if __name__ == "__main__":
    write()
