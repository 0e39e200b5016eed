"""Clips a second by each decoder on real videos, and whether memory stays flat over thousands of clips.

The videos: a UCF-101 clip (AVI, 320 x 240, 164 frames, one key frame), a Taichi-HD clip (MP4, 256 x 256, 458 frames)
and folders of SkyTimelapse frames (JPEG, 128 x 128), from the folder `shared` beside the checkout where it is there,
else made ones of the same sizes. A clip is 16 frames, every third one, cropped to 256 x 256, as training loads it. The
decoders run interleaved. torchcodec is measured where it is installed. Memory is that of a process that does nothing
else, on made clips of two frames of 64 x 64, so that ten thousand of them take seconds: what leaks does so by the
video that is opened and the frame that is read.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neural_rdm.core.errors import ConfigError
from neural_rdm.core.progress import progress_bar
from neural_rdm.data.videos.clips import ClipFiles
from neural_rdm.data.videos.files import find_videos
from neural_rdm.data.videos.index import probe
from neural_rdm.media.decoders import DECODERS, check_decoder
from neural_rdm.media.mp4 import write_mp4
from neural_rdm.reports.tables import markdown_table

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZE, FRAMES, INTERVAL = 256, 16, 3
ROUNDS, CLIPS = 7, 6  # a round is CLIPS clips of every video by every decoder
MARKS = (1000, 2500, 5000, 10000)
FOLDER = "frame folder"


def run() -> dict[str, Any]:
    """All measurements as plain values; a summary is printed on the way. Times are CPU time of the process."""
    with tempfile.TemporaryDirectory() as folder:
        videos = material(Path(folder))
        decoders, missing = [], {}
        for name in DECODERS:
            try:
                check_decoder(name)
                decoders.append(name)
            except ConfigError as error:
                missing[name] = str(error)
        rows = throughput(videos, decoders)
        print(f"clips of {FRAMES} frames at {SIZE} px, every {INTERVAL}rd frame:\n\n{markdown_table(rows)}")
        memory = []
        for name in [*decoders, FOLDER]:
            path = made(Path(folder) / f"small{'' if name == FOLDER else '.mp4'}", 64, 64, 16)
            memory.append({"decoder": name, **resident(decoders[0] if name == FOLDER else name, path)})
        print(f"resident memory in MB after so many clips:\n\n{markdown_table(memory)}")
    return {
        "method": (
            "clips from random places of each video, decoders interleaved; a clip is opened, read, cropped and made a "
            f"tensor by ClipFiles.load; medians over {ROUNDS} rounds of {CLIPS} clips. memory: VmRSS of a process of "
            "its own that opens one video again and again, two frames at 64 px"
        ),
        "material": {name: "real" if path.startswith(str(SHARED)) else "made" for name, path in videos.items()},
        "not_installed": missing,
        "throughput": rows,
        "resident_mb": memory,
    }


def material(folder: Path) -> dict[str, str]:
    """{what it is: path}: a real video where there is one, else a made one of the same kind and size."""
    wanted = {
        "UCF-101, avi": SHARED / "ucf101" / "videos" / "v_ApplyEyeMakeup_g01_c01.avi",
        "Taichi-HD, mp4": SHARED / "taichi" / "lia_driving1.mp4",
        "SkyTimelapse, frames": SHARED / "sky" / "sky_train",
    }
    found = {}
    for name, path in wanted.items():
        if path.is_dir():
            path = find_videos(path)[0][0]
        if not path.exists():
            height, width, count = (128, 128, 32) if "frames" in name else (240, 320, 164)
            path = Path(made(folder / ("frames" if "frames" in name else f"{name[:3]}.mp4"), height, width, count))
        found[name] = str(path)
    return found


def made(path: Path, height: int, width: int, count: int) -> str:
    """A moving pattern, as an MP4 or, where the name has no ending, a folder of frames."""
    waves = np.sin(np.add.outer(np.arange(height) / 9, np.arange(width) / 7) + np.arange(count)[:, None, None])
    frames = (127.5 + 120 * waves).astype(np.uint8)
    if path.suffix:
        return str(write_mp4(path, frames[..., None]))
    path.mkdir(exist_ok=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{i:04d}.jpg")
    return str(path)


def clips(path: str, decoder: str, size: int, frames: int, interval: int) -> ClipFiles | None:
    """One video as training reads it; None where the decoder cannot read it."""
    found = probe(path, decoder)
    if isinstance(found, str):
        return None
    return ClipFiles([path], np.array([found.frames]), {}, decoder, None, size, frames, interval)


def throughput(videos: dict[str, str], decoders: list[str]) -> list[dict[str, Any]]:
    """Rows of video, decoder, clips a second and milliseconds a clip."""
    cases = {}
    for video, path in videos.items():
        for name in [FOLDER] if "frames" in video else decoders:
            source = clips(path, decoders[0] if name == FOLDER else name, SIZE, FRAMES, INTERVAL)
            if source is not None:
                cases[video, name] = source
    times: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for number in range(ROUNDS + 1):  # the first one warms up
        for case, source in cases.items():
            start = time.process_time()
            for i in range(CLIPS):
                source.load(0, CLIPS * number + i)
            times[case].append((time.process_time() - start) / CLIPS)
    rows = []
    for (video, name), values in times.items():
        each = statistics.median(values[1:])
        rows.append({"video": video, "decoder": name, "clips_per_s": 1 / each, "ms_per_clip": 1000 * each})
    return rows


def resident(decoder: str, path: str) -> dict[str, Any]:
    """{clips: MB resident} of a process that loads so many."""
    command = [sys.executable, "-m", "benchmarks.clips", decoder, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        with progress_bar(f"Memory: {decoder}", len(MARKS), "marks") as advance:
            found = {}
            for line in child.stdout:
                found.update(json.loads(line))
                advance()
    if child.returncode:
        raise RuntimeError(f"the process that loads clips by {decoder} ended with {child.returncode}")
    return found


def _load_many(decoder: str, path: str) -> None:
    """What the process of `resident` does: print {clips: MB} at every mark."""
    source = clips(path, decoder, 64, 2, 1)
    assert source is not None
    for number in range(1, MARKS[-1] + 1):
        source.load(0, number)
        if number in MARKS:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            print(json.dumps({str(number): round(kilobytes / 1024, 1)}), flush=True)


if __name__ == "__main__":
    _load_many(*sys.argv[1:])
