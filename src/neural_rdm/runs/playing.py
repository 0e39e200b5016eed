"""A run to play with: drawn as asked, with all of its units or stopped after any, and its sensitivity."""

from __future__ import annotations

import base64
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import ConfigError, UserError
from neural_rdm.dynamics.lens import left_out
from neural_rdm.reports.grids import save_grid
from neural_rdm.residual import units
from neural_rdm.runs.load import load_run
from neural_rdm.runs.loaded import LoadedRun

#: the most that one drawing may take
STEPS, GUIDANCE, LETTERS = 1000, 30.0, 2000
TILE = 128  # pixels that a small sample is enlarged to


class Play:
    """A run under one or two sets of weights, each loaded when it is first asked for.

    Args:
        run: loaded already.
        count: samples of one drawing.
        sampler: keys of its sampler that are to be others, whatever is asked for.
    """

    def __init__(self, run: LoadedRun, count: int, sampler: Mapping[str, Any] | None = None) -> None:
        self.run, self.count, self._sampler = run, count, dict(sampler or {})
        self._loaded = {run.weights: run}
        self.units = [name for name, _ in units(run.net)]
        self.weights = list(dict.fromkeys([run.weights, "raw"]))

    def classes(self) -> list[str]:
        """The names of the classes that can be drawn; empty where the network takes none."""
        names, count = self.run.data.class_names or [], max(0, self.run.net.num_classes)
        shown = [names[i] if i < len(names) else str(i) for i in range(count)]
        return [] if self.run.text is not None else shown

    def prompt(self) -> str:
        """A prompt to begin with, the first of the data set's own; empty where there is none at hand."""
        try:
            return next(iter(self.run.data.prompts(1) or []), "") if self.run.text is not None else ""
        except UserError:
            return ""

    def draw(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Samples as `image`, the address of a PNG or GIF that is its content, in `seconds`; `units` of them ran.

        Args:
            asked: `class` (its number) or `prompt`, and `guidance`, `steps`, `seed`, `weights`, `units`.

        Raises:
            ConfigError: a value that is none, naming it.
        """
        seed, steps = _whole(asked, "seed", 0, 2**63 - 1), _whole(asked, "steps", 1, STEPS)
        kept, guidance = _whole(asked, "units", 0, len(self.units)), asked.get("guidance")
        if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not 0 <= guidance <= GUIDANCE:
            raise ConfigError(f"guidance: give a number from 0 to {GUIDANCE:g}")
        if asked.get("weights") not in self.weights:
            raise ConfigError(f"weights: choose {' or '.join(self.weights)}")
        shown: dict[str, Any] = {}
        if self.run.text is not None:
            prompt = asked.get("prompt")
            if not isinstance(prompt, str) or len(prompt) > LETTERS:
                raise ConfigError(f"prompt: give a text of at most {LETTERS} letters")
            shown["prompts"] = [prompt]
        elif names := self.classes():
            shown["classes"] = [_whole(asked, "class", 0, len(names) - 1)]
        if not math.isclose(guidance, 1) and not shown:
            raise ConfigError("guidance: this network is told nothing to be guided by; give 1")
        began, run = time.perf_counter(), self._of(str(asked["weights"]))
        with left_out(run.net, range(kept, len(self.units))):
            x = run.sample(
                self.count, seed=seed, **shown, **{**self._sampler, "steps": steps, "cfg_scale": float(guidance)}
            )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ("drawn.gif" if x.ndim == 5 else "drawn.png")
            save_grid(x, path, columns=self.count, scale=max(1, TILE // min(x.shape[-2:])))
            content = base64.b64encode(path.read_bytes()).decode("ascii")
        kind = path.suffix.removeprefix(".")
        seconds = round(time.perf_counter() - began, 2)
        return {"image": f"data:image/{kind};base64,{content}", "seconds": seconds, "units": kept}

    def sensitivity(self, weights: str, samples: int) -> Sequence[tuple[str, float | None]]:
        """(name, ||s_i|| over the largest of the stack) of every unit, under these weights.

        Raises:
            UserError: the data are not on this machine, or there are no such weights.
        """
        if weights not in self.weights:
            raise ConfigError(f"weights: choose {' or '.join(self.weights)}")
        return [(unit.name, unit.normalized) for unit in self._of(weights).sensitivity(samples)]

    def _of(self, weights: str) -> LoadedRun:
        if weights not in self._loaded:
            where = {key: self.run.config.data.get(key) for key in ("root", "latents")}
            self._loaded[weights] = load_run(
                self.run.folder, weights, self.run.device.type.replace("cuda", "gpu"), where
            )
        return self._loaded[weights]


def _whole(asked: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = asked.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{key}: give a whole number from {low} to {high}")
    return value
