"""Samples that cannot be read: counted, listed once in `bad_samples.csv`, and too many of them stop the run."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from neural_rdm.core.errors import BrokenSample, LoaderError
from neural_rdm.core.files import cannot_write
from neural_rdm.data.described import SPLITS

FILE = "bad_samples.csv"
COLUMNS = ("split", "index", "path", "reason", "position", "replacement")
_SHOWN = 5  # so many are printed, or quoted when the run stops; the list has them all


class TooManyBad(LoaderError):
    """More samples are broken than `data.max_bad_fraction` allows.

    Attributes:
        facts: how many and which, without what to do; empty where it comes out of a loader's worker.
    """

    def __init__(self, message: str, facts: str = "") -> None:
        super().__init__(message)
        self.facts = facts


class BadSamples:
    """The bad samples of one split: of all loader processes, of all ranks, and of a run from before its resume.

    Every sample is listed once, by whichever process meets it first: rows are appended to `folder/bad_samples.csv`
    under a lock. The file is what counts, so where it is deleted (after repairs, say) the next run starts anew. Without
    a folder the samples are printed, and counted over the workers of this process.

    Args:
        size: N, samples of the split that are used.
        fraction: `data.max_bad_fraction`; see `bad_allowed`.
        folder: the run folder, None for no file.
        left_out: what the split's listing has left out already (an empty class folder, a line that cannot be read):
            of the whole split, of which it may be a share of `fraction`.
        length: samples of the whole split, where `data.limit` uses fewer.
    """

    def __init__(
        self,
        split: str,
        size: int,
        fraction: float,
        folder: Path | None = None,
        left_out: Sequence[BrokenSample] = (),
        length: int = 0,
    ) -> None:
        self.split, self.size, self.fraction = split, size, fraction
        self.most = bad_allowed(fraction, size)
        self.file = None if folder is None else folder / FILE
        self._bad = torch.zeros(max(size, length), dtype=torch.uint8)  # 1 for each bad sample
        self._left_out = torch.zeros(1, dtype=torch.int64)  # number of those without an index
        self._first: list[str] = []
        self._unreadable = 0  # lines of the list, as far as they were spoken of
        if left_out:
            self._add([(None, error, None, None) for error in left_out])
            self.add({}, None, None)

    def share_memory(self) -> None:
        """Count over the processes that are forked (or spawned) from now on."""
        self._bad.share_memory_()
        self._left_out.share_memory_()

    @property
    def count(self) -> int:
        """How many are listed."""
        return int(self._bad.sum(dtype=torch.int64) + self._left_out)

    def add(self, found: Mapping[int, BrokenSample], position: int | None, replacement: int | None) -> None:
        """List the samples `found` ({index: what is wrong}), each once.

        Args:
            position: which place in the run (or in the split) they were to take.
            replacement: index of the sample that takes it, None for none.

        Raises:
            LoaderError: more than `data.max_bad_fraction` of the split are bad by now, or the list cannot be written.
        """
        new = [(index, error, position, replacement) for index, error in found.items() if not self._bad[index]]
        if new:
            self._add(new)
        for count, size in ((self.count, len(self._bad)), (self.count - int(self._left_out), self.size)):
            if count > bad_allowed(self.fraction, size):
                self._stop(count, size)

    def _add(self, rows: Sequence[tuple[int | None, BrokenSample, int | None, int | None]]) -> None:
        with self._locked() as file:
            known = self._known(file)
            before = self.count
            new = []
            for index, error, position, replacement in rows:
                if (error.path if index is None else index) in known or (index is not None and self._bad[index]):
                    continue
                (self._left_out if index is None else self._bad)[index or 0] += 1
                new.append((self.split, index, error.path, error.reason, position, replacement))
            if file is not None and new:
                _append(file, new)
        for number, (_, _, named, reason, _, replacement) in enumerate(new, start=before):
            path = named.replace("\n", r"\n")  # a name makes no line of its own of what is printed
            self._first = [*self._first, f"{path}: {reason}"][:_SHOWN]
            if self.file is None or number < _SHOWN:
                place = "left out" if replacement is None else f"sample {replacement} takes its place"
                print(f"bad {self.split} sample {path}: {reason}; {place}", flush=True)
            elif number == _SHOWN:
                print(f"more than {_SHOWN} bad samples; the others are only listed in {self.file}", flush=True)

    def _known(self, file: BinaryIO | None) -> set[int | str]:
        """Indices (or, without one, paths) that the file lists of this split; they are counted here too."""
        if file is None:
            return set()
        file.seek(0)
        known: dict[int | str, str] = {}
        unreadable = 0
        # by their places: a spreadsheet, or a damaged letter, may have changed the names in the first line
        for cells in csv.reader(io.StringIO(file.read().decode("utf-8-sig", "replace"))):
            if len(cells) != len(COLUMNS) or not cells[0]:
                unreadable += bool(cells)
                continue
            row = dict(zip(COLUMNS, cells, strict=True))
            key = row["index"] or row["path"]
            if row["split"] == self.split and key:
                known[int(key) if key.isascii() and key.isdigit() else key] = f"{row['path']}: {row['reason']}"
        if unreadable > self._unreadable:
            self._unreadable = unreadable
            print(
                f"{self.file}: {unreadable} lines cannot be read; they stay as they are, and these samples are listed "
                "again when they are met",
                flush=True,
            )
        indices = [key for key in known if isinstance(key, int) and key < len(self._bad)]
        self._bad[indices] = 1
        self._left_out[0] = sum(isinstance(key, str) for key in known)
        self._first = list(known.values())[:_SHOWN]
        return set(known)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO | None]:
        """The file, open for reading and appending, for this process alone."""
        if self.file is None:
            yield None
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a+b") as file:
                with contextlib.suppress(ImportError, OSError):  # Windows, and file systems without locks
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed
                yield file
        except OSError as error:
            raise LoaderError(cannot_write(self.file, error)) from error

    def _stop(self, count: int, size: int) -> None:
        name = SPLITS.get(self.split, self.split)
        listed, again = ("", "") if self.file is None else (f", listed in {self.file}", ", delete that list and resume")
        shown = "".join(f"\n  {line}" for line in self._first)
        facts = (
            f"{count} of {size} {name} samples cannot be read so far{listed}; "
            f"data.max_bad_fraction={self.fraction:g} allows {bad_allowed(self.fraction, size)}.{shown}"
        )
        raise TooManyBad(f"{facts}\nReplace or remove them{again}, or raise data.max_bad_fraction.", facts)


def bad_allowed(fraction: float, size: int) -> int:
    """How many of `size` things may be bad: floor(fraction * size), but one where the fraction is not 0 (of 50 pictures
    one is 2 %), and never all of them.
    """
    return min(max(1, int(fraction * size + 1e-9)), size - 1) if fraction else 0


def _append(file: BinaryIO, rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        writer.writerow(COLUMNS)
    else:
        file.seek(end - 1)
        text.write("" if file.read(1) == b"\n" else "\n")  # a line that a kill or a full disk cut short
    writer.writerows(rows)
    file.write(text.getvalue().encode("utf-8"))
    file.flush()
