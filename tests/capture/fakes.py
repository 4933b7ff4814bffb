"""Small LLMs and a loopback server with OpenAI's protocol, for the tests of capture."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel

_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # one for all clients: reading the certificates takes 40 ms
SONG = '{"title": "Echoes", "year": 1971}'


class Song(BaseModel):
    """A song."""

    title: str
    year: int


class EchoLLM(CustomLLM):
    """Answers every prompt with ``reply``, or raises where ``fails`` is set."""

    reply: str = SONG
    is_chat: bool = True
    fails: bool = False

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="echo", is_chat_model=self.is_chat)

    def answer(self) -> str:
        if self.fails:
            raise RuntimeError("the provider is down")
        return self.reply

    @llm_completion_callback()
    def complete(self, prompt: str, **_: Any) -> CompletionResponse:
        return CompletionResponse(text=self.answer())

    @llm_completion_callback()
    def stream_complete(self, prompt: str, **_: Any) -> Any:
        def stream() -> Iterator[CompletionResponse]:
            text = ""
            for char in self.answer():
                text += char
                yield CompletionResponse(text=text, delta=char)

        return stream()


class SilentLLM(CustomLLM):
    """``complete`` without LlamaIndex's decorator: it fires no events."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="silent", is_chat_model=False)

    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        return CompletionResponse(text=SONG)

    def stream_complete(self, prompt: str, formatted: bool = False, **_: Any) -> Any:
        yield CompletionResponse(text=SONG, delta=SONG)


class SilentStructuredLLM(SilentLLM):
    """Predicts objects without ``chat``, as some integrations do through their provider: it fires no events."""

    def structured_predict(self, output_cls: Any, prompt: Any, **_: Any) -> Any:
        return output_cls.model_validate_json(SONG)

    async def astructured_predict(self, output_cls: Any, prompt: Any, **_: Any) -> Any:
        return output_cls.model_validate_json(SONG)


Reply = Callable[[dict[str, Any]], dict[str, Any]]


def song_reply(request: dict[str, Any]) -> dict[str, Any]:
    """A correct message: a call of the first tool or, without tools or after one was called, JSON text."""
    tools = request.get("tools")
    called = any(message["role"] == "tool" for message in request["messages"])
    if not tools or called:
        return {"role": "assistant", "content": SONG}
    return tool_message(tools[0]["function"]["name"], SONG)


def tool_message(name: str, *arguments: str) -> dict[str, Any]:
    calls = [
        {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": text}}
        for index, text in enumerate(arguments)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


class OpenAIServer:
    """Chat completions on loopback, streamed where requested; ``requests`` holds the bodies received."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[dict[str, Any]] = []
        self.reply: Reply = song_reply
        self.finish_reason = "stop"
        self.status = 200
        self.clients: list[httpx.Client] = []

    def llm(self, model: str = "gpt-4o-mini", **kwargs: Any) -> OpenAI:
        self.clients.append(httpx.Client(verify=_TLS))
        clients: dict[str, Any] = {
            "http_client": self.clients[-1],
            "async_http_client": httpx.AsyncClient(verify=_TLS),
        }
        return OpenAI(model=model, api_key="test", api_base=self.url, max_retries=0, **clients, **kwargs)


@contextmanager
def openai_server() -> Iterator[OpenAIServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.requests.append(body)
            if fake.status != 200:
                self._send(fake.status, "application/json", b'{"error": {"message": "no"}}')
                return
            message = fake.reply(body)
            usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
            choice: dict[str, Any] = {"index": 0, "finish_reason": fake.finish_reason}
            head: dict[str, Any] = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
            if not body.get("stream"):
                answer = {**head, "object": "chat.completion", "usage": usage}
                answer["choices"] = [{**choice, "message": message}]
                self._send(200, "application/json", json.dumps(answer).encode())
                return
            deltas = [*_deltas(message)]
            chunks = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
            chunks.append({**choice, "delta": {}})
            lines = [{**head, "object": "chat.completion.chunk", "choices": [chunk]} for chunk in chunks]
            if (body.get("stream_options") or {}).get("include_usage"):
                lines.append({**lines[-1], "choices": [], "usage": usage})
            text = "".join(f"data: {json.dumps(line)}\n\n" for line in lines) + "data: [DONE]\n\n"
            self._send(200, "text/event-stream", text.encode())

        def _send(self, status: int, kind: str, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake = OpenAIServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": "" if message.get("content") else None}
    content = message.get("content") or ""
    for start in range(0, len(content), 7):
        yield {"content": content[start : start + 7]}
    for index, call in enumerate(message.get("tool_calls") or ()):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        yield {"tool_calls": [{"index": index, **call, "function": {"name": name, "arguments": ""}}]}
        for start in range(0, len(arguments), 7):
            part = {"index": index, "function": {"arguments": arguments[start : start + 7]}}
            yield {"tool_calls": [part]}


def index_of_songs(**kwargs: Any) -> VectorStoreIndex:
    """Three documents, ``doc0`` to ``doc2``, under an embedding that needs no network."""
    documents = [Document(text=f"Song {number} is about echoes.", id_=f"doc{number}") for number in range(3)]
    return VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(embed_dim=4), **kwargs)
