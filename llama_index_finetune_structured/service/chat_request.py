"""Requests of OpenAI's chat completions, checked: what they ask of a model, in the terms of ``LoraLLM``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from llama_index.core.base.llms.types import ChatMessage
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import Self

from ..formats.wire import message_from_wire
from ..json_schema import schema_validator
from .errors import invalid
from .sampling_request import SamplingRequest, Unsupported, refused, unsupported

__all__ = ["ChatCompletionRequest"]

_CALLS_TOOLS = "tools and tool_choice do the same"
_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class _Part(BaseModel):
    """What a part has more, such as a mark for a provider's cache, changes no answer."""

    model_config = ConfigDict(strict=True, frozen=True)


def _is_text(kind: Any) -> Any:
    if kind != "text":
        raise refused(
            f"parts of type {kind!r} are not supported by this server, whose models read text: send text"
        )
    return kind


class _TextPart(_Part):
    type: Annotated[str, BeforeValidator(_is_text)]
    text: str


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


_Content = Annotated[list[_TextPart], BeforeValidator(_as_parts)]


class _CalledFunction(_Part):
    name: str
    arguments: str


def _is_function(kind: Any) -> Any:
    if kind != "function":
        raise refused(f"tools of type {kind!r} are not supported by this server: use 'function'")
    return kind


_FunctionType = Annotated[str, BeforeValidator(_is_function)]


class _MessageToolCall(_Part):
    id: str
    type: _FunctionType = "function"
    function: _CalledFunction


class _ChatMessage(_Part):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: _Content | None = None
    name: str | None = None
    tool_calls: list[_MessageToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    audio: Unsupported = None
    function_call: Annotated[Any, unsupported(instead=_CALLS_TOOLS)] = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise refused(f"tool_calls: not in a message of role {self.role!r}, only of 'assistant'")
        if self.role == "tool" and self.tool_call_id is None:
            raise refused("tool_call_id: expected in a message of role 'tool'")
        if self.content is None and self.refusal is None and self.role != "function" and not self.tool_calls:
            raise refused("content: expected text, found null")
        return self

    def chat_message(self) -> ChatMessage:
        """The message as LlamaIndex has it; chat templates know the role ``system`` alone for instructions."""
        role = "system" if self.role == "developer" else self.role
        content = None if self.content is None else "".join(part.text for part in self.content)
        wire: dict[str, Any] = {"role": role, "content": self.refusal if content is None else content}
        if self.tool_calls:
            wire["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            wire["tool_call_id"] = self.tool_call_id
        return message_from_wire(wire)


class _Function(_Part):
    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(_Part):
    type: _FunctionType
    function: _Function


class _FunctionName(_Part):
    name: str


class _ToolName(_Part):
    type: _FunctionType = "function"
    function: _FunctionName


class _AllowedTools(_Part):
    mode: Literal["auto", "required"]
    tools: Annotated[list[_ToolName], Field(min_length=1)]


class _ToolChoice(_Part):
    type: Literal["function", "allowed_tools"]
    function: _FunctionName | None = None
    allowed_tools: _AllowedTools | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if getattr(self, self.type) is None:
            raise refused(f"{self.type}: expected with the type {self.type!r}")
        return self

    @property
    def names(self) -> list[str]:
        """The tools that it names."""
        if self.allowed_tools is not None:
            return [tool.function.name for tool in self.allowed_tools.tools]
        return [] if self.function is None else [self.function.name]


class _JsonSchema(_Part):
    name: _Name
    description: str | None = None
    schema_: dict[str, Any] = Field(default={"type": "object"}, alias="schema")
    strict: bool | None = None


class _ResponseFormat(_Part):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise refused("json_schema: expected with the type 'json_schema'")
        return self

    @property
    def schema_of_answers(self) -> tuple[str, dict[str, Any]] | None:
        """Name and schema of the answer; None: it is free text."""
        if self.type == "json_object":
            return "object", {"type": "object"}
        return None if self.json_schema is None else (self.json_schema.name, self.json_schema.schema_)


class ChatCompletionRequest(SamplingRequest):
    """A request for chat completions. ``trust`` is this server's own: whether the reply says how sure answers are."""

    messages: Annotated[list[_ChatMessage], Field(min_length=1)]
    response_format: _ResponseFormat | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    trust: bool | None = None

    modalities: Annotated[list[str] | None, unsupported(["text"], instead="answers are text")] = None
    verbosity: Annotated[Any, unsupported("medium")] = None
    audio: Unsupported = None
    functions: Annotated[Any, unsupported([], instead=_CALLS_TOOLS)] = None
    function_call: Annotated[Any, unsupported("none", instead=_CALLS_TOOLS)] = None
    web_search_options: Annotated[Any, unsupported()] = None
    moderation: Annotated[Any, unsupported()] = None
    # These change no answer.
    metadata: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None

    def require_consistent(self) -> None:
        """Raise ApiError, which names the field, for fields that exclude each other."""
        super().require_consistent()
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs: only allowed with logprobs=true", "top_logprobs")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise invalid(
                "max_tokens and max_completion_tokens are one limit: send one of them", "max_tokens"
            )
        is_json = self.response_format is not None and self.response_format.type != "text"
        if self.stop and (is_json or self.tools):
            raise invalid("stop: would cut JSON, which ends by itself: leave it out", "stop")
        if self.tools:
            if is_json:
                raise invalid(
                    "response_format: a reply is calls of tools or JSON, send one of them", "response_format"
                )
            self._require_tools({tool.function.name for tool in self.tools})
        elif self.tool_choice not in (None, "none"):
            raise invalid("tool_choice: only allowed with tools", "tool_choice")

    def _require_tools(self, known: set[str]) -> None:
        if len(known) < len(self.tools or ()):
            raise invalid("tools: expected a name of its own for each", "tools")
        asked = self.tool_choice.names if isinstance(self.tool_choice, _ToolChoice) else []
        if unknown := set(asked) - known:
            raise invalid(f"tool_choice: {min(unknown)!r} is none of tools", "tool_choice")

    def require_schemas(self) -> None:
        """Raise ApiError, which names the field, for what is no JSON schema."""
        schemas = {
            f"tools.{number}.function.parameters": tool.function.parameters or {}
            for number, tool in enumerate(self.tools or ())
        }
        if self.answer_schema is not None:
            schemas["response_format.json_schema.schema"] = self.answer_schema[1]
        for field, schema in schemas.items():
            try:
                schema_validator(schema)
            except ValueError as error:
                raise invalid(f"{field}: {error}", field) from error

    @property
    def chat_messages(self) -> list[ChatMessage]:
        """The messages as LlamaIndex has them."""
        return [message.chat_message() for message in self.messages]

    @property
    def answer_schema(self) -> tuple[str, dict[str, Any]] | None:
        """Name and schema of the answer; None: it is no JSON."""
        return None if self.response_format is None else self.response_format.schema_of_answers

    @property
    def answer_fields(self) -> dict[str, str]:
        """As of ``SamplingRequest``, with the field of the answer's schema."""
        limit = "max_completion_tokens" if self.max_completion_tokens else "max_tokens"
        return {"schema": "tools" if self.tools else "response_format.json_schema.schema", "limit": limit}

    @property
    def answer_tokens(self) -> int | None:
        """The token limit of an answer; None: the model's own."""
        return self.max_completion_tokens or self.max_tokens

    def tool_keywords(self) -> dict[str, Any]:
        """The keywords of ``chat`` that concern tools."""
        if not self.tools:
            return {}
        choice = self.tool_choice
        choice_type = getattr(choice, "type", None)
        return {
            "tools": [tool.model_dump(exclude_none=True) for tool in self.tools],
            "tool_choice": choice.model_dump(exclude_none=True)
            if isinstance(choice, _ToolChoice)
            else choice,
            # One that is named is called once.
            "parallel_tool_calls": False if choice_type == "function" else self.parallel_tool_calls,
        }
