"""Which files of a folder are the frames of a video, and which of several files is the picture itself."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from neural_rdm.core.errors import DataError
from neural_rdm.core.listing import file_names, natural_order, numbers_apart, walk
from neural_rdm.media.suffixes import is_image

#: endings of formats that keep every bit, the most usual one first
EXACT = (".png", ".tif", ".tiff", ".bmp", ".ppm", ".pgm")
#: what optical flow is called, as a folder or in front of a frame's number (two-stream networks, TSN, I3D)
_FLOW = frozenset({"flow", "flows", "flowx", "flowy", "brox_flow", "raft_flow"})
#: the same anywhere between the words of a name: words that mean nothing else (a flow alone may be one of lava)
_FLOW_INSIDE = re.compile(r"(^|_)(optical_?flow|opt_?flow|tvl1|farneback|flownet2?|(dense|ucf|ucf_?101)_flow)(_|$)")
_FLOW_PARTS = frozenset({"u", "v", "x", "y"})
#: pictures of the whole video, by their names
_STILLS = frozenset({
    "thumb", "thumbnail", "cover", "poster", "preview", "folder", "grid", "montage", "contact_sheet", "storyboard",
})  # fmt: skip
_STILL_FOLDERS = frozenset({"thumb", "thumbs", "thumbnail", "thumbnails", "covers", "posters", "previews"})


class Frames(NamedTuple):
    """names: the frames, in the order of their numbers; left_out: {name of another picture: why it is none}."""

    names: list[str]
    left_out: dict[str, str]


def frames_of(folder: str | os.PathLike[str]) -> Frames:
    """The frames in a folder of image files; see `frames_among`. No frame counts twice by a second name of its file.

    Raises:
        DataError: the folder cannot be read, or nothing says which of several series is the video.
    """
    names, again, _ = file_names(folder, is_image)
    try:
        frames = frames_among(names)
    except ValueError as error:
        raise DataError(f"{error}; leave the one that is the video in {folder}") from error
    return Frames(frames.names, frames.left_out | {name: f"another name of {first}" for name, first in again.items()})


def files_of(path: str | os.PathLike[str]) -> list[str]:
    """The files of a sample: itself, or the frames in a folder; see `frames_of`."""
    return [os.path.join(path, name) for name in frames_of(path).names] if os.path.isdir(path) else [os.fspath(path)]


def frames_among(names: list[str]) -> Frames:
    """Which of the images in a folder are the frames of a video.

    A frame that is there in two formats is one frame: the exact one. No frames are optical flow (`flow_x_00001.jpg`
    beside `img_00001.jpg`) and pictures of the whole video (`cover.jpg`).

    Raises:
        ValueError: several series have the same numbers (`image_1`, `mask_1`).
    """
    kinds = {re.sub(r"[0-9]+", "#", name) for name in names}
    if len(kinds) == 1 and not is_flow(_series(kind := kinds.pop())):
        plain = len({len(name) for name in names}) == 1 and not re.search(r"#.*#|-#", kind)
        return Frames(sorted(names) if plain else natural_order(names), {})
    kept, twice = one_format(names)
    left_out = {name: f"{other} in another format" for name, other in twice.items()}
    series: dict[str, list[str]] = defaultdict(list)
    for name in kept:
        stem = os.path.splitext(name)[0]
        if stem.casefold() in _STILLS and len(kept) > 1:
            left_out[name] = "a picture of the whole video"
        else:
            series[numbers_apart(stem)[0]].append(name)
    flow = [text for text in series if "#" in text and is_flow(_series(text), len(series) > 1)]
    for text in flow:
        left_out |= dict.fromkeys(series.pop(text), "optical flow")
    seen: dict[object, str] = {}
    for name in (name for group in series.values() if len(group) > 1 for name in group):
        numbers = numbers_apart(os.path.splitext(name)[0])[1]
        if numbers and (other := seen.setdefault(numbers, name)) != name:
            raise ValueError(f"several series of frames in one folder, such as {other} and {name}")
    return Frames(natural_order([name for group in series.values() for name in group]), left_out)


def _series(text: str) -> str:
    """What a series is called: its names without numbers and ending."""
    return text.partition("#")[0].strip("_-. ")


def one_format(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """One name of each that differ in their endings only: the exact format, or else the first by name.

    Returns:
        The names that stay, and {other name: the one that stays}.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[os.path.splitext(name)[0]].append(name)
    first = {stem: min(group, key=_exactness) for stem, group in groups.items()}
    twice = {name: first[stem] for stem, group in groups.items() for name in group if name != first[stem]}
    return list(first.values()), twice


def is_exact(name: str) -> bool:
    """Whether an ending is of a format that keeps every bit."""
    return os.path.splitext(name)[1].lower() in EXACT


def _exactness(name: str) -> tuple[int, str]:
    suffix = os.path.splitext(name)[1].lower()
    return EXACT.index(suffix) if suffix in EXACT else len(EXACT), name


def is_flow(name: str, inside_flow: bool = False) -> bool:
    """Whether a folder, or what stands before the numbers of a series, is called as optical flow is.

    Args:
        inside_flow: something beside or above it says so: `u`, `v`, `x` and `y` are then the flow's directions.
    """
    name = name.casefold().replace("-", "_").replace(" ", "_")
    if name in _FLOW or name.startswith("flow_") or _FLOW_INSIDE.search(name):
        return True
    return inside_flow and name in _FLOW_PARTS


def flow_folders(here: str | os.PathLike[str], folders: Sequence[str]) -> list[str]:
    """Those of the folders in `here` that hold optical flow: by their names, or `u` and `v` with folders of the same
    names in both.
    """
    found = [name for name in folders if is_flow(name)]
    both = [name for name in folders if name.casefold() in ("u", "v")]
    if len(both) == 2:
        inside = [sorted(next(walk(os.path.join(here, name)), ("", [], []))[1]) for name in both]
        found += both if inside[0] and inside[0] == inside[1] else []
    return found


def is_still_folder(name: str) -> bool:
    """Whether a folder is called as folders of thumbnails are."""
    return name.casefold() in _STILL_FOLDERS
