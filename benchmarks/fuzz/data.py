"""Subjects: data sets, statistics and samples. Each makes good inputs in a folder, and returns what a case does."""

from __future__ import annotations

import io
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fuzz.damage import Case, damaged, text
from benchmarks.outcomes import Wrong
from neural_rdm.core.errors import UserError


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
