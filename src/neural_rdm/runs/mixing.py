"""The depth-mixing matrix of a trained run whose rule keeps more than one stream, for the report."""

from __future__ import annotations

from pathlib import Path

from neural_rdm.core.errors import UserError, first_line
from neural_rdm.reports.mixing import Mixing

SHARE = 0.5  # of the way to pure noise


def mixing(folder: Path, samples: int = 16) -> Mixing | None:
    """The matrix on the first validation samples half way to pure noise, with their labels or texts and fixed noise, of
    the averaged weights where there are some.

    None where the rule's stream is one tensor (the matrix would only repeat its gates), where long skips mix channels,
    and, with a line that says so, where the weights or the data cannot be read.
    """
    import torch

    from neural_rdm.core import seeding
    from neural_rdm.diffusion.process import Flow
    from neural_rdm.dynamics.mixing import depth_mixing, has_mixing
    from neural_rdm.residual import units
    from neural_rdm.runs import build
    from neural_rdm.runs.load import load_run, read_config

    try:
        config = read_config(folder)
        if config.get("control") is not None or build.residual(config.residual).unit_class.single:
            return None
        averaged = (config.get("callbacks") or {}).get("ema") is not None
        run = load_run(folder, "ema" if averaged else "raw", accelerator="cpu")
        if not has_mixing(run.net):
            return None
        run.data.setup()
        module = build.module(run.config, run.data.space, begins=False, net=run.net).eval()
        batch = run.batches(samples, samples)[0]
        x, position = batch["x"], batch["position"]
        x = module.first_stage.encode(x, 0, position) if module.encode else x
        total = run.process.num_timesteps
        t = torch.full((len(x),), SHARE * total if isinstance(run.process, Flow) else round(SHARE * total))
        xt = run.process.q_sample(x, t, seeding.normal(0, "report mixing", position, x.shape[1:]))
        condition = module.condition(batch, drop=False)
        matrix = depth_mixing(run.net, lambda: run.net(xt, t, **condition))
    except UserError as error:
        print(f"no depth-mixing matrix of {folder}: {first_line(error)}", flush=True)
        return None
    return Mixing([name for name, _ in units(run.net)], matrix.tolist())
