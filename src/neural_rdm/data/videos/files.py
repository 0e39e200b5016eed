"""Which videos lie in a folder: files and folders of frames, and which of two that bear one name is the video."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from neural_rdm.core.errors import DataError
from neural_rdm.core.listing import each_once, natural_order, walk
from neural_rdm.data.layouts import is_held_out
from neural_rdm.media.frames import flow_folders, frames_among, is_still_folder
from neural_rdm.media.suffixes import is_image, is_video

#: clips of Taichi-HD: no two of them bear the same name
_CUT = re.compile(r".+#\d+#\d+")
#: what is appended to the name of a video for its frames, as a folder and as pictures
_OF_FOLDER = re.compile(r"[-_. ](?:frames?|images?|imgs?|jpe?gs?|pngs?)$", re.IGNORECASE)
_OF_PICTURE = re.compile(
    r"(?:[-_. ]+(?:\d+|(?:key)?frame|thumb(?:nail)?|preview|poster|cover|still)s?)+$", re.IGNORECASE
)
_AS_FILES = "folders of frames left out for the video files of the same name"


@dataclass
class Candidates:
    """What may be a video in a folder.

    Attributes:
        top: the folder.
        files: video files, each once whatever its names; a link that leads nowhere is one too.
        folders: folders that directly hold frames.
        passed: {what kind of thing is no video: paths of such}.
        held_out: folders that were not entered, since what they hold is held out.
    """

    top: Path
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    passed: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    held_out: list[Path] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What was passed over, a sentence for each kind."""
        texts = [f"{len(paths)} {what}, such as {paths[0]}" for what, paths in self.passed.items()]
        if self.held_out:
            some = ", ".join(map(str, self.held_out[:3])) + (", ..." if len(self.held_out) > 3 else "")
            texts.append(f"held out by the name, not trained on: {some}")
        return texts


def find_candidates(top: Path, is_root: bool = False, training: bool = False) -> Candidates:
    """Look for videos below `top`.

    No video is a picture beside a video file or of the name of a folder beside it (a thumbnail), optical flow, a still
    beside folders of frames, and the folder `top` itself where there is anything else.

    Args:
        is_root: `top` is the folder of the data set itself, and is trained on: pictures directly in it are stills.
        training: the videos are trained on: what is held out is not entered.
    """
    found = Candidates(top)
    videos: list[Path] = []
    for directory, folders, names in walk(top):
        here = Path(directory)
        _leave_out(found, here, folders, is_root or training)
        inside = [here / name for name in names if is_video(name)]
        videos += inside
        _take_frames(found, here, [name for name in names if is_image(name)], folders, bool(inside))
    found.files, again = each_once(videos)
    if again:
        found.passed["second names of video files left out"] = again
    if top in found.folders and (is_root or found.files or len(found.folders) > 1):
        found.folders.remove(top)
        found.passed["folder of loose stills is no video"].append(top)
    _leave_thumbnails(found)
    return found


def _leave_out(found: Candidates, here: Path, folders: list[str], training: bool) -> None:
    """Shorten the list of folders that are entered."""
    flow = flow_folders(here, folders)
    stills = [name for name in folders if is_still_folder(name)]
    apart = [name for name in folders if training and is_held_out(name)]
    for what, names in (("folders of optical flow left out", flow), ("folders of thumbnails left out", stills)):
        for name in names:
            found.passed[what].append(here / name)
    found.held_out += [here / name for name in apart]
    folders[:] = [name for name in folders if name not in {*flow, *stills, *apart}]


def _take_frames(found: Candidates, here: Path, images: list[str], folders: list[str], beside_videos: bool) -> None:
    """Whether the images directly in a folder are the frames of a video."""
    beside = {name.casefold() for name in folders}
    frames = [name for name in images if os.path.splitext(name)[0].casefold() not in beside]
    if beside_videos or len(frames) <= bool(folders):
        what = "video files" if beside_videos else "folders"
        if images:
            found.passed[f"pictures beside {what} are no videos and left out"] += [here / name for name in images]
        return
    try:
        taken = frames_among(frames)
    except ValueError:  # a broken sample, which will say why
        found.folders.append(here)
        return
    for what in sorted(set(map(_kind, taken.left_out.values()))):
        found.passed[what].append(here)
    if taken.names:
        found.folders.append(here)


def _kind(reason: str) -> str:
    """What to say of a folder where this is why a picture is no frame."""
    if reason.endswith("format"):
        return "folders hold frames in two formats, which count once"
    return f"folders hold {reason.removeprefix('a ')}, which is left out"


def _leave_thumbnails(found: Candidates) -> None:
    """Pictures in a folder of their own that bear the names of videos (or names made of those of videos beside the
    folder), or of the frames in the folder above.
    """
    names = {clip_name(path).casefold() for path in found.files}
    beside = {(path.parent, clip_name(path).casefold()) for path in found.files}
    held = set(found.folders)
    for folder in list(found.folders) if names else [folder for folder in held if folder.parent in held]:
        pictures = _stems(folder)
        if all(n in names or (folder.parent, _OF_PICTURE.sub("", n)) in beside for n in pictures):
            found.passed["folders of thumbnails left out"].append(folder)
        elif folder.parent in held and pictures == _stems(folder.parent):
            found.passed["folders of pictures called as the frames above them left out"].append(folder)
        else:
            continue
        found.folders.remove(folder)


def _stems(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {os.path.splitext(entry.name)[0].casefold() for entry in entries if is_image(entry.name)}


def find_videos(top: Path, is_root: bool = False, training: bool = False) -> tuple[list[Path], list[str]]:
    """The videos below a folder (see `find_candidates`) in natural order, each once, and what a user should know of
    them.

    Where a video is there as a file and as a folder of frames (beside it, or below a folder that bears its name, or
    anywhere if only one file has the name), it is the file.

    Raises:
        DataError: a video is there as two files of different formats, or a clip of Taichi-HD in two places.
    """
    found = find_candidates(top, is_root, training)
    places: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in found.files:
        places[path.parent, clip_name(path)].append(path)
    beside = {(folder, name.casefold()) for folder, name in places}
    counts = Counter(clip_name(path).casefold() for path in found.files)
    folders = []
    for folder in found.folders:
        above = [folder, *(path for path in folder.parents if path.is_relative_to(top) and path != top)]
        names = [(path.parent, name.casefold()) for path in above for name in _called(path)]
        if any(counts[name.casefold()] == 1 for name in _called(folder)) or not beside.isdisjoint(names):
            found.passed[_AS_FILES].append(folder)
        else:
            folders.append(folder)
    cut: dict[str, list[Path]] = defaultdict(list)
    for path in [*found.files, *folders]:
        if _CUT.fullmatch(clip_name(path)):
            cut[clip_name(path)].append(path)
    for several in [*places.values(), *cut.values()]:
        if len(several) > 1:
            raise _ambiguous(several)
    return natural_order([*found.files, *folders]), found.notes()


def _called(folder: Path) -> tuple[str, str]:
    """Of which videos a folder may hold the frames, by its name."""
    name = clip_name(folder)
    return name, _OF_FOLDER.sub("", name)


def by_name(found: Candidates, names: Iterable[str]) -> tuple[dict[str, Path], list[str]]:
    """{name: its video} of those of the names that are there, and what a user should know of them.

    Case does not tell names apart, unless two videos differ in nothing else. A file goes before folders of frames.

    Args:
        names: as `clip_name` gives them.

    Raises:
        DataError: several files, or without a file several folders, bear one name.
    """
    there: dict[str, tuple[list[Path], list[Path]]] = defaultdict(lambda: ([], []))
    for kind, paths in enumerate((found.files, found.folders)):
        for path in paths:
            there[clip_name(path).casefold()][kind].append(path)
    videos: dict[str, Path] = {}
    passed: dict[Path, Path] = {}
    for name in names:
        files, folders = there.get(name.casefold(), ([], []))
        if several := files or folders:
            exactly = [path for path in several if clip_name(path) == name]
            several = exactly if len(several) > 1 and exactly else several
            if len(several) > 1:
                raise _ambiguous(several)
            videos[name] = several[0]
            passed |= dict.fromkeys(folders if files else (), several[0])
    first = next(iter(passed), None)
    notes = [] if first is None else [f"{len(passed)} {_AS_FILES}, such as {first} for {passed[first]}"]
    return videos, notes


def _ambiguous(paths: list[Path]) -> DataError:
    return DataError(
        f"data.root: which of these is the video {clip_name(paths[0])}: {', '.join(map(str, sorted(paths)))}? "
        "Leave one of them below data.root"
    )


def clip_name(path: Path) -> str:
    """A video's name without the ending; a folder of frames may have that of a file."""
    return path.stem if is_video(path.name) else path.name
