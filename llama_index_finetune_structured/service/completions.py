"""Plain completions, OpenAI's older protocol: ``/v1/completions``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BeforeValidator, Field

from ..llms.local_calls import LocalCall
from ..llms.lora import LoraLLM
from .answering import ChoicePart, ReplyForm, completed, end_of
from .errors import invalid
from .keys import ApiKey, scoped
from .sampling_request import SamplingRequest, Unsupported, refused, unsupported
from .token_logprobs import TokenLogprobs

__all__ = ["CompletionRequest", "router"]

_MOST_ANSWERS = 128  # chosen: as many as one chat completion may have
_FORM = ReplyForm("cmpl-", "text_completion", "text_completion", "prompt")
router = APIRouter(prefix="/v1", tags=["completions"])


def _as_prompts(prompt: Any) -> Any:
    if isinstance(prompt, list) and any(not isinstance(one, str) for one in prompt):
        raise refused("expected a text or a list of texts; token ids are not supported by this server")
    return [prompt] if isinstance(prompt, str) else prompt


class CompletionRequest(SamplingRequest):
    """A request for completions of one prompt or of several."""

    prompt: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        BeforeValidator(_as_prompts),
        Field(min_length=1, max_length=_MOST_ANSWERS),
    ]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[int | None, unsupported(1, instead="n answers are generated, leave it out")] = None
    echo: bool | None = None
    suffix: Annotated[Any, unsupported("")] = None
    moderation: Unsupported = None

    def require_consistent(self) -> None:
        """Raise ApiError, which names the field, for what is not supported together."""
        super().require_consistent()
        if self.echo:
            raise invalid("echo: not supported by this server: put the prompt before the answer", "echo")
        if (answers := len(self.prompt) * self.choices) > _MOST_ANSWERS:
            raise invalid(f"n: {answers} answers in all, expected at most {_MOST_ANSWERS}", "n")


@router.post("/completions")
async def create_completion(
    request: Request, body: CompletionRequest, key: Annotated[ApiKey, Depends(scoped("chat"))]
) -> Response:
    """Continue prompts, which are sent to the model as they are, control tokens included."""
    body.require_consistent()
    return await completed(request, body, key, _FORM, lambda llm: _calls(llm, body), prompts=len(body.prompt))


class _TextCall:
    """The call of one choice; it may be answered once."""

    def __init__(self, call: LocalCall, likeliest: int | None) -> None:
        self._call = call
        self._logprobs = None if likeliest is None else TokenLogprobs(call, likeliest)
        self._offset = 0  # of the next token, in the text

    async def choice(self) -> ChoicePart:
        """The whole choice."""
        completion = await self._call.acomplete()
        end = end_of(completion)
        fields = self._fields(completion.text, completion.text, end["finish_reason"])
        return ChoicePart(fields, end["usage"])

    async def parts(self) -> AsyncGenerator[ChoicePart, None]:
        """The choice as it grows."""
        async with aclosing(self._call.astream()) as completions:
            async for completion in completions:
                end, delta = end_of(completion), completion.delta or ""
                if end:
                    yield ChoicePart(self._fields(delta, completion.text, end["finish_reason"]), end["usage"])
                elif delta:
                    yield ChoicePart(self._fields(delta, completion.text, None))

    def _fields(self, delta: str, text: str, reason: str | None) -> dict[str, Any]:
        return {
            "text": delta,
            "logprobs": self._told(text, is_whole=reason is not None),
            "finish_reason": reason,
        }

    def _told(self, text: str, *, is_whole: bool) -> dict[str, Any] | None:
        """Log-probabilities in the form of plain completions."""
        if self._logprobs is None:
            return None
        tokens = self._logprobs.next(text, is_whole=is_whole)
        offsets = list[int]()
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token["token"])
        return {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [
                {one["token"]: one["logprob"] for one in token["top_logprobs"]} for token in tokens
            ],
            "text_offset": offsets,
        }


def _calls(llm: LoraLLM, body: CompletionRequest) -> list[_TextCall]:
    calls = list[_TextCall]()
    for prompt in body.prompt:
        for choice in range(body.choices):
            keywords = {"max_new_tokens": body.max_tokens, **body.sampling(choice)}
            call = llm._completion_call(prompt, True, keywords)
            assert isinstance(call, LocalCall)  # free text is answered once
            calls.append(_TextCall(call, body.logprobs))
    return calls
