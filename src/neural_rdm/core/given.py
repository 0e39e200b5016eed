"""Reading files that anybody may have made: a folder that was handed on can hold pipes, links to devices, and texts and
archives that are made to fill the memory.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

#: bytes that a member of an archive may have, whatever it unpacks from, and how many times its packed size a larger one
MOST_UNPACKED, BLOWN_UP = 1 << 28, 20
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
        for member in archive.infolist():
            if member.filename != leave_out and member.file_size > max(MOST_UNPACKED, BLOWN_UP * member.compress_size):
                return f"{member.filename} would unpack to {member.file_size / 2**30:.1f} GiB"
    return None
