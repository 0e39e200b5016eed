"""The primary configurations of the commands that work on a network at rest: `inspect`, `deepen` and `convert`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from neural_rdm.core.arguments import Accelerator, Count, Natural, Problem, Seed, matching

WEIGHTS = r"ema|raw|ema-[0-9][0-9.e-]*"
#: which weights of a checkpoint a command uses
Weights = Annotated[str, matching(WEIGHTS, "ema, raw, or ema-DECAY for one of callbacks.ema.further")]


@dataclass
class Inspect:
    """The primary configuration of `python -m neural_rdm.inspect`."""

    model: str
    #: the folder's name, which names the output folder; filled in, never typed
    name: str | None
    images: str | None
    latents: str | None
    prompts: list[str] | None
    classes: list[Natural] | None
    samples: Count
    batch_size: Count
    time_bins: Count
    times: list[float]
    dtype: Literal["float32", "bfloat16"]
    seed: Seed
    accelerator: Accelerator

    def check(self) -> Problem | None:
        """One kind of samples, and noise levels that are shares."""
        if (self.images is None) == (self.latents is None):
            return Problem("images", "look with what? Pass images=FOLDER (or .npz), or latents=FILE")
        if not all(0 <= share <= 1 for share in self.times):
            return Problem("times", f"{list(self.times)} must be shares of the timesteps in [0, 1], such as [0.1,0.5]")
        empty = [key for key in ("prompts", "classes") if getattr(self, key) == []]
        return Problem(empty[0], f"[]: give some, or leave {empty[0]} out") if empty else None


@dataclass
class Deepen:
    """The primary configuration of `python -m neural_rdm.deepen`."""

    checkpoint: str
    #: see OfRun
    experiment: str | None
    depth: Count
    placement: Literal["interleave", "append", "prepend", "middle"]
    operator: Literal["identity", "duplicate", "stack", "halved"]
    max_steps: Count | None


@dataclass
class Convert:
    """The primary configuration of `python -m neural_rdm.convert`."""

    run: str
    experiment: str | None
    to: Literal["official", "diffusers", "gates", "hub"]
    weights: Weights
    push: str | None

    def check(self) -> Problem | None:
        """Only what a model card goes with is uploaded."""
        if self.push is not None and self.to != "hub":
            return Problem("push", "uploads what to=hub writes; pass to=hub as well")
        return None
