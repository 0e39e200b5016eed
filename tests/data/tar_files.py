"""Small tar shards for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image


def jpeg(colour: int = 0, size: int = 16) -> bytes:
    """A grey picture."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), (colour, colour, colour)).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of files in the given order; the default format is webdataset's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(root: Path, counts: Iterable[int], ending: str = "txt", prefix: str = "train") -> Path:
    """Shards of so many samples each; sample i of all is a picture of grey i, "picture i" or of class i mod 3."""
    number = 0
    for shard, count in enumerate(counts):
        members = []
        for i in range(number, number + count):
            said = {"txt": f"picture {i}", "cls": str(i % 3), "json": f'{{"said": ["picture {i}", "again {i}"]}}'}[
                ending
            ]
            members += [(f"{i:06d}.jpg", jpeg(i)), (f"{i:06d}.{ending}", said.encode())]
        write_tar(root / f"{prefix}-{shard:06d}.tar", members)
        number += count
    return root
