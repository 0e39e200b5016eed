"""The server of the page to play with answers the browsers of this machine, and nobody who borrows them."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from neural_rdm.cli.serving import LARGEST, server
from neural_rdm.core.errors import ConfigError

JSON = {"Content-Type": "application/json"}


def double(asked: dict[str, Any]) -> dict[str, Any]:
    if "x" not in asked:
        raise ConfigError("x: give a number")
    return {"twice": 2 * asked["x"]}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with server(0, "<p>hello", {"double": double}) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving.server_address[1]
        serving.shutdown()
        thread.join()


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_the_page_and_its_actions_are_answered(port: int) -> None:
    assert ask(port, "GET", "/") == (200, "<p>hello")
    for name in ("127.0.0.1", "localhost"):
        own = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}", "Content_Type": "application/json"}
        status, answer = ask(port, "POST", "/double", b'{"x": 4}', **own)
        assert (status, json.loads(answer)) == (200, {"twice": 8})
    assert ask(port, "POST", "/double", b"{}", **own) == (400, '{"error": "x: give a number"}')


def test_whoever_is_not_the_page_is_refused(port: int) -> None:
    here = f"http://127.0.0.1:{port}"
    own = {"Origin": here, "Content_Type": "application/json"}
    assert ask(port, "GET", "/", Host=f"evil.example:{port}")[0] == 403  # a foreign name that leads here
    assert ask(port, "GET", "/", Host="127.0.0.1")[0] == 403
    for origin in (
        "http://evil.example",
        "null",
        "http://127.0.0.1",
        f"{here}.evil.example",
        f"https://127.0.0.1:{port}",
    ):
        assert ask(port, "POST", "/double", b'{"x": 1}', **{**own, "Origin": origin})[0] == 403
    assert ask(port, "POST", "/double", b'{"x": 1}', Content_Type="application/json")[0] == 403
    assert ask(port, "POST", "/double", b'{"x": 1}', **{**own, "Content_Type": "text/plain"})[0] == 415
    assert ask(port, "POST", "/double", b"[" * 50_000, **own)[0] == 400
    assert ask(port, "POST", "/double", b"[1]", **own)[0] == 400
    assert ask(port, "POST", "/double", b"", **own, Content_Length=str(LARGEST + 1))[0] == 413
    assert ask(port, "POST", "/other", b"{}", **own)[0] == 404
    assert ask(port, "GET", "/../etc/passwd")[0] == 404


def test_only_this_machine_is_listened_to_and_a_taken_port_is_told(port: int) -> None:
    with pytest.raises(ConfigError, match=rf"^port={port}: .*pass another one"):
        server(port, "", {})
    with server(0, "", {}) as other:
        assert other.socket.getsockname()[0] == "127.0.0.1"
        assert other.socket.family == socket.AF_INET
