"""HTTP/1.1 on a socket: reading requests, sending answers, breaking connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from .messages import Request, Response


class Sent(NamedTuple):
    """An answer and how much of its body goes out; `response` None closes without an answer."""

    response: Response | None
    body: bytes = b""


class Listener(ThreadingHTTPServer):
    """A server on 127.0.0.1 that answers every request with `serve`.

    Its port stays reserved between `stop` and `start` (the port is bound twice; only the
    listening socket gets connections), so that a server that died comes back at its address.
    """

    daemon_threads = True
    allow_reuse_port = True
    request_queue_size = 128

    def __init__(self, serve: Callable[[Request], Sent], port: int = 0) -> None:
        self._serve_request = serve
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind(("127.0.0.1", port))
        self.port: int = self._reservation.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        super().__init__(("127.0.0.1", self.port), _Handler, bind_and_activate=False)
        self.socket.close()  # `start` makes one

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the name service for the name of the host.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "127.0.0.1", self.port

    @property
    def running(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        if self.running:
            return
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse new connections and break those that are open."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self.shutdown()
        thread.join()
        self.socket.close()
        with self._open_lock:
            broken, self._open = self._open, set()
        for connection in broken:
            _break(connection)

    def close(self) -> None:
        self.stop()
        self._reservation.close()

    def serve(self, request: Request) -> Sent:
        return self._serve_request(request)

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that breaks is part of the game; anything else must be seen."""
        import sys

        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def _answer(self) -> None:
        request = Request(self.command, self.path, dict(_titled(self.headers)), self._body())
        sent = self.server.serve(request)
        if sent.response is None:
            self.close_connection = True
            _break(self.connection)
            return
        response = sent.response
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(sent.body)
        if len(sent.body) < len(response.body):
            self.close_connection = True
            _break(self.connection)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self._read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        return self._read(int(self.headers.get("Content-Length") or 0))

    def _read(self, size: int) -> bytes:
        content = self.rfile.read(size)
        if len(content) < size:
            raise ConnectionResetError("The request was cut")
        return content

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests are kept in the log."""


def _titled(headers: object) -> list[tuple[str, str]]:
    return [(name.title(), value) for name, value in headers.items()]  # type: ignore[attr-defined]
