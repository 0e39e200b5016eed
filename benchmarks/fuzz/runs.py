"""Subjects: configurations, and what runs and encoding leave. Each makes good inputs, and returns what a case does."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

from benchmarks.fuzz.damage import VALUES, Case, damaged, text, written
from benchmarks.outcomes import Wrong
from neural_rdm.core.errors import UserError


def configurations(place: Path) -> Case:
    """Random values for random keys of training: composed, or refused by name within 1.5 s of CPU time."""
    from neural_rdm.config.check import choices_of, flat_keys, validate
    from neural_rdm.config.compose import compose_config

    keys = sorted({key for key in flat_keys(compose_config("train", []).cfg) if not key.startswith("hydra")})
    groups = ("backbone", "residual", "diffusion", "first_stage", "condition", "data", "optimizer", "strategy",
              "trainer", "callbacks", "logger", "sampler", "metric", "exp", "debug")  # fmt: skip

    def case(draw: random.Random) -> str:
        overrides = []
        for _ in range(draw.choice((1, 1, 2, 3))):
            if draw.random() < 0.25:
                group = draw.choice(groups)
                # an experiment that asks for a folder before anything is composed
                choices = [choice for choice in choices_of(group) if choice != "diffusers_finetune"]
                overrides.append(f"{group}={draw.choice([*choices, 'null', 'nothing', '1'])}")
                continue
            key = draw.choice(keys)
            if draw.random() < 0.1:
                key = damaged(draw, key.encode()).decode("utf-8", "replace")
            value = draw.choice((*VALUES, "auto", "gated", 8, 16, 1e-3, "32-true", "gpu", "cpu", "nan", "inf"))
            overrides.append(f"{draw.choice(('', '', '', '+', '++'))}{key}={written(draw, value)}")
        begin = time.process_time()
        try:
            composed = compose_config("train", overrides)
            validate(composed.cfg, "train", composed.sources)
        except UserError as error:
            spent = time.process_time() - begin
            if spent > 1.5:
                raise Wrong(f"{overrides} is refused after {spent:.1f} s") from error
            names = {part for o in overrides for part in re.split(r"[=.+~@]+", o)[:4] if part}
            if not any(name in str(error) for name in names):
                raise Wrong(f"{overrides} is refused by another name: {error}") from error
            return "refused"
        return "read"

    return case


def runs(place: Path) -> tuple[Path, dict[str, bytes]]:
    """A run folder with checkpoints of a small network, and its small files."""
    import torch
    from omegaconf import OmegaConf

    from neural_rdm.config.check import validate
    from neural_rdm.config.compose import compose_config
    from neural_rdm.config.provenance import KEY, config_hash, write_config, write_provenance
    from neural_rdm.core.files import save_tensors, write_text
    from neural_rdm.core.records import StepRecords
    from neural_rdm.runs import build

    torch.manual_seed(0)
    small = ["backbone.depth=1", "backbone.hidden_size=16", "backbone.num_heads=2", "trainer.max_steps=4"]
    composed = compose_config("train", small)
    validate(composed.cfg, "train", composed.sources)
    OmegaConf.resolve(composed.cfg)
    composed.cfg.choices = composed.choices
    folder = place / "run"
    folder.mkdir()
    write_provenance(folder, command="train", seed=0)
    write_config(folder, composed.cfg)
    state = build.network(composed.cfg).state_dict()
    content = {
        "state_dict": {f"net.{name}": value for name, value in state.items()},
        "ema": {"decay": 0.99, "updates": 4, "weights": {name: value.clone() for name, value in state.items()}},
        "optimizer_states": [],
        "global_step": 4,
        KEY: config_hash(composed.cfg),
    }
    save_tensors(folder / "checkpoints" / "step=000000004.ckpt", content)
    StepRecords(folder / "metrics.csv").append(
        [{"step": i, "train/loss": 1 / i, "val/loss": None} for i in range(1, 5)]
    )
    write_text(
        folder / "finished.json", json.dumps({"global_step": 4, "world_size": 1, "objective": None, "files": []})
    )
    report = {"rows": [{"name": "generated", "accuracy": 0.5}], "protocol": "x", "facts": {"step": 4}}
    write_text(folder / "report" / "metrics.json", json.dumps(report))
    names = ("config.yaml", "provenance.json", "finished.json", "metrics.csv", "report/metrics.json")
    return folder, {name: (folder / name).read_bytes() for name in names}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two state dicts hold the same bits."""
    import torch

    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def run_folders(place: Path) -> Case:
    """A file of a run folder: read for reports and pages, and for `resume=`."""
    from neural_rdm.config.resume import find_run
    from neural_rdm.core.records import truncate
    from neural_rdm.reports.runs import progress, read_mapping, read_report, rule_of, state
    from neural_rdm.runs.load import load_run, read_config

    folder, files = runs(place)

    def case(draw: random.Random) -> str:
        name = draw.choice(sorted(files))
        content = files[name]
        wrong = damaged(draw, content) if name.endswith((".csv", ".yaml")) else text(draw, content.decode())
        (folder / name).write_bytes(wrong)
        try:
            progress(folder), state(folder), read_report(folder), rule_of(read_mapping(folder / "config.yaml"))
            if name == "metrics.csv":
                truncate(folder / name, draw.randrange(6))
                return "read"
            find_run(str(folder))
            read_config(folder)
            if draw.random() < 0.2:
                load_run(folder)
            return "read"
        finally:
            for path in folder.glob("metrics*"):
                path.unlink()
            for restored in {name, "metrics.csv"}:
                (folder / restored).write_bytes(files[restored])

    return case


def checkpoints(place: Path) -> Case:
    """A checkpoint in one file: what is read of it is what was written."""
    from neural_rdm.core.files import load_tensors
    from neural_rdm.training.callbacks.checkpoints import newest_readable

    folder, _ = runs(place)
    path = folder / "checkpoints" / "step=000000004.ckpt"
    content, good = path.read_bytes(), load_tensors(path)["state_dict"]
    good = {name: value.clone() for name, value in good.items()}

    def case(draw: random.Random) -> str:
        path.unlink()
        path.write_bytes(damaged(draw, content))
        newest_readable(path.parent)
        if not same(load_tensors(path)["state_dict"], good):
            raise Wrong("other weights than were saved")
        return "read"

    return case


def sharded_checkpoints(place: Path) -> Case:
    """A checkpoint as a folder."""
    from neural_rdm.core import sharded
    from neural_rdm.core.files import load_tensors
    from neural_rdm.training.callbacks.checkpoints import newest_readable

    folder, _ = runs(place)
    old = folder / "checkpoints" / "step=000000004.ckpt"
    whole = load_tensors(old)
    good = {name: value.clone() for name, value in whole["state_dict"].items()}
    path = folder / "sharded" / "step=000000004.ckpt"
    sharded.save(path, whole)
    files = {file: file.read_bytes() for file in path.iterdir()}

    def case(draw: random.Random) -> str:
        file = draw.choice(sorted(files))
        file.write_bytes(damaged(draw, files[file]))
        try:
            newest_readable(path.parent)
            if not same(sharded.load(path)["state_dict"], good):
                raise Wrong("other weights than were saved")
            return "read"
        finally:
            file.write_bytes(files[file])

    return case


def shared_runs(place: Path) -> Case:
    """The weights of a run that somebody has handed on."""
    from neural_rdm.runs.load import load_run
    from neural_rdm.runs.shared import read_shared

    folder, _ = runs(place)
    run = load_run(folder)
    run.share(place / "shared")
    path = place / "shared" / "model.safetensors"
    content, good = path.read_bytes(), {name: value.clone() for name, value in run.net.state_dict().items()}
    config = load_run(place / "shared").config

    def case(draw: random.Random) -> str:
        path.unlink()
        path.write_bytes(damaged(draw, content))
        found = read_shared(path.parent, config, "ema")
        if found is None or not same(found[0], good):
            raise Wrong("other weights than were shared")
        return "read"

    return case


def gates(place: Path) -> Case:
    """A file of gates."""
    import torch

    from neural_rdm import DiT
    from neural_rdm.surgery.gates import load_gates, save_gates

    torch.manual_seed(0)
    net = DiT(input_size=4, patch_size=2, in_channels=1, hidden_size=16, depth=2, num_heads=2, num_classes=3)
    path = place / "gates.safetensors"
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("alpha", "beta")):
                parameter.normal_()
    save_gates(net, path)
    content, good = path.read_bytes(), {name: value.clone() for name, value in net.state_dict().items()}

    def case(draw: random.Random) -> str:
        path.unlink()
        path.write_bytes(damaged(draw, content))
        load_gates(net, path)
        if not same(net.state_dict(), good):
            net.load_state_dict(good)
            raise Wrong("other gates than were saved")
        return "read"

    return case


def latents(place: Path) -> Case:
    """A shard of latents, and its manifest."""
    import torch

    from neural_rdm.data.encoded.manifest import MANIFEST, read_manifest
    from neural_rdm.latents.shards import Moments, Shard, write_shard

    torch.manual_seed(0)
    path = place / "0000000.safetensors"
    made = [Moments(i, torch.randn(1, 8, 2, 2), torch.randn(1, 8, 2, 2), i % 2, [f"a kite {i}"]) for i in range(3)]
    write_shard(path, made, {3: ("x.png", "it is cut off")})
    content, manifest = path.read_bytes(), json.dumps({"splits": {"train": {"count": 3, "counts": [3]}}, "shape": [4]})

    def case(draw: random.Random) -> str:
        if draw.random() < 0.2:
            (place / MANIFEST).write_bytes(text(draw, manifest))
            read_manifest(place)
            return "read"
        path.unlink()
        path.write_bytes(damaged(draw, content))
        shard = Shard(path)
        for i in range(len(shard)):
            found = shard[i]
            if found.index != i or not torch.equal(found.rows(), made[i].moments):
                raise Wrong("other latents than were written")
            if found.flipped is None or not torch.equal(found.rows(True), made[i].flipped):
                raise Wrong("other mirrored latents than were written")
            if found.y != made[i].y or list(found.captions) != list(made[i].captions):
                raise Wrong("another class or caption than was written")
        return "read"

    return case


def official_weights(place: Path) -> Case:
    """A state dict of torch, of this and of the old format, or of safetensors; it has no checksum of its own."""
    import torch
    from safetensors.torch import save_file

    from neural_rdm.core.weights import read_weights

    state = {f"blocks.{i}.weight": torch.randn(8, 8) for i in range(4)}
    torch.save({"model": state}, place / "a.pt")
    torch.save(state, place / "b.pt", _use_new_zipfile_serialization=False)
    save_file(state, place / "c.safetensors")
    files = {file: file.read_bytes() for file in sorted(place.iterdir())}

    def case(draw: random.Random) -> str:
        file = draw.choice(list(files))
        file.unlink()
        file.write_bytes(damaged(draw, files[file]))
        read_weights(file)
        return "read"

    return case
