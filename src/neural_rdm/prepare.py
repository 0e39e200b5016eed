"""`python -m neural_rdm.prepare`: check a data set's folder before a long run, or make a small part of it.

python -m neural_rdm.prepare data=ucf101 data.root=DIR
python -m neural_rdm.prepare data=imagenet data.root=DIR subset=20 subset_dir=DIR2
"""

from __future__ import annotations

import math
import os
import re
import shlex
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from neural_rdm.cli.app import main, print_paths
from neural_rdm.cli.datasets import docstring, official_of, where_to_get
from neural_rdm.cli.findings import Findings
from neural_rdm.config.check import config_dir
from neural_rdm.config.compose import further_folders
from neural_rdm.core.errors import DataError, UserError, first_line
from neural_rdm.core.output import print_page

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from neural_rdm.data.base import DataModule, Listing
    from neural_rdm.data.official import Official
    from neural_rdm.data.source import Source
    from neural_rdm.data.tools.inspection import Looked

PICTURES = 16
CLIP_WORDS = 75  # a word is a token at least, and two tokens are the ends
DARK_SHARE = 0.05  # of the samples that are decoded; so many black ones are worth a warning
NAMED = 3  # examples of what is missing; missing.txt has all


def prepare(cfg: DictConfig, folder: Path) -> int:
    """Write `report.{md,json}`, `missing.txt` where something is missing, and a preview.

    Returns 0 if the data can be trained on, otherwise 2. With `subset` the part is made, then read and reported on in
    place of the whole.

    Raises:
        UserError: `subset_dir` cannot be used, or the samples are no files.
    """
    part_of = None if cfg.subset is None else _make_part(cfg)
    data, found = examine(cfg, part_of)
    written = found.write(folder)
    if data is not None and found.usable:
        written += _pictures(data, folder / "preview", found)
    print_page(folder / "report.md")
    print("wrote:")
    print_paths(written)
    if not found.usable:
        print(f"error: {found.problem}", file=sys.stderr, flush=True)
    return 0 if found.usable else 2


def _make_part(cfg: DictConfig) -> Path | None:
    """Make the subset and choose it for `data.root`; returns the folder of the whole, None where it cannot be read."""
    from hydra.utils import get_class

    from neural_rdm.core.errors import printable
    from neural_rdm.data.tools.subset import check_target, make_subset

    if cfg.data.get("root") is None or not getattr(get_class(cfg.data._target_), "files", False):
        raise DataError(
            f"subset: the samples of data={cfg.dataset} are no files of their own; data.limit=N uses fewer of them"
        )
    root, target = _absolute(cfg.data.root), _absolute(cfg.subset_dir)
    check_target(root, target)
    try:
        data = _built(cfg)
        data.setup()
    except UserError:  # the report will say why
        return None
    sizes = make_subset(data, root, target, cfg.subset, cfg["copy"])
    print(f"made {printable(target)}: {', '.join(f'{n} of {name}' for name, n in sizes.items())}", flush=True)
    cfg.data.root = str(target)
    return root


def examine(cfg: DictConfig, part_of: Path | None = None) -> tuple[DataModule | None, Findings]:
    """Read a data set as training would, and say what is in it; the module is None where it cannot be read.

    Args:
        part_of: the folder of which this one is a small part: official numbers are then of no interest.
    """
    from neural_rdm.core.progress import progress_bar
    from neural_rdm.data.tools.inspection import disk_usage, look

    where = cfg.data.get("root")
    root = None if where is None else _absolute(where)
    data: DataModule | None = None
    problem = None
    try:
        data = _built(cfg)
        data.setup()
    except UserError as error:
        problem = first_line(error)
    known = official_of(cfg.data, None if data is None else data.num_classes)
    found = Findings(cfg.dataset, None if known is None else known.name, None if root is None else str(root))
    found.usable, found.problem = problem is None, problem
    found.layout = None if problem is None else docstring(str(cfg.data._target_))
    if root is None:
        found.facts["folder"] = "nothing to check: these data come with the installed packages"
    else:
        with progress_bar("counting", None, "files") as advance:
            files, size = disk_usage(root, advance)
        found.facts |= {"files below data.root": f"{files:,}", "on disk": _bytes(size)}
        if part_of is not None:
            found.facts["a small part of"] = str(part_of)
    lists: list[Listing] = []
    try:
        lists = [] if data is None or root is None else data.listings()
    except DataError as error:
        found.warnings.append(str(error))
    data = data if found.usable else None
    sources = {} if data is None else data.sources
    _count(found, sources, lists, None if part_of is not None else known)
    if data is not None:
        found.warnings += data.notes
        _classes(found, data, known if part_of is None else None)
        with progress_bar("decoding", sum(min(cfg.decode, len(s)) for s in sources.values()), "samples") as advance:
            looked = look(sources.values(), cfg.decode, cfg.seed, advance)
        _judge(found, looked, cfg.data)
        if data.prompts(1) is not None:
            _captions(found, sources, cfg)
    _advise(found, known, root, cfg.data, "" if data is None else data.experiment)
    return data, found


def _built(cfg: DictConfig) -> DataModule:
    """The data set as training would read it, all of it; not set up."""
    from neural_rdm.runs import build

    if "limit" in cfg.data:
        cfg.data.limit = None
    data: DataModule = build.build(cfg.data, "data")
    data.configure(cfg.seed)
    return data


def _count(found: Findings, sources: Mapping[str, Source], lists: list[Listing], known: Official | None) -> None:
    """A row for each split; a warning for what its list or the official number has more of."""
    named = {entry.split: entry for entry in lists}
    for split in ("train", "val"):
        entry = named.get(split)
        there = len(sources[split]) if split in sources else 0
        if entry is not None and (entry.counts or split not in sources):
            there = entry.named - len(entry.missing)
        official = getattr(known, split, None)
        row = {"split": split, "found": there, "official": official}
        if entry is not None:
            row |= {"listed": entry.named, "missing": len(entry.missing)}
            found.missing += entry.missing
        if split in sources or entry is not None or official is not None:
            found.splits.append(row)
        if entry is not None and entry.missing:
            what = f"{len(entry.missing):,} of {entry.named:,} named in {entry.file} are missing"
            found.warnings.append(f"{what}: {_some(entry.missing)}")
        all_missing_listed = entry is not None and bool(entry.missing) and entry.named == official
        if official is not None and there != official and not all_missing_listed:
            word = "more than" if there > official else "of"
            found.warnings.append(f"{split}: {there:,} {word} the {official:,} samples of the whole data set")
    for split, source in sources.items():
        reasons: dict[str, list[str]] = {}
        for error in source.left_out:
            reasons.setdefault(error.reason, []).append(error.path)
        for reason, paths in reasons.items():
            all_of_them = f" ({len(paths):,} in all)" if len(paths) > NAMED else ""
            found.warnings.append(f"{split}: left out {_some(paths)}{all_of_them}: {reason}")
    if sources and "val" not in sources and getattr(known, "val", None) is None:
        found.warnings.append("there is no validation set")


def _classes(found: Findings, data: DataModule, known: Official | None) -> None:
    """Classes, how evenly they are filled, and which are empty."""
    import numpy as np

    if not data.num_classes:
        return
    found.facts["classes"] = data.num_classes
    names = data.class_names or [str(i) for i in range(data.num_classes)]
    for split, source in data.sources.items():
        if (labels := source.labels()) is None:
            continue
        counts = np.bincount(labels, minlength=len(names))
        found.facts[f"{split} samples in a class"] = _range(counts.tolist())
        empty = [name for name, count in zip(names, counts, strict=False) if count == 0]
        if empty:
            found.warnings.append(f"{split}: {len(empty)} of {len(names)} classes have no sample: {_some(empty)}")
    if known is not None and known.classes is not None and known.classes != data.num_classes:
        found.warnings.append(f"{data.num_classes} classes where the whole data set has {known.classes}")


def _judge(found: Findings, looked: Looked, data: DictConfig) -> None:
    """What the samples that were decoded say: broken ones, black ones, sizes, lengths."""
    from neural_rdm.data.tools.inspection import DARK

    found.facts["decoded"] = f"{looked.decoded} samples, {looked.failed} of them broken"
    found.broken = looked.broken
    if looked.failed and looked.failed == looked.decoded:
        path, reason = next(iter(looked.broken.items()))
        found.usable, found.problem = False, f"none of {looked.decoded} samples can be read: {path}: {reason}"
    elif looked.broken:
        most = data.get("max_bad_fraction")
        stops = "" if most is None else f"; training stops above data.max_bad_fraction={most:g} of a split"
        found.warnings.append(f"{len(looked.broken)} samples are broken{stops}")
    if len(looked.dark) >= DARK_SHARE * looked.decoded > 0:
        found.warnings.append(
            f"{len(looked.dark)} of {looked.decoded} samples are all but black, no value above {DARK} of 255: "
            f"{_some(looked.dark)}. Were they converted from more bits than 8 without scaling?"
        )
    if looked.sizes:
        for side, what in enumerate(("width", "height")):
            found.facts[f"{what} in pixels"] = _range([size[side] for size in looked.sizes])
        crop = data.get("image_size")
        small = sum(min(size) < crop for size in looked.sizes) if crop else 0
        if small:
            found.warnings.append(
                f"{small} of {len(looked.sizes)} are smaller than data.image_size={crop} and will be enlarged"
            )
    if looked.frames:
        lengths = [length for length, _ in looked.frames]
        found.facts["frames of a clip"] = _range(lengths)
        if looked.fps:
            found.facts["frames a second"] = _range(round(fps, 2) for fps in looked.fps)
        found.facts["shortest clip"] = min(looked.frames)[1]
        found.facts["longest clip"] = max(looked.frames)[1]
        interval = data.get("frame_interval", 1)
        needed = (data.get("num_frames", 1) - 1) * interval + 1
        if short := sum(length < needed for length in lengths):
            found.warnings.append(
                f"{short} of {len(lengths)} clips have fewer than the {needed} frames that data.num_frames="
                f"{data.num_frames} and data.frame_interval={interval} span; their interval shrinks"
            )


def _captions(found: Findings, sources: Mapping[str, Source], cfg: DictConfig) -> None:
    """How long captions are, how many say nothing, and how many a text encoder cuts."""
    from neural_rdm.data.prompts import some_captions, too_long
    from neural_rdm.runs import build

    text = build.text(cfg)
    for split, source in sources.items():
        said, broken = some_captions(source, cfg.seed)
        if broken:
            found.warnings.append(
                f"{split}: {len(broken):,} of the samples looked at have no caption that can be read, such as "
                f"{broken[0].path}: {broken[0].reason}"
            )
        if not said:
            continue
        words = [len(caption.split()) for caption in said]
        found.facts[f"{split} words of a caption"] = _range(words)
        if text is not None:
            line = too_long(text, said)
            found.facts[f"{split} captions that condition cuts"] = line or "none of those looked at"
            found.warnings += [f"{split}: {line}"] if line else []
        elif long := sum(count > CLIP_WORDS for count in words):
            found.warnings.append(
                f"{split}: {long:,} of {len(words):,} captions looked at have more than {CLIP_WORDS} words, so that "
                "CLIP's 77 tokens do not hold them; condition=NAME counts the tokens of an encoder"
            )


def _advise(found: Findings, known: Official | None, root: Path | None, data: DictConfig, experiment: str) -> None:
    """Where to get what is missing, and the next command."""
    incomplete = any(row["official"] is not None and row["found"] < row["official"] for row in found.splits)
    if known is not None and root is not None and (incomplete or found.missing or not found.usable):
        found.advice.append(where_to_get(known))
        found.advice += [f"`{command.format(root=root)}`" for command in known.commands]
    given = "" if root is None else f" data.root={root}"
    if re.search(r"[^\w./~-]", given.partition("=")[2]):
        given = f" data.root=\"'{root}'\""
    folders = further_folders()
    options = "".join(f" --config-dir {shlex.quote(folder)}" for folder in folders)
    choice = f"{options} data={found.data}{given}"
    if not found.usable:
        found.advice.append(f"then again: `python -m neural_rdm.prepare{choice}`")
        return
    found.advice.append(f"look at it: `python -m neural_rdm.preview{choice}`")
    classes = found.facts.get("classes")
    if experiments := _experiments(found.data, folders):
        whole = official_of(data)  # which the experiments are written for
        if whole is not None and whole.classes not in (None, classes):
            given += f" backbone.num_classes={classes}"
        all_of_them = f"({len(experiments)} experiments use it: {', '.join(experiments)})"
        found.advice.append(f"train: `python -m neural_rdm.train{options} exp={experiments[0]}{given}` {all_of_them}")
    elif experiment:
        chosen = experiment.format(classes=classes)
        found.advice.append(f"train: `python -m neural_rdm.train{options} {chosen}{given}`")


def _experiments(choice: str, folders: Sequence[str] = ()) -> list[str]:
    """The experiments that choose this data set, here or in further folders of configurations."""
    line = re.compile(rf"(?m)^\s*- override /?data: {re.escape(choice)}\s*$")
    files = [file for folder in (config_dir(), *map(Path, folders)) for file in sorted(folder.glob("exp/*.yaml"))]
    return [file.stem for file in files if line.search(file.read_text(encoding="utf-8"))]


def _pictures(data: DataModule, folder: Path, found: Findings) -> list[Path]:
    """A preview of the training set; broken samples among its first ones have been reported."""
    from neural_rdm.preview import draw, gather

    try:
        return draw(gather(data, "train", PICTURES), data, folder)
    except DataError as error:
        print(f"no preview: {error}", flush=True)
        return []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _absolute(root: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(root)))


def _range(values: Iterable[float]) -> str:
    values = list(values)
    if min(values) == max(values):
        return f"{values[0]:g}"
    return f"{min(values):g} to {max(values):g}, median {statistics.median(values):g}"


def _bytes(size: float) -> str:
    power = 0 if size < 1 else min(4, int(math.log10(size) // 3))
    return f"{size / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


if __name__ == "__main__":
    main("prepare", prepare)
