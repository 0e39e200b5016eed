"""`python -m neural_rdm.convert`: a trained network in the layouts of the official code and of diffusers, or to share.

python -m neural_rdm.convert run=outputs/train/dit_xl_gated/TIME to=diffusers
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from neural_rdm.cli.app import main, print_paths
from neural_rdm.core.errors import ConfigError
from neural_rdm.core.files import write_atomically, write_text
from neural_rdm.runs.load import inherit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from neural_rdm.runs.loaded import LoadedRun


def convert(cfg: DictConfig, folder: Path) -> int:
    """Write the exported network into `folder`, and beside it what weights do not tell; return the exit code 0.

    `scheduler_config.json` is the process as diffusers' schedulers load it, `export.json` the scale of the latents,
    the run's sampler and what else a person needs to draw the same samples.

    Raises:
        UserError: no usable run, or gates that the other layout cannot express.
    """
    from neural_rdm.diffusion.scheduler_config import scheduler_config
    from neural_rdm.runs import build
    from neural_rdm.runs.load import load_run
    from neural_rdm.runs.shared import push
    from neural_rdm.surgery.adapter import adapter_of
    from neural_rdm.surgery.export import constructor, to_diffusers, to_official

    run = load_run(Path(cfg.run), cfg.weights, "cpu")
    print(f"exporting {run.checkpoint} (step {run.step}, {run.weights} weights)", flush=True)
    if cfg.to == "hub":
        print("wrote:")
        print_paths(run.share(folder))
        if cfg.push is not None:
            print(f"uploaded: {push(folder, cfg.push)}")
        return 0
    if cfg.to == "gates":
        print("wrote:")
        print_paths([_gates(run, folder / "gates.safetensors")])
        return 0
    if cfg.to == "diffusers":
        network: Any = to_diffusers(run.net)  # diffusers does not declare its methods
        network.save_pretrained(folder)
        paths = [folder / "config.json", folder / "diffusion_pytorch_model.safetensors"]
        for name, state in adapter_of(run.net).beside().items():
            paths.append(folder / f"{name}.safetensors")
            _save(paths[-1], state)
    else:
        paths = [folder / "weights.safetensors", folder / "config.json"]
        _save(paths[0], to_official(run.net))
        write_text(paths[1], json.dumps(constructor(run.net), indent=2) + "\n")
    sampler = build.build(run.config.sampler, "sampler")
    scheduler = scheduler_config(run.process, sampler, run.net.learn_sigma)
    for name, facts in (("scheduler_config", scheduler), ("export", described(run, sampler, cfg.to))):
        paths.append(folder / f"{name}.json")
        write_text(paths[-1], json.dumps(facts, indent=2) + "\n")
    print("wrote:")
    print_paths(paths)
    return 0


def _gates(run: LoadedRun, path: Path) -> Path:
    """Write the gates alone.

    Raises:
        ConfigError: they do not belong to the weights that the run started from, or there are none.
    """
    from neural_rdm.surgery.gates import save_gates

    if run.config.train_only != "gates":
        raise ConfigError(
            f"to=gates writes gates that belong to frozen weights, and run={run.folder} has train_only="
            f"{run.config.train_only}; use to=diffusers or to=hub"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_gates(getattr(run.net, "net", run.net), path)
    return path


def _save(path: Path, state: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    content = save({name: tensor.contiguous() for name, tensor in state.items()})
    write_atomically(path, lambda file: file.write(content))


def described(run: LoadedRun, sampler: Any, to: str) -> dict[str, Any]:
    """What somebody needs beside weights and scheduler to draw the run's samples, for a JSON file.

    `latents` is null where the network works on pixels in [-1, 1]; otherwise `latents = (z - shift_factor) *
    scaling_factor` of the first stage's z, both under diffusers' names.
    """
    from neural_rdm.diffusion.process import Flow
    from neural_rdm.surgery.adapter import adapter_of

    stage, net = run.config.first_stage, run.net
    learned, flow = net.learn_sigma, isinstance(run.process, Flow)
    notes = []
    if learned:
        notes.append("the network's output has twice the channels: the prediction, then the learned variance")
    if flow:
        notes.append(
            "the network is told t = num_train_timesteps * sigma and predicts noise - data; for the run's own steps "
            "call set_timesteps(sigmas=[1 - i / steps for i in range(steps)]) of FlowMatchEulerDiscreteScheduler"
        )
    if to == "diffusers":
        notes += adapter_of(net).notes()
    if net.null_class is not None:
        notes.append(f"class {net.null_class} is no class: the unconditional half of guidance")
    latents = {
        "scaling_factor": stage.get("scale"),
        "shift_factor": stage.get("shift"),
        "first_stage": stage.get("path"),
        "subfolder": stage.get("subfolder"),
        "kind": stage._target_.rpartition(".")[2],
        "pixels_per_cell": stage.get("downsample"),
    }
    return run.facts(
        sampler,
        prediction=run.process.prediction,
        learned_variance=learned,
        latents=latents if "path" in stage else None,
        notes=notes,
    )


if __name__ == "__main__":
    main("convert", convert, inherit)
