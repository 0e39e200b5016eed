"""What the rows of each study say: a section of the page, an answer in a sentence, and a verdict for the claims' table.

Words that could turn out otherwise are chosen by the numbers; nothing inside the noise is ranked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.studies.answers.answer import Answer
from benchmarks.studies.answers.depth import fig5, fig7
from benchmarks.studies.answers.gates import gates
from benchmarks.studies.answers.rivals import rivals
from benchmarks.studies.answers.variants import fig6, fig6_elsewhere, objectives, supervision

#: in the order of the page; each is None while fewer than two seeds are there
ANSWERS: tuple[Callable[[Path], Answer | None], ...] = (
    fig6,
    lambda pictures: fig6_elsewhere(pictures, "fig6_unet", "the U-Net"),
    lambda pictures: fig6_elsewhere(pictures, "fig6_video", "clips"),
    fig7,
    fig5,
    gates,
    supervision,
    rivals,
    objectives,
)

__all__ = ["ANSWERS", "Answer"]
