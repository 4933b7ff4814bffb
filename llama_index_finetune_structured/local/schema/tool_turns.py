"""An agent's turn as one JSON value: texts and tool calls in a list, with a schema made of the tools' own.

A final answer is ``["The sum is 3."]``, a call ``[{"add": {"a": 1, "b": 2}}]``, with a text before it
``["Let me see.", {"add": ...}]``, and parallel calls follow each other. So prompts, grammars, bounds and trust of
structured answers hold for turns too.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from ...errors import ConfigurationError, DatasetError
from ...example import Example, Message, compact_json
from ...json_schema import map_sub_schemas, pointer_part, without_titles
from .spelling import spelled_json
from .written import written_answer

__all__ = [
    "CALL",
    "TURN_TEXT",
    "ToolChoice",
    "chosen_schema",
    "is_turn_schema",
    "structured_turns",
    "tool_schema",
    "turn_messages",
    "turn_schema",
]

ToolChoice = Literal["auto", "required", "none"] | str
"""Whether tools may, must or must not be called; another text: the tool that must be called."""

TURN_TEXT = "#/anyOf/1/prefixItems/0"
"""JSON pointer of a turn's text in its schema."""

CALL = "Call"
"""Name of the definition of calls in a turn's schema."""
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
_DEFINITIONS = ("$defs", "definitions")
_OF_TOOLS = ("type", "properties", "required", *_DEFINITIONS)
_TEXT = {"type": "string"}
_MEANING = "What you say, if anything, then the functions that you call."


def turn_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of turns with these tools, which are in OpenAI's chat form; their order does not matter.

    Raises ConfigurationError for tools without name, two of one name, none, and references that lead out of a tool's
    parameters.
    """
    functions = sorted(map(_function, tools), key=lambda function: str(function["name"]))
    names = [function["name"] for function in functions]
    if not names or len(set(names)) < len(names):
        found = f"two tools are named {_repeated(names)!r}" if names else "there are none"
        raise ConfigurationError(f"tools: {found}; expected one or more, each with a name of its own")
    definitions: dict[str, Any] = {CALL: {"anyOf": []}}
    for number, function in enumerate(functions):
        definitions[CALL]["anyOf"].append(_call_schema(function, number, definitions))
    calls = {"type": "array", "items": {"$ref": f"#/$defs/{CALL}"}, "minItems": 1}
    said = {**calls, "prefixItems": [_TEXT]}
    return {"description": _MEANING, "$defs": definitions, "anyOf": [calls, said]}


def is_turn_schema(schema: Mapping[str, Any]) -> bool:
    """Whether a schema is one of ``turn_schema`` or ``chosen_schema``."""
    return schema.get("description") == _MEANING and CALL in schema.get("$defs", ())


def tool_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What LlamaIndex sends of a class's schema as the parameters of a tool, without titles."""
    bare: dict[str, Any] = without_titles(schema)
    return {keyword: bare[keyword] for keyword in _OF_TOOLS if keyword in bare}


def chosen_schema(
    schema: Mapping[str, Any], choice: ToolChoice, parallel: bool, allowed: Collection[str] | None = None
) -> dict[str, Any]:
    """The schema of turns under a tool choice, with each place where it was in ``schema``, that of all turns.

    ``parallel``: whether a turn may have several calls. ``allowed``: the tools that may be called; None: all. Raises
    ConfigurationError for a tool that is none of them.
    """
    calls, with_text = schema["anyOf"]
    definitions = schema["$defs"]
    if choice not in ("auto", "required", "none"):
        allowed = {choice}
    if allowed is not None:
        names = [next(iter(call["properties"])) for call in definitions[CALL]["anyOf"]]
        if unknown := sorted(set(allowed) - set(names)):
            raise ConfigurationError(
                f"tool_choice={unknown[0]!r}: expected auto, required, none or one of the tools ({', '.join(names)})"
            )
        kept = [
            call if name in allowed else False
            for name, call in zip(names, definitions[CALL]["anyOf"], strict=True)
        ]
        definitions = {**definitions, CALL: {"anyOf": kept}}
    if choice == "none":
        calls, with_text = False, {**with_text, "maxItems": 1}
    elif not parallel:
        calls, with_text = {**calls, "maxItems": 1}, {**with_text, "maxItems": 2}
    if choice not in ("auto", "none"):
        with_text = {**with_text, "minItems": 2}
    return {**schema, "$defs": definitions, "anyOf": [calls, with_text]}


def structured_turns(example: Example) -> Iterator[Example]:
    """Each turn of an agent's row as an example with a schema, the answer last.

    Without a document they get one of their own, the conversation, so that no split divides a run. An earlier
    assistant message with weight 0, or that calls other tools (of another agent), is no turn to train on; reasoning of
    earlier turns is in no prompt. Raises DatasetError for arguments that are no JSON object; ConfigurationError as
    ``turn_schema``.
    """
    schema = turn_schema(example.tools or ())
    known = {call for part in schema["$defs"][CALL]["anyOf"] for call in part["properties"]}
    if example.document_id is None:
        example = example.model_copy(update={"document_id": example.conversation})
    messages: list[Message] = []
    for message in _in_call_order([*example.messages, example.answer]):
        if message.role == "assistant":
            turn = _structured(example, schema, messages, message)
            called = {str(_function(call)["name"]) for call in message.tool_calls or ()}
            if message is example.answer or (message.weight != 0 and called <= known):
                yield turn
            messages.append(turn.answer.model_copy(update={"reasoning_content": None}))
        else:
            messages.append(_as_result(message))


def turn_messages(messages: Sequence[Message]) -> list[Message]:
    """An agent's messages with its turns as JSON text, as ``structured_turns`` has them."""
    return [
        _as_text(message, compact_json(_turn(message))).model_copy(update={"reasoning_content": None})
        if message.role == "assistant"
        else _as_result(message)
        for message in _in_call_order(messages)
    ]


def _structured(
    example: Example, schema: dict[str, Any], messages: Sequence[Message], turn: Message
) -> Example:
    """The turn after ``messages`` as a structured example, its keys in the order in which they are trained."""
    structured = example.model_copy(
        update={
            "messages": tuple(messages) or (Message(role="user", content=""),),
            "answer": _as_text(turn, compact_json(_turn(turn))),
            "transport": "json_schema",
            "answer_schema": schema,
            "schema_name": "turn",
            "tools": None,
            "tool_choice": None,
            "parallel_tool_calls": None,
        }
    )
    written = spelled_json(written_answer(structured, json.loads(structured.answer_text())))
    return structured.model_copy(update={"answer": _as_text(turn, written)})


def _as_text(message: Message, text: str) -> Message:
    return message.model_copy(update={"content": text, "tool_calls": None, "weight": None})


def _as_result(message: Message) -> Message:
    """A tool's message without the id of its call, which is in no call any more; others as they are."""
    unnamed = {"role": "function", "tool_call_id": None, "name": None}
    return message.model_copy(update=unnamed) if message.role == "tool" else message


def _turn(message: Message) -> list[Any]:
    """The texts and calls of an assistant's message."""
    content = message.content
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    calls = [{name: arguments} for name, arguments in map(_call, message.tool_calls or ())]
    return [content or "", *calls] if content or not calls else calls


def _call(call: Mapping[str, Any]) -> tuple[str, Any]:
    function = call["function"]
    text = function.get("arguments") or "{}"
    arguments = None
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        arguments = json.loads(text)
    if not isinstance(arguments, dict):
        raise DatasetError(
            f"the arguments of {function['name']!r} are {text!r}, expected a JSON object as text"
        )
    return str(function["name"]), arguments


def _in_call_order(messages: Sequence[Message]) -> list[Message]:
    """The messages, results of parallel calls in the order of the calls: LlamaIndex has them as they were ready."""
    ordered: list[Message] = []
    places: dict[Any, int] = {}
    for message in messages:
        if message.role == "assistant":
            places = {call.get("id"): place for place, call in enumerate(message.tool_calls or ())}
        at = len(ordered)
        if message.role == "tool" and message.tool_call_id in places:
            own = places[message.tool_call_id]
            while (
                at and ordered[at - 1].role == "tool" and places.get(ordered[at - 1].tool_call_id, -1) > own
            ):
                at -= 1
        ordered.insert(at, message)
    return ordered


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ConfigurationError(
            f"tools: expected {{'type': 'function', 'function': {{'name', 'description', 'parameters'}}}}, "
            f"found {dict(tool)!r}"
        )
    return function


def _repeated(names: Sequence[str]) -> str:
    return next(name for number, name in enumerate(names) if name in names[:number])


def _call_schema(function: Mapping[str, Any], number: int, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of calls of a function; those that it defines join ``definitions`` under its name."""
    name = str(function["name"])
    parameters = function.get("parameters") or _NO_PARAMETERS
    root = f"#/$defs/{CALL}/anyOf/{number}/properties/{pointer_part(name)}"

    def moved(reference: Any) -> str:
        start, _, defined = str(reference).rpartition("/")
        if reference == "#":
            return root
        if start in {f"#/{keyword}" for keyword in _DEFINITIONS}:
            return f"#/$defs/{pointer_part(name)}_{defined}"
        raise ConfigurationError(
            f"tools: a parameter of {name!r} refers to {reference!r}, expected a definition under $defs"
        )

    def copied(_: str, node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        copy = map_sub_schemas(node, copied)
        return {**copy, "$ref": moved(copy["$ref"])} if "$ref" in copy else copy

    body = copied("", parameters)
    if body.get("type") == "object":  # LlamaIndex says so to OpenAI alone
        body.setdefault("additionalProperties", False)
    for keyword in _DEFINITIONS:
        for defined, definition in body.pop(keyword, {}).items():
            definitions[f"{name}_{defined}"] = definition
    body["description"] = _description(name, function.get("description")) or body.get("description", "")
    if not body["description"]:
        del body["description"]
    return {
        "type": "object",
        "properties": {name: body},
        "required": [name],
        "additionalProperties": False,
    }


def _description(name: str, description: Any) -> str:
    """A function's description, without the signature that LlamaIndex writes before it."""
    text = str(description or "").strip()
    first, _, rest = text.partition("\n")
    return rest.strip() if first.startswith(f"{name}(") else text
