"""The proof of fine-tuning, from nothing: an autoencoder and a base trained on some digits, then gates on others.

python -m tests.pipelines.digits sd3 FOLDER

It writes its row of benchmarks/results/finetune.json, and FOLDER/samples.png.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_rdm.data.builtin.digits_text import PHRASINGS, caption
from tests.end_to_end import commands
from tests.helpers import ROOT
from tests.pipelines import tiny

OLD, NEW = range(5), range(5, 10)
RESULTS = ROOT / "benchmarks" / "results" / "finetune.json"
#: of every run
COMMON = (
    "data.image_size=8", "data.num_workers=0", "data.batch_size=32", "data.flip=false", "trainer=cpu",
    "trainer.num_threads=1", "logger=csv", "callbacks.ema.decay=0.99", "callbacks.samples.per_class=1",
    "sampler.cfg_scale=3", "sampler.steps=20", "log_every_n_steps=20", "exp=diffusers_finetune",
)  # fmt: skip
CAPTIONED = ("data=coco", "condition.max_length=12")
#: a class keeps its number where its folder is empty
LABELLED = ("data=image_folder", "data.max_bad_fraction=1", "backbone.num_classes=10")


@dataclass(frozen=True)
class Proof:
    """What one kind of pipeline is trained with.

    Args:
        steps: of the base, and of the gates.
        data: the options that choose its data.
        gates: further options of the run that trains the gates.
        size: options of `tiny.pipeline`.
        calls: further arguments of the stock pipeline.
    """

    steps: tuple[int, int] = (600, 300)
    data: tuple[str, ...] = CAPTIONED
    gates: tuple[str, ...] = ()
    size: tuple[tuple[str, Any], ...] = (("width", 32), ("depth", 3))
    calls: tuple[tuple[str, Any], ...] = (("guidance_scale", 3.0), ("height", 8), ("width", 8))

    @property
    def is_labelled(self) -> bool:
        """Whether its pictures have classes, and not captions."""
        return self.data == LABELLED


SD3 = Proof(gates=("gamma=0.35",), calls=(*Proof.calls, ("max_sequence_length", 12)))
PROOFS = {
    "sd": Proof((160, 80), size=(*Proof.size, ("predicts", "epsilon"))),
    "pixart": Proof(calls=(*SD3.calls, ("use_resolution_binning", False))),
    "sd3": SD3,
    # its network is told no guidance scale: the pipeline guides with a second call
    "flux": Proof(
        calls=(*SD3.calls[1:], ("guidance_scale", 1.0), ("true_cfg_scale", 3.0), ("negative_prompt", [""] * 20))
    ),
    # the stock pipeline calls class 1000 none
    "dit": Proof(data=LABELLED, size=(*Proof.size, ("classes", 1000)), calls=(("guidance_scale", 3.0),)),
}


def tree(root: Path, digits: Sequence[int], is_labelled: bool) -> Path:
    """scikit-learn's digits of some classes: in folders of classes, or in COCO's layout, each with three captions."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    chosen = [i for i in range(len(found.target)) if found.target[i] in digits]
    for split, indices in (("train", [i for i in chosen if i % 5]), ("val", [i for i in chosen if i % 5 == 0])):
        folders = [root / split / str(d) for d in range(10)] if is_labelled else [root / f"{split}2017"] * 10
        for folder in {*folders, root / "annotations"}:
            folder.mkdir(parents=True, exist_ok=True)
        images, said = [], []
        for i in indices:
            digit = int(found.target[i])
            Image.fromarray((found.images[i] / 16 * 255).astype("uint8")).save(folders[digit] / f"{i:05}.png")
            images.append({"id": i, "file_name": f"{i:05}.png"})
            for k in range(3):
                text = caption(PHRASINGS[(i + k) % len(PHRASINGS)], digit)
                said.append({"image_id": i, "id": 10 * i + k, "caption": text})
        content = {"images": images, "annotations": said}
        (root / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def trained_vae(steps: int = 500) -> Any:
    """An autoencoder that knows all digits, its latents of unit deviation."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    net = tiny.vae(16, colours=3)
    x = (torch.from_numpy(load_digits().images).float() / 8 - 1)[:, None].expand(-1, 3, -1, -1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = x[torch.randint(len(x), (64,))]
        posterior = net.encode(batch).latent_dist
        loss = (net.decode(posterior.sample()).sample - batch).square().mean() + 1e-4 * posterior.kl().mean() / 64
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        net.register_to_config(scaling_factor=1 / net.encode(x[::4]).latent_dist.mean.std().item())
    print(f"autoencoder: loss {loss.item():.4f}")
    return net


def command(module: str, *args: str, cwd: Path) -> str:
    """Run a command, which must succeed."""
    code, output = commands.run(*args, cwd=cwd, module=module, timeout=1800)
    assert code == 0, output
    return output


def losses(run: Path) -> list[float]:
    """The validation losses of a run."""
    with (run / "metrics.csv").open() as file:
        return [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]


def base(name: str, folder: Path) -> Path:
    """A pipeline whose network knows the old digits alone."""
    proof = PROOFS[name]
    steps = proof.steps[0]
    random = tiny.saved(name, folder / "random", autoencoder=trained_vae(), **dict(proof.size))
    root = tree(folder / "old", OLD, proof.is_labelled)
    command(
        "train", *COMMON, *proof.data, f"pipeline={random}", f"data.root={root}", "residual=resnet",
        "train_only=all", f"trainer.max_steps={steps}", "optimizer.lr=2e-3", "optimizer.warmup_steps=50",
        "callbacks.samples.every_n_steps=100000", f"callbacks.validation.every_n_steps={steps // 4}",
        "~callbacks.sensitivity", "hydra.run.dir=base", cwd=folder,
    )  # fmt: skip
    command("convert", "run=base", "to=diffusers", "hydra.run.dir=network", cwd=folder)
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(random, local_files_only=True)
    known = type(getattr(pipe, part(name))).from_pretrained(folder / "network")
    pipe.register_modules(**{part(name): known})
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def part(name: str) -> str:
    """Where a pipeline holds its network."""
    return "unet" if name == "sd" else "transformer"


def finetuned(name: str, folder: Path) -> Path:
    """A run that trains the gates alone on the new digits; its adapter is `FOLDER/adapter/gates.safetensors`."""
    proof = PROOFS[name]
    steps, root = proof.steps[1], tree(folder / "new", NEW, proof.is_labelled)
    command(
        "train", *COMMON, *proof.data, f"pipeline={folder / 'pipeline'}", f"data.root={root}",
        f"trainer.max_steps={steps}", "optimizer.lr=1e-2", "callbacks.samples.every_n_steps=100000",
        f"callbacks.validation.every_n_steps={steps // 8}", "callbacks.sensitivity.every_n_steps=50",
        *proof.gates, "hydra.run.dir=gates", cwd=folder,
    )  # fmt: skip
    command("convert", "run=gates", "to=gates", "hydra.run.dir=adapter", cwd=folder)
    return folder / "gates"


def losses_of_base(name: str, folder: Path) -> float:
    """The validation loss of the base itself on the new digits: that of a run that does not move."""
    command(
        "train", *COMMON, *PROOFS[name].data, f"pipeline={folder / 'pipeline'}", f"data.root={folder / 'new'}",
        "trainer.max_steps=1", "optimizer.lr=1e-9", "callbacks.samples.every_n_steps=100000",
        "callbacks.validation.every_n_steps=1", "~callbacks.sensitivity", "hydra.run.dir=still", cwd=folder,
    )  # fmt: skip
    return losses(folder / "still")[-1]


def means(digits: Sequence[int]) -> Tensor:
    """The mean picture [N, 1, 8, 8] of some real digits, in [-1, 1]."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.from_numpy(found.images).float() / 8 - 1
    return torch.stack([x[torch.from_numpy(found.target == d)].mean(dim=0)[None] for d in digits])


def off(samples: Tensor, digits: Sequence[int]) -> float:
    """The mean squared distance of the mean sample of each digit from the mean real picture of it.

    Args:
        samples: [N, 3, 8, 8], as many of each digit in a row.
    """
    found = samples.unflatten(0, (len(digits), -1)).mean(dim=(1, 2))[:, None]
    return float((found - means(digits)).square().mean())


def drawn(name: str, pipeline: Path, gates: Path | None, digits: Sequence[int], scale: float = 1.0) -> Tensor:
    """Four samples of each digit [N, 3, 8, 8] of the stock pipeline, with an adapter in it or without."""
    import diffusers

    from neural_rdm import load_gates

    pipe = diffusers.DiffusionPipeline.from_pretrained(pipeline, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if gates is not None:
        load_gates(getattr(pipe, part(name)), gates, scale)
    asked = [d for d in digits for _ in range(4)]
    said: Any = asked if PROOFS[name].is_labelled else [caption("a handwritten {word}", d) for d in asked]
    generator = torch.Generator().manual_seed(0)
    calls = dict(PROOFS[name].calls)
    found = pipe(said, num_inference_steps=20, generator=generator, output_type="np", **calls).images
    return 2 * torch.as_tensor(found).movedim(-1, 1).float() - 1


def main(name: str, folder: Path) -> None:
    """Make everything, a row of the results, and a picture of the base beside the gated pipeline."""
    from neural_rdm.reports.grids import save_grid

    folder.mkdir(parents=True)
    pipeline = base(name, folder)
    run, file = finetuned(name, folder), folder / "adapter" / "gates.safetensors"
    old, before = drawn(name, pipeline, None, OLD), drawn(name, pipeline, None, NEW)
    after = drawn(name, pipeline, file, NEW)
    known = json.loads((pipeline / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    row = {
        "pipeline": known,
        "steps": list(PROOFS[name].steps),
        "options": list(PROOFS[name].gates),
        "old": losses(folder / "base")[-1],
        "untouched": losses_of_base(name, folder),
        "gated": losses(run),
        "bytes": file.stat().st_size,
        "off": {"old": off(old, OLD), "untouched": off(before, NEW), "gated": off(after, NEW)},
    }
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    rows = {key: {**rows, name: row}[key] for key in PROOFS if key in {*rows, name}}
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(row))
    save_grid(torch.cat([old, before, after]), folder / "samples.png", columns=20, row_labels=["old", "base", "gates"])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
