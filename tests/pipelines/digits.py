"""The proof of fine-tuning, from nothing: an autoencoder and a base trained on some digits, then gates on others.

python -m tests.pipelines.digits sd3 FOLDER
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import torch

from neural_rdm.data.builtin.digits_text import PHRASINGS, caption
from tests.end_to_end import commands
from tests.pipelines import tiny

OLD, NEW = range(5), range(5, 10)
#: of every run
COMMON = (
    "data=coco", "data.image_size=8", "data.num_workers=0", "data.batch_size=32", "data.flip=false", "trainer=cpu",
    "trainer.num_threads=1", "logger=csv", "callbacks.ema.decay=0.99", "callbacks.samples.per_class=1",
    "sampler.cfg_scale=3", "sampler.steps=20", "condition.max_length=12", "log_every_n_steps=20",
    "exp=diffusers_finetune",
)  # fmt: skip


def tree(root: Path, digits: range) -> Path:
    """scikit-learn's digits of some classes in the layout of COCO, each with three captions."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    chosen = [i for i in range(len(found.target)) if found.target[i] in digits]
    for split, indices in (("train", [i for i in chosen if i % 5]), ("val", [i for i in chosen if i % 5 == 0])):
        (root / f"{split}2017").mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        images, said = [], []
        for i in indices:
            Image.fromarray((found.images[i] / 16 * 255).astype("uint8")).save(root / f"{split}2017" / f"{i:05}.png")
            images.append({"id": i, "file_name": f"{i:05}.png"})
            for k in range(3):
                text = caption(PHRASINGS[(i + k) % len(PHRASINGS)], int(found.target[i]))
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


def base(name: str, folder: Path, steps: int) -> Path:
    """A pipeline whose network knows the old digits alone."""
    size = {"width": 32, "depth": 3, "predicts": "epsilon"}
    random = tiny.saved(name, folder / "random", autoencoder=trained_vae(), **size)
    root = tree(folder / "old", OLD)
    command(
        "train", *COMMON, f"pipeline={random}", f"data.root={root}", "residual=resnet",
        "train_only=all", f"trainer.max_steps={steps}", "optimizer.lr=2e-3", "optimizer.warmup_steps=50",
        "callbacks.samples.every_n_steps=100000", f"callbacks.validation.every_n_steps={steps // 4}",
        "~callbacks.sensitivity", "hydra.run.dir=base", cwd=folder,
    )  # fmt: skip
    command("convert", "run=base", "to=diffusers", "hydra.run.dir=network", cwd=folder)
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(random, local_files_only=True)
    part = "unet" if name == "sd" else "transformer"
    known = type(getattr(pipe, part)).from_pretrained(folder / "network")
    pipe.register_modules(**{part: known})
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def finetuned(pipeline: Path, folder: Path, steps: int, *options: str) -> Path:
    """A run that trains the gates alone on the new digits."""
    root = tree(folder / "new", NEW)
    command(
        "train", *COMMON, f"pipeline={pipeline}", f"data.root={root}", f"trainer.max_steps={steps}",
        "optimizer.lr=1e-2", "callbacks.samples.every_n_steps=100000",
        f"callbacks.validation.every_n_steps={max(1, steps // 8)}", "callbacks.sensitivity.every_n_steps=50",
        *options, "hydra.run.dir=gates", cwd=folder,
    )  # fmt: skip
    command("convert", "run=gates", "to=gates", "hydra.run.dir=adapter", cwd=folder)
    return folder / "gates"


def losses_of_base(pipeline: Path, folder: Path) -> float:
    """The validation loss of the base itself on the new digits: that of a run that does not move."""
    command(
        "train", *COMMON, f"pipeline={pipeline}", f"data.root={folder / 'new'}", "trainer.max_steps=1",
        "optimizer.lr=1e-9", "callbacks.samples.every_n_steps=100000", "callbacks.validation.every_n_steps=1",
        "~callbacks.sensitivity", "hydra.run.dir=still", cwd=folder,
    )  # fmt: skip
    return losses(folder / "still")[-1]


def by_class(x: torch.Tensor) -> torch.Tensor:
    """The mean picture of each of five classes, from as many of each in a row."""
    return x.unflatten(0, (5, -1)).mean(dim=1)


def means(digits: range) -> torch.Tensor:
    """The mean picture [5, 1, 8, 8] of some real digits, in [-1, 1]."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.from_numpy(found.images).float() / 8 - 1
    return torch.stack([x[torch.from_numpy(found.target == d)].mean(dim=0)[None] for d in digits])


def drawn(pipeline: Path, part: str, gates: Path | None, said: list[str], scale: float = 1.0) -> torch.Tensor:
    """Samples [N, 3, 8, 8] of the stock pipeline, with an adapter in it or without."""
    import diffusers

    from neural_rdm import load_gates

    pipe = diffusers.DiffusionPipeline.from_pretrained(pipeline, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if gates is not None:
        load_gates(getattr(pipe, part), gates, scale)
    generator = torch.Generator().manual_seed(0)
    more = {"max_sequence_length": 12} if part == "transformer" else {}
    images = pipe(
        said,
        height=8,
        width=8,
        num_inference_steps=20,
        guidance_scale=3.0,
        generator=generator,
        output_type="pt",
        **more,
    ).images
    return 2 * images.float() - 1


def main(name: str, folder: Path) -> None:
    """Make everything, and a picture of the base beside the gated pipeline."""
    from neural_rdm.reports.grids import save_grid

    folder.mkdir(parents=True)
    pipeline = base(name, folder, 600)
    print("base", losses(folder / "base"))
    run = finetuned(pipeline, folder, 300)
    print("gates", losses(run))
    part = "unet" if name == "sd" else "transformer"
    said = [caption("a handwritten {word}", d) for d in NEW for _ in range(4)]
    before = drawn(pipeline, part, None, said)
    after = drawn(pipeline, part, folder / "adapter" / "gates.safetensors", said)
    old = drawn(pipeline, part, None, [caption("a handwritten {word}", d) for d in OLD for _ in range(4)])
    save_grid(torch.cat([old, before, after]), folder / "samples.png", columns=20, row_labels=["old", "base", "gates"])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
