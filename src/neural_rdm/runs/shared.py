"""A run as a folder to hand on: its configuration, one file of weights with the gates in it, and a model card.

`load_run(FOLDER)` and every command that takes `run=FOLDER` read it as they read the run itself, and `hub:OWNER/NAME`
stands for one on the Hugging Face hub.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from neural_rdm.config.check import as_plain, leaves
from neural_rdm.config.provenance import CONFIG, KEY, config_hash
from neural_rdm.config.trust import escaped
from neural_rdm.core.errors import CheckpointError, ConfigError, UserError, first_line
from neural_rdm.core.files import write_atomically, write_text
from neural_rdm.core.given import regular
from neural_rdm.core.hub import from_hub
from neural_rdm.reports.runs import read_report, rule_of
from neural_rdm.reports.tables import markdown_table

if TYPE_CHECKING:
    from torch import Tensor

    from neural_rdm.runs.loaded import LoadedRun

WEIGHTS = "model.safetensors"
CARD = "README.md"
#: what stands in front of a run's name on the hub
HUB = "hub:"


def located(run: str) -> Path:
    """The folder of `hub:OWNER/NAME`, downloaded where it is not in the hub's cache; any other name as a path.

    Raises:
        ConfigError: nothing of this name can be had.
    """
    if not run.startswith(HUB):
        return Path(run)
    from huggingface_hub import snapshot_download

    name = run.removeprefix(HUB)
    try:
        found = from_hub(name, lambda local: snapshot_download(name, local_files_only=local))
    except Exception as error:  # the hub's library has a class of its own for each reason
        raise ConfigError(f"run={run}: {first_line(error)}") from error
    return Path(found)


def share(run: LoadedRun, folder: Path) -> list[Path]:
    """Write a loaded run into `folder`, without what is this machine's own; returns the paths.

    Absolute paths of the configuration (where data and pretrained weights lay) lose their folders, and provenance,
    optimizer and the other averages stay behind.
    """
    from safetensors.torch import save

    from neural_rdm.core.weights import digest_of

    config = without_places(run.config)
    state = {name: tensor.contiguous() for name, tensor in run.net.state_dict().items()}
    facts = {KEY: config_hash(config), "global_step": str(run.step), "weights": run.weights, "sha256": digest_of(state)}
    content = save(state, facts)
    write_atomically(folder / WEIGHTS, lambda file: file.write(content))
    write_text(folder / CONFIG, OmegaConf.to_yaml(config))
    paths = [folder / WEIGHTS, folder / CONFIG]
    picture = run.folder / "samples" / "final.png"
    shown = picture.is_file() and picture.resolve().is_relative_to(run.folder.resolve())  # no link to a private file
    if shown:
        write_atomically(folder / "samples.png", lambda file: file.write(picture.read_bytes()))
        paths.append(folder / "samples.png")
    write_text(folder / CARD, card(run, shown))
    return [*paths, folder / CARD]


def read_shared(folder: Path, config: DictConfig, weights: str) -> tuple[dict[str, Tensor], int] | None:
    """Weights and optimizer steps of a folder that `share` wrote; None for any other.

    Args:
        weights: which ones are asked for.

    Raises:
        CheckpointError: it is damaged, belongs to another configuration, or holds other weights.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    from neural_rdm.core.weights import digest_of

    try:
        with safe_open(regular(path), framework="pt") as file:
            facts = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    if facts.get(KEY) != config_hash(config):
        raise CheckpointError(f"{path} does not belong to {folder / CONFIG}: restore both as they were written")
    if facts.get("sha256") != digest_of(state):
        raise CheckpointError(f"{path} is damaged: its weights are not as they were written; copy it again")
    try:
        held, step = facts["weights"], int(facts["global_step"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its header was changed ({first_line(error)})") from error
    if held != weights:
        raise CheckpointError(f"{path} holds the weights {held} alone, and weights={weights} was asked for")
    return state, step


def push(folder: Path, name: str) -> str:
    """Upload a folder that `share` wrote to the hub, into a repository that is made if there is none; its address.

    Raises:
        UserError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Weights, configuration and model card")
        return f"{api.endpoint}/{name}"
    except Exception as error:  # see above
        raise UserError(
            f"{folder} is written, but could not be uploaded to {name}: {first_line(error)}. Log in with "
            "`hf auth login`, or upload the folder yourself"
        ) from error


def without_places(config: DictConfig) -> DictConfig:
    """A configuration whose absolute paths have lost their folders."""
    plain = as_plain(config)
    shown = OmegaConf.create(escaped(plain))
    for group, node in plain.items():
        for key, value in leaves(node, str(group)):
            if isinstance(value, str) and os.path.isabs(value):
                OmegaConf.update(shown, key, escaped(Path(value).name))
    assert isinstance(shown, DictConfig)
    return shown


def card(run: LoadedRun, pictured: bool) -> str:
    """The model card: rule, data, steps, numbers, and how to load it."""
    config, rule = run.config, rule_of(as_plain(run.config)) or "resnet"
    choices = config.choices or {}
    network = type(run.net).__name__
    tags = ["diffusion", "neural-rdm", network.lower(), f"residual-{config.residual.rule}"]
    head = ["---", "library_name: neural-rdm", f"tags: {json.dumps(tags)}", "---", ""]
    head += [f"# {choices.get('exp') or run.folder.name}: {network}, residual rule `{rule}`", ""]
    head += ["![samples](samples.png)", ""] if pictured else []
    load = ["```python", "from neural_rdm import load_run", "", 'run = load_run("FOLDER")  # or "hub:OWNER/NAME"']
    load += ["images = run.sample(count=8)  # or run.evaluate(), run.sensitivity(), run.net", "```", ""]
    rows = [{"": name, "value": value} for name, value in _facts(run, rule)]
    report = read_report(run.folder)
    numbers = ["## Numbers", "", report["protocol"], "", markdown_table(report["rows"])] if report["rows"] else []
    origin = "Trained with neural-rdm, an implementation of Neural Residual Diffusion Models (arXiv 2406.13215)."
    return "\n".join([*head, origin, "", *load, markdown_table(rows), *numbers])


def _facts(run: LoadedRun, rule: str) -> Iterator[tuple[str, Any]]:
    config, choices = run.config, run.config.choices or {}
    own = {key: value for key, value in config.residual.items() if key not in ("_target_", "rule", "gamma")}
    yield "residual rule", rule
    yield from ((f"residual.{key}", value) for key, value in own.items())
    yield "gamma (supervision of the gates)", config.gamma
    yield "parameters", f"{sum(p.numel() for p in run.net.parameters()):,}"
    yield "data", choices.get("data") or config.data._target_.rpartition(".")[2]
    yield "process", choices.get("diffusion") or config.diffusion._target_.rpartition(".")[2]
    yield "first stage", run.first_stage
    yield "optimizer steps", f"{run.step:,} of {config.trainer.max_steps:,}"
    yield "global batch", config.data.batch_size
    yield "learning rate", config.optimizer.lr
    yield "weights", run.weights
    yield "seed", config.seed
