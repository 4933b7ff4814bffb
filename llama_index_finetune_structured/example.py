"""The canonical Example: one answered LLM call, the unit of capture, storage, training and scoring.

A superset of an OpenAI chat line. Every training-file format is a pure function of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from .errors import DatasetError
from .notebook_html import escape, folded, plain_table

__all__ = [
    "LINE_LEVELS",
    "MOST_LEVELS",
    "Example",
    "Message",
    "Source",
    "Transport",
    "Usage",
    "canonical_json",
    "compact_json",
    "content_hash",
    "is_too_deep",
    "json_span",
    "loads",
    "refuse_constant",
]

Transport = Literal["json_schema", "tools", "text"]
"""How a schema is sent to a model: as a response format, as a tool, or as text in the prompt."""
MOST_LEVELS = 64
"""Objects and lists inside each other that a JSON value or schema of this package may have.

Chosen: far more than answers have, and few enough that what walks them ends far from Python's recursion limit.
"""
LINE_LEVELS = MOST_LEVELS + 8
"""Those of a line, in which schemas and answers are inside an example, and that inside a rejected row."""
Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and only the necessary escapes: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def compact_json(value: Any) -> str:
    """JSON without spaces, keys in the given order: the form of the answers that a model is trained on."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


_LEAVES = (str, int, float, type(None))  # told apart much faster than what is a Mapping
_NESTED = (dict, list, tuple, Mapping)


def is_too_deep(value: Any, most: int = MOST_LEVELS, text: str | None = None) -> bool:
    """Whether a value has more than ``most`` objects and lists inside each other, as one that contains itself has.

    ``text``: the JSON that it was read from, whose brackets are counted first, which is much faster.
    """
    if text is not None and text.count("[") + text.count("{") <= most:
        return False
    level = [value]
    for _ in range(most):
        inner = {
            id(part): part
            for outer in level
            for part in (
                outer.values()
                if isinstance(outer, (dict, Mapping))
                else outer
                if isinstance(outer, list | tuple)
                else ()
            )
            if not isinstance(part, _LEAVES) and isinstance(part, _NESTED)
        }
        if not inner:
            return False
        level = list(inner.values())
    return True


def loads(text: str, most: int = MOST_LEVELS) -> Any:
    """``json.loads``, of at most ``most`` levels. Raises ValueError, also where Python's parser gives up."""
    try:
        value = json.loads(text)
    except RecursionError:
        pass
    else:
        if not is_too_deep(value, most, text):
            return value
    raise ValueError(f"JSON is nested too deeply: more than {most} objects and lists inside each other")


def json_span(text: str) -> str:
    """The JSON in a model's text: the whole text if it is JSON, of any type, else from first ``{`` to last ``}``.

    LlamaIndex's own output parser reads the same span. Raises ValueError where there is none.
    """
    stripped = text.strip()
    try:
        json.loads(stripped, parse_constant=refuse_constant)
        return stripped
    except (ValueError, RecursionError):
        pass
    first, last = stripped.find("{"), stripped.rfind("}")
    if first < 0 or last < first:
        raise ValueError("no JSON object in the text")
    return stripped[first : last + 1]


def refuse_constant(name: str) -> NoReturn:
    """Raise ValueError for NaN and infinities, which Python's parser accepts: the ``parse_constant`` of json.loads."""
    raise ValueError(f"{name} is not a JSON value")


def _number_calls(messages: list[dict[str, Any]]) -> None:
    """Replace the id of each tool call by its index in order of first use."""
    numbers: dict[str, int] = {}
    for message in messages:
        for call in message.get("tool_calls", ()):
            if "id" in call:
                call["id"] = numbers.setdefault(call["id"], len(numbers))
        if "tool_call_id" in message:
            message["tool_call_id"] = numbers.setdefault(message["tool_call_id"], len(numbers))


def _arguments(call: dict[str, JsonValue]) -> str:
    """The arguments of a tool call, as JSON text."""
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, dict) else None
    return arguments if isinstance(arguments, str) else compact_json(arguments)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Message(_Frozen):
    """One chat message in OpenAI's wire format.

    Attributes:
        role: "system", "developer", "user", "assistant", "tool" or "function".
        content: Text, or a list of content parts; None for an answer that only calls tools.
        reasoning_content: What the model wrote before an answer, for itself. None: nothing, or it is not known.
        tool_calls: Calls of an assistant turn: ``{"id", "type", "function": {"name", "arguments"}}``.
        tool_call_id: In a tool's message, the id of the call that it answers.
        name: Name of the author, or of the called function.
        weight: 0 excludes an assistant turn from the loss; None and 1 do not.
    """

    role: Role
    content: str | list[dict[str, JsonValue]] | None = None
    reasoning_content: str | None = None
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

    def wire(self, *, reasoning: bool = False) -> dict[str, Any]:
        """The message as OpenAI's API takes it: absent fields are left out, ``content`` is always present.

        Args:
            reasoning: Whether to keep ``reasoning_content``, which that API does not take.
        """
        left_out = {"role", "content"} if reasoning else {"role", "content", "reasoning_content"}
        return {"role": self.role, "content": self.content} | self.model_dump(
            exclude=left_out, exclude_none=True
        )

    def shown(self) -> str:
        """Its text for people: the content, then the tool calls as JSON."""
        parts = self.content if isinstance(self.content, list) else [{"text": self.content or ""}]
        text = "".join(str(part.get("text", f"[{part.get('type')}]")) for part in parts)
        calls = [canonical_json(call.get("function", call)) for call in self.tool_calls or ()]
        return "\n".join(filter(None, [text, *calls]))


class Source(_Frozen):
    """A retrieved node whose text the prompt contains.

    Attributes:
        node_id: Id of the node.
        score: The retriever's score; its scale is the retriever's own. None: it gave none.
        document_id: Id of the document that the node was cut from. None: unknown.
    """

    node_id: str
    score: float | None = None
    document_id: str | None = None


class Usage(_Frozen):
    """Token counts as the provider reported them; None where it did not.

    Attributes:
        prompt_tokens: Tokens of the messages sent.
        completion_tokens: Tokens of the answer.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Example(_Frozen):
    """The messages of a call and its answer, with the requested schema and the origin.

    Attributes:
        messages: The messages sent, without the answer; at least one.
        answer: The assistant's message, with ``content`` or ``tool_calls``.
        transport: How the schema was sent: "json_schema" (response format), "tools" or "text" (in the prompt).
        answer_schema: JSON schema of the answer. None: the answer is any text.
        schema_name: Name of the schema, such as that of its Pydantic class.
        answer_class: That class as ``module:Class``. Evaluation and ``check`` judge by it where its module is imported
            and the class has this schema; it is never imported because of a row.
        schema_text: Part of the messages that contains the schema ("text" only); rendering for another transport
            removes it.
        tools: Tool definitions sent, in OpenAI's chat form.
        tool_choice: Which tool the model had to call, as sent.
        parallel_tool_calls: Whether the model might call several tools at once, as sent.
        response_format: The response format as sent, in OpenAI's form.
        query: The user's question before retrieval, which evaluation sends to a query engine.
        sources: Retrieved nodes whose text the prompt contains, in order.
        document_id: Group that ``FinetuneDataset.split(group_by="document")`` keeps together.
        model: Name of the model that answered.
        usage: Token counts of the call.
        split: Side of a split, such as "train" or "validation".
        metadata: Further facts about the origin, such as ``event_id``; not part of the ``id``.
    """

    messages: tuple[Message, ...] = Field(min_length=1)
    answer: Message
    transport: Transport = "text"
    answer_schema: dict[str, JsonValue] | None = None
    schema_name: str | None = None
    answer_class: str | None = None
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

    @model_validator(mode="after")
    def _is_not_too_deep(self) -> Example:
        for name in ("answer_schema", "tools", "tool_choice", "response_format", "metadata"):
            if is_too_deep(getattr(self, name)):
                raise ValueError(f"{name}: more than {MOST_LEVELS} objects and lists inside each other")
        for message in (*self.messages, self.answer):
            if is_too_deep([message.content, message.tool_calls]):
                raise ValueError(f"a message has more than {MOST_LEVELS} objects and lists inside each other")
        return self

    @property
    def id(self) -> str:
        """Content hash of what a model learns from.

        In it: messages, answer, answer schema, transport, tools, tool choice, parallel tool calls and response format;
        not the class, query, sources, document, model and split. The answer counts as text: other spaces or another
        key order make another id. Ids of tool calls are random for each call, so they are replaced by their order.
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

    @property
    def is_agent_turn(self) -> bool:
        """Whether tools were sent and no schema of an answer, as agents do."""
        return bool(self.tools) and self.answer_schema is None

    @property
    def conversation(self) -> str:
        """Content hash of what all rows of an agent's run begin with: the messages up to the first question.

        Instructions do not count, since they change where one agent hands over to another.
        """
        messages = [message for message in self.messages if message.role not in ("system", "developer")]
        first = next((at for at, message in enumerate(messages) if message.role == "user"), 0)
        return content_hash([message.wire() for message in messages[: first + 1]])

    def _repr_html_(self) -> str:
        """Answer and messages, for notebooks."""
        facts = ", ".join(filter(None, [self.schema_name, self.document_id, self.model, self.split]))
        rows = [(message.role, message.shown()) for message in (*self.messages, self.answer)]
        whole = "".join(f"<pre>{escape(f'{role}: {text}')}</pre>" for role, text in rows)
        table = plain_table(("role", "content"), rows)
        return f"<p>Example {self.id[:12]} {escape(facts)}</p>{table}{folded('whole', whole)}"

    def answer_texts(self) -> list[str]:
        """Every text of the answer: its content, if there is any, then the JSON arguments of each tool call."""
        content = self.answer.content
        if isinstance(content, list):
            content = "".join(str(part["text"]) for part in content if part.get("type") == "text")
        arguments = [_arguments(call) for call in self.answer.tool_calls or ()]
        return [content, *arguments] if content else arguments

    def answer_text(self) -> str:
        """The answer as one text: its content or, for a tool call, the call's JSON arguments.

        Content beside the one call of a structured answer is left out, as LlamaIndex leaves it out.

        Raises:
            DatasetError: The answer is more than one text: several tool calls, or content and a call without an
                ``answer_schema``; or a part of it is no text.
        """
        parts = self.answer.content if isinstance(self.answer.content, list) else []
        if kinds := [part.get("type") for part in parts if part.get("type") != "text"]:
            raise DatasetError(
                f"its answer has a part {kinds[0]!r}, expected text; leave the part out, or the row"
            )
        calls, texts = len(self.answer.tool_calls or ()), self.answer_texts()
        has_content = len(texts) > calls and bool(texts[0].strip())
        if calls > 1 or (calls and has_content and self.answer_schema is None):
            found = f"{calls} tool calls" if calls > 1 else "content and a tool call"
            raise DatasetError(
                f"its answer has {found}, which are not one text; use a format with tool "
                "calls ('openai', 'trl-messages'), or leave the row out"
            )
        return texts[-1] if texts else ""

    def answer_object(self) -> Any:
        """The answer parsed as JSON.

        Raises:
            ValueError: The answer is plain text, nested more than 64 levels deep or, a DatasetError, not one text.
        """
        return loads(self.answer_text())

    def to_json(self) -> str:
        """One JSON line without line ending: the id first, absent fields left out."""
        return json.dumps(
            {"id": self.id} | self.model_dump(mode="json", exclude_none=True, exclude_defaults=True),
            ensure_ascii=False,
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, line: str) -> Example:
        """Read a line of ``to_json``.

        Args:
            line: One JSON line; the stored id is ignored and recomputed.

        Raises:
            ValueError: The line is not a JSON object, or not a valid Example.
        """
        row = loads(line, LINE_LEVELS)
        if not isinstance(row, dict):
            raise ValueError(f"expected a JSON object, found {type(row).__name__}")
        row.pop("id", None)
        return cls.model_validate(row)
