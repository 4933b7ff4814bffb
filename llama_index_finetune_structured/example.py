"""The canonical Example: one answered call, as it is captured, stored, trained on and scored.

An OpenAI-chat superset. Every training-file format is a pure function of it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    RootModel,
    field_validator,
    model_validator,
)

__all__ = [
    "Example",
    "Message",
    "Source",
    "Transport",
    "Usage",
    "answer_value",
    "canonical_json",
    "compact_json",
    "content_hash",
    "json_span",
]

Transport = Literal["json_schema", "tools", "text"]
Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no escapes beyond the needed: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def compact_json(value: Any) -> str:
    """JSON without spaces, keys in the order given: what a model is taught to write."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def json_span(text: str) -> str:
    """The text itself where it is a JSON object or list, else the span from its first ``{`` to its last ``}``.

    The span is what LlamaIndex's own output parser reads. Raises ValueError where there is none.
    """
    stripped = text.strip()
    if stripped.startswith(("{", "[")):
        try:
            json.loads(stripped)
            return stripped
        except (ValueError, RecursionError):
            pass
    first, last = stripped.find("{"), stripped.rfind("}")
    if first < 0 or last < first:
        raise ValueError("no JSON object in the text")
    return stripped[first : last + 1]


def _number_calls(messages: list[dict[str, Any]]) -> None:
    """Each call's id becomes its place among the ids."""
    places: dict[str, int] = {}
    for message in messages:
        for call in message.get("tool_calls", ()):
            if "id" in call:
                call["id"] = places.setdefault(call["id"], len(places))
        if "tool_call_id" in message:
            message["tool_call_id"] = places.setdefault(message["tool_call_id"], len(places))


def answer_value(answer: BaseModel, *, exclude_unset: bool = False) -> Any:
    """The JSON value of a Pydantic answer as its class reads it: the names and fields of its JSON schema.

    Not what ``model_dump`` gives: that leaves aliases out or takes those for writing, and adds computed fields.
    """
    dumped = answer.model_dump(mode="json", by_alias=False, round_trip=True, exclude_unset=exclude_unset)
    return _under_read_names(answer, dumped)


def _under_read_names(value: Any, dumped: Any) -> Any:
    if isinstance(value, RootModel):
        return _under_read_names(value.root, dumped)
    if isinstance(value, BaseModel) and isinstance(dumped, dict):
        return {
            _read_name(type(value), key): _under_read_names(value.__dict__.get(key), part)
            for key, part in dumped.items()
        }
    if isinstance(value, dict) and isinstance(dumped, dict) and len(value) == len(dumped):
        parts = zip(value.values(), dumped.items(), strict=True)
        return {key: _under_read_names(inner, part) for inner, (key, part) in parts}
    if isinstance(value, list | tuple) and isinstance(dumped, list) and len(value) == len(dumped):
        return [_under_read_names(inner, part) for inner, part in zip(value, dumped, strict=True)]
    return dumped


def _read_name(kind: type[BaseModel], key: str) -> str:
    field = kind.model_fields.get(key)
    alias = None if field is None else field.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return next((choice for choice in choices if isinstance(choice, str)), key)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Message(_Frozen):
    """One chat message in OpenAI's wire form. ``weight`` 0 keeps an assistant turn out of the loss."""

    role: Role
    content: str | list[dict[str, JsonValue]] | None = None
    tool_calls: list[dict[str, JsonValue]] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    weight: Literal[0, 1] | None = None

    @field_validator("tool_calls")
    @classmethod
    def _calls_name_a_function(cls, calls: list[dict[str, JsonValue]] | None) -> Any:
        for index, call in enumerate(calls or ()):
            function = call.get("function")
            named = isinstance(function, dict) and isinstance(function.get("name"), str)
            if not named or not isinstance(call.get("id", ""), str):
                raise ValueError(
                    f"call {index}: expected {{'id': text, 'function': {{'name', 'arguments'}}}}"
                )
        return calls

    def wire(self) -> dict[str, Any]:
        """The message as OpenAI's API takes it: absent fields left out, ``content`` always there."""
        return {"role": self.role, "content": self.content} | self.model_dump(
            exclude={"role", "content"}, exclude_none=True
        )


class Source(_Frozen):
    """A retrieved node that stood in the prompt."""

    node_id: str
    score: float | None = None
    document_id: str | None = None


class Usage(_Frozen):
    """Token counts as the provider reported them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Example(_Frozen):
    """Messages -> answer, with the schema it was asked for and where it came from.

    ``messages`` are those sent, without the answer. ``schema_text`` is the part of them that spells the
    schema out (text transport only), so that the example can be rendered for another transport.
    ``query`` is the user's question before retrieval: what a query engine is asked when scored.
    ``document_id`` is the group that a split keeps together.
    """

    messages: tuple[Message, ...] = Field(min_length=1)
    answer: Message
    transport: Transport = "text"
    answer_schema: dict[str, JsonValue] | None = None
    schema_name: str | None = None
    schema_text: str | None = None
    tools: list[dict[str, JsonValue]] | None = None
    tool_choice: JsonValue = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, JsonValue] | None = None

    query: str | None = None
    sources: tuple[Source, ...] = ()
    document_id: str | None = None
    model: str | None = None
    usage: Usage | None = None
    split: str | None = None
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _answer_is_assistant(self) -> Example:
        if self.answer.role != "assistant":
            raise ValueError(f"answer: role is {self.answer.role!r}, expected 'assistant'")
        if self.answer.content is None and not self.answer.tool_calls:
            raise ValueError("answer: neither content nor tool_calls; an example needs an answer")
        return self

    @property
    def id(self) -> str:
        """Content hash of what is learned: messages, tools, schema and answer, not where they came from.

        Of the ids of tool calls, which a provider draws anew each time, only which are the same counts.
        """
        learned = self.model_dump(
            mode="json",
            exclude_none=True,
            include={
                "messages", "answer", "transport", "answer_schema", "tools", "tool_choice",
                "parallel_tool_calls", "response_format",
            },
        )  # fmt: skip
        _number_calls([*learned["messages"], learned["answer"]])
        return content_hash(learned)

    @property
    def schema_hash(self) -> str | None:
        """Content hash of the answer's JSON schema."""
        return None if self.answer_schema is None else content_hash(self.answer_schema)

    def answer_text(self) -> str:
        """The answer as one text: its content or, of a tool call, its JSON arguments."""
        if self.answer.tool_calls:
            function = self.answer.tool_calls[0].get("function")
            arguments = function.get("arguments") if isinstance(function, dict) else None
            return arguments if isinstance(arguments, str) else canonical_json(arguments)
        content = self.answer.content
        if isinstance(content, list):
            return "".join(str(part.get("text", "")) for part in content)
        return content or ""

    def answer_object(self) -> Any:
        """The answer parsed as JSON; raises ValueError where it is plain text."""
        return json.loads(self.answer_text())

    def to_json(self) -> str:
        """One JSONL line, without newline: the id first, absent fields left out."""
        return json.dumps(
            {"id": self.id} | self.model_dump(mode="json", exclude_none=True, exclude_defaults=True),
            ensure_ascii=False,
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, line: str) -> Example:
        """Read a line of :meth:`to_json`; the id is recomputed, never believed. Raises ValueError."""
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"expected a JSON object, found {type(row).__name__}")
        row.pop("id", None)
        return cls.model_validate(row)
