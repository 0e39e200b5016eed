"""Reading files that anybody may have made: a folder that was handed on can hold pipes, links to devices, and texts and
archives that are made to fill the memory.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

#: bytes that members of an archive may have which are more than so many times their packed size, all of them together
MOST_UNPACKED, BLOWN_UP = 1 << 28, 20
#: where diffusers keeps the part of Stable Diffusion that looks for what may not be shown
SAFETY = "stable_diffusion"
#: bytes of a configuration, or of facts about a run, that are read
MOST_TEXT = 1 << 28


def regular(path: str | Path) -> str | Path:
    """`path`, which is a file: a pipe would be waited for, and a device read for ever.

    Raises:
        OSError: it is something else, or not there.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "this is no file", str(path))
    return path


def read_given(path: str | Path) -> str:
    """The text of a file that anybody may have made, of at most `MOST_TEXT` bytes.

    Raises:
        OSError: it cannot be read, or is no file.
        ValueError: it is larger, or no text in UTF-8.
    """
    if (size := os.stat(regular(path)).st_size) > MOST_TEXT:
        raise ValueError(f"it has {size:,} bytes, and at most {MOST_TEXT:,} are read of such a file")
    return Path(path).read_text(encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """What a JSON file says that anybody may have made.

    Raises:
        OSError, ValueError: as `read_given`; or it is no JSON, or nested more deeply than anybody writes it.
    """
    try:
        return json.loads(read_given(path))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_yaml(path: str | Path) -> str:
    """The text of a YAML file that anybody may have made, and that says everything itself; see `plain_yaml`.

    Raises:
        OSError, ValueError: as `read_given`; or it has an alias.
        yaml.YAMLError: it is no YAML.
    """
    return plain_yaml(read_given(path))


def plain_yaml(text: str) -> str:
    """A YAML text that says everything itself: a few lines that refer to one another stand for more values than any
    memory has.

    Raises:
        ValueError: it has an alias.
        yaml.YAMLError: it is no YAML.
    """
    if "*" not in text:  # which is quickly seen, and parsing is slow
        return text
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it refers to parts of itself (*{event.anchor}), which no run writes")
    return text


def programs(folder: Path, parts: Mapping[str, Any]) -> str | None:
    """What in a folder of parts is a program, in words; None where all are weights, lists and settings.

    Args:
        parts: name -> its library and class, as a pipeline's model_index.json lists them beside other values.
    """
    for name, value in parts.items():
        if isinstance(value, list) and value and value[0] not in (None, "diffusers", "transformers", SAFETY):
            return f"its {name} is of {value[0]}, and neither of diffusers nor of transformers"
    found = sorted([*folder.glob("*.py"), *folder.glob("*/*.py")])
    return f"it holds {found[0].relative_to(folder)}" if found else None


def blown_up(path: str | Path, leave_out: str = "") -> str | None:
    """What is wrong with an archive that would fill the memory, in words; None for any other file. What torch writes is
    not packed at all.

    Args:
        leave_out: the name of a member that is not read at once.

    Raises:
        OSError: it is no file.
        zipfile.BadZipFile: it is damaged.
    """
    if not zipfile.is_zipfile(regular(path)):
        return None
    with zipfile.ZipFile(path) as archive:
        read = [member for member in archive.infolist() if member.filename != leave_out]
    blown = [member for member in read if member.file_size > BLOWN_UP * member.compress_size]
    size = sum(member.file_size for member in blown)
    if size <= MOST_UNPACKED:
        return None
    which = blown[0].filename if len(blown) == 1 else f"{len(blown)} of its members"
    return f"{which} would unpack to {size / 2**30:.1f} GiB"
