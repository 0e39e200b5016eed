"""Which files below a folder are samples: each picture and clip once, or a refusal that says what is there twice."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from neural_rdm.core.errors import DataError
from neural_rdm.core.files import sha256_of
from neural_rdm.core.listing import each_once, natural_order, walk
from neural_rdm.media.frames import files_of, is_exact, one_format
from neural_rdm.media.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_image

CLIP_SUFFIXES = VIDEO_SUFFIXES | {".gif"}
_END = 256  # bytes
SAMPLING = "sampling.json"  # what `sample` writes beside its samples


@dataclass
class Listed:
    """The samples below a folder.

    Attributes:
        kind: "image" or "clip".
        paths: files, or folders of frames, in natural order of their names.
        classes: name of the class folder of each, where all lie in folders directly below; otherwise None.
        notes: what was left out, in sentences.
    """

    kind: str
    paths: list[Path]
    classes: list[str] | None = None
    notes: list[str] = field(default_factory=list)


def list_samples(top: Path, frames: bool = False) -> Listed:
    """Image files, or video files and GIFs, below a folder; the pictures `grid` beside a `sampling.json` are none.

    A file that has several names (links) counts once. Of a picture in several formats the one that keeps every bit is
    taken. Both are said in the notes.

    Args:
        frames: folders that hold images are clips.

    Raises:
        DataError: no samples; images beside clips; a picture in two formats of which neither is exact, a clip in two
            formats; samples in a folder and in folders below it; a folder that is a copy of another one.
    """
    found, again = _files(top)
    notes = [f"{len(again)} second names of files are left out, such as {again[0]}"] if again else []
    if frames:
        found["clip"] += sorted({image.parent for image in found.pop("image")})
    there = {kind: paths for kind, paths in found.items() if paths}
    if not there:
        images, clips = (" ".join(sorted(suffixes)) for suffixes in (IMAGE_SUFFIXES, CLIP_SUFFIXES))
        raise DataError(f"{top} holds no images ({images}) and no clips ({clips})")
    if len(there) > 1:
        some = " and ".join(str(paths[0]) for paths in there.values())
        raise DataError(f"{top} holds images and clips ({some}); put them into two folders")
    ((kind, paths),) = there.items()
    if kind == "image":
        paths, twice = _one_format_each(top, paths)
        for other, first in list(twice.items())[:1]:
            notes.append(
                f"{len(twice)} files are left out, since the same pictures lie beside them in an exact format "
                f"({other.suffix} beside {first.name}, for example)"
            )
    else:
        _refuse_two_formats(top, paths)
    _refuse_two_depths(top, paths)
    if twins := _refuse_copies(top, paths):
        notes.append(twins)
    paths = natural_order(paths, lambda path: path.relative_to(top).as_posix())
    parents = [path.parent for path in paths]
    labelled = all(parent.parent == top for parent in parents) and not any(path.is_dir() for path in paths)
    return Listed(kind, paths, [parent.name for parent in parents] if labelled else None, notes)


def _files(top: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Images and clips, each file once, and the names that are second ones; those that are no links go first."""
    found: dict[str, list[Path]] = {"image": [], "clip": []}
    again: list[Path] = []
    for folder, _, files in walk(top):
        drawn = SAMPLING in files
        for name in files:
            stem, suffix = os.path.splitext(name)
            kind = "image" if is_image(name) else "clip" if suffix.lower() in CLIP_SUFFIXES else None
            if kind is not None and not (drawn and stem == "grid"):
                found[kind].append(Path(folder) / name)
    for kind, paths in found.items():
        kept, others = each_once(paths)
        found[kind], again = sorted(kept), again + others
    return found, again


def _one_format_each(top: Path, files: list[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """Those of the images that stay where some lie there in several formats, and {other: the one that stays}."""
    kept, others = one_format(map(os.fspath, files))
    for name, first in others.items():
        if is_exact(name) or not is_exact(first):
            raise DataError(
                f"{top} holds {first} and {name}: {len(others)} pictures lie there twice; make one folder for each "
                "kind of file, or leave one of the two"
            )
    return list(map(Path, kept)), {Path(name): Path(first) for name, first in others.items()}


def _refuse_two_formats(top: Path, clips: list[Path]) -> None:
    seen: dict[Path, Path] = {}
    for clip in clips:
        name = clip if clip.is_dir() else clip.with_suffix("")
        if (other := seen.setdefault(name, clip)) is not clip:
            raise DataError(f"{top} holds {other} and {clip}, a clip twice; make one folder for each kind of file")


def _refuse_two_depths(top: Path, paths: list[Path]) -> None:
    """Samples directly in a folder and below it: which of them are meant?"""
    depths: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        depths[len(path.parts)].append(path)
    if len(depths) > 1:
        some = " and ".join(f"{len(there)} as {there[0]}" for _, there in sorted(depths.items()))
        raise DataError(f"{top} holds samples at several depths ({some}); pass a folder that holds one set of them")


def _refuse_copies(top: Path, paths: list[Path]) -> str:
    """A folder whose samples are all in another one too: the same content, or the same names in another format.

    Folders of one and the same picture are no copies unless their names are the same, too.

    Returns:
        How many samples have the content of another one; "" where none have.
    """
    content = _contents(paths)
    inside: dict[Path, dict[str, Path]] = defaultdict(dict)
    holders: dict[int, set[Path]] = defaultdict(set)
    for path in paths:
        inside[path.parent][path.name if path.is_dir() else path.stem] = path
        holders[content[path]].add(path.parent)
    kinds: dict[frozenset[str], Path] = {}
    for folder, samples in inside.items():
        other = kinds.setdefault(frozenset(samples), folder)
        if _of_one_kind(samples) != _of_one_kind(inside[other]):
            raise _copied(top, samples, folder, other)
        own = {content[path] for path in samples.values()}
        for other in sorted(set.intersection(*(holders[number] for number in own)) - {folder}):
            if len(own) > 1 or samples.keys() <= inside[other].keys():
                raise _copied(top, samples, folder, other)
    numbers: dict[int, Path] = {}
    twins = [(path, first) for path in paths if (first := numbers.setdefault(content[path], path)) is not path]
    if not twins:
        return ""
    return (
        f"{len(twins)} of {len(paths)} samples have the content of another one, such as {twins[0][0]} that of "
        f"{twins[0][1]}: each counts"
    )


def _of_one_kind(samples: dict[str, Path]) -> str | None:
    """The ending of all files of a folder; None where they have several."""
    suffixes = {path.suffix.lower() for path in samples.values()}
    return suffixes.pop() if len(suffixes) == 1 else None


def _copied(top: Path, samples: dict[str, Path], folder: Path, other: Path) -> DataError:
    return DataError(
        f"{top}: the {len(samples)} samples in {folder} are in {other} as well, such as {samples[min(samples)].name}; "
        "pass the folder of one set, or remove the copy"
    )


def _contents(paths: list[Path]) -> dict[Path, int]:
    """A number for each sample, the same for those whose files have the same bytes; what cannot be read is alone."""
    groups = [paths]
    # the next one is asked only of those that are alike so far
    for key in (_sizes, _ends, lambda files: sha256_of(*files)):
        apart: list[list[Path]] = []
        for group in groups:
            alike: dict[object, list[Path]] = defaultdict(list)
            for path in group:
                try:
                    alike[key(files_of(path)) or path if len(group) > 1 else None].append(path)
                except (OSError, DataError):
                    alike[path].append(path)
            apart += alike.values()
        groups = apart
    return {path: number for number, group in enumerate(groups) for path in group}


def _sizes(files: list[str]) -> tuple[int, ...]:
    return tuple(map(os.path.getsize, files))


def _ends(files: list[str]) -> tuple[bytes, bytes]:
    """How the first file begins and ends; most formats have a checksum at the end."""
    with open(files[0], "rb") as file:
        begin = file.read(_END)
        file.seek(max(0, os.fstat(file.fileno()).st_size - _END))
        return begin, file.read()
