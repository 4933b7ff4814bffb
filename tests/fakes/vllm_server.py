"""vLLM's protocol on loopback, over the local engine: adapters at runtime, completions of token ids with grammars.

Replies are as vLLM 0.32's were seen to be, but for answers to a schema, which end inside their limit; vLLM cuts them.
Streams are real: a token is sent when it is generated, and a client that leaves ends its generation.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from llama_index_finetune_structured.llms.adapter_pool import AdapterPool
from llama_index_finetune_structured.local.generate.ending import EndingSearch
from llama_index_finetune_structured.local.generate.grammar import AnswerGrammar
from llama_index_finetune_structured.local.generate.json_text import TextRules
from llama_index_finetune_structured.local.generate.loaded_models import LocalModel
from llama_index_finetune_structured.local.generate.request import (
    GenerationRequest,
    GenerationResult,
    Sampling,
)

_FIELDS = {
    "model", "prompt", "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "logprobs", "stream",
    "stop_token_ids", "repetition_penalty", "add_special_tokens", "structured_outputs", "return_token_ids",
    "return_tokens_as_token_ids",
}  # fmt: skip


def _error(status: int, message: str) -> JSONResponse:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return JSONResponse({"error": error}, status)


class FakeVllm:
    """A context manager. ``loaded``: folders of adapters by name. ``asked``: what was asked, oldest first.

    ``refusal``: the next completions get this status instead of an answer. ``aborted``: streams that the client left.
    """

    key = "vllm-key"

    def __init__(self, base: Path, *, window: int = 2048) -> None:
        self._pool, self._window = AdapterPool(base), window
        self.loaded: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refusal: int | None = None
        self.aborted = 0
        config = uvicorn.Config(
            self._app(), host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> FakeVllm:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """The bodies of the requests to a path."""
        return [body for asked, body in self.asked if asked == path]

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def authenticate(request: Request, forward: Any) -> Any:
            is_open = not request.url.path.startswith("/v1")
            if not is_open and request.headers.get("authorization") != f"Bearer {self.key}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            return await forward(request)

        @app.get("/health")
        def health() -> Response:
            return Response()

        @app.get("/v1/models")
        def models() -> Any:
            base = {"id": "base", "object": "model", "parent": None, "max_model_len": self._window}
            tuned = [{"id": name, "object": "model", "parent": "base"} for name in self.loaded]
            return {"object": "list", "data": [base, *tuned]}

        @app.post("/v1/load_lora_adapter")
        async def load(request: Request) -> Response:
            body = await self._body(request)
            name, folder = body["lora_name"], body["lora_path"]
            if name in self.loaded:
                return _error(400, f"The lora adapter '{name}' has already been loaded.")
            if not Path(folder, "adapter_config.json").is_file():
                return _error(404, f"Loading lora {name} failed: No adapter found for {folder}")
            self.loaded[name] = folder
            return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

        @app.post("/v1/unload_lora_adapter")
        async def unload(request: Request) -> Response:
            name = (await self._body(request))["lora_name"]
            if name not in self.loaded:
                return _error(404, f"The lora adapter '{name}' cannot be found.")
            del self.loaded[name]
            return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

        @app.post("/v1/completions")
        async def complete(request: Request) -> Response:
            body = await self._body(request)
            if unknown := body.keys() - _FIELDS:
                return _error(400, f"unknown fields {sorted(unknown)}")
            if self.refusal is not None:
                return _error(self.refusal, "refused")
            if body["model"] != "base" and body["model"] not in self.loaded:
                return _error(404, f"The model `{body['model']}` does not exist.")
            if len(body["prompt"]) + body["max_tokens"] > self._window:
                return _error(400, f"This model's maximum context length is {self._window} tokens.")
            try:
                made = await asyncio.to_thread(self._generation, body)
            except Exception as error:
                return _error(400, f"Failed to compile the grammar: {error}")
            return StreamingResponse(self._events(*made, body), media_type="text/event-stream")

        return app

    async def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.asked.append((request.url.path, body))
        return body

    def _generation(self, body: dict[str, Any]) -> tuple[LocalModel, GenerationRequest]:
        folder = self.loaded.get(body["model"])
        model = self._pool.llm(folder)._loaded
        grammar = None
        if "structured_outputs" in body:
            (lark,) = body["structured_outputs"].values()
            grammar = _grammar(model, lark)
        sampling = Sampling(body["temperature"], body["top_k"], body["top_p"], body.get("seed"))
        request = GenerationRequest(
            tuple(body["prompt"]),
            body["max_tokens"],
            sampling=sampling,
            grammar=grammar,
            adapter=model.adapter,
        )
        request.likeliest = body.get("logprobs")
        return model, request

    async def _events(
        self, model: LocalModel, request: GenerationRequest, body: dict[str, Any]
    ) -> AsyncIterator[str]:
        loop, tokens = asyncio.get_running_loop(), asyncio.Queue[int | None]()

        def put(token: int | None) -> None:
            loop.call_soon_threadsafe(tokens.put_nowait, token)

        request.on_token = put
        future = model.engine.submit(request)
        future.add_done_callback(lambda _: put(None))
        number = 0
        try:
            while (token := await tokens.get()) is not None:
                yield self._event(body, [token], self._logprobs(request, number), None)
                number += 1
            result: GenerationResult = future.result()
            ended = [model.stop_id] if result.finish_reason == "stop" and not request.cancelled else []
            logprobs = {"token_logprobs": [-0.5], "top_logprobs": [{f"token_id:{model.stop_id}": -0.5}]}
            asks = body.get("logprobs") is not None and ended
            yield self._event(body, ended, logprobs if asks else None, result.finish_reason)
            yield "data: [DONE]\n\n"
        finally:
            self.aborted += not future.done()
            request.cancelled = True

    @staticmethod
    def _logprobs(request: GenerationRequest, number: int) -> dict[str, Any] | None:
        if request.likeliest is None:
            return None
        score = request.scores[number]
        top = {f"token_id:{token}": value for token, value in score.likeliest}
        own = f"token_id:{score.token}"
        return {
            "tokens": [own],
            "token_logprobs": [score.log_probability],
            "top_logprobs": [{own: score.log_probability, **top}],
            "text_offset": [0],
        }

    @staticmethod
    def _event(body: dict[str, Any], ids: list[int], logprobs: Any, reason: str | None) -> str:
        choice = {
            "index": 0,
            "text": "",
            "logprobs": logprobs,
            "finish_reason": reason,
            "token_ids": ids or None,
        }
        chunk = {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]}
        return f"data: {json.dumps(chunk)}\n\n"


def _grammar(model: LocalModel, lark: str) -> AnswerGrammar:
    cache = model._compiled.grammars

    def compiled() -> AnswerGrammar:
        search = EndingSearch(cache.engine)
        found = AnswerGrammar(
            cache, cache.matcher(lambda: lark), search, growth=1, rules=TextRules(), lark=lambda: lark
        )
        if "%json" not in lark:
            found.smallest = None  # reasoning is cut at its limit
        return found

    return cache.kept(lark, compiled)
