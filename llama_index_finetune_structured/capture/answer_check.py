"""Check a captured answer against its request; in LlamaIndex's events a parse failure looks like a success."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ..answer_values import class_schema, given_value
from ..example import compact_json, json_span, refuse_constant
from ..json_schema import find_error
from ..written_values.answers import has_written_values, read_answer, spelled_answer
from .request import AnswerRequest

__all__ = ["Rejected", "check_answer"]

# What a rejection may quote of Pydantic's error context: limits from the schema, never the answer's own values.
_LIMITS = frozenset({"ge", "gt", "le", "lt", "min_length", "max_length", "expected"})
_CUT_SHORT = {"length": "truncated", "max_tokens": "truncated", "content_filter": "content_filter"}


class Rejected(Exception):
    """The answer is not a training example.

    ``reason``: a short code. ``detail``: what was wrong, without values from the answer.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def check_answer(
    answer: dict[str, Any],
    request: AnswerRequest,
    output_cls: type[BaseModel] | None,
    finish_reason: str | None,
    texts: Sequence[str | None] = (),
) -> dict[str, Any]:
    """Return the answer to train on: ``answer`` without any text around its JSON.

    ``answer``: the assistant's message in OpenAI's wire format. ``output_cls``: the class it is parsed to, if known.
    ``finish_reason``: as the provider reported it. ``texts``: those that the answer is from. Raises Rejected.
    """
    if finish_reason in _CUT_SHORT:
        raise Rejected(_CUT_SHORT[finish_reason], f"finish_reason is {finish_reason!r}")
    if answer.get("tool_calls"):
        return _check_tool_calls(answer, request, output_cls, texts)
    content = answer.get("content")
    if not content:
        raise Rejected("empty_answer", "neither content nor tool calls")
    if request.forced:
        raise Rejected("no_tool_call", "a tool call was required, the answer is text")
    if output_cls is None and (request.transport == "tools" or request.schema is None):
        return answer
    text = content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)
    json_text = text if request.transport == "json_schema" else _json_in(text)
    return {**answer, "content": _checked(json_text, request.schema, output_cls, texts)}


def _check_tool_calls(
    answer: dict[str, Any],
    request: AnswerRequest,
    output_cls: type[BaseModel] | None,
    texts: Sequence[str | None],
) -> dict[str, Any]:
    calls = answer["tool_calls"]
    if request.parallel_tool_calls is False:
        calls = calls[:1]  # LlamaIndex drops the others as well
    parameters = {
        function.get("name"): function.get("parameters")
        for function in ((tool.get("function") or {}) for tool in request.tools or ())
        if "name" in function  # tools in a provider's own form cannot be checked
    }
    checked = []
    for call in calls:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        if parameters and name not in parameters:
            raise Rejected("unknown_tool", f"{name!r} is not one of the tools sent")
        is_output = output_cls is not None and name == request.schema_name
        arguments = _checked(arguments, parameters.get(name), output_cls if is_output else None, texts)
        checked.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**answer, "tool_calls": checked}


def _json_in(text: str) -> str:
    try:
        return json_span(text)
    except ValueError:
        raise Rejected("not_json", "the answer contains no JSON") from None


def _checked(
    text: str, schema: dict[str, Any] | None, output_cls: type[BaseModel] | None, texts: Sequence[str | None]
) -> str:
    """The JSON text to train on. Raises Rejected where it does not fit the class or, without one, the schema."""
    try:
        value = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Rejected("not_json", f"{type(error).__name__} in the answer") from None
    known = schema if output_cls is None else class_schema(output_cls)
    if not has_written_values(known):
        return _fitting(text, value, schema, output_cls)
    read = read_answer(known, value, texts)
    if read.unsure:
        raise Rejected("unsure_value", f"{read.unsure[0].partition(':')[0]}: has two meanings; name a locale")
    fitting = json.loads(_fitting(compact_json(read.value), read.value, schema, output_cls))
    return compact_json(spelled_answer(known, value if fitting == read.value else fitting, texts))


def _fitting(text: str, value: Any, schema: dict[str, Any] | None, output_cls: type[BaseModel] | None) -> str:
    if output_cls is not None:
        return _in_the_form_of(output_cls, text, value)
    if schema is not None:
        _check_schema(value, schema)
    return text


def _in_the_form_of(output_cls: type[BaseModel], text: str, value: Any) -> str:
    """The text or, where the class takes it but its JSON schema does not ("1971" for a number), as the class writes it.

    A grammar made from the schema could not say such a text, and providers refuse it.
    """
    with contextlib.suppress(ValidationError):
        output_cls.model_validate_json(text, strict=True)  # nothing was converted
        return text
    _check_model(text, output_cls)
    schema = class_schema(output_cls)
    with contextlib.suppress(ValueError):  # an unusable schema, or no form that the class reads back
        if find_error(schema, value) is not None:
            written = given_value(text, output_cls)
            return text if find_error(schema, written) is not None else compact_json(written)
    return text


def _check_model(text: str, output_cls: type[BaseModel]) -> None:
    try:
        output_cls.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "answer"
        limits = [f" ({name} {value})" for name, value in first.get("ctx", {}).items() if name in _LIMITS]
        raise Rejected("schema_mismatch", f"{field}: {first['type']}{''.join(limits)}") from None


def _check_schema(value: Any, schema: dict[str, Any]) -> None:
    try:
        error = find_error(schema, value)
    except ValueError:
        return  # the schema itself is invalid, so no answer can be checked against it
    if error is not None:
        raise Rejected("schema_mismatch", f"{error.json_path}: {error.validator}")
