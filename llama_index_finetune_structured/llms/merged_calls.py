"""Calls of several requests with one answer: votes of drawn answers, and lists that are read window by window."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    MessageRole,
    TextBlock,
)

from ..background import aresult_of, result_of
from ..dataset.windows import text_windows
from ..example import canonical_json, compact_json, json_span, loads
from ..json_schema import find_error
from ..local.schema.list_items import ListRules
from ..printable import package_logger
from ..trust.answer_trust import Trust, merged_trust
from ..trust.lookup import TRUST
from .call_options import CallOptions
from .local_calls import LocalCall, finished_trust, reasoning_fields, usage_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ..local.generate.request import GenerationResult
    from ..trust.calibration import Calibration
    from .answer_source import AnswerSource

    Futures = Sequence[Future[GenerationResult]]

__all__ = ["MergedCall", "fits", "messages_of_windows", "options_of_answers"]

_logger = package_logger(__name__)
_DRAWN_AT = 0.7  # chosen: as the second attempt; draws differ from the greedy answer where it is in doubt


def options_of_answers(options: CallOptions) -> list[CallOptions]:
    """The options of each of a call's ``answers``: its own, then those of the draws.

    A greedy call draws at temperature 0.7, and always the same unless it has a seed; the seeds of draws are derived
    from the call's.
    """
    seed = 0 if options.seed is None and options.temperature == 0 else options.seed
    draws = [
        {
            "temperature": options.temperature or _DRAWN_AT,
            "seed": None if seed is None else _derived(seed, number),
        }
        for number in range(1, options.answers)
    ]
    return [options, *(options.model_copy(update=draw) for draw in draws)]


def _derived(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:8], "big")


def messages_of_windows(
    messages: Sequence[ChatMessage], rules: ListRules, sentences: int
) -> list[list[ChatMessage]]:
    """For each window of the text in the last user message, the messages with that window alone.

    None where that message has another form than in training, or blocks that are not text. ``sentences``: of a window.
    """
    places = [place for place, message in enumerate(messages) if message.role == MessageRole.USER]
    if not places or any(not isinstance(block, TextBlock) for block in messages[places[-1]].blocks):
        return []
    place, asked = places[-1], messages[places[-1]]
    texts = rules.windows(asked.content or "", lambda text: text_windows(text, sentences)) or []
    return [
        [
            *messages[:place],
            asked.model_copy(update={"blocks": [TextBlock(text=text)]}),
            *messages[place + 1 :],
        ]
        for text in texts
    ]


@dataclass(frozen=True)
class MergedCall:
    """One structured call that is answered by several requests in one batch.

    ``windows``: for each window of the text, the call of its first answer and those of its draws. ``schema``: of the
    answer. ``rules``: how the answers of windows are merged; None: there is one window. ``source``: the texts of
    all messages; with ``calibration`` as of ``LocalCall``.

    Each may be generated once, in one of four ways. When the caller goes away, all requests are cancelled. An error of
    a first answer is raised; draws that fail, are cut or do not fit the schema do not count.
    """

    windows: Sequence[Sequence[LocalCall]]
    schema: Mapping[str, Any]
    rules: ListRules | None = None
    source: AnswerSource | None = None
    calibration: Calibration | None = None

    def until(self, deadline: float | None) -> MergedCall:
        """The call, whose requests end with an error at a deadline, as of ``GenerationRequest``."""
        for call in (call for window in self.windows for call in window):
            call.until(deadline)
        return self

    def complete(self) -> CompletionResponse:
        """The answer, waited for."""
        *_, last = self.stream()
        return _whole(last)

    async def acomplete(self) -> CompletionResponse:
        """The answer, awaited."""
        last = CompletionResponse(text="")
        async for chunk in self.astream():
            last = chunk
        return _whole(last)

    def stream(self) -> CompletionResponseGen:
        """The answer as its windows complete, in order; the last response has what ``complete`` gives."""
        growing = _GrowingAnswer(self)
        try:
            for futures in self._submitted():
                result_of(futures[0])
                for draw in futures[1:]:
                    with contextlib.suppress(Exception):  # logged when the answers are merged
                        result_of(draw)
                if (chunk := growing.add(futures)) is not None:
                    yield chunk
        finally:
            self._cancel()

    async def astream(self) -> CompletionResponseAsyncGen:
        """The answer as its windows complete, in order; the last response has what ``complete`` gives."""
        growing = _GrowingAnswer(self)
        try:
            for futures in self._submitted():
                await aresult_of(futures[0])
                for draw in futures[1:]:
                    with contextlib.suppress(Exception):
                        await aresult_of(draw)
                if (chunk := await asyncio.to_thread(growing.add, futures)) is not None:
                    yield chunk
        finally:
            self._cancel()

    def _submitted(self) -> list[Futures]:
        return [[call.submit() for call in window] for window in self.windows]

    def _cancel(self) -> None:
        for window in self.windows:
            for call in window:
                call.request.cancelled = True


def _whole(last: CompletionResponse) -> CompletionResponse:
    """The last chunk of a stream as the response of a call that is not streamed."""
    extra = reasoning_fields(last.additional_kwargs.get("reasoning_content", ""))
    return last.model_copy(update={"delta": None, "additional_kwargs": extra})


@dataclass(frozen=True)
class _Reply:
    """The text of one request, or of several merged ones; ``value``: its JSON, None also where it has none.

    ``trust``: without probabilities yet; None where it is not known.
    """

    text: str
    finish_reason: str
    value: Any = None
    is_json: bool = False
    trust: Trust | None = None

    @classmethod
    def of(cls, text: str, finish_reason: str, trust: Trust | None) -> _Reply:
        """The reply with its JSON, if it has one."""
        try:
            value = loads(json_span(text))
            compact_json(value)  # raises ValueError for numbers that JSON does not have
        except ValueError:
            return cls(text, finish_reason)
        return cls(text, finish_reason, value, is_json=True, trust=trust)

    @classmethod
    def merged(cls, value: Any, finish_reason: str, parts: Sequence[_Reply]) -> _Reply:
        """The reply that others were merged into."""
        known = [(part.value, part.trust) for part in parts if part.trust is not None]
        trust = merged_trust(value, known) if len(known) == len(parts) else None
        return cls(compact_json(value), finish_reason, value, is_json=True, trust=trust)


class _GrowingAnswer:
    """The answer of a merged call, window by window."""

    def __init__(self, call: MergedCall) -> None:
        self._call = call
        self._replies: list[_Reply] = []
        self._prompt_tokens = self._completion_tokens = self._reasoning_tokens = 0
        self._shown = ""
        self._reasoning, self._thought = "", 0  # of the first answers, and how much of it was shown

    def add(self, futures: Futures) -> CompletionResponse | None:
        """Add the next window, whose requests have ended: the chunk that it adds, None where it adds none.

        The last window's chunk is the last one, with the whole answer.
        """
        window = self._call.windows[len(self._replies)]
        reasoning = window[0].reasoning_of(futures[0].result())
        self._reasoning = "\n\n".join(filter(None, [self._reasoning, reasoning]))
        self._prompt_tokens += len(window[0].request.prompt)  # draws share it
        replies = list(self._drawn(window, futures))
        self._replies.append(_voted(replies, self._call.schema))
        if len(self._replies) == len(self._call.windows):
            return self._last()
        return self._partial()

    def _drawn(self, window: Sequence[LocalCall], futures: Futures) -> Iterator[_Reply]:
        for number, (call, future) in enumerate(zip(window, futures, strict=True)):
            if number and (error := future.exception()) is not None:
                _logger.debug("a drawn answer failed and does not count: %s", error)
                continue
            text, result = call.text_of(future.result())
            self._completion_tokens += len(result.tokens)
            self._reasoning_tokens += len(result.reasoning)
            trust = None if self._call.calibration is None else call.trust(text, result)
            yield _Reply.of(text, result.finish_reason, trust)

    def _last(self) -> CompletionResponse:
        reply = self._merged()
        usage = usage_of(self._prompt_tokens, self._completion_tokens, self._reasoning_tokens)
        raw: dict[str, Any] = {"usage": usage, "finish_reason": reply.finish_reason}
        if self._call.calibration is not None and reply.trust is not None:
            raw[TRUST] = finished_trust(reply.trust, reply.text, self._call.source, self._call.calibration)
        text = reply.text
        delta = text[len(self._shown) :] if text.startswith(self._shown) else ""
        return CompletionResponse(text=text, delta=delta, raw=raw, additional_kwargs=self._thoughts())

    def _thoughts(self) -> dict[str, Any]:
        delta, self._thought = self._reasoning[self._thought :], len(self._reasoning)
        return reasoning_fields(self._reasoning, delta)

    def _partial(self) -> CompletionResponse | None:
        """The start of the answer's text, as far as no further window changes it; None where that is not known."""
        reply = self._merged()
        text = _open_list(reply) or ""
        if not text.startswith(self._shown) or len(text) == len(self._shown):
            return None
        delta, self._shown = text[len(self._shown) :], text
        return CompletionResponse(text=text, delta=delta, additional_kwargs=self._thoughts())

    def _merged(self) -> _Reply:
        """The answer of the windows so far; that of a window that is no JSON, since without it items are missing."""
        if self._call.rules is None:
            return self._replies[0]
        for reply in self._replies:
            if not reply.is_json:
                return reply
        merged = self._call.rules.merged([reply.value for reply in self._replies])
        merged = _within_limits(merged, self._call.schema)
        cut = any(reply.finish_reason == "length" for reply in self._replies)
        return _Reply.merged(merged, "length" if cut else "stop", self._replies)


def _voted(replies: Sequence[_Reply], schema: Mapping[str, Any]) -> _Reply:
    """The merged reply of a first answer and its draws; the first one where none of them fits the schema."""
    from ..local.generate.votes import vote

    if len(replies) == 1:
        return replies[0]
    valid = [
        reply
        for reply in replies
        if reply.is_json and reply.finish_reason == "stop" and fits(schema, reply.value)
    ]
    if not valid:
        return replies[0]
    value = vote([reply.value for reply in valid], schema, lambda merged: fits(schema, merged))
    name = canonical_json(value)
    equal = (reply for reply in valid if canonical_json(reply.value) == name)
    return next(equal, None) or _Reply.merged(value, "stop", valid)


def fits(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether a value fits a schema; False also where the schema cannot be applied to it."""
    try:
        return find_error(schema, value) is None
    except ValueError:
        return False


def _within_limits(merged: Any, schema: Mapping[str, Any]) -> Any:
    """The merged answer, its lists cut at ``maxItems``: a single request's answer would end there too."""
    with contextlib.suppress(ValueError):  # a schema that cannot be applied: the caller's class decides
        while (error := find_error(schema, merged)) is not None and error.validator == "maxItems":
            longer: Any = error.instance
            del longer[error.validator_value :]
    return merged


def _open_list(reply: _Reply) -> str | None:
    """The text of an answer that is one list up to the list's end; None for other answers."""
    if isinstance(reply.value, list):
        return reply.text[:-1]
    if isinstance(reply.value, dict) and len(reply.value) == 1:
        return reply.text[:-2] if isinstance(next(iter(reply.value.values())), list) else None
    return None
