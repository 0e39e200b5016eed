"""Pipelines of diffusers as networks of ours: called as the stock pipeline calls its own, texts encoded as it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_rdm import fold, load_gates, save_gates
from neural_rdm.config.check import validate
from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import ConfigError
from neural_rdm.residual import gate_names, units

diffusers = pytest.importorskip("diffusers", reason="pipelines need diffusers")
pytest.importorskip("transformers", reason="pipelines need transformers")

from neural_rdm.pipelines.folder import completed, read_folder, settings, stage_of  # noqa: E402
from neural_rdm.pipelines.network import PipelineNet  # noqa: E402
from neural_rdm.pipelines.parts import first_stage, objective  # noqa: E402
from neural_rdm.pipelines.prompts import PipelineText  # noqa: E402
from neural_rdm.training.optim import freeze  # noqa: E402
from tests.pipelines.tiny import NAMES, pipeline, saved  # noqa: E402

SAID = ["a handwritten seven", "the digit 7"]


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(request.param, tmp_path_factory.mktemp("pipelines") / request.param)


def stock(folder: Path) -> tuple[Any, Any]:
    """The pipeline of diffusers, and its network."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe, pipe.transformer if hasattr(pipe, "transformer") else pipe.unet


def drawn(pipe: Any, name: str, said: list[str], **more: Any) -> Tensor:
    """Latents that a stock pipeline draws in two steps, without guidance."""
    prompt: Any = [3, 7] if name == "dit" else said
    if name != "dit":
        more |= {"height": 8, "width": 8}
    if name in ("sd3", "flux", "pixart"):
        more["max_sequence_length"] = 12
    if name == "pixart":
        more |= {"use_resolution_binning": False, "negative_prompt": None}
    generator = torch.Generator().manual_seed(0)
    # DiTPipeline decodes whatever it is asked for
    kind = "np" if name == "dit" else "latent"
    found = pipe(prompt, num_inference_steps=2, guidance_scale=1.0, output_type=kind, generator=generator, **more)
    return torch.as_tensor(found.images)


def first_call(folder: Path, said: list[str]) -> tuple[dict[str, Any], Tensor]:
    """What the stock pipeline hands to its network first, and what that returns, without guidance."""
    pipe, net = stock(folder)
    seen: list[tuple[dict[str, Any], Tensor]] = []

    def note(_: Any, args: tuple[Tensor, ...], given: dict[str, Any], out: Any) -> None:
        names = ("sample" if folder.name == "sd" else "hidden_states", "timestep")
        seen.append(
            ({**dict(zip(names, args, strict=False)), **given}, out[0] if isinstance(out, tuple) else out.sample)
        )

    net.register_forward_hook(note, with_kwargs=True)
    drawn(pipe, folder.name, said)
    return seen[0]


def test_it_computes_what_the_stock_pipeline_computes(folder: Path) -> None:
    """The network is told the same texts, times and places as by diffusers' own pipeline, and answers the same."""
    given, want = first_call(folder, SAID)
    net = PipelineNet(str(folder), input_size=4, guidance=1.0).eval()
    name = folder.name
    x = given["sample" if name == "sd" else "hidden_states"]
    t = torch.as_tensor(given["timestep"]).reshape(-1).expand(len(x))
    condition: dict[str, Tensor] = {}
    if name == "dit":
        condition = {"y": torch.tensor([3, 7])}
        x, t, want = x[:2], t[:2], want[:2]
    else:
        source = read_folder(folder, "pipeline")
        text = PipelineText(str(folder), max(source.widths), 12)
        context, mask = text.encode(SAID)
        assert context.shape[1] == text.rows
        condition = {"context": context, "context_mask": mask}
    if name == "flux":  # two by two cells are one token there
        x, want = (v.view(2, 2, 2, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 4, 4, 4) for v in (x, want))
        t = 1000 * t
    with torch.no_grad():
        found = net(x, t, **condition)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert found.shape[1] == (8 if net.learn_sigma else 4)


def test_a_folder_becomes_keys_of_a_configuration(folder: Path) -> None:
    """Process, first stage, texts and sizes; what is typed wins."""
    found, exp = settings(read_folder(folder, "pipeline")), "exp=diffusers_finetune"
    flow = folder.name in ("sd3", "flux")
    assert (found["diffusion"], found["sampler"]) == (("flow", "euler") if flow else ("ddpm", "ddim"))
    assert found.get("diffusion.process.prediction") == (None if flow else "v" if folder.name == "sd" else "epsilon")
    assert found.get("diffusion.logit_mean") == {"sd3": 1.098612, "flux": 0.0}.get(folder.name)
    assert (found["first_stage.downsample"], found["first_stage.scale"]) == (2, 0.5)
    assert (found["condition"] is None) == (folder.name == "dit")
    given = completed([exp, f"pipeline={folder}", "data=image_folder", "data.image_size=16", "sampler=dpm"])
    assert "++backbone.input_size=8" in given
    assert not any(o.startswith("sampler=") for o in given[:-1])
    assert completed(["pipeline=null"]) == ["pipeline=null"]
    data = "image_folder" if folder.name == "dit" else "digits_text"
    composed = compose_config("train", completed([exp, f"pipeline={folder}", f"data={data}"]), [])
    validate(composed.cfg, "train", composed.sources)
    assert (composed.cfg.condition is None) == (folder.name == "dit")
    if folder.name == "dit":
        with pytest.raises(ConfigError, match="data=coco has no classes, which a DiTPipeline is told"):
            completed([exp, f"pipeline={folder}"])
    process = objective(read_folder(folder, "pipeline")).process
    assert process.prediction == found.get("diffusion.process.prediction", "velocity")
    assert first_stage(read_folder(folder, "pipeline")).downsample == 2


def test_gates_and_norms_train_beside_frozen_weights(folder: Path) -> None:
    """Of the frozen network nothing but the norms' own scale and shift is let go."""
    net = PipelineNet(str(folder), "rezero", input_size=4)
    gates = gate_names(net)
    freeze(net, "gates+norms")
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert gates < trained
    rest = trained - gates
    assert rest
    assert all("norm" in n or "scale_shift_table" in n or "adaln" in n for n in rest)
    assert not any(n.endswith(("to_q.weight", "linear.weight", "proj.weight")) for n in rest)
    with torch.no_grad():
        for _, unit in units(net):
            unit.alpha.fill_(0.7)
    plain = fold(net)
    assert type(plain).__name__ == read_folder(folder, "pipeline").family.network


def test_gates_trained_alone_change_what_the_stock_pipeline_draws(folder: Path, tmp_path: Path) -> None:
    """Loss down, base as it was, and back to it at scale 0."""
    torch.manual_seed(0)
    net, file = PipelineNet(str(folder), input_size=4), tmp_path / "gates.safetensors"
    freeze(net, "gates")
    base = {name: p.clone() for name, p in net.named_parameters() if not p.requires_grad}
    x, t, target = torch.randn(2, 4, 4, 4), torch.tensor([30.0, 700.0]), torch.randn(2, 4, 4, 4)
    text = torch.randn(2, 12, net.context_dim or 1)
    asked = (
        {"y": torch.tensor([3, 7])} if folder.name == "dit" else {"context": text, "context_mask": text[..., 0] > -9}
    )
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(15):
        loss = (net(x, t, **asked)[:, :4] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]
    assert all(torch.equal(dict(net.named_parameters())[name], p) for name, p in base.items())
    save_gates(net.net, file)
    pipe, network = stock(folder)
    before = drawn(pipe, folder.name, SAID)
    load_gates(network, file, scale=0.0)
    assert torch.equal(drawn(pipe, folder.name, SAID), before)
    load_gates(network, file)
    assert not torch.allclose(drawn(pipe, folder.name, SAID), before, atol=1e-3)


def test_what_is_not_known_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such folder .*hf download"):
        read_folder(tmp_path / "nothing", "pipeline")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel"}))
    with pytest.raises(ConfigError, match=r"holds a WanTransformer3DModel; how such a network is called is known here"):
        read_folder(tmp_path, "model")
    folder = saved("sd", tmp_path / "sd")
    file = folder / "scheduler" / "scheduler_config.json"
    changed(file, rescale_betas_zero_snr=True)
    with pytest.raises(ConfigError, match=r"its scheduler has rescale_betas_zero_snr=true"):
        settings(read_folder(folder, "pipeline"))
    with pytest.raises(ConfigError, match="holds a network alone"):
        settings(read_folder(folder / "unet", "pipeline"))
    changed(file, rescale_betas_zero_snr=False)
    with pytest.raises(ConfigError, match=r"^pipeline=.* goes with exp=diffusers_finetune$"):
        completed([f"pipeline={folder}"])
    with pytest.raises(ConfigError, match=r"data\.image_size=9 is no multiple of 2"):
        completed(["exp=diffusers_finetune", f"pipeline={folder}", "data.image_size=9"])
    file.unlink()
    with pytest.raises(ConfigError, match=r"scheduler_config\.json cannot be read"):
        settings(read_folder(folder, "pipeline"))
    changed(folder / "model_index.json", scheduler=[None, None])
    with pytest.raises(ConfigError, match="it has no scheduler, which says what its network predicts"):
        settings(read_folder(folder, "pipeline"))
    changed(folder / "vae" / "config.json", latent_channels=None)
    with pytest.raises(ConfigError, match="does not say latent_channels: it is no whole configuration"):
        stage_of(read_folder(folder, "pipeline"))
    changed(folder / "unet" / "config.json", addition_embed_type="text_time")
    with pytest.raises(ConfigError, match=r"is told more than .*addition_embed_type=text_time"):
        read_folder(folder, "pipeline")
    changed(folder / "unet" / "config.json", cross_attention_dim=None)
    with pytest.raises(ConfigError, match="does not say cross_attention_dim"):
        read_folder(folder, "pipeline")


@pytest.mark.parametrize("library", ["evil", "diffusers"])
def test_a_program_among_the_parts_is_not_run(tmp_path: Path, library: str) -> None:
    folder = saved("sd", tmp_path / "sd")
    (folder / "scheduler" / f"{library}.py").write_text(
        f"open({str(tmp_path / 'done')!r}, 'w')\nclass DDIMScheduler: 0\n"
    )
    for said in ("its scheduler is of evil", f"it holds scheduler.{library}.py"):
        changed(folder / "model_index.json", scheduler=["evil" if "is of" in said else "diffusers", "DDIMScheduler"])
        with pytest.raises(ConfigError, match=f"{said}.*, which would be run"):
            read_folder(folder, "pipeline")
    assert not (tmp_path / "done").exists()


def changed(file: Path, **keys: Any) -> None:
    """Give a file of a pipeline other values."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def test_a_frozen_base_in_bfloat16_has_gates_in_float32(tmp_path: Path) -> None:
    folder = tmp_path / "flux"
    pipeline("flux").save_pretrained(folder)
    net = PipelineNet(str(folder), input_size=4, dtype="bfloat16")
    assert {p.dtype for n, p in net.named_parameters() if n in gate_names(net)} == {torch.float32}
    freeze(net, "gates")
    x, text = torch.randn(2, 4, 4, 4), torch.randn(2, 7, 32)
    net(x, torch.tensor([3.0, 500.0]), context=text, context_mask=torch.ones(2, 7).bool()).float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters() if p.requires_grad)
