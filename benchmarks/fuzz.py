"""`python -m benchmarks fuzz [cases=10000] [minutes=60] [seed=0] [subjects=REGEX]`: damaged and made-up inputs.

A case takes a good input, damages it (bits, bytes, pieces; of texts and JSON also values), and gives it to the code
that reads it. It has to be read, or refused by an error that is meant for users (`UserError`): any other exception
would be a traceback. Where a format has checksums, what is read has to be what was written. What is drawn follows from
(seed, subject, number). Each subject runs in processes of its own, which are limited in memory and, a case, in time.

Counts go to `benchmarks/results/fuzz.json` as they grow, in place of those of the same subject and seed; the same
command goes on with those of the same commit.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import fuzz_training
from benchmarks.commit import commit_of
from benchmarks.options import options_of
from benchmarks.outcomes import MOST, Wrong, note, placeless
from neural_rdm.core.errors import UserError
from neural_rdm.core.files import write_text

RESULT = Path(__file__).parent / "results" / "fuzz.json"
#: seconds for a case, and bytes that a process may have above what it began with
PATIENCE, ROOM = 20, 2 << 30
TRAINING = "training"
#: cases of a process, of the others 200: one that a decoder brings down costs no more than these
BATCH = {TRAINING: 50}

Case = Callable[[random.Random], str]
Subject = Callable[[Path], Case]


class Slow(BaseException):
    """A case took longer than it may."""


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Bytes with one to three injuries; one time in thirty with none."""
    content = bytearray(data)
    if draw.random() < 1 / 30:
        return data
    for _ in range(draw.choice((1, 1, 2, 3))):
        if not content:
            break
        place = draw.randrange(len(content))
        length = min(len(content) - place, 1 << draw.randrange(10))
        match draw.randrange(7):
            case 0 | 1:
                content[place] ^= 1 << draw.randrange(8)
            case 2:
                content[place : place + length] = draw.randbytes(length)
            case 3:
                del content[place:]
            case 4:
                del content[place : place + length]
            case 5:
                content[place:place] = content[place : place + length]
            case 6:
                content[place : place + length] = bytes(length)
    return bytes(content)


VALUES = (
    None, True, False, 0, 1, -1, 2, 3.5, 1e400, -1e-320, 10**40, "", " ", "x", "null", "../../etc/passwd", "/dev/zero",
    "a" * 5000, "é\ud800", "${oc.env:HOME}", "__import__('os')", [], [1, "a", None], [[[]]], {}, {"a": {"b": 1}},
    {"_target_": "os.system", "command": "true"}, "\x00", "<script>", "1e3", "0x10", "on", "-", "~",
)  # fmt: skip


def changed(draw: random.Random, value: Any) -> Any:
    """A value of JSON of which one part is another, gone, or twice there."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(sorted(value, key=str))
        rest = {k: v for k, v in value.items() if k != key}
        match draw.randrange(5):
            case 0:
                return rest
            case 1:
                return rest | {str(draw.choice(VALUES)): value[key]}
            case _:
                return value | {key: changed(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        match draw.randrange(5):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return [*value, value[place]]
            case _:
                return [*value[:place], changed(draw, value[place]), *value[place + 1 :]]
    return draw.choice(VALUES)


def text(draw: random.Random, content: str) -> bytes:
    """A damaged text: as JSON, where it is any, or as bytes."""
    if draw.random() < 0.6:
        try:
            return json.dumps(changed(draw, json.loads(content))).encode("utf-8", "surrogatepass")
        except ValueError:
            pass
    return damaged(draw, content.encode())


# -- subjects: each makes good inputs in a folder, and returns what a case does


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


def written(draw: random.Random, value: Any) -> str:
    """A value as somebody types it, who may forget the quotes."""
    if isinstance(value, str) and draw.random() < 0.5:
        return value.replace("\ud800", "")
    return json.dumps(value).replace('": ', '":')


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


def pictures(place: Path) -> Case:
    """Pictures of every kind."""
    from neural_rdm.media.images import load_pixels

    y, x = np.mgrid[0:18, 0:24]
    pixels = np.stack([x * 10, y * 12, (x * y) % 251], -1).astype(np.uint8)
    kinds = [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("WEBP", "RGB"),
             ("TIFF", "RGB"), ("BMP", "RGB"), ("GIF", "P"), ("PPM", "RGB"), ("PNG", "I;16")]  # fmt: skip
    files = []
    for kind, mode in kinds:
        buffer = io.BytesIO()
        grey = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        (grey if mode == "I;16" else Image.fromarray(pixels).convert(mode)).save(buffer, format=kind)
        files.append(buffer.getvalue())

    def case(draw: random.Random) -> str:
        x = load_pixels(io.BytesIO(damaged(draw, draw.choice(files))), 16)
        if tuple(x.shape) != (3, 16, 16) or not bool((x.abs() <= 1).all()):
            raise Wrong(f"{tuple(x.shape)}")
        return "read"

    return case


def videos(place: Path) -> Case:
    """MP4 and GIF files."""
    from neural_rdm.evaluation.sample_files import open_samples
    from neural_rdm.media.decoders import open_video
    from neural_rdm.media.gifs import save_gif
    from neural_rdm.media.mp4 import write_mp4

    clip = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
    content = {".mp4": write_mp4(place / "clip.mp4", clip).read_bytes()}
    buffer = io.BytesIO()
    save_gif(buffer, [Image.fromarray(frame) for frame in clip], 8)
    content[".gif"] = buffer.getvalue()

    def case(draw: random.Random) -> str:
        ending = draw.choice((".mp4", ".mp4", ".gif"))
        folder = place / "samples"
        folder.mkdir(exist_ok=True)
        path = folder / f"0{ending}"
        path.write_bytes(damaged(draw, content[ending]))
        try:
            if ending == ".gif":
                list(open_samples(folder).batches(4))
                return "read"
            video = open_video(path)
            try:
                video.read(range(video.info().frames))
            finally:
                video.close()
            return "read"
        finally:
            path.unlink()

    return case


def tars(place: Path) -> Case:
    """Shards of webdataset: listed, and every sample read."""
    import tarfile

    from neural_rdm.data.tars.shards import TarShards

    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 99, 199)).save(buffer, "JPEG")
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for i in range(3):
            for ending, data in (("jpg", buffer.getvalue()), ("cls", b"%d" % i), ("txt", b"a kite")):
                info = tarfile.TarInfo(f"{i:04d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    content = held.getvalue()

    def case(draw: random.Random) -> str:
        path = place / "train-0.tar"
        path.write_bytes(damaged(draw, content))
        os.utime(path, ns=(0, draw.randrange(1 << 60)))
        data = TarShards(place, image_size=16, max_bad_fraction=1.0)
        with open(os.devnull, "w") as nowhere:
            before, sys.stdout = sys.stdout, nowhere
            try:
                data.setup()
            finally:
                sys.stdout = before
        source = data.sources["train"]
        for i in range(len(source)):
            try:
                source.load(i, i)
            except UserError:
                continue
        return "read"

    return case


def annotations(place: Path) -> Case:
    """Captions of COCO and JourneyDB, and the lists of Taichi-HD and UCF-101."""
    from neural_rdm.data.images.captions import COCO, JourneyDB
    from neural_rdm.data.videos.lists import class_numbers, clip_rows

    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
        "annotations": [{"id": i, "image_id": i % 3, "caption": f"a kite {i}"} for i in range(5)],
    }
    line = {"img_path": "./000/a.jpg", "prompt": "a kite --ar 16:9", "Task2": {"Caption": "a red kite"}}
    table = "video_id,start,end,partition\nabc,1,20,train\ndef,2,30,test\n"
    classes = "1 ApplyEyeMakeup\n2 Archery\n"

    def case(draw: random.Random) -> str:
        file = place / "file"
        match draw.randrange(4):
            case 0:
                file.write_bytes(text(draw, json.dumps(coco)))
                COCO.read(place, file)
            case 1:
                file.write_bytes(b"\n".join([text(draw, json.dumps(line)), json.dumps(line).encode()]))
                JourneyDB.read(place, file)
            case 2:
                file.write_bytes(damaged(draw, table.encode()))
                clip_rows(file)
            case 3:
                file.write_bytes(damaged(draw, classes.encode()))
                class_numbers(file)
        return "read"

    return case


def statistics(place: Path) -> Case:
    """Statistics of real samples: our own, ADM's and torch-fidelity's."""
    import torch

    from neural_rdm.metrics.networks import NETWORKS
    from neural_rdm.metrics.reference import read_reference, write_reference

    name, network = next((n, k) for n, k in NETWORKS.items() if k.outputs[k.main()] <= 1024)
    key, dim = (name, network.weights.sha256), network.outputs[network.main()]
    rows = np.random.default_rng(0).normal(size=(dim + 8, dim))
    mean, cov = rows.mean(0), np.cov(rows.T)
    files = {place / "own.npz": b"", place / "adm.npz": b"", place / "fidelity.pt": b""}
    write_reference(place / "own.npz", key, {network.main(): (mean, cov)}, len(rows), facts={"data": "x"})
    np.savez(place / "adm.npz", mu=mean, sigma=cov)
    torch.save({"mu": mean, "sigma": cov}, place / "fidelity.pt")
    files = {file: file.read_bytes() for file in files}

    def case(draw: random.Random) -> str:
        file = draw.choice(list(files))
        file.unlink()
        file.write_bytes(damaged(draw, files[file]))
        read_reference(file, key)
        return "read"

    return case


def samples(place: Path) -> Case:
    """`samples.npz` and what says how they were made."""
    from neural_rdm.evaluate import origin
    from neural_rdm.evaluation.sample_files import open_samples

    path = place / "samples.npz"
    np.savez(path, arr_0=np.zeros((4, 8, 8, 3), np.uint8), arr_1=np.arange(4))
    content, said = (
        path.read_bytes(),
        json.dumps({"step": 4, "sampler": {"name": "ddim", "steps": 2}, "weights": "ema"}),
    )

    def case(draw: random.Random) -> str:
        path.write_bytes(damaged(draw, content) if draw.random() < 0.7 else content)
        (place / "sampling.json").write_bytes(text(draw, said))
        origin(path)
        list(open_samples(path).batches(4))
        return "read"

    return case


SUBJECTS: dict[str, tuple[Subject, float]] = {
    "configurations": (configurations, 0.03),
    TRAINING: (fuzz_training.trainings, 0.04),
    "run folders": (run_folders, 0.08),
    "checkpoints": (checkpoints, 0.12),
    "checkpoints in shards": (sharded_checkpoints, 0.06),
    "shared runs": (shared_runs, 0.1),
    "gates": (gates, 0.05),
    "latents": (latents, 0.1),
    "official weights": (official_weights, 0.08),
    "pictures": (pictures, 0.14),
    "videos": (videos, 0.04),
    "tars": (tars, 0.06),
    "annotations": (annotations, 0.08),
    "statistics": (statistics, 0.02),
    "samples": (samples, 0.04),
}


def batch(name: str, seed: int, numbers: range, pipe: Any) -> None:
    """Run some cases of a subject in this process; tells each outcome, and at the end how much memory it took."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import logging

    logging.disable(logging.CRITICAL)
    patience = PATIENCE if name != TRAINING else fuzz_training.WALL + PATIENCE

    def ring(*_: Any) -> None:
        raise Slow

    signal.signal(signal.SIGALRM, ring)
    with tempfile.TemporaryDirectory() as folder:
        case = SUBJECTS[name][0](Path(folder))
        pages = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (pages + ROOM, pages + ROOM))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in numbers:
            outcome, detail = "", ""
            signal.alarm(patience)
            try:
                outcome = case(random.Random(f"{seed}:{name}:{number}"))
            except UserError:
                outcome = "refused"
            except Slow:
                outcome, detail = "hang", f"more than {patience} s"
            except Wrong as error:
                outcome, detail = error.kind, str(error)
            except Exception as error:
                frames = [f for f in traceback.extract_tb(error.__traceback__) if "neural_rdm" in f.filename]
                at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
                outcome, detail = "traceback", f"{type(error).__name__}: {error}"[:300] + at
            finally:
                signal.alarm(0)
            pipe.send((number, outcome, detail))
        note("most_memory_mb", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        pipe.send(("most", MOST, ""))


def fuzz(
    cases: int = 10_000,
    minutes: float = 60,
    seed: int = 0,
    subjects: str = "",
    held: Sequence[dict[str, Any]] = (),
    keep: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Run cases of each subject, in its share; returns a row of counts for each, with its faults.

    Args:
        held: rows of before; those of the same seed and commit are gone on with.
        keep: is given the row of a subject as it grows.
    """
    begin, rows, commit = time.monotonic(), [], commit_of("benchmarks/soak")
    context = multiprocessing.get_context("fork")
    for name, (_, share) in SUBJECTS.items():
        if not re.search(subjects, name):
            continue
        before = next((r for r in held if (r["subject"], r.get("seed"), r.get("commit")) == (name, seed, commit)), {})
        counts: Counter[str] = Counter({k: before.get(k, 0) for k in kinds(name)})
        faults: list[dict[str, Any]] = [*before.get("faults", ())]
        most: dict[str, float] = {k: before[k] for k in ("most_memory_mb", "slowest_refusal_s") if k in before}
        wanted, done = round(cases * share), before.get("cases", 0)
        started, spent = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        row = {"subject": name, "seed": seed, "commit": commit, "cases": done}
        while done < wanted and time.monotonic() - begin < 60 * minutes:
            numbers = range(done, min(done + BATCH.get(name, 200), wanted))
            ours, theirs = context.Pipe()
            process = context.Process(target=batch, args=(name, seed, numbers, theirs))
            process.start()
            theirs.close()
            last = done - 1
            try:
                while True:
                    number, outcome, detail = ours.recv()
                    if number == "most":
                        most = {k: max(most.get(k, 0.0), outcome.get(k, 0.0)) for k in most.keys() | outcome.keys()}
                        continue
                    last = number
                    counts[outcome] += 1
                    if detail:
                        faults.append({"case": number, "what": outcome, "detail": placeless(detail)})
                        print(f"{name} {number}: {outcome}: {detail}", flush=True)
            except EOFError:
                process.join()
            if last < numbers[-1]:  # it was brought down, or could not begin
                counts["crash"] += 1
                faults.append({"case": last + 1, "what": "crash", "detail": str(process.exitcode)})
                print(f"{name} {last + 1}: the process ended with {process.exitcode}", flush=True)
                last += 1
            done = last + 1
            now = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = before.get("cpu_s", 0.0) + now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
            row |= {"cases": done, **{k: counts[k] for k in kinds(name)}, "cpu_s": round(cpu, 1)}
            row |= {k: round(v, 2 if k.endswith("_s") else 1) for k, v in sorted(most.items())} | {"faults": faults}
            keep(row)
        if found := row if "faults" in row else before:
            rows.append(found)
            told = {k: v for k, v in found.items() if k != "faults"}
            print(told, f"{time.monotonic() - started:.0f} s", flush=True)
    return rows


def kinds(subject: str) -> tuple[str, ...]:
    """The outcomes that a subject's cases can have."""
    return KINDS if subject != TRAINING else fuzz_training.KINDS


KINDS = ("read", "refused", "traceback", "wrong", "hang", "crash")


def main(argv: list[str]) -> None:
    """`fuzz` under the options of a command line; each subject's counts are written as they grow."""
    options = options_of("fuzz", argv, {"cases": int, "minutes": float, "seed": int, "subjects": str})
    held: list[dict[str, Any]] = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.is_file() else []

    def keep(row: dict[str, Any]) -> None:
        found = {(r["subject"], r["seed"]): r for r in [*held, row]}
        rows = held[:] = sorted(found.values(), key=lambda r: ([*SUBJECTS].index(r["subject"]), r["seed"]))
        write_text(RESULT, json.dumps({"rows": rows}, indent=1) + "\n")

    rows = fuzz(**options, held=held, keep=keep)
    faults = sum(len(row["faults"]) for row in rows)
    print(f"{sum(row['cases'] for row in rows)} cases, {faults} faults")
    raise SystemExit(bool(faults))
