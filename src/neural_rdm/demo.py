"""`python -m neural_rdm.demo`: a page to play with a trained run, for the browsers of this machine.

python -m neural_rdm.demo run=last
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from neural_rdm.cli.app import main
from neural_rdm.cli.serving import HERE, server
from neural_rdm.core.signals import Stopped
from neural_rdm.runs.load import inherit

if TYPE_CHECKING:
    from neural_rdm.runs.playing import Play


def demo(cfg: DictConfig, folder: Path) -> int:
    """Serve the page until Ctrl-C; nothing is written. Returns the exit code 0.

    Raises:
        UserError: no usable run, a sampler that does not fit it, or a port that is taken.
    """
    from neural_rdm.backbones.contract import has_units
    from neural_rdm.runs.load import load_run
    from neural_rdm.runs.playing import Play

    run = load_run(Path(cfg.run), cfg.weights, cfg.accelerator, cfg.get("data"))
    has_units(run.net, "stopped after each of its units (demo)")
    own = {key: value for key, value in cfg.sampler.items() if key not in ("_target_", "steps", "cfg_scale")}
    play = Play(run, cfg.count, {k: list(v) if k == "interval" and v is not None else v for k, v in own.items()})

    def sensitivity(asked: dict[str, Any]) -> dict[str, Any]:
        return {"html": chart(play, str(asked.get("weights")), cfg.samples)}

    with server(cfg.port, page(play, cfg), {"draw": play.draw, "sensitivity": sensitivity}) as serving:
        print(f"{run.checkpoint} (step {run.step}) is at http://{HERE}:{serving.server_address[1]}", flush=True)
        print("for browsers of this machine alone; Ctrl-C ends it", flush=True)
        try:
            serving.serve_forever(poll_interval=0.2)
        except Stopped:
            print("\nended", flush=True)
    return 0


def page(play: Play, cfg: DictConfig) -> str:
    """The page of a run."""
    from neural_rdm.reports.pages.render import filled
    from neural_rdm.reports.pages.run import title_of
    from neural_rdm.reports.runs import read_mapping
    from neural_rdm.runs.playing import GUIDANCE, LETTERS, STEPS

    run = play.run
    return filled(
        "demo.html",
        scripts=("script.js", "demo.js"),
        title=title_of(read_mapping(run.folder / "config.yaml"), run.folder),
        step=run.step,
        folder=str(run.folder),
        classes=play.classes(),
        reads=run.text is not None,
        prompt=play.prompt(),
        units=play.units,
        weights=play.weights,
        count=play.count,
        steps=cfg.sampler.steps,
        guidance=cfg.sampler.cfg_scale,
        seed=cfg.seed,
        most={"steps": STEPS, "guidance": GUIDANCE, "letters": LETTERS},
    )


def chart(play: Play, weights: str, samples: int) -> str:
    """The sensitivity of the network over depth, as a piece of the page."""
    from neural_rdm.reports.pages.charts import draw
    from neural_rdm.reports.pages.render import environment

    values = [value for _, value in play.sensitivity(weights, samples)]
    found = [(unit, math.nan if value is None else value) for unit, value in enumerate(values)]
    title = f"Sensitivity over depth, {weights} weights (largest of the stack = 1)"
    drawn = draw(title, "residual unit", {f"mean over {samples} samples": found})
    if drawn is None:
        return "The gradients of this network are not finite."
    macros: Any = environment().get_template("macros.html").module
    return str(macros.chart(drawn))


if __name__ == "__main__":
    main("demo", demo, partial(inherit, groups=("sampler",)))
