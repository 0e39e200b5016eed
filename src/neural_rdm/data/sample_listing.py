"""Which files below a folder are samples: each picture and clip once, or a refusal that says what is there twice."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from neural_rdm.core.errors import DataError
from neural_rdm.core.layouts import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_image
from neural_rdm.core.listing import Identity, identity, natural_order, walk
from neural_rdm.data.frames import frames_of, is_exact, one_format

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
    there = [kind for kind, paths in found.items() if paths]
    if len(there) != 1:
        some = " and ".join(str(found[kind][0]) for kind in there)
        raise DataError(
            f"{top} holds images and clips ({some}); put them into two folders"
            if some
            else f"{top} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))}) and no clips "
            f"({' '.join(sorted(CLIP_SUFFIXES))})"
        )
    (kind,), paths = there, found[there[0]]
    files = [path for path in paths if not path.is_dir()]
    if kind == "image":
        files, twice = _one_format_each(top, files)
        paths = files
        if twice:
            notes.append(f"{len(twice)} files are left out, since the same pictures lie beside them in an exact format "
                         f"({twice[0].suffix} beside {_beside(twice[0], files).name}, for example)")  # fmt: skip
    else:
        _refuse_two_formats(top, paths)
    _refuse_two_depths(top, paths)
    if twins := _refuse_copies(top, paths):
        notes.append(twins)
    paths = natural_order(paths, lambda path: path.relative_to(top).as_posix())
    parents = [path.parent for path in paths]
    labelled = all(parent.parent == top for parent in parents) and len(files) == len(paths)
    return Listed(kind, paths, [parent.name for parent in parents] if labelled else None, notes)


def _files(top: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Images and clips, each file once, and the names that are second ones; those that are no links go first."""
    found: dict[str, list[Path]] = {"image": [], "clip": []}
    names: list[tuple[str, Path]] = []
    for folder, _, files in walk(top):
        drawn = SAMPLING in files
        for name in files:
            stem, suffix = os.path.splitext(name)
            kind = "image" if is_image(name) else "clip" if suffix.lower() in CLIP_SUFFIXES else None
            if kind is not None and not (drawn and stem == "grid"):
                names.append((kind, Path(folder) / name))
    seen: dict[Identity, Path] = {}
    again = []
    for kind, path in sorted(names, key=lambda entry: os.path.islink(entry[1])):
        which = identity(path)
        if which is not None and not path.is_file():
            continue  # a pipe, which would be waited for without end
        if which is not None and seen.setdefault(which, path) is not path:
            again.append(path)
        else:
            found[kind].append(path)
    return {kind: sorted(paths) for kind, paths in found.items()}, again


def _one_format_each(top: Path, files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Those of the images that stay where some lie there in several formats, and the others."""
    kept, others = one_format(map(os.fspath, files))
    stems = Counter(os.path.splitext(name)[0] for name in others)
    for name, first in others.items():
        if is_exact(name) or not is_exact(first):
            count = sum(stems.values())
            raise DataError(
                f"{top} holds {first} and {name}: {count} pictures lie there twice; make one folder for each kind of "
                "file, or leave one of the two"
            )
    return list(map(Path, kept)), list(map(Path, others))


def _beside(path: Path, files: list[Path]) -> Path:
    return next(other for other in files if other.with_suffix("") == path.with_suffix(""))


def _refuse_two_formats(top: Path, clips: list[Path]) -> None:
    seen: dict[Path, Path] = {}
    for clip in clips:
        name = clip if clip.is_dir() else clip.with_suffix("")
        if (other := seen.setdefault(name, clip)) is not clip:
            raise DataError(f"{top} holds {other} and {clip}, a clip twice; make one folder for each kind of file")


def _refuse_two_depths(top: Path, paths: list[Path]) -> None:
    """Samples directly in a folder and below it: which of them are meant?"""
    first: dict[int, Path] = {}
    for path in paths:
        first.setdefault(len(path.relative_to(top).parts), path)
    if len(first) > 1:
        counts = Counter(len(path.relative_to(top).parts) for path in paths)
        some = " and ".join(f"{counts[depth]} as {path}" for depth, path in sorted(first.items()))
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
        if (other := kinds.setdefault(frozenset(samples), folder)) is not folder and _of_one_kind(
            samples
        ) != _of_one_kind(inside[other]):
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
    """A number for each sample, the same for those whose files have the same bytes."""
    groups = [paths]
    for key in (_sizes, _ends, _digest):  # the next one is asked only of those that are alike so far
        apart: list[list[Path]] = []
        for group in groups:
            alike: dict[object, list[Path]] = defaultdict(list)
            for path in group:
                alike[key(path) if len(group) > 1 else None].append(path)
            apart += alike.values()
        groups = apart
    return {path: number for number, group in enumerate(groups) for path in group}


def _parts(path: Path) -> list[Path]:
    """The files of a sample."""
    return [path / name for name in frames_of(path).names] if path.is_dir() else [path]


def _sizes(path: Path) -> object:
    """Bytes of each of its files; of what cannot be read, its path."""
    try:
        return tuple(file.stat().st_size for file in _parts(path)) or path
    except (OSError, DataError):
        return path


def _ends(path: Path) -> object:
    """How its first file begins and ends; most formats have a checksum at the end."""
    try:
        with open(_parts(path)[0], "rb") as file:
            begin = file.read(_END)
            file.seek(max(0, os.fstat(file.fileno()).st_size - _END))
            return begin, file.read()
    except OSError:
        return path


def _digest(path: Path) -> object:
    """sha256 of its files, one after the other."""
    digest = hashlib.sha256()
    try:
        for part in _parts(path):
            with open(part, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    except OSError:
        return path
    return digest.digest()
