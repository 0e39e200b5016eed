"""CSV records: appended, widened, cut back; a killed and resumed file ends byte for byte as an unbroken one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neural_rdm.core.records import StepRecords, last_step, read_rows, truncate


def test_rows_are_on_disk_at_once_and_floats_are_exact(tmp_path: Path) -> None:
    records = StepRecords(tmp_path / "sub" / "a.csv")
    records.append([{"step": 1, "loss": 0.1 + 0.2}])
    assert (tmp_path / "sub" / "a.csv").read_bytes() == b"step,loss\n1,0.30000000000000004\n"
    records.append([{"step": 2, "loss": None}, {"step": 3}])
    assert (tmp_path / "sub" / "a.csv").read_text().splitlines()[2:] == ["2,", "3,"]


def test_a_new_column_widens_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    records = StepRecords(path)
    records.append([{"step": 1, "loss": 1.0}])
    records.append([{"step": 2, "val": 5.0, "loss": 2.0}])
    assert path.read_text() == "step,loss,val\n1,1.0,\n2,2.0,5.0\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
    StepRecords(path).append([{"step": 3, "loss": 3.0}])  # another process goes on with the file's own header
    assert path.read_text().splitlines()[-1] == "3,3.0,"


def test_values_with_commas_and_quotes_survive(tmp_path: Path) -> None:
    StepRecords(tmp_path / "a.csv").append([{"step": 1, "name": 'a,"b"'}])
    assert read_rows(tmp_path / "a.csv") == [{"step": "1", "name": 'a,"b"'}]


@pytest.mark.parametrize("torn", ["3", "3,", "3,1", "3,1.0,5.0"])
def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"step,loss,val\n1,1.0,\n2,2.0,5.0\n{torn}")
    assert [row["step"] for row in read_rows(path)] == ["1", "2"]
    truncate(path, 9)
    assert path.read_text() == "step,loss,val\n1,1.0,\n2,2.0,5.0\n"


def test_truncate_drops_later_rows_and_the_columns_that_came_with_them(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    StepRecords(path).append([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "val": 5.0}])
    truncate(path, 2)
    assert path.read_text() == "step,loss\n1,1.0\n2,2.0\n"
    truncate(path, 0)
    assert not path.exists()
    truncate(path, 0)  # nothing there: nothing to do


@pytest.mark.parametrize("content", ["", "step,lo", "step,loss\n"])
def test_a_file_without_rows_starts_anew(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    truncate(path, 5)
    StepRecords(path).append([{"step": 6, "loss": 1.0}])
    assert path.read_text() == "step,loss\n6,1.0\n"


def test_an_empty_file_gets_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.touch()
    StepRecords(path).append([{"step": 1, "loss": 1.0}])
    assert path.read_text() == "step,loss\n1,1.0\n"


rows = st.dictionaries(st.sampled_from("abcd"), st.none() | st.floats(allow_nan=False), max_size=4)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    history=st.lists(rows, min_size=1, max_size=7),
    checkpoint=st.integers(0, 7),
    killed=st.integers(0, 7),
    torn=st.integers(0, 12),
    declared=st.sampled_from([("step",), ("step", "c", "a")]),
)
def test_killed_and_resumed_equals_unbroken(
    tmp_path: Path, history: list[dict[str, Any]], checkpoint: int, killed: int, torn: int, declared: tuple[str, ...]
) -> None:
    """A run writes `killed` rows, the last line loses `torn` bytes, and it goes on from the step `checkpoint`."""
    steps = [{"step": i, **row} for i, row in enumerate(history, start=1)]
    killed = min(killed, len(steps))
    checkpoint = min(checkpoint, max(killed - 1, 0))
    unbroken, broken = tmp_path / "unbroken.csv", tmp_path / "broken.csv"
    for path in (unbroken, broken):
        path.unlink(missing_ok=True)
    whole = StepRecords(unbroken, declared)
    for row in steps:
        whole.append([row])
    first = StepRecords(broken, declared)
    for row in steps[:killed]:
        first.append([row])
    if killed and torn:
        content = broken.read_bytes()
        last_line = content.rstrip(b"\n").rfind(b"\n") + 1
        broken.write_bytes(content[: max(last_line, len(content) - torn)])
    truncate(broken, checkpoint)
    second = StepRecords(broken, declared)
    for row in steps[checkpoint:]:
        second.append([row])
    assert broken.read_bytes() == unbroken.read_bytes()


WHOLE = b"step,train/loss,lr\n1,1.5,0.1\n2,1.25,0.1\n3,1.125,0.1\n4,1.0,0.1\n"


WITHOUT_2 = WHOLE.replace(b"2,1.25,0.1\n", b"")
HEADER = b"step,train/loss,lr\n"


@pytest.mark.parametrize(
    ("content", "kept", "aside"),
    [
        (b"\xef\xbb\xbf" + WHOLE, WHOLE, None),  # as a spreadsheet saves it
        (WHOLE.replace(b"\n", b"\r\n"), WHOLE, None),
        (WHOLE.replace(b"step,", b"stfp,"), WHOLE, WHOLE.replace(b"step,", b"stfp,")),
        (WHOLE.replace(b"2,1.25", b"2,1.2\xff"), WITHOUT_2, HEADER + b"2,1.2\xff,0.1\n"),
        (WHOLE.replace(b"2,1.25,", b"2,1.25;"), WITHOUT_2, HEADER + b"2,1.25;0.1\n"),
        (WHOLE.replace(b"2,1.25", b'2,"1.25'), WITHOUT_2, HEADER + b'2,"1.25,0.1\n'),
        (WHOLE.replace(b"\n2,", b"\n7,"), WITHOUT_2, HEADER + b"7,1.25,0.1\n"),
        (WHOLE.replace(b"step,", b"step;"), b"", WHOLE.replace(b"step,", b"step;")),
        (WHOLE.replace(b"train/loss", b"lr"), b"", WHOLE.replace(b"train/loss", b"lr")),
        (WHOLE.decode().encode("utf-16"), b"", WHOLE.decode().encode("utf-16")),
    ],
    ids=["bom", "crlf", "step", "byte", "cells", "quote", "digit", "delimiter", "twice", "utf-16"],
)  # fmt: skip
def test_what_cannot_be_read_is_kept_beside_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, kept: bytes, aside: bytes | None
) -> None:
    for cut in (True, False):  # as a resume does it, and as one who only appends does
        path = tmp_path / str(cut) / "metrics.csv"
        path.parent.mkdir()
        path.write_bytes(content)
        if cut:
            truncate(path, 4)
        StepRecords(path).append([{"step": 5, "train/loss": 0.5, "lr": 0.1}])
        added = b"5,0.5,0.1\n" if kept else b"step,train/loss,lr\n5,0.5,0.1\n"
        assert path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r", b"") == kept + added
        said, beside = capsys.readouterr().out, path.with_name("metrics.unreadable-1.csv")
        assert beside.exists() == (aside is not None) == ("cannot be read" in said)
        if aside is not None:
            assert beside.read_bytes() == aside
            assert "kept in metrics.unreadable-1.csv" in said


def test_what_a_kill_cut_short_is_told_only_where_its_step_is_not_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(WHOLE + b"9,0.1,0.")
    truncate(path, 4)
    assert (path.read_bytes(), capsys.readouterr().out) == (WHOLE, "")
    path.write_bytes(WHOLE.removesuffix(b"\n"))
    truncate(path, 4)
    assert path.with_name("metrics.unreadable-1.csv").read_bytes().endswith(b"\n4,1.0,0.1\n")
    assert "1 of its 4 rows cannot be read" in capsys.readouterr().out


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    """A run folder of somebody else's may hold one."""
    for name, content in (("there", "step,loss\n1,0.5\n2,0.4\n"), ("nowhere", None)):
        private, table = tmp_path / name, tmp_path / f"{name}.csv"
        if content is not None:
            private.write_text(content)
        table.symlink_to(private)
        truncate(table, 1)
        StepRecords(table).append([{"step": 2, "loss": 0.3}])
        assert (private.read_text() if private.exists() else None) == content
        assert not table.is_symlink()


@pytest.mark.parametrize("count", [0, 1, 3, 20_000])
def test_the_last_step_is_read_from_the_end(tmp_path: Path, count: int) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n" + "".join(f"{step},0.{step}\n" for step in range(10, 10 + count)) + "99999,0.")
    assert last_step(path) == (9 + count if count else None)  # the last line was cut short
    path.write_text(path.read_text() + "5\n")
    assert last_step(path) == 99999


def test_the_last_step_is_found_in_rows_of_any_length(tmp_path: Path) -> None:
    path, names = tmp_path / "metrics.csv", [f"unit {i}" for i in range(15_000)]
    StepRecords(path).append([{"step": step} | dict.fromkeys(names, 0.125 + step) for step in range(3)])
    assert path.stat().st_size > 3 * (1 << 16)
    assert last_step(path) == 2


def test_a_step_of_thousands_of_digits_is_a_damaged_row(tmp_path: Path) -> None:
    path, long = tmp_path / "metrics.csv", "9" * 5000
    path.write_text(f"step,loss\n1,0.5\n{long},0.25\n{long},0.")
    assert last_step(path) == 1
    assert read_rows(path) == [{"step": "1", "loss": "0.5"}]
    truncate(path, 1)
    assert path.read_text() == "step,loss\n1,0.5\n"


def test_the_last_step_of_a_file_of_nothing_is_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    for text in ("", "step,loss", "step,loss\n"):
        path.write_text(text)
        assert last_step(path) is None
    with pytest.raises(OSError):
        last_step(tmp_path / "missing.csv")
