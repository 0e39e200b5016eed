"""A class-conditional DiT of a run as a stock pipeline of diffusers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from neural_rdm.core.errors import ConfigError
from neural_rdm.diffusion.process import Flow
from neural_rdm.diffusion.scheduler_config import scheduler_config
from neural_rdm.pipelines.network import PipelineNet
from neural_rdm.runs import build
from neural_rdm.surgery.export import to_diffusers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from neural_rdm.runs.loaded import LoadedRun

#: the label that diffusers' DiTPipeline takes for "no class", whatever the network
NULL = 1000


def pipeline(run: LoadedRun) -> DiffusionPipeline:
    """diffusers' DiTPipeline with the run's network (gates folded), scheduler and autoencoder; of a run that fine-tuned
    a pipeline, that pipeline with the gated network in it (`merge_gates(pipe.transformer)` folds it there).

        pipe = load_run("last").pipeline()
        image = pipe([3], guidance_scale=4.0).images[0]
        pipe.save_pretrained("folder")

        import neural_rdm.surgery.diffusers_dit  # before it is read: diffusers imports no module that a folder names
        pipe = DiTPipeline.from_pretrained("folder")

    (Its own DiTTransformer2DModel has other timestep frequencies than the official code, see `surgery.dit`.)

    The scheduler takes the steps of the run's sampler, deterministic ones where that draws the learned variance, which
    the pipeline drops.

    Raises:
        ConfigError: a network that the pipeline cannot run, saying why.
    """
    import diffusers

    if isinstance(run.net, PipelineNet):
        return run.net.in_pipeline()
    stage = build.build(run.config.first_stage, "first_stage")
    reasons = (
        (
            not hasattr(stage, "kind") or stage.kind != "AutoencoderKL",
            "it decodes with an AutoencoderKL, first_stage=kl_f8",
        ),
        (
            isinstance(run.process, Flow),
            "it steps from noise to data with the schedulers of DDPM, and this run's is a flow",
        ),
        (run.net.num_classes > NULL, f"its null class is {NULL}, and this network has {run.net.num_classes} classes"),
        (bool(getattr(stage, "shift", 0.0)), "it knows no shift of the latents"),
    )
    for holds, reason in reasons:
        if holds:
            raise ConfigError(f"run={run.folder} cannot be a DiTPipeline of diffusers: {reason}")
    transformer = null_at(to_diffusers(run.net), NULL)
    config = run.config.copy()
    if config.sampler.name == "ddpm" and run.net.learn_sigma:
        config.sampler.name = "ddim"
    scheduler = scheduler_config(run.process, build.build(config.sampler, "sampler"))
    vae = stage.network(run.device)
    vae.register_to_config(scaling_factor=1.0 if stage.scale is None else stage.scale)
    kind: Any = getattr(diffusers, scheduler["_class_name"])
    pipe: Any = diffusers.DiTPipeline(transformer.to(run.device), vae, kind.from_config(scheduler))
    return pipe


def null_at(transformer: Any, null: int) -> Any:
    """The same network with its null class, the last row of its tables of classes, moved to row `null`.

    Rows in between are copies of it, so that a label that is no class draws what no class draws.
    """
    for block in transformer.transformer_blocks:
        embedder = block.norm1.emb.class_embedder
        old = embedder.embedding_table.weight.detach()
        table = nn.Embedding(null + 1, old.shape[1], device=old.device, dtype=old.dtype)
        with torch.no_grad():
            table.weight[: len(old)] = old
            table.weight[len(old) :] = old[-1]
        embedder.embedding_table, embedder.num_classes = table, null
    transformer.register_to_config(num_embeds_ada_norm=null)
    return transformer
