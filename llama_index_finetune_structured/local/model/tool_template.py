"""The form of tool calls in a base model's chat template, found by rendering probes, and prompts with tools in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from ...errors import DatasetError, FinetuneStructuredError
from ..schema.turn_tools import Call, turn_of
from .chat_template import chat_template, render_parts
from .control_tokens import Part, control_tokens
from .stop_token import stop_token_id
from .tool_form import ToolForm

__all__ = ["tool_form", "with_calls"]

_NAMES = ("probe_first", "probe_second")
_ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"place": "Zürich <b>", "size": 17, "parts": [{"is": True}, None]},
    {"place": "Bern", "size": 0.5},
)
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Says what {name} means.",
            "parameters": {
                "type": "object",
                "properties": {f"{name}_place": {"type": "string", "description": f"Its {name} place."}},
                "required": [f"{name}_place"],
            },
        },
    }
    for name in _NAMES
]
_QUESTION, _SAID, _RESULT = "Probe question.", "Probe text.", "Probe result."
_MARK = re.compile(r'[^\s{"]+')  # what a form without control tokens begins with
_SEPARATORS = ((", ", ": "), (",", ":"))

_forms: WeakKeyDictionary[Any, tuple[str, ToolForm | str]] = WeakKeyDictionary()


def tool_form(tokenizer: Any) -> ToolForm | str:
    """The form of tool calls in the tokenizer's chat template; a text that says why, where none is found.

    It is found only where each part of tools, calls and results is in the prompt, in order, and reads back.
    """
    template = chat_template(tokenizer)
    known = _forms.get(tokenizer)
    if known is None or known[0] != template:
        try:
            form: ToolForm | str = _found(tokenizer)
        except (FinetuneStructuredError, ValueError) as error:
            form = str(error)
        known = _forms[tokenizer] = (template, form)
    return known[1]


def with_calls(messages: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Messages whose turns are JSON text, as of ``turn_messages``, as chat templates with a form for calls read them.

    Results have the ids and names of the calls, in whose order they stand. An assistant's other text stays as it is.
    """
    found: list[dict[str, Any]] = []
    called: Iterator[tuple[str, str]] = iter(())
    for message in messages:
        if message["role"] == "assistant":
            try:
                text, calls = turn_of(message["content"])
            except ValueError:
                text, calls = message["content"], []
            found.append(_turn(text, calls, len(found)))
            called = iter([(_id(len(found) - 1, n), name) for n, (name, _) in enumerate(calls)])
        elif message["role"] == "tool" and (answered := next(called, None)):
            found.append({**message, "tool_call_id": answered[0], "name": answered[1]})
        else:
            found.append(dict(message))
    return found


def _turn(text: str, calls: Sequence[Call], number: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": _id(number, n), "type": "function", "function": {"name": name, "arguments": arguments}}
            for n, (name, arguments) in enumerate(calls)
        ]
    return message


def _id(message: int, call: int) -> str:
    return f"{message:06d}{call:03d}"  # Mistral's templates take ids of nine letters and digits alone


def _found(tokenizer: Any) -> ToolForm:
    calls = list(zip(_NAMES, _ARGUMENTS, strict=True))
    turns = [("", calls[:1]), ("", calls), (_SAID, calls[:1]), (_SAID, []), (_SAID, calls)]
    prompt, one = _written(tokenizer, [], *turns[0])
    _require_in_order(prompt, [part for tool in _TOOLS for part in _named(tool["function"])], "the tools")
    two, said = (_written(tokenizer, [], *turns[number])[1] for number in (1, 2))
    form = _form_of(tokenizer, one, two, said)
    for text, made in turns:
        written = _written(tokenizer, [], text, made)[1]
        if _text(form.parts(text, made)) != written or _read(form, written) != (text, made):
            raise ValueError(f"its turns do not follow one form: {written!r}")
    results = [{"role": "tool", "content": f"{_RESULT} {name}"} for name in _NAMES]
    spoken = {"role": "assistant", "content": json.dumps([_SAID, *({name: made} for name, made in calls)])}
    after, last = _written(
        tokenizer, with_calls([{"role": "user", "content": ""}, spoken, *results])[1:], _SAID, []
    )
    in_order = [_QUESTION, _text(form.parts(_SAID, calls)), *(f"{_RESULT} {name}" for name in _NAMES)]
    _require_in_order(after, in_order, "calls and results")
    if last != _SAID:
        raise ValueError(f"its turns after results do not follow the form: {last!r}")
    return form


def _written(
    tokenizer: Any, before: Sequence[Mapping[str, Any]], text: str, calls: Sequence[Call]
) -> tuple[str, str]:
    """A prompt with tools, and the turn that the template writes behind it, up to its stop token."""
    messages = [{"role": "user", "content": _QUESTION}, *before]
    prompt = _text(render_parts(tokenizer, messages, tools=_TOOLS))
    answered = [*messages, _turn(text, calls, len(messages))]
    whole = _text(render_parts(tokenizer, answered, tools=_TOOLS, add_generation_prompt=False))
    if not whole.startswith(prompt):
        raise DatasetError("the base model's chat template changes the prompt when an answer follows")
    turn = whole[len(prompt) :]
    stop_id = stop_token_id(tokenizer)
    stop = control_tokens(tokenizer).get(stop_id) or tokenizer.decode([stop_id])
    if stop not in turn:
        raise DatasetError(f"the base model's chat template does not end the turn with {stop!r}")
    return prompt, turn[: turn.index(stop)]


def _read(form: ToolForm, written: str) -> tuple[str, list[Call]] | None:
    found = form.as_json(written, _NAMES)
    return None if found is None else turn_of("".join(found))


def _form_of(tokenizer: Any, one: str, two: str, said: str) -> ToolForm:
    """The form by a turn with one call, one with two, and one with a text and a call."""
    first, second = _NAMES
    spelled = {
        separators: json.dumps(_ARGUMENTS[0], ensure_ascii=False, separators=separators)
        for separators in _SEPARATORS
    }
    separators = next((key for key, text in spelled.items() if text in one), None)
    if separators is None or first not in one[: one.index(spelled[separators])]:
        raise ValueError(f"its calls have no name followed by arguments as JSON: {one!r}")
    opening, _, rest = one.partition(first)
    between, _, closing = rest.partition(spelled[separators])
    separator, _, _ = two.partition(spelled[separators])[2].partition(second)
    if _SAID not in said or first not in said:
        raise ValueError("it leaves the text beside a call out")
    after_text = said.partition(_SAID)[2].partition(first)[0]
    bare = opening.lstrip()
    controls = control_tokens(tokenizer).values()
    mark = max((text for text in controls if bare.startswith(text)), key=len, default="")
    if not mark and (found := _MARK.match(bare)) and any(map(str.isalpha, found[0])):
        mark = found[0]
    if not mark or mark not in after_text or after_text.lstrip() != bare:
        raise ValueError(f"its calls begin with no mark of their own: {opening!r}")
    return ToolForm(opening, after_text, between, separator, closing, separators, mark)


def _named(function: Any) -> list[str]:
    properties = function["parameters"]["properties"]
    texts = [text for name, part in properties.items() for text in (name, part["description"])]
    return [function["name"], function["description"], *texts]


def _text(parts: Sequence[Part]) -> str:
    return "".join(text for text, _ in parts)


def _require_in_order(text: str, parts: Sequence[str], what: str) -> None:
    end = 0
    for part in parts:
        found = text.find(part, end)
        if found < 0:
            raise ValueError(f"it leaves {part!r} of {what} out, or changes the order")
        end = found + len(part)
