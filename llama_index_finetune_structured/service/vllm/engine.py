"""Generation by a vLLM server in the place of ``GenerationEngine``: the same requests and results, as token ids."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

from ...background import POLL_S
from ...errors import EngineError, RequestTimeoutError
from ...local.generate.engine import GenerationEngine
from ...local.generate.grammar import AnswerGrammar
from ...local.generate.reasoning import ReasoningRules
from ...local.generate.request import GenerationRequest, GenerationResult
from ...local.generate.token_probability import ScoredToken
from .client import ServerToken, UnknownAdapter, VllmClient

__all__ = ["StopTokens", "VllmEngine"]

_LIKELIEST = 20  # vLLM's default limit; tokens that count for a probability are seldom more
_NEAR = 7.0  # as of a local model's probabilities: tokens further below the likeliest do not count


class StopTokens(NamedTuple):
    """The tokens that end answers: ``own`` is that of the chat template, ``server`` that of the server's grammars."""

    own: int
    server: int
    ids: tuple[int, ...]


class VllmEngine(GenerationEngine):
    """Answers requests with one model of a server. Each is a completion of its own, which the server batches.

    The prompt is sent as token ids, and the grammar as the local one in Lark. A request that is cancelled ends there
    within ``POLL_S``.
    """

    def __init__(
        self,
        client: VllmClient,
        loop: asyncio.AbstractEventLoop,
        name: str,
        *,
        stops: StopTokens,
        load: Callable[[], Awaitable[None]],
    ) -> None:
        """``loop``: the client's. ``name``: the model's at the server. ``load``: loads it where it is not."""
        self._client, self._loop, self._name, self._load = client, loop, name, load
        self._stops = stops

    def submit(self, request: GenerationRequest) -> Future[GenerationResult]:
        """Send a request. Its future ends with the result, or with the error."""
        asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)
        return request.future

    def drop_unloaded(self) -> None:
        """Nothing is kept here."""

    async def _answer(self, request: GenerationRequest) -> None:
        if request.cancelled:
            request.future.cancel()
        if not request.future.set_running_or_notify_cancel():
            return
        with suppress(InvalidStateError):
            try:
                request.future.set_result(await self._result(request))
            except asyncio.CancelledError:
                request.future.set_exception(EngineError("the service ended before the answer was whole"))
            except Exception as error:
                request.future.set_exception(error)

    async def _result(self, request: GenerationRequest) -> GenerationResult:
        reasoning = await self._reasoning(request) if request.reasoning is not None else ()
        prompt, answer = [*request.prompt, *reasoning], _Answer(request, self._stops.ids)
        lark = None if request.grammar is None else self._lark(request.grammar)
        body = self._body(request, prompt, request.max_new_tokens, lark)
        async with aclosing(self._pieces(request, body)) as pieces:
            async for piece in pieces:
                answer.add(piece)
        return answer.result(reasoning)

    async def _reasoning(self, request: GenerationRequest) -> tuple[int, ...]:
        """The tokens of the reasoning before an answer, with those that end it."""
        assert request.reasoning is not None
        rules, most = request.reasoning
        thought, text = list[int](), b""
        if most > 0:
            body = self._body(request, request.prompt, most, _reasoning_lark(rules))
            async with aclosing(self._tokens(request, body)) as tokens:
                async for found in tokens:
                    step = rules.after(text, found.token)
                    if step is None:  # an end, where the server has another grammar
                        break
                    thought.append(found.token)
                    if request.on_reasoning is not None:
                        request.on_reasoning(found.token)
                    text, rest = step
                    if rest is not None:
                        return (*thought, *rest)
        return (*thought, *rules.closing)

    async def _tokens(
        self, request: GenerationRequest, body: dict[str, Any]
    ) -> AsyncGenerator[ServerToken, None]:
        """The tokens of a completion. It ends where the request is cancelled."""
        async with aclosing(self._pieces(request, body)) as pieces:
            async for piece in pieces:
                for token in () if isinstance(piece, str) else piece:
                    yield token

    async def _pieces(
        self, request: GenerationRequest, body: dict[str, Any]
    ) -> AsyncGenerator[list[ServerToken] | str, None]:
        """As of ``VllmClient.tokens``. A model that the server does not have is loaded, once."""
        for is_last in (False, True):
            try:
                async with aclosing(self._client.tokens(body)) as pieces:
                    while (piece := await self._piece(request, pieces)) is not None:
                        yield piece
                return
            except UnknownAdapter:
                if is_last:
                    raise EngineError(
                        f"the vLLM server has no model {self._name!r}, though it was loaded"
                    ) from None
                await self._load()

    async def _piece(
        self, request: GenerationRequest, pieces: AsyncGenerator[list[ServerToken] | str, None]
    ) -> list[ServerToken] | str | None:
        """The next piece; None at the end, and where the request was cancelled."""
        if request.cancelled:
            return None
        following = asyncio.ensure_future(anext(pieces, None))
        try:
            while not (await asyncio.wait({following}, timeout=POLL_S))[0]:
                if request.cancelled:
                    return None
                if request.deadline is not None and time.monotonic() > request.deadline:
                    raise RequestTimeoutError("the answer was not whole within the time that a call may take")
            return following.result()
        finally:
            if not following.done():
                following.cancel()
                await asyncio.wait({following})

    def _body(
        self, request: GenerationRequest, prompt: Sequence[int], most: int, lark: str | None
    ) -> dict[str, Any]:
        sampling, asked = request.sampling, request.likeliest
        body: dict[str, Any] = {
            "model": self._name,
            "prompt": list(prompt),
            "max_tokens": most,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "stop_token_ids": list(self._stops.ids),
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if request.probabilities or asked is not None:
            body["logprobs"] = max(_LIKELIEST if request.probabilities else 1, asked or 0)
        if lark is not None:
            body["structured_outputs"] = {"grammar": lark}
        return body

    def _lark(self, grammar: AnswerGrammar) -> str:
        """The grammar in Lark, which ends with the token that ends answers where the server expects another one."""
        lark = grammar.lark()
        if self._stops.own == self._stops.server:
            return lark
        start, begins, rest = lark.partition("start:")
        assert begins
        return f"{start}answer:{rest.rstrip()}\nstart: answer <[{self._stops.own}]>\n"


class _Answer:
    """The answer to a request as its tokens come."""

    def __init__(self, request: GenerationRequest, stop_ids: Collection[int]) -> None:
        self._request, self._stop_ids = request, stop_ids
        self._tokens, self._probabilities = list[int](), list[tuple[float, float]]()
        self._reason = "length"

    def add(self, piece: list[ServerToken] | str) -> None:
        if isinstance(piece, str):
            self._reason = "stop" if piece == "stop" else self._reason
            return
        for token in piece:
            if self._request.cancelled or self._reason == "stop":
                return
            self._append(token)

    def _append(self, found: ServerToken) -> None:
        request = self._request
        if request.probabilities:
            among_likely = _log_probability(found)
            self._probabilities.append((among_likely, among_likely))
        if found.token in self._stop_ids:
            self._reason = "stop"
            return
        self._tokens.append(found.token)
        if request.likeliest is not None:
            likeliest = found.likeliest[: request.likeliest]
            request.scores.append(ScoredToken(found.token, found.log_probability, likeliest))
        if request.on_token is not None:
            request.on_token(found.token)

    def result(self, reasoning: tuple[int, ...]) -> GenerationResult:
        """The result; an answer that is whole at its limit has stopped."""
        grammar, reason = self._request.grammar, self._reason
        is_cut = reason == "length" and not self._request.cancelled
        if is_cut and grammar is not None and grammar.refused_at(self._tokens) is None:
            reason = "stop"
        return GenerationResult(tuple(self._tokens), reason, tuple(self._probabilities), reasoning)


def _reasoning_lark(rules: ReasoningRules) -> str:
    """The grammar of reasoning: text, which has no control tokens, up to the mark."""
    if rules.mark_id is not None:
        return f"TEXT: /(?s:.*)/\nstart: TEXT <[{rules.mark_id}]>"
    mark = "".join(f"\\x{{{ord(character):x}}}" for character in rules.mark)
    text = f"/(?s:.*)/ & ~/(?s:.*){mark}(?s:.*)/"
    return f"THOUGHT: ({text}) {json.dumps(rules.mark)}\nstart: THOUGHT"


def _log_probability(found: ServerToken) -> float:
    """Of a token among those that are near the likeliest one, as of a local model."""
    others = [value for token, value in found.likeliest if token != found.token]
    highest = max([found.log_probability, *others])
    near = [value for value in others if value > highest - _NEAR]
    total = sum(math.exp(value - highest) for value in [found.log_probability, *near])
    return found.log_probability - highest - math.log(total)
