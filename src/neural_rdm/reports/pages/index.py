"""The list of all runs and sweeps below a folder `outputs`: `outputs/index.html`, kept up to date by what makes them.

What was read of each is kept in `outputs/index.json`, so that a command reads its own run anew and of the others only
what may have changed: those that trained when they were looked at last, and those that nobody has listed yet.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import textwrap
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from neural_rdm.config.provenance import CONFIG, read_provenance
from neural_rdm.config.provenance import FILE as PROVENANCE
from neural_rdm.core.errors import CheckpointError, DataError, first_line
from neural_rdm.core.files import write_text
from neural_rdm.core.given import read_json
from neural_rdm.core.listing import natural_order
from neural_rdm.core.locks import is_held
from neural_rdm.reports.pages import render, run
from neural_rdm.reports.rates import recorded
from neural_rdm.reports.runs import WORDS, State, generated, read_mapping, state
from neural_rdm.reports.sweeps import FILE as SWEEP
from neural_rdm.reports.sweeps import read_record
from neural_rdm.reports.tiles import read_tiles

OUTPUTS, FILE, STORE, LOCK = "outputs", "index.html", "index.json", ".index.lock"
COMMANDS = ("train", "deepen", "sweep")
#: how deep runs lie below their command: experiment and time; an experiment may lie in a folder
DEPTH = 3
PATIENCE = 5  # seconds for which another command is waited for that writes the list
RELOAD = 60  # seconds
THUMBNAIL = 96  # pixels
NUMBERS = 3
TOLD = 160  # characters of what has become of a run; its page has all of them

Entry = dict[str, Any]


def tell(folder: Path) -> None:
    """Bring the page of a run, and the list that it or its sweep stands in, up to date.

    Never fails: what cannot be written is told in a line.
    """
    for what, write in (("page", _page), ("place in the list of runs", update)):
        try:
            write(folder)
        except Exception as error:
            print(f"{folder}: its {what} is not up to date: {first_line(error)}", file=sys.stderr, flush=True)


def _page(folder: Path) -> None:
    if (folder / CONFIG).is_file() and not (folder / SWEEP).is_file():
        run.write_page(folder)


def root_of(folder: Path) -> Path | None:
    """The folder `outputs` that a run lies in; None where it lies in none."""
    return next((parent for parent in folder.absolute().parents if parent.name == OUTPUTS), None)


def update(folder: Path) -> Path | None:
    """Write the list that the run or sweep in `folder` stands in; returns its path, None where there is no list.

    Raises:
        OSError, WriteError: it cannot be written.
    """
    root = root_of(folder)
    if root is None:
        return None
    own = folder.absolute()
    own = own.parent if (own.parent / SWEEP).is_file() else own
    with _locked(root):
        known = _stored(root)
        entries = {}
        for path in sorted({*_places(root, known), own.relative_to(root).as_posix()}):
            entry, place = known.get(path), root / path
            if entry is None or place == own or (entry["state"] == "training" and not is_held(place)):
                entry = _entry(place, path, entry or {})
            if entry is not None:
                entries[path] = entry
        write_text(root / STORE, json.dumps(entries, indent=0, ensure_ascii=False) + "\n")
        return write_list(root, list(entries.values()))


def write_list(root: Path, entries: list[Entry]) -> Path:
    """Write `index.html` of these entries, the newest first."""
    shown = [{**entry, "link": quote(_link(root, entry["path"]))} for entry in entries]
    shown.sort(key=lambda entry: (entry["started"], entry["path"]), reverse=True)
    states = [entry["state"] for entry in entries]
    return render.write(
        "runs.html",
        root / FILE,
        title=f"Runs in {root.parent.name}",
        entries=shown,
        counts={word: states.count(word) for word in WORDS if word in states},
        reload=RELOAD if "training" in states else None,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
    )


def _link(root: Path, path: str) -> str:
    return f"{path}/{run.FILE}" if (root / path / run.FILE).is_file() else f"{path}/"


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One writer at a time; where the file system has no locks, the last one wins, and the next puts right what is
    lost.
    """
    import filelock  # see core.locks

    lock = filelock.FileLock(root / LOCK, timeout=PATIENCE, fallback_to_soft=False)
    with contextlib.ExitStack() as open_:
        with contextlib.suppress(NotImplementedError):
            open_.enter_context(lock)
        yield


def _stored(root: Path) -> dict[str, Entry]:
    """What was read before; nothing where that is damaged."""
    try:
        content = read_json(root / STORE)
        return {path: entry for path, entry in content.items() if _types(entry) == _types(_blank("", "run"))}
    except (OSError, ValueError, AttributeError):
        return {}


def _types(entry: Entry) -> dict[str, type]:
    return {key: type(value) for key, value in entry.items()}


def _blank(path: str, kind: str) -> Entry:
    return {
        "path": path, "kind": kind, "title": path, "state": "stopped", "told": "", "started": "", "notes": "",
        "tags": [], "numbers": [], "thumbnail": "", "samples": [],
    }  # fmt: skip


def _places(root: Path, known: dict[str, Entry]) -> Iterator[str]:
    """Where runs and sweeps lie; folders that are listed already are not looked into."""
    for command in COMMANDS:
        yield from _below(root, command, known, DEPTH)


def _below(root: Path, path: str, known: dict[str, Entry], depth: int) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(root / path) as found:
        for each in found:
            inner = f"{path}/{each.name}"
            if inner in known and each.is_dir():
                yield inner
            elif each.is_dir() and not each.name.startswith("."):
                if any((root / inner / name).is_file() for name in (SWEEP, CONFIG, PROVENANCE)):
                    yield inner
                elif depth > 1:
                    yield from _below(root, inner, known, depth - 1)


def _entry(folder: Path, path: str, before: Entry) -> Entry | None:
    """What the list says of a run or sweep; None where there is none (any more)."""
    if (folder / SWEEP).is_file():
        return _sweep(folder, path, before)
    if not any((folder / name).is_file() for name in (CONFIG, PROVENANCE)):
        return None
    config, has = read_mapping(folder / CONFIG), state(folder)
    return {
        **_blank(path, "run"),
        **_about(config),
        "title": run.title_of(config, folder),
        "state": has.word,
        "told": textwrap.shorten(has.told, TOLD, placeholder=" ..."),
        "started": _started(folder),
        "numbers": _numbers(folder, config),
        **_thumbnail(folder, before),
    }


def _sweep(folder: Path, path: str, before: Entry) -> Entry:
    try:
        record = read_record(folder)
    except (OSError, ValueError) as error:
        return {**_blank(path, "sweep"), "told": f"sweep.json cannot be read: {first_line(error)}"}
    jobs = natural_order(folder / number for number in record.jobs if (folder / number / CONFIG).is_file())
    config = read_mapping(jobs[0] / CONFIG) if jobs else {}
    states = [how.get("state", "") for how in record.states.values()]
    finished, failed = states.count("finished"), states.count("failed")
    told = f"{finished} of {len(record.jobs)} jobs finished" + (f", {failed} failed" if failed else "")
    word = "training" if is_held(folder) else "finished" if finished == len(record.jobs) else "stopped"
    has = State("failed" if failed and word == "stopped" else word, told)
    drawn = next((job for job in jobs if run.newest_grid(job) is not None), folder)
    name = config.get("name") or f"{path.partition('/')[2].rpartition('/')[0]}, {len(record.jobs)} jobs"
    return {
        **_blank(path, "sweep"),
        **_about(config),
        "title": str(name),
        "state": has.word,
        "told": has.told,
        "started": _started(jobs[0]) if jobs else "",
        **_thumbnail(drawn, before),
    }


def _about(config: dict[str, Any]) -> Entry:
    return {"tags": [str(tag) for tag in config.get("tags") or []], "notes": str(config.get("notes") or "")}


def _started(folder: Path) -> str:
    """When a run began first, UTC; empty where it does not say."""
    try:
        starts = read_provenance(folder).get("starts") or [{}]
        return str(starts[0].get("time", ""))
    except (CheckpointError, AttributeError):
        return ""


def _numbers(folder: Path, config: dict[str, Any]) -> list[tuple[str, float]]:
    """The first numbers of a run: what its sweep optimises, those of its report, its validation loss."""
    report = {k: v for k, v in generated(folder).items() if k not in ("name", "count", "step") and "at_" not in k}
    wanted = [config.get("optimized_metric"), *report]
    names = [*dict.fromkeys(str(name) for name in wanted if name)][: NUMBERS - 1]
    found = [(name, recorded(folder, name)) for name in dict.fromkeys([*names, "val/loss"])]
    return [(name, value) for name, value in found if value is not None and math.isfinite(value)]


def _thumbnail(folder: Path, before: Entry) -> Entry:
    """Four of the newest samples, small; those of before where they are still the newest."""
    path = run.newest_grid(folder)
    if path is None:
        return {}
    stamp = [str(path), path.stat().st_mtime_ns]
    if before.get("samples") == stamp:
        return {"samples": stamp, "thumbnail": before["thumbnail"]}
    try:
        tiles = read_tiles(path)
    except DataError:
        return {}
    first = tiles.pixels[:2, :2, 0]  # [2, 2, H, W, 3]
    rows = [np.concatenate(list(row), axis=1) for row in first]
    image = Image.fromarray(np.concatenate(rows, axis=0))
    scale = THUMBNAIL / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, format="PNG", optimize=True)
    return {"samples": stamp, "thumbnail": render.picture(file.getvalue(), "").uri}
