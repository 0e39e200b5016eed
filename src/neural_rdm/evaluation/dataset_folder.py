"""Samples as a folder that the library `datasets` loads as it is: files, `metadata.jsonl` and a data card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neural_rdm.core.files import write_text
from neural_rdm.evaluation.sample_parts import CARD, Parts, file_name, write_each
from neural_rdm.reports.tables import markdown_table


def write_dataset(
    folder: Path,
    parts: Parts,
    shown: Sequence[int | str] | None,
    names: Sequence[str] | None,
    facts: Mapping[str, Any],
    fps: int,
) -> Path:
    """Write samples so that `datasets.load_dataset(FOLDER)` has them: images as PNG, clips as MP4, beside them
    `metadata.jsonl` with `position`, `seed` and, where the network was told something, `label` and `class`, or
    `prompt`; last `README.md`, the data card.

    Args:
        shown: the class or text of each sample.
        names: of the classes, where they have any.
        facts: how they were drawn, as `sampling.json` has it.
        fps: frames a second of clips.

    Raises:
        ConfigError: latents, which are no pictures, or clips without PyAV.
    """
    kind = "mp4" if next(iter(parts)).ndim == 5 else "png"
    write_each(folder, parts, kind, fps)
    lines = []
    for position in range(parts.count):
        row: dict[str, Any] = {"file_name": file_name(position, kind), "position": position, "seed": facts["seed"]}
        if shown is not None:
            row |= _told(shown[position], names)
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(folder / "metadata.jsonl", "".join(lines))
    write_text(folder / CARD, card(parts.count, kind, facts))
    return folder


def _told(value: int | str, names: Sequence[str] | None) -> dict[str, Any]:
    if isinstance(value, str):
        return {"prompt": value}
    return {"label": value, "class": names[value] if names and value < len(names) else str(value)}


def card(count: int, kind: str, facts: Mapping[str, Any]) -> str:
    """The data card: what these samples are, how they were drawn, how to load them."""
    what = "clips" if kind == "mp4" else "images"
    head = {
        "tags": ["synthetic", "diffusion", "neural-rdm"],
        "configs": [{"config_name": "default", "data_files": [
            {"split": "train", "path": [f"*.{kind}", "metadata.jsonl"]}
        ]}],
    }  # fmt: skip
    rows = [{"": key, "value": json.dumps(value, ensure_ascii=False)} for key, value in facts.items()]
    load = ["```python", "from datasets import load_dataset", "", 'load_dataset("FOLDER", split="train")', "```"]
    lines = [
        "---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", "",
        f"# {count:,} {what} drawn by a diffusion model", "",
        "None of them is real: they were drawn by a network that neural-rdm trained (Neural Residual Diffusion Models, "
        "arXiv 2406.13215). Sample i depends on the seed and on i (`position`) alone.", "",
        *load, "", "## How they were drawn", "", markdown_table(rows),
    ]  # fmt: skip
    return "\n".join(lines)
