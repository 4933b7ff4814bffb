"""Parse one line of any training format into an Example, and find its target-independent faults."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ...errors import FinetuneStructuredError
from ...example import Example, Message
from ...formats.gradient_samples import gradient_sample
from ...formats.openai import from_openai
from ...formats.preferences import from_openai_preference
from ...formats.reading import RowForm, example_from_row, first_keys, row_form
from ...json_schema import first_error
from ...jsonl import READ_ERRORS, one_line_reason, parse_line
from ...local.schema.tool_turns import structured_turns
from .problems import Fault

__all__ = ["LineReader", "example_faults", "structured_texts"]

_SHOWN_CHARACTERS = 200  # chosen: a message may quote a value of any length
_CHAT_KEYS = {"messages", "tools", "parallel_tool_calls", "functions", "prompt", "completion"}
_RowReader = Callable[[dict[str, Any]], Example]
_TARGETS_OF: dict[RowForm, tuple[str, ...]] = {
    "preference": ("openai",),
    "gradient": ("gradient",),
    "completion": ("trl", "local"),
}
_UPLOADS = ("openai", "trl", "gradient")  # targets that read a file themselves
_KEY_OF: dict[RowForm, str] = {"preference": "input", "gradient": "inputs", "completion": "prompt"}
_GZIP, _UTF_16 = b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")  # the first bytes of such files


class LineReader:
    """Parses the lines of a file for the target of the given name.

    ``of_examples``: the file is one of Examples, which every engine reads itself, whatever the form of a row, and
    without a torn last line. Other files go to a provider, or to TRL, as they are; the local engine reads all.
    """

    def __init__(self, target: str, *, of_examples: bool = False) -> None:
        self._target = target
        self._is_read_here = of_examples or target == "local"
        self._turns: set[str] = set()  # ids of the agents' turns that were read
        self._earlier: set[str] = set()  # those of them that were read from the messages of a later turn

    def read_row(self, content: bytes | Example, *, torn: bool) -> tuple[list[Example], list[Fault]]:
        """The Example of a line, or of a row that is one already, and its faults of form.

        For the local engine, an agent's row is as many Examples with a schema as it has turns that no row before it
        has. ``torn``: a crash cut the line short.
        """
        if torn and self._is_read_here and not isinstance(content, Example):
            return [], [Fault("torn_line", "the last line of the file is incomplete")]
        example, faults = (content, []) if isinstance(content, Example) else self.read(content)
        if example is None:
            return [], faults
        if self._target != "local" or not example.is_agent_turn:
            return [example], faults
        # An earlier turn may call a tool that is not there any more, as after a hand-over between agents.
        answered = [example.answer]
        wrong = [*_answer_faults(example), *_tool_faults(example, answered), *_turn_faults(example)]
        return ([], [*faults, *wrong]) if wrong else self._new_turns(example, faults)

    def _new_turns(self, example: Example, faults: list[Fault]) -> tuple[list[Example], list[Fault]]:
        try:
            *earlier, answer = structured_turns(example)
        except FinetuneStructuredError as error:
            return [], [*faults, Fault("cannot_render", str(error))]
        new = [turn for turn in earlier if _turn_id(turn) not in self._turns]
        self._earlier |= set(map(_turn_id, new))
        if _turn_id(answer) not in self._earlier:
            new.append(answer)
        self._turns |= set(map(_turn_id, new))
        return new, faults

    def read(self, line: bytes) -> tuple[Example | None, list[Fault]]:
        """The line's Example and the faults of its form; None where it cannot be read. Never raises."""
        try:
            row = parse_line(line)
        except UnicodeDecodeError as error:
            return None, [Fault("not_utf8", _encoding_reason(line, error))]
        except RecursionError as error:
            return None, [Fault("too_deep", one_line_reason(error))]
        except ValueError as error:
            return None, [Fault("not_json", one_line_reason(error))]
        if not isinstance(row, dict):
            return None, [Fault("not_an_object", f"found {type(row).__name__}")]
        return self._from_row(row)

    def _from_row(self, row: dict[str, Any]) -> tuple[Example | None, list[Fault]]:
        form = row_form(row)
        if form is None:
            return None, [Fault("unknown_format", f"found {first_keys(row) or 'no keys'}")]
        if reason := self._wrong_form(form):
            return None, [Fault("wrong_format", reason)]
        try:
            example = self._reader(form)(row)
        except RecursionError as error:
            return None, [Fault("too_deep", one_line_reason(error))]
        except READ_ERRORS as error:
            return None, [Fault("bad_message", one_line_reason(error))]
        unknown = set(row) - _CHAT_KEYS
        if any(message.reasoning_content for message in (*example.messages, example.answer)):
            unknown.add("reasoning_content")
        if unknown and self._target == "openai" and form == "chat" and not self._is_read_here:
            return example, [Fault("unknown_keys", ", ".join(sorted(unknown)))]
        return example, []

    def _wrong_form(self, form: RowForm) -> str | None:
        """Why the target takes no row of that form; None where it does."""
        reads = "local" if self._is_read_here else self._target
        if form == "example" and reads in _UPLOADS:
            return "an Example among lines of another form"
        if reads not in _TARGETS_OF.get(form, (reads,)):
            place = f"target {reads!r}" if reads == self._target else "a file of Examples"
            return f"a row with {_KEY_OF[form]!r} is not for {place}"
        return None

    def _reader(self, form: RowForm) -> _RowReader:
        if form == "preference":
            return _from_preference
        if form == "gradient":
            return _from_gradient
        # OpenAI refuses what only TRL writes, such as tool arguments as objects.
        strict = self._target == "openai" and not self._is_read_here
        return from_openai if form == "chat" and strict else example_from_row


def _turn_id(turn: Example) -> str:
    """A turn's id without its reasoning, which agents may leave out of the messages of later turns."""
    bare = turn.answer.model_copy(update={"reasoning_content": None})
    return turn.model_copy(update={"answer": bare}).id


def _encoding_reason(line: bytes, error: UnicodeDecodeError) -> str:
    if line.startswith(_GZIP):
        return "a gzip file; unpack it first"
    return "UTF-16 text" if line.startswith(_UTF_16) else one_line_reason(error)


def _from_preference(row: dict[str, Any]) -> Example:
    return from_openai_preference(row)[0]


def _from_gradient(row: dict[str, Any]) -> Example:
    """Parts that are not trainable become the prompt, all others the answer."""
    inputs = gradient_sample(row)["inputs"]
    parts: list[dict[str, Any]] = (
        [{"value": inputs, "trainable": True}] if isinstance(inputs, str) else inputs
    )
    texts = {kind: "".join(p["value"] for p in parts if bool(p.get("trainable", True)) is kind)
             for kind in (False, True)}  # fmt: skip
    return Example(
        messages=(Message(role="user", content=texts[False]),),
        answer=Message(role="assistant", content=texts[True]),
        metadata={"call": "complete", "prompt_not_trained": True},
    )


def example_faults(example: Example) -> list[Fault]:
    """The faults that an Example has for every target; the schema is checked where there are no others."""
    messages = (*example.messages, example.answer)
    faults = [*_answer_faults(example), *_tool_faults(example, messages), *_turn_faults(example)]
    if example.answer_schema is not None and not faults:
        faults = _schema_faults(example, example.answer_schema)
    return faults


def _schema_faults(example: Example, schema: dict[str, Any]) -> list[Fault]:
    for text in structured_texts(example):
        try:
            value = parse_line(text.encode("utf-8", "surrogatepass"))
        except READ_ERRORS as error:
            reason = f"the answer is not one JSON value: {one_line_reason(error)}"
            return [Fault("answer_not_in_schema", reason)]
        try:
            wrong = first_error(schema, value)
        except ValueError as unusable:
            wrong = str(unusable)
        if wrong:
            return [Fault("answer_not_in_schema", wrong[:_SHOWN_CHARACTERS])]
    return []


def structured_texts(example: Example) -> list[str]:
    """The texts that the schema is for: the content, or the arguments of each call of the schema's tool."""
    calls = example.answer.tool_calls or ()
    if not calls:
        return [example.answer_text()]
    names = [str(call["function"]["name"]) for call in calls]  # type: ignore[index, call-overload]
    arguments = example.answer_texts()[-len(calls) :]
    named = [text for name, text in zip(names, arguments, strict=True) if name == example.schema_name]
    return named or arguments


def _answer_faults(example: Example) -> Iterator[Fault]:
    if example.answer.weight == 0:
        yield Fault("zero_trained", "the answer has weight 0: no token of the row would be trained")
    elif (
        not example.answer.tool_calls
        and example.answer.content is not None
        and not _says(example.answer.content)
    ):
        yield Fault("empty_answer", "the answer is empty text")


def _says(content: str | list[dict[str, Any]]) -> bool:
    """Whether a content has anything but white space; parts that are no text are judged by the target."""
    texts = [content] if isinstance(content, str) else [part.get("text", part) for part in content]
    return any(not isinstance(text, str) or text.strip() for text in texts)


def _tool_faults(example: Example, messages: Iterable[Message]) -> Iterator[Fault]:
    known = {_tool_name(tool) for tool in example.tools or ()}
    for message in messages:
        for call in message.tool_calls or ():
            function: Any = call["function"]
            if not _is_json_text(function.get("arguments")):
                yield Fault("tool_arguments", f"the arguments of {function['name']!r} are not JSON text")
            if function["name"] not in known:
                yield Fault("unknown_tool", f"{function['name']!r} is not among {len(known)} tools")


def _tool_name(tool: dict[str, Any]) -> Any:
    function = tool.get("function")
    return str(function.get("name")) if isinstance(function, dict) else None


def _is_json_text(arguments: Any) -> bool:
    try:
        json.loads(arguments)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _turn_faults(example: Example) -> Iterator[Fault]:
    called: set[Any] = set()
    for message in example.messages:
        called |= {str(call.get("id")) for call in message.tool_calls or ()}
        if message.role == "tool" and str(message.tool_call_id) not in called:
            yield Fault("orphan_tool_message", f"no call before it has the id {message.tool_call_id!r}")
        if message.content is None and not message.tool_calls:
            yield Fault("bad_message", f"a {message.role} message without content")
