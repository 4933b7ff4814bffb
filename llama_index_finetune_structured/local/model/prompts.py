"""Examples as token ids: the same prompt in training and in serving, and the answer to train on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import DatasetError
from ...example import Example, Message
from ...json_schema import without_titles
from ..schema.objects import in_schema_order
from ..schema.spelling import spelled_json

__all__ = [
    "TokenRow",
    "trained_text",
    "chat_template",
    "render_prompt",
    "messages_with_schema",
    "stop_token_id",
    "token_row",
]

SCHEMA_PROMPT = "Answer with one JSON object that fits this JSON schema, and with nothing else:\n{schema}"
_PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
_PROBE = "0"  # a text that no chat template changes


@dataclass(frozen=True)
class TokenRow:
    """Token ids of one training row; the loss is on every token of ``answer``, the stop token included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The model's input: prompt and answer without the last token, after which nothing is predicted."""
        return self.prompt + self.answer[:-1]

    def __len__(self) -> int:
        """Tokens of prompt and answer together."""
        return len(self.prompt) + len(self.answer)


def messages_with_schema(
    messages: Sequence[Message], schema: Mapping[str, Any] | None
) -> list[dict[str, str]]:
    """Messages as plain role and content, with the schema at the end of the leading system message.

    There the schema is part of the prefix that all rows share. Where no system message leads, one is added.
    Raises DatasetError for message parts that are not text.
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
    """Token ids of the chat prompt, the opening of the assistant's turn included."""
    ids: list[int] = tokenizer(_render(tokenizer, messages), add_special_tokens=False)["input_ids"]
    return ids


def chat_template(tokenizer: Any) -> str:
    """The tokenizer's chat template, or a plain ``role: content`` template where it has none."""
    return tokenizer.chat_template or _PLAIN_TEMPLATE


def stop_token_id(tokenizer: Any) -> int:
    """The token that ends an assistant turn in the chat template, else the tokenizer's end-of-text token.

    Raises DatasetError where there is neither.
    """
    question = [{"role": "user", "content": _PROBE}]
    prompt = _render(tokenizer, question)
    dialogue = [*question, {"role": "assistant", "content": _PROBE}]
    text = _template(tokenizer, dialogue, add_generation_prompt=False)
    # What the template writes after the answer begins with the stop token.
    _, matched, tail = text.partition(prompt + _PROBE)
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if matched else []
    if ids and ids[0] in tokenizer.all_special_ids:
        return int(ids[0])
    if tokenizer.eos_token_id is None:
        raise DatasetError("the base model's tokenizer has no end-of-text token: its answers could never end")
    return int(tokenizer.eos_token_id)


def token_row(tokenizer: Any, example: Example, *, stop_id: int) -> TokenRow:
    """The token ids that an example is trained on. Raises DatasetError where it cannot be rendered."""
    if example.answer.tool_calls and example.answer_schema is None:
        raise DatasetError(
            f"example {example.id[:12]}: its answer is a tool call and it has no answer schema; "
            "the local engine trains on text answers and on structured ones"
        )
    messages = [_without_schema_text(message, example.schema_text) for message in example.messages]
    prompt = render_prompt(tokenizer, messages_with_schema(messages, example.answer_schema))
    answer = tokenizer(trained_text(example), add_special_tokens=False)["input_ids"]
    if not answer:
        raise DatasetError(f"example {example.id[:12]}: its answer is empty, there is nothing to train on")
    return TokenRow(tuple(prompt), (*answer, stop_id))


def trained_text(example: Example) -> str:
    """The answer's text to train on: with a schema, JSON without spaces and with keys in the schema's order.

    The grammar enforces the same form in serving. Without a schema, the plain text of the answer. Raises
    DatasetError where an answer with a schema is not JSON.
    """
    if example.answer_schema is None:
        return example.answer_text()
    try:
        return spelled_json(in_schema_order(example.answer_schema, example.answer_object()))
    except ValueError as error:
        raise DatasetError(
            f"example {example.id[:12]}: it has a schema and its answer is not JSON ({error}): fix or remove it"
        ) from error


def _without_schema_text(message: Message, schema_text: str | None) -> Message:
    """The message without the schema text of the transport it was captured from: serving writes its own."""
    if not schema_text or not isinstance(message.content, str) or schema_text not in message.content:
        return message
    return message.model_copy(update={"content": message.content.replace(schema_text, "")})


def _render(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """The prompt's text. Where the template rejects a system message, it is put before the next message."""
    try:
        return _template(tokenizer, messages, add_generation_prompt=True)
    except Exception as error:  # templates raise jinja's own errors, e.g. Gemma's on a system message
        if not messages or messages[0]["role"] != "system" or len(messages) == 1:
            raise DatasetError(f"the base model's chat template rejects these messages: {error}") from error
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
    """The role by the name that chat templates have for it."""
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
