"""`python -m neural_rdm.convert`: a trained network in the layouts of the official code and of diffusers.

python -m neural_rdm.convert run=outputs/train/dit_xl_gated/TIME to=diffusers
"""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig

from neural_rdm.cli.app import main, print_paths
from neural_rdm.cli.runs import inherit
from neural_rdm.core.files import write_atomically, write_text


def convert(cfg: DictConfig, folder: Path) -> int:
    """Write the exported network into `folder`; return the exit code 0.

    Raises:
        UserError: no usable run, or gates that the other layout cannot express.
    """
    from safetensors.torch import save

    from neural_rdm.cli.runs import load_run
    from neural_rdm.surgery.export import constructor, to_diffusers, to_official

    run = load_run(Path(cfg.run), cfg.weights, "cpu")
    print(f"exporting {run.checkpoint} (step {run.step}, {run.weights} weights)", flush=True)
    if cfg.to == "diffusers":
        to_diffusers(run.net).save_pretrained(folder)
        paths = [folder / "config.json", folder / "diffusion_pytorch_model.safetensors"]
        if hasattr(run.net, "class_embedder"):
            # LDM's class embedder: rows [classes, context_dim], one of them is the context that the network reads
            table = save({"embedding.weight": run.net.class_embedder.embedding.weight.contiguous()})
            paths.append(folder / "class_embedder.safetensors")
            write_atomically(paths[-1], lambda file: file.write(table))
    else:
        content = save({name: tensor.contiguous() for name, tensor in to_official(run.net).items()})
        paths = [folder / "weights.safetensors", folder / "config.json"]
        write_atomically(paths[0], lambda file: file.write(content))
        write_text(paths[1], json.dumps(constructor(run.net), indent=2) + "\n")
    print("wrote:")
    print_paths(paths)
    return 0


if __name__ == "__main__":
    main("convert", convert, inherit)
