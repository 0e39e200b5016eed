"""Where samples lie in a tar: grouping as webdataset's, damaged and hostile files."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neural_rdm.core.errors import DataError
from neural_rdm.data.tars.index import ABSENT, BAD, IMAGE, JSON, TEXT, Table, read_index, read_indices, split_name
from tests.data.tar_files import write_shards, write_tar


def keys(table: Table) -> list[bytes]:
    return [table.names[a:b].tobytes() for a, b in zip([0, *table.ends], table.ends, strict=False)]


def contents(path: Path, table: Table, kind: int) -> list[bytes | int]:
    raw = path.read_bytes()
    return [raw[o : o + n] if o >= 0 else o for o, n in table.members[:, kind].tolist()]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_grouped_by_what_stands_before_the_first_dot(tmp_path: Path, kind: int) -> None:
    long = "d/" + "x" * 95  # beyond a plain header's 100 bytes with its ending
    members = [
        ("a/1.jpg", b"A1"), ("a/1.seg.png", b"no"), ("a/1.TXT", b"one"), ("a/1.cls", b" 7\n"),
        ("b/1.png", b"B1"), ("b/1.json", b"{}"),  # another folder, another sample
        ("a.b/2.jpeg", b"2"), ("a.b/2.pyd", b"a pickle"),  # a dot in the folder does not count
        ("nodot", b""), ("__meta__", b""), ("__meta__/x.jpg", b""), ("._a.jpg", b""), ("a.b/._2.jpg", b""),
        ("a.b/2.txt", b"two"),  # what is passed over does not part a sample
        ("3.txt", b"alone"), (f"{long}.webp", b"4"), (f"{long}.txt", b"four"),
    ]  # fmt: skip
    path = write_tar(tmp_path / "a.tar", members, kind)
    table = read_index(path)
    assert keys(table) == [b"a/1", b"b/1", b"a.b/2", b"3", long.encode()]
    assert contents(path, table, IMAGE) == [b"A1", b"B1", b"2", ABSENT, b"4"]
    assert contents(path, table, TEXT) == [b"one", ABSENT, b"two", b"alone", b"four"]
    assert contents(path, table, JSON) == [ABSENT, b"{}", ABSENT, ABSENT, ABSENT]
    assert table.labels.tolist() == [7, ABSENT, ABSENT, ABSENT, ABSENT]


def test_names_of_any_encoding_links_and_folders(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name, kind in (
            ("bäume/ä.jpg", tarfile.REGTYPE),
            ("bäume/ä.txt", tarfile.SYMTYPE),
            ("x.d", tarfile.DIRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    table = read_index(tmp_path / "a.tar")
    assert keys(table) == [b"b\xe4ume/\xe4"]
    assert table.members[0, TEXT, 0] == ABSENT


def test_duplicates_and_labels_that_are_no_numbers_are_marked(tmp_path: Path) -> None:
    members = [
        ("1.jpg", b"1"), ("1.jpg", b"2"), ("1.txt", b""), ("1.txt", b""), ("1.cls", b"1"), ("1.cls", b"1"),
        ("2.png", b"p"), ("2.jpg", b"j"), ("2.cls", b"-1"), ("3.cls", b"cat"), ("4.cls", b"9" * 40),
        ("1.jpg", b"again"),  # not beside the first: another sample, as for webdataset
    ]  # fmt: skip
    path = write_tar(tmp_path / "a.tar", members)
    table = read_index(path)
    assert keys(table) == [b"1", b"2", b"3", b"4", b"1"]
    assert contents(path, table, IMAGE) == [BAD, b"j", ABSENT, ABSENT, b"again"]
    assert table.members[0, TEXT, 0] == BAD
    assert table.labels.tolist() == [BAD, BAD, BAD, BAD, ABSENT]


def test_an_empty_shard_is_read_and_shards_are_joined(tmp_path: Path) -> None:
    write_tar(tmp_path / "empty.tar", [])
    write_shards(tmp_path, [2, 3])
    shards = [tmp_path / name for name in ("train-000000.tar", "empty.tar", "train-000001.tar", "empty.tar")]
    table, ends = read_indices(tmp_path, shards, "shards")
    assert ends.tolist() == [2, 2, 5, 5]
    assert keys(table) == [f"{i:06d}".encode() for i in range(5)]
    assert contents(shards[2], Table(*(a[2:] for a in table)), TEXT) == [b"picture 2", b"picture 3", b"picture 4"]


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 700, 1024, 1536, 3000])
def test_a_shard_that_was_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    """Also between two samples, where the tar itself has no end mark."""
    whole = write_tar(tmp_path / "a.tar", [("1.jpg", b"x" * 600), ("1.txt", b"y"), ("2.jpg", b"z" * 900)])
    os.truncate(whole, cut)
    with pytest.raises(DataError, match=r"the shard .*a\.tar cannot be read, is no tar file, or was cut off"):
        read_index(whole)


def test_other_files_are_refused(tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "a.tar", [("1.jpg", b"x")])
    (tmp_path / "b.tar").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(DataError, match=r"b\.tar is compressed.*plain \.tar"):
        read_index(tmp_path / "b.tar")
    (tmp_path / "c.tar").write_text("<html>no such file</html>" * 100)
    with pytest.raises(DataError, match=r"c\.tar cannot be read, is no tar"):
        read_index(tmp_path / "c.tar")
    with pytest.raises(DataError, match="No such file"):
        read_index(tmp_path / "d.tar")


def header(size: bytes, kind: bytes = b"0") -> bytes:
    """A header with a raw size field of 12 bytes and a right checksum."""
    block = bytearray(tarfile.TarInfo("1.jpg").tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "block",
    [
        header(b"\xff" * 8 + (-1024).to_bytes(4, "big", signed=True)),  # backwards: tarfile alone goes round for ever
        header(b"77777777777\0", b"x"), header(b"77777777777\0", b"L"),  # 8 GiB of attributes, of a name
        header(b"\x80" + b"\0" * 3 + b"\x7f" * 8), header(b"\x80" + b"\x7f" * 11),
    ],
)  # fmt: skip
def test_hostile_sizes(tmp_path: Path, block: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(header(b"00000000000\0") + block + bytes(1024))
    os.truncate(path, 1 << 33)  # sparse: what the header claims is there
    with pytest.raises(DataError, match="was cut off after 1, sample 1"):
        read_index(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=8),
    pax=st.booleans(),
)
def test_damaged_bytes_give_a_table_or_one_error(tmp_path: Path, places: list[tuple[int, int]], pax: bool) -> None:
    path = tmp_path / "a.tar"
    kind = tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT
    write_tar(path, [("ä" * 80 + ".jpg", b"x" * 600), ("1.cls", b"1"), ("2.jpg", b"z" * 900)], kind)
    content = bytearray(path.read_bytes())
    for place, value in places:
        content[place % len(content)] = value
    path.write_bytes(content)
    try:
        table = read_index(path)
    except DataError:
        return
    assert len(table.members) == len(table.labels) == len(table.ends)
    assert (table.members[..., 0] + table.members[..., 1] <= len(content)).all()


def test_an_index_is_kept_until_its_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, [2, 3])
    shards = sorted(tmp_path.glob("*.tar"))
    read: list[Path] = []
    plain = read_index
    monkeypatch.setattr("neural_rdm.data.tars.index.read_index", lambda path: read.append(path) or plain(path))

    def again() -> list[bytes]:
        read.clear()
        return keys(read_indices(tmp_path, shards, "shards")[0])

    first = again()
    assert read == shards
    assert again() == first
    assert read == []
    os.utime(shards[0], ns=(1, 1))
    assert again() == first
    assert read == shards[:1]
    write_tar(shards[1], [("new.jpg", b"1")])
    assert again() == [*first[:2], b"new"]
    assert read == shards[1:]
    for kept, content in zip(sorted((tmp_path / ".shards").iterdir()), (b"", b"PK\3\4damaged"), strict=True):
        kept.write_bytes(content)
    assert again() == [*first[:2], b"new"]
    assert read == shards
    # An index that would have to be unpickled is not.
    file = io.BytesIO()
    np.savez(file, stamp=np.array([{}], dtype=object))
    next((tmp_path / ".shards").iterdir()).write_bytes(file.getvalue())
    assert again() == [*first[:2], b"new"]


def test_shards_in_a_folder_that_may_only_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path, [2])
    (tmp_path / ".shards").touch()  # no folder can be made here, by root neither
    table, _ = read_indices(tmp_path, [tmp_path / "train-000000.tar"], "shards")
    assert len(table.labels) == 2
    assert "cannot be written: its shards will be indexed anew" in capsys.readouterr().out


@given(st.text("ab./", min_size=1, max_size=9))
def test_a_name_splits_into_what_it_was_joined_from(name: str) -> None:
    key, ending = split_name(name)
    if key is not None:
        assert f"{key}.{ending}" == name
        assert "." not in key.rpartition("/")[2]
        assert "/" not in ending
