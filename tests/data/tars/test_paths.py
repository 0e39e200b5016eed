"""Patterns of shards, and shards that are fetched: from a real server on this machine, over a real connection."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_rdm.core.errors import ConfigError, DataError, UserError
from neural_rdm.data.tars.paths import KEPT, expand, find_shards


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{000..003}.tar", ["000.tar", "001.tar", "002.tar", "003.tar"]),
        ("x-{8..11}", ["x-8", "x-9", "x-10", "x-11"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{-1..1}", ["-1", "0", "1"]),
        ("{0..9..4}", ["0", "4", "8"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{train,extra-{0..1}}.tar", ["train.tar", "extra-0.tar", "extra-1.tar"]),
        ("x{,y}", ["x", "xy"]),
        ("", [""]),
    ],
)
def test_braces_as_in_bash(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names


@pytest.mark.parametrize(
    "pattern", ["{0..1", "0..1}", "{a}", "{}", "{0..}", "}{", "{0..2000000}", "{0..9999}{0..9999}"]
)
def test_braces_that_make_no_sense(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"its|neither|more than"):
        expand(pattern)
    with pytest.raises(ConfigError, match=r"data\.train="):
        find_shards(Path(), pattern, "data.train")


@given(st.text("ab{},.01", max_size=12))
def test_any_text_is_expanded_or_refused(pattern: str) -> None:
    try:
        names = expand(pattern)
    except ValueError:
        return
    assert names
    assert not any("{" in name or "}" in name for name in names)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_local_shards(tmp_path: Path) -> None:
    root = tmp_path / "a [folder]"
    touch(root, "t-2.tar", "t-10.tar", "t-1.tar", "deep/t-1.tar", "note.txt", ".shards/t-9.tar", "odd[1].tar")

    def found(pattern: str) -> list[str]:
        return [str(path.relative_to(root)) for path in find_shards(root, pattern, "data.train")]

    assert found("t-*.tar") == ["t-1.tar", "t-10.tar", "t-2.tar"]
    assert found("t-{2..1}.tar") == ["t-2.tar", "t-1.tar"]
    assert found("**/t-*.tar") == ["deep/t-1.tar", "t-1.tar", "t-10.tar", "t-2.tar"]
    assert found("{deep/*,t-10}.tar") == ["deep/t-1.tar", "t-10.tar"]
    assert found("odd[1].tar") == ["odd[1].tar"]
    assert find_shards(tmp_path, str(root / "t-1.tar"), "data.train") == [root / "t-1.tar"]
    with pytest.raises(DataError, match=r"data\.train=t-\{1\.\.4\}\.tar: 2 of 4 shards are not in .*such as t-3\.tar"):
        found("t-{1..4}.tar")
    with pytest.raises(DataError, match=r"data\.val=v\*: no file of that name in .*holds deep, note\.txt"):
        find_shards(root, "v*", "data.val")
    with pytest.raises(DataError, match=r"names .*t-1\.tar twice"):
        found("t-{1,*}.tar")


@pytest.mark.parametrize("address", ["pipe:cat x.tar", "s3://bucket/x.tar", "file:///x.tar", "ftp://a/x.tar"])
def test_other_addresses_are_refused_and_nothing_is_run(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no command is ever run"):
        find_shards(tmp_path, address, "data.train")


class Server(http.server.BaseHTTPRequestHandler):
    """Serves /a/NAME.tar as its name, less or other than that under a few names, and counts what it was asked for."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.rpartition("/")[2]
        if name == "absent.tar":
            self.send_error(404)
        elif name == "moved.tar":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/x.tar")
            self.end_headers()
        else:
            self.send_response(200)
            if name != "unsized.tar":
                self.send_header("Content-Length", str(len(name) + (name == "short.tar")))
            self.end_headers()
            self.wfile.write(name.encode())

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Server.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/a"
        server.shutdown()
        thread.join()


def test_remote_shards_are_fetched_once(address: str, tmp_path: Path) -> None:
    pattern = f"{address}/s-{{0..2}}.tar"
    paths = find_shards(tmp_path, pattern, "data.train")
    assert [path.read_text() for path in paths] == ["s-0.tar", "s-1.tar", "s-2.tar"]
    assert {path.parent for path in paths} == {tmp_path / KEPT}
    paths[1].unlink()
    assert find_shards(tmp_path, pattern, "data.train") == paths
    assert sorted(Server.asked) == ["/a/s-0.tar", "/a/s-1.tar", "/a/s-1.tar", "/a/s-2.tar"]
    (other,) = find_shards(tmp_path, f"{address}/b/../s-0.tar?token=1", "data.train")  # another address, another file
    assert other.parent == tmp_path / KEPT
    assert other not in paths
    (unsized,) = find_shards(tmp_path, f"{address}/unsized.tar", "data.train")
    assert unsized.read_text() == "unsized.tar"


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent", "404"), ("short", "ended after 9 of its 10 bytes"), ("moved", "it leads to ftp")],
)
def test_failed_downloads_leave_nothing(address: str, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_shards(tmp_path, f"{address}/{{s-0,{name},s-1}}.tar", "data.train")
    assert [path.name[17:] for path in (tmp_path / KEPT).glob("[!.]*")] == ["s-0.tar"]
    assert not list((tmp_path / KEPT).glob("*.tmp"))


def test_a_closed_port_and_a_full_disk(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"cannot fetch http://127\.0\.0\.1:1/x\.tar: .*run the same command again"):
        find_shards(tmp_path, "http://127.0.0.1:1/x.tar", "data.train")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data\.root: downloads are kept in .* cannot be written"):
        find_shards(tmp_path / "file", f"{address}/s-0.tar", "data.train")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        find_shards(tmp_path, f"{address}/s-0.tar", "data.train")


def test_a_glob_ends_in_loops_of_links_and_names_no_shard_twice(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.tar", "a/2.tar", "__MACOSX/a/1.tar")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "0.tar").symlink_to("2.tar")
    for pattern in ("**/*.tar", "**/a/**/*.tar"):
        assert find_shards(tmp_path, pattern, "data.train") == [tmp_path / "a/1.tar", tmp_path / "a/2.tar"]
    with pytest.raises(DataError, match=r"names .*2\.tar twice"):
        find_shards(tmp_path, "a/{0,2}.tar", "data.train")
