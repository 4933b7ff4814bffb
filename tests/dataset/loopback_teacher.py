"""A loopback server of OpenAI's chat protocol, for the real LlamaIndex OpenAI class to call."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llama_index.llms.openai import OpenAI

Reply = Callable[[dict[str, Any]], dict[str, Any] | int]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class Teacher:
    """Answers each request with ``reply(request)``, a message or an HTTP status, and stores the requests."""

    def __init__(self, reply: Reply, latency_s: float = 0.0, keep_alive: bool = False) -> None:
        self.requests: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._reply, self._latency_s, self._keep_alive = reply, latency_s, keep_alive
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.api_base = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def llm(self, **kwargs: Any) -> OpenAI:
        defaults = {"model": "gpt-4o-mini", "api_key": "sk-test", "max_retries": 0}
        return OpenAI(**{**defaults, "api_base": self.api_base, **kwargs})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                sent = self.rfile.read(length)
                if len(sent) < length:  # the client process was killed
                    return
                status, body = teacher.answer(json.loads(sent))
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                if not teacher._keep_alive:
                    self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        return Handler

    def answer(self, request: dict[str, Any]) -> tuple[int, bytes]:
        with self._lock:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(self._latency_s)
        reply = self._reply(request)
        with self._lock:
            self._at_once -= 1
        if isinstance(reply, int):
            return reply, json.dumps({"error": {"message": f"status {reply}"}}).encode()
        message = {"role": "assistant", "content": None, **reply}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        row = {"id": "c", "object": "chat.completion", "created": 0, "model": request["model"]}
        return 200, json.dumps({**row, "choices": [choice], "usage": usage}).encode()

    @contextmanager
    def running(self) -> Iterator[Teacher]:
        thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
