"""One page and a few actions for the browsers of this machine, on Python's own server.

Only what asks for this server by its own name is answered, and only the page itself may ask for actions: a site that
the same browser has open elsewhere can neither read nor cause anything (a foreign name that leads here is a foreign
`Host`, a form or script of another site has a foreign `Origin`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any, cast

from neural_rdm.core.errors import ConfigError, UserError

HERE = "127.0.0.1"
LARGEST = 65536  # bytes of a request
SECONDS = 30.0  # for which a browser may take to say what it wants

Action = Callable[[dict[str, Any]], Mapping[str, Any]]


def server(port: int, page: str, actions: Mapping[str, Action]) -> ThreadingHTTPServer:
    """A server of `page` at `/` and of actions at `/NAME`, on this machine alone; it is not running yet.

    An action takes and gives JSON objects, one at a time; a UserError of it is answered as `{"error": text}`.

    Raises:
        ConfigError: the port is taken.
    """

    class Handler(_Handler):
        content, does, lock = page.encode("utf-8"), dict(actions), Lock()

    try:
        made = ThreadingHTTPServer((HERE, port), Handler)
    except OSError as error:
        raise ConfigError(f"port={port}: {error.strerror or error}; pass another one, or port=0 for any") from error
    made.daemon_threads = True
    return made


class _Handler(BaseHTTPRequestHandler):
    """Answers for `server`."""

    content: bytes
    does: dict[str, Action]
    lock: Lock
    timeout = SECONDS
    server_version, sys_version = "neural-rdm", ""

    def do_GET(self) -> None:
        """The page."""
        if not self._named_here():
            return
        if self.path == "/":
            self._answer(HTTPStatus.OK, self.content, "text/html; charset=utf-8")
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """An action."""
        if not self._named_here():
            return
        action = self.does.get(self.path.removeprefix("/"))
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Origin") not in [f"http://{name}" for name in self._names()]:
            self._refuse(HTTPStatus.FORBIDDEN)
        elif action is None:
            self._refuse(HTTPStatus.NOT_FOUND)
        elif self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        elif not (length.isascii() and length.isdigit()) or int(length) > LARGEST:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            self._do(action, self.rfile.read(int(length)))

    def _do(self, action: Action, body: bytes) -> None:
        try:
            asked = json.loads(body)
            if not isinstance(asked, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        try:
            with self.lock:
                answer: Mapping[str, Any] = action(asked)
            status = HTTPStatus.OK
        except UserError as error:
            answer, status = {"error": str(error)}, HTTPStatus.BAD_REQUEST
        except Exception:
            answer, status = {"error": "that went wrong; the terminal says why"}, HTTPStatus.INTERNAL_SERVER_ERROR
            self._answer(status, json.dumps(answer).encode(), "application/json")
            raise
        self._answer(status, json.dumps(answer).encode(), "application/json")

    def _names(self) -> list[str]:
        port = cast(Any, self.server).server_address[1]  # of a socket, declared for any kind of server
        return [f"{HERE}:{port}", f"localhost:{port}"]

    def _named_here(self) -> bool:
        if self.headers.get("Host") in self._names():
            return True
        self._refuse(HTTPStatus.FORBIDDEN)
        return False

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self._answer(status, status.phrase.encode(), "text/plain; charset=utf-8")

    def _answer(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind), ("Content-Length", str(len(content))), ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"), ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing: a line for each drawing helps nobody."""
