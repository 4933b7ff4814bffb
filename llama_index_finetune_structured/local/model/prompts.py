"""Messages and schema -> the model's prompt, the same text in training and in serving."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import DatasetError
from ...example import Example, Message
from ...json_schema import without_titles
from ..train.packing import Row
from .answers import answer_text

__all__ = [
    "chat_template",
    "render_prompt",
    "serving_messages",
    "stop_token_id",
    "to_row",
]

SCHEMA_PROMPT = "Answer with one JSON object that fits this JSON schema, and with nothing else:\n{schema}"
_PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
_PROBE = "0"


def serving_messages(messages: Sequence[Message], schema: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Plain role/content messages, with the schema spelled out at the end of the leading system message.

    There the schema is part of a prefix that all rows share. Message parts that are not text are refused.
    """
    plain = [{"role": _role(message), "content": _text(message)} for message in messages]
    if schema is None:
        return plain
    instruction = SCHEMA_PROMPT.format(schema=json.dumps(without_titles(schema), separators=(",", ":")))
    if plain and plain[0]["role"] == "system":
        text = plain[0]["content"].rstrip()
        return [
            {"role": "system", "content": f"{text}\n\n{instruction}" if text else instruction},
            *plain[1:],
        ]
    return [{"role": "system", "content": instruction}, *plain]


def render_prompt(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of the chat prompt, up to where the assistant's answer begins."""
    ids: list[int] = tokenizer(_render(tokenizer, messages), add_special_tokens=False)["input_ids"]
    return ids


def chat_template(tokenizer: Any) -> str:
    """The template that prompts are written with: the tokenizer's own, else a plain one."""
    return tokenizer.chat_template or _PLAIN_TEMPLATE


def stop_token_id(tokenizer: Any) -> int:
    """The token that ends an assistant turn in the tokenizer's chat template, else its end-of-text token."""
    asked = [{"role": "user", "content": _PROBE}]
    prompt = _render(tokenizer, asked)
    whole = _template(
        tokenizer, [*asked, {"role": "assistant", "content": _PROBE}], add_generation_prompt=False
    )
    _, found, tail = whole.partition(prompt + _PROBE)
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if found else []
    if ids and ids[0] in tokenizer.all_special_ids:
        return int(ids[0])
    if tokenizer.eos_token_id is None:
        raise DatasetError("the base model's tokenizer has no end-of-text token: its answers could never end")
    return int(tokenizer.eos_token_id)


def to_row(tokenizer: Any, example: Example, *, stop_id: int) -> Row:
    """The token ids that an example is trained on. Raises DatasetError where it cannot be rendered."""
    if example.answer.tool_calls and example.answer_schema is None:
        raise DatasetError(
            f"example {example.id[:12]}: its answer is a tool call and it carries no answer schema; "
            "the local engine trains on text answers and on structured ones"
        )
    messages = [_without_schema_text(message, example.schema_text) for message in example.messages]
    prompt = render_prompt(tokenizer, serving_messages(messages, example.answer_schema))
    answer = tokenizer(answer_text(example), add_special_tokens=False)["input_ids"]
    if not answer:
        raise DatasetError(f"example {example.id[:12]}: its answer is empty, there is nothing to train on")
    return Row(tuple(prompt), (*answer, stop_id))


def _without_schema_text(message: Message, schema_text: str | None) -> Message:
    if not schema_text or not isinstance(message.content, str) or schema_text not in message.content:
        return message
    return message.model_copy(update={"content": message.content.replace(schema_text, "")})


def _render(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    try:
        return _template(tokenizer, messages, add_generation_prompt=True)
    except Exception as error:  # templates raise jinja's own errors, e.g. Gemma's on a system message
        if not messages or messages[0]["role"] != "system" or len(messages) == 1:
            raise DatasetError(f"the base model's chat template refuses these messages: {error}") from error
        merged = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        return _render(tokenizer, [{"role": messages[1]["role"], "content": merged}, *messages[2:]])


def _template(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
    text: str = tokenizer.apply_chat_template(
        list(messages),
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        chat_template=chat_template(tokenizer),
    )
    return text


def _role(message: Message) -> str:
    return {"developer": "system", "function": "tool"}.get(message.role, message.role)


def _text(message: Message) -> str:
    content = message.content
    if isinstance(content, list):
        if any(part.get("type") != "text" for part in content):
            raise DatasetError("a message has a part that is not text; the local engine reads text only")
        content = "".join(str(part["text"]) for part in content)
    if content is None and message.tool_calls:
        return json.dumps(message.tool_calls)
    return content or ""
