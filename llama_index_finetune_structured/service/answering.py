"""From a request for completions to the reply: the place and the model, all choices together, whole or streamed."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from llama_index.core.base.llms.types import CompletionResponse

from ..llms.lora import LoraLLM
from .answer_errors import answer_errors
from .call_queue import CallQueue
from .event_stream import EventStream, interleaved, together, until_disconnected
from .keys import ApiKey
from .models import models_of
from .sampling_request import SamplingRequest

__all__ = ["ChoiceCall", "ChoicePart", "ReplyForm", "completed", "end_of"]


@dataclass(frozen=True)
class ChoicePart:
    """A part of a choice without its index: all of it, or what a stream's chunk has. ``usage``: with the last."""

    fields: dict[str, Any]
    usage: dict[str, Any] | None = None


def end_of(completion: CompletionResponse) -> dict[str, Any]:
    """What a finished completion has beside its text: ``usage``, ``finish_reason`` and its trust."""
    raw: dict[str, Any] = completion.raw or {}
    return raw


class ChoiceCall(Protocol):
    """The call of one choice; it may be answered once, in one of two ways."""

    async def choice(self) -> ChoicePart:
        """The whole choice."""

    def parts(self) -> AsyncGenerator[ChoicePart, None]:
        """The choice as it grows."""


class ReplyForm(NamedTuple):
    """What tells one protocol's replies: start of their ids, names of objects, the field that holds what is asked."""

    id_prefix: str
    whole: str
    chunk: str
    asked: str


async def completed(
    request: Request,
    body: SamplingRequest,
    key: ApiKey,
    form: ReplyForm,
    calls_of: Callable[[LoraLLM], Sequence[ChoiceCall]],
    *,
    prompts: int = 1,
) -> Response:
    """The reply to a request. A client that leaves ends its generation and frees its place.

    ``calls_of``: the calls of all choices, ready to be answered; it runs in a thread. ``prompts``: how many the choices
    are of.
    """
    return await until_disconnected(request, lambda: _completed(request, body, key, form, calls_of, prompts))


async def _completed(
    request: Request,
    body: SamplingRequest,
    key: ApiKey,
    form: ReplyForm,
    calls_of: Callable[[LoraLLM], Sequence[ChoiceCall]],
    prompts: int,
) -> Response:
    queue: CallQueue = request.app.state.calls
    model = await asyncio.to_thread(models_of(request).find, body.model, key.id)
    envelope = {"id": f"{form.id_prefix}{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
    with ExitStack() as stack:
        llm = await queue.enter(stack, model)
        with answer_errors(form.asked, **body.answer_fields):
            calls = await asyncio.to_thread(calls_of, llm)
        if body.stream:
            chunks = _chunks({**envelope, "object": form.chunk}, calls, body.sends_usage, prompts)
            return EventStream(chunks, stack.pop_all())
        with answer_errors(**body.answer_fields):
            parts = await together([call.choice() for call in calls])
    choices = [{"index": index, **part.fields} for index, part in enumerate(parts)]
    usage = _usage([part.usage for part in parts if part.usage], prompts)
    return JSONResponse({**envelope, "object": form.whole, "choices": choices, "usage": usage})


async def _chunks(
    envelope: Mapping[str, Any], calls: Sequence[ChoiceCall], sends_usage: bool, prompts: int
) -> AsyncGenerator[dict[str, Any], None]:
    usages = list[dict[str, Any]]()
    no_usage = {"usage": None} if sends_usage else {}
    async with aclosing(interleaved([call.parts() for call in calls])) as parts:
        async for index, part in parts:
            usages += [part.usage] if part.usage else []
            yield {**envelope, "choices": [{"index": index, **part.fields}], **no_usage}
    if sends_usage:
        yield {**envelope, "choices": [], "usage": _usage(usages, prompts)}


def _usage(usages: Sequence[Mapping[str, Any]], prompts: int) -> dict[str, Any]:
    """The counts of tokens of all choices, as many for each prompt; a prompt counts once."""
    prompt = sum(usage["prompt_tokens"] for usage in usages) * prompts // len(usages)
    completion = sum(usage["completion_tokens"] for usage in usages)
    details = [usage.get("completion_tokens_details") or {} for usage in usages]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {
            "reasoning_tokens": sum(detail.get("reasoning_tokens", 0) for detail in details)
        },
    }
