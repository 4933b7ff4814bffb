"""Chat completions: ``/v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from .answering import ReplyForm, completed
from .chat_call import chat_calls
from .chat_request import ChatCompletionRequest
from .keys import ApiKey, scoped

__all__ = ["router"]

_FORM = ReplyForm("chatcmpl-", "chat.completion", "chat.completion.chunk", "messages")
router = APIRouter(prefix="/v1/chat", tags=["chat"])


@router.post("/completions")
async def create_chat_completion(
    request: Request, body: ChatCompletionRequest, key: Annotated[ApiKey, Depends(scoped("chat"))]
) -> Response:
    """Answer messages, with JSON or calls of tools where they are asked for."""
    body.require_consistent()
    return await completed(request, body, key, _FORM, lambda llm: chat_calls(llm, body))
