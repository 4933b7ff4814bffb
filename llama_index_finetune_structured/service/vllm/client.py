"""Requests to a vLLM server: adapters that it loads at runtime, and completions of token ids as streams of tokens."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from ...errors import ConfigurationError, EngineError
from ...printable import one_line
from ..errors import ApiError
from .server import VllmServer

__all__ = ["ServerToken", "UnknownAdapter", "VllmClient", "VllmModelInfo", "unavailable"]

_LOAD_S, _STALL_S = (
    120.0,
    600.0,
)  # chosen: a load reads a file of some MB; a busy server sends its first token late
_RETRY_S = 10
_LEAST = -9999.0  # what vLLM sends for minus infinity
_ID = "token_id:"  # how it writes tokens by their ids
_SHOWN = 300


class VllmModelInfo(NamedTuple):
    """The base model of a server, and the most tokens of prompt and answer together; None: not told."""

    name: str
    context_window: int | None


class ServerToken(NamedTuple):
    """A generated token, its log-probability, and those of the likeliest tokens at its place; none if not asked for."""

    token: int
    log_probability: float
    likeliest: tuple[tuple[int, float], ...]


class UnknownAdapter(Exception):
    """The server has no model of that name, because it started anew or unloaded it."""


class VllmClient:
    """The protocol of one server. Coroutines belong to one event loop."""

    def __init__(self, server: VllmServer) -> None:
        self._server = server
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        timeout = httpx.Timeout(_STALL_S, connect=10)
        self._http = httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False)
        self._loads = httpx.Client(timeout=_LOAD_S, trust_env=False)

    def base(self) -> VllmModelInfo:
        """The server's base model. Raises EngineError where it has none."""
        reply = self._ask("GET", "/v1/models")
        models = reply.json().get("data", []) if reply.status_code == 200 else []
        found = next((model for model in models if not model.get("parent")), None)
        if found is None:
            raise EngineError(f"the vLLM server does not tell its models: {_problem(reply)}")
        return VllmModelInfo(found["id"], found.get("max_model_len"))

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter under a name, unless it is. Raises EngineError where the server refuses."""
        asked = {"lora_name": name, "lora_path": str(folder)}
        reply = self._ask("POST", "/v1/load_lora_adapter", asked)
        if reply.status_code == 404 and "lora" not in reply.text.lower():
            raise EngineError(
                "the vLLM server loads no adapters at runtime: start it with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
            )
        if reply.status_code != 200 and "already" not in reply.text:
            raise EngineError(f"the vLLM server does not load the adapter {folder}: {_problem(reply)}")

    def unload(self, name: str) -> None:
        """Unload an adapter, if it is loaded. Raises EngineError where the server does not answer."""
        self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    async def tokens(self, body: Mapping[str, Any]) -> AsyncGenerator[list[ServerToken] | str, None]:
        """The tokens of a completion as they come, and at last the reason of its end.

        Raises UnknownAdapter; ApiError (503) where the server does not answer; ConfigurationError where it refuses the
        request; EngineError for other errors of its.
        """
        url, asked = f"{self._server.url}/v1/completions", {**body, **_FIXED}
        try:
            async with self._http.stream("POST", url, json=asked, headers=self._headers) as reply:
                if reply.status_code != 200:
                    await reply.aread()
                    raise _refusal(reply)
                async for line in reply.aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    for piece in _pieces(json.loads(line[6:])):
                        yield piece
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise unavailable(error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
        self._loads.close()

    @property
    def _headers(self) -> dict[str, str]:
        return {} if self._server.key is None else {"Authorization": f"Bearer {self._server.key}"}

    def _ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        url = f"{self._server.url}{path}"
        try:
            return self._loads.request(method, url, json=body, headers=self._headers)
        except httpx.HTTPError as error:
            raise EngineError(
                f"the vLLM server does not answer {path}: {error or type(error).__name__}"
            ) from error


_FIXED = {
    "stream": True,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "add_special_tokens": False,
    "repetition_penalty": 1.0,  # a server may take another default from the base's generation_config.json
    "min_p": 0.0,
}


def _pieces(event: Mapping[str, Any]) -> list[list[ServerToken] | str]:
    """The tokens of an event of the stream, and the reason where it is the last one."""
    if "error" in event:
        raise EngineError(f"the vLLM server ended the answer: {one_line(str(event['error']))[:_SHOWN]}")
    pieces = list[list[ServerToken] | str]()
    for choice in event.get("choices", ()):
        if ids := choice.get("token_ids"):
            pieces.append(_tokens(ids, choice.get("logprobs")))
        if (reason := choice.get("finish_reason")) is not None:
            pieces.append(str(reason))
    return pieces


def _tokens(ids: list[int], logprobs: Mapping[str, Any] | None) -> list[ServerToken]:
    if logprobs is None:
        return [ServerToken(token, 0.0, ()) for token in ids]
    likeliest = logprobs.get("top_logprobs") or [None] * len(ids)
    return [
        ServerToken(token, _number(own), tuple(_by_id(others or {})))
        for token, own, others in zip(ids, logprobs["token_logprobs"], likeliest, strict=True)
    ]


def _by_id(others: Mapping[str, float | None]) -> list[tuple[int, float]]:
    found = [(int(name.removeprefix(_ID)), _number(value)) for name, value in others.items()]
    return sorted(found, key=lambda one: -one[1])


def _number(logprob: float | None) -> float:
    return _LEAST if logprob is None else max(_LEAST, logprob)


def _refusal(reply: httpx.Response) -> Exception:
    if reply.status_code == 404:
        return UnknownAdapter()
    if reply.status_code in (400, 422):
        return ConfigurationError(f"the vLLM server refuses the request: {_problem(reply)}")
    if reply.status_code in (429, 503):
        return unavailable(EngineError(_problem(reply)))
    return EngineError(f"the vLLM server failed: {_problem(reply)}")


def unavailable(error: Exception) -> ApiError:
    """The error for clients where the server does not answer, which they may try again."""
    return ApiError(
        503,
        f"The models' server does not answer now ({type(error).__name__}). Try again in {_RETRY_S} seconds.",
        code="model_unavailable",
        headers={"Retry-After": str(_RETRY_S)},
    )


def _problem(reply: httpx.Response) -> str:
    """Status and message of a reply, in one line."""
    try:
        body = reply.json()
        found = body.get("error", body) if isinstance(body, dict) else body
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    except ValueError:
        text = reply.text
    return f"{reply.status_code} {one_line(text)[:_SHOWN]}"
