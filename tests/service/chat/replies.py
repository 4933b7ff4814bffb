"""OpenAI's own description of the replies of chat completions.

``openai_chat_replies.json`` has these parts of https://github.com/openai/openai-openapi (commit f85dbe2, MIT), without
texts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator

SCHEMAS: dict[str, Any] = json.loads(
    Path(__file__).with_name("openai_chat_replies.json").read_text(encoding="utf-8")
)


def require_described(name: str, body: Any) -> None:
    """Raise ValidationError where a reply is not as the description has it."""
    Draft202012Validator({"$defs": SCHEMAS, "$ref": f"#/$defs/{name}"}).validate(body)


def require_reply(response: httpx.Response) -> None:
    """The same of a response of a chat completion that is not a stream."""
    body = json.loads(response.read())
    if response.status_code >= 400:
        require_described("ErrorResponse", body)
        assert "Traceback" not in response.text
    elif body["object"] == "chat.completion":
        require_described("CreateChatCompletionResponse", body)


def events(response: httpx.Response) -> list[Any]:
    """The events of a stream, each chunk as the description has it, the last one the mark of the end."""
    data = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    chunks = [json.loads(one) for one in data[:-1]]
    for chunk in chunks:
        require_described("CreateChatCompletionStreamResponse", chunk)
    return chunks
