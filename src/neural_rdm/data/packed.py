"""Many short texts in two arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class PackedStrings(Sequence[str]):
    """An immutable list of texts (file names of any encoding too) that takes the memory of its bytes.

    A million Python strings would also be copied into every forked loader process as their reference counts change.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        found = range(len(self))[index]
        return self._text(found) if isinstance(found, int) else [self._text(i) for i in found]

    def _text(self, index: int) -> str:
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass")


class PackedPaths(PackedStrings):
    """Paths of files in a few folders: folder k holds the next `counts[k]` of the names."""

    def __init__(self, folders: Sequence[str], names: Iterable[str], counts: Sequence[int]) -> None:
        super().__init__(names)
        self._folders, self._last = folders, np.cumsum(counts)

    def _text(self, index: int) -> str:
        folder = self._folders[int(np.searchsorted(self._last, index, side="right"))]
        return os.path.join(folder, super()._text(index))


class PackedLists:
    """An immutable list of lists of texts, packed likewise."""

    def __init__(self, lists: Iterable[Sequence[str]]) -> None:
        lists = list(lists)
        self._texts = PackedStrings(text for texts in lists for text in texts)
        self._ends = np.cumsum([0, *map(len, lists)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> list[str]:
        index = range(len(self))[index]
        return self._texts[int(self._ends[index]) : int(self._ends[index + 1])]
