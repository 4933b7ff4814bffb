"""A real HTTP server on loopback that injects faults on request; base of the protocol servers."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


@dataclass(frozen=True)
class Reply:
    status: int
    body: Any  # JSON, or bytes to send unchanged
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)

    def payload(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Fault:
    """A fault of the next ``times`` requests that match ``method`` and ``path``.

    ``kind``: "reply" (``reply`` is sent), "reset" (the connection is reset), "truncate" (half of the reply),
    "garbage" (200 and no JSON), "html" (200 and a proxy's page), "hang" (no reply until ``release`` is set).
    ``accepted``: the server processes the request before the fault.
    ``seen`` is set when a request has met the fault, and was processed if ``accepted``.
    """

    method: str
    path: str
    kind: str
    accepted: bool = False
    times: int = 1
    reply: Reply | None = None
    seen: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def matches(self, request: Request) -> bool:
        return (
            self.times > 0 and request.method == self.method and bool(re.fullmatch(self.path, request.path))
        )


class LoopbackServer:
    """Serves ``answer(request)``, one thread for each connection; a context manager."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.faults: list[Fault] = []
        self.exchanges: list[tuple[Request, Reply]] = []
        self.refusals: list[str] = []
        self._http = _HTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self.faults:
            fault.release.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, request: Request) -> Reply:
        raise NotImplementedError

    def fault(self, method: str, path: str, kind: str, **options: Any) -> Fault:
        fault = Fault(method, path, kind, **options)
        with self.lock:
            self.faults.append(fault)
        return fault

    def calls(self, method: str, path: str) -> list[Request]:
        """The requests that reached this path, those with a fault included."""
        with self.lock:
            return [r for r, _ in self.exchanges if r.method == method and re.fullmatch(path, r.path)]

    def _next_fault(self, request: Request) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.matches(request):
                    fault.times -= 1
                    return fault
        return None

    def handle(self, request: Request) -> tuple[Reply, Fault | None]:
        fault = self._next_fault(request)
        with self.lock:
            if fault is None or fault.accepted:
                reply = self.answer(request)
            else:
                reply = fault.reply or Reply(500, {"error": {"message": "injected", "type": "server_error"}})
            self.exchanges.append((request, reply))
        if fault is not None:
            fault.seen.set()
        return reply, fault


class _HTTPServer(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that die in mid-request, as they do in these tests."""


def _handler(server: LoopbackServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length) if length else _chunks(self)
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            query = dict(parse_qsl(parts.query))
            reply, fault = server.handle(Request(self.command, unquote(parts.path), query, headers, body))
            self.close_connection = True
            if fault is None:
                self._send(reply)
            elif fault.kind == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()
            elif fault.kind == "hang":
                fault.release.wait(60)
            elif fault.kind == "truncate":
                self._send(reply, share=0.5)
            elif fault.kind == "garbage":
                self._send(Reply(200, b'{"id": "ftjo'))
            elif fault.kind == "html":
                self._send(Reply(200, b"<html>Gateway</html>", "text/html"))
            else:
                self._send(fault.reply or Reply(500, {"error": {"message": "injected"}}))

        def _send(self, reply: Reply, share: float = 1.0) -> None:
            payload = reply.payload()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(payload)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(payload[: int(len(payload) * share)])

        def log_message(self, *_: object) -> None:
            pass

        do_GET = do_POST = do_DELETE = _serve

    return Handler


def _chunks(handler: BaseHTTPRequestHandler) -> bytes:
    if "chunked" not in handler.headers.get("transfer-encoding", ""):
        return b""
    body = b""
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body


Route = tuple[str, str, Callable[..., Reply]]


def route(routes: list[Route], request: Request) -> Reply | None:
    """The reply of the first route whose method and path fit; path groups become arguments."""
    for method, pattern, function in routes:
        if method == request.method and (found := re.fullmatch(pattern, request.path)):
            return function(request, *found.groups())
    return None
