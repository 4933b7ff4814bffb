"""Chat templates: render messages, and prove that the text of each one is in the prompt."""

from __future__ import annotations

import datetime
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from ...errors import ConfigurationError, DatasetError
from .bounded_rendering import bounded_rendering
from .control_tokens import Part, control_tokens, has_control_text, private_prefix

__all__ = [
    "SystemForm",
    "chat_template",
    "prompt_date",
    "render_parts",
    "system_form",
    "thinking_switches",
    "with_system_messages",
]

_Messages = Sequence[Mapping[str, Any]]

SystemForm = Literal["own", "joined", "in_question"]
"""System messages at the start of a prompt: each its own, joined to one, or at the start of the first question."""

_PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
_CLOCK = "strftime_now"  # the function by which templates read the date
_CLOCK_CALL = re.compile(_CLOCK + r"""\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")
_END_OF_THINKING = "</think>"
# Of Qwen, GLM and SmolLM; of DeepSeek and Granite.
_SWITCHES = {
    "enable_thinking": re.compile(r"\benable_thinking\b"),
    "thinking": re.compile(r"\b(?:if|not|and|or)\s+thinking\b"),
}
_QUOTE = 40  # characters of a message that an error quotes
_LIST_REPR = "'type': 'text'"  # a template printed a list of parts as such


def chat_template(tokenizer: Any, date: str | None = None) -> str:
    """The tokenizer's chat template, or a plain ``role: content`` template where it has none.

    The plain one begins with the BOS token where the tokenizer adds it. ``date``: the date, as ``2026-01-31``,
    that the template prints in place of today's. Raises ConfigurationError where it cannot be put in.
    """
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default") or next(iter(template.values()), None)
    if not template:
        return ("{{ bos_token }}" if _adds_bos(tokenizer) else "") + _PLAIN_TEMPLATE
    return str(template) if date is None else _with_date(str(template), date)


def thinking_switches(template: str) -> list[str]:
    """The names of variables by which a chat template is told whether the model is to reason before it answers."""
    return [name for name, use in _SWITCHES.items() if use.search(template)]


def prompt_date(tokenizer: Any) -> str | None:
    """Today's date, as ``2026-01-31``, where the chat template prints the date; else None.

    Raises ConfigurationError where the template prints it in a way that cannot be kept.
    """
    if _CLOCK not in chat_template(tokenizer):
        return None
    today = datetime.date.today().isoformat()
    chat_template(tokenizer, today)
    return today


def render_parts(
    tokenizer: Any,
    messages: _Messages,
    *,
    tools: _Messages = (),
    date: str | None = None,
    add_generation_prompt: bool = True,
    thinking: bool = False,
) -> list[Part]:
    """The prompt in parts: the template's own text, and the content of messages.

    System messages at the start have the first form in which the template takes them; where it reads content as a list
    of parts, it gets that. ``tools``: in OpenAI's chat form; messages may then have ``tool_calls``, whose arguments are
    objects. ``thinking``: how a template's switch for reasoning is set. Raises DatasetError where the template rejects
    the messages, or the text of one of them is not in the prompt; ConfigurationError for a template that runs for
    seconds or prints without end.
    """
    return _rendered(tokenizer, messages, date, add_generation_prompt, thinking, tools)[0]


def system_form(tokenizer: Any) -> SystemForm:
    """The form in which the chat template takes system messages."""
    roles = ("system", "system", "user")
    talk = [{"role": role, "content": str(number)} for number, role in enumerate(roles)]
    try:
        return _rendered(tokenizer, talk, None, True, False)[1]
    except DatasetError:  # it takes none of them
        return "own"


def with_system_messages(messages: _Messages, form: SystemForm) -> _Messages:
    """The messages with those of the system at their start in another form, their texts unchanged."""
    leading = list(itertools.takewhile(lambda message: message["role"] == "system", messages))
    if form == "own" or not leading:
        return messages
    system, rest = _joined(leading), list(messages[len(leading) :])
    if form == "joined":
        return [{**leading[0], "content": system}, *rest]
    for index, message in enumerate(rest):
        if message["role"] == "user":
            rest[index] = {**message, "content": _joined([{"content": system}, message])}
            return rest
    return [{"role": "user", "content": system}, *rest]


def _joined(messages: _Messages) -> str:
    return "\n\n".join(message["content"] for message in messages if message["content"].strip())


def _rendered(
    tokenizer: Any,
    messages: _Messages,
    date: str | None,
    add_generation_prompt: bool,
    thinking: bool,
    tools: _Messages = (),
) -> tuple[list[Part], SystemForm]:
    """The prompt in parts, and the form of its system messages. Raises DatasetError."""
    template = chat_template(tokenizer, date)
    switches = dict.fromkeys(thinking_switches(template), thinking)
    options = {"add_generation_prompt": add_generation_prompt, **switches}
    rendering = _Rendering(tokenizer, template, options, tools)
    messages = [_without_thinking(message, rendering.template) for message in messages]
    dropped: DatasetError | None = None
    rejected: Exception | None = None
    for candidate, form, as_parts in _candidates(messages):
        try:
            return rendering.parts(candidate, as_parts=as_parts), form
        except DatasetError as error:
            dropped = dropped or error
        except ConfigurationError:  # the template ran over a limit: it would again
            raise
        except Exception as error:  # templates raise jinja's own errors, e.g. Gemma's on a system message
            rejected = rejected or error
    if dropped is not None:
        raise dropped
    raise DatasetError(
        f"the base model's chat template rejects these messages: {rejected}. Bring them into the order that it asks "
        "for, leave the row out, or use another base model"
    ) from rejected


class _Rendering:
    """Renders messages by one template, with the content of each between private marks.

    So are texts of control tokens in tools and calls.
    """

    def __init__(
        self, tokenizer: Any, template: str, options: Mapping[str, bool], tools: _Messages = ()
    ) -> None:
        self._tokenizer, self.template, self._options = tokenizer, template, options
        self._tools = list(tools)
        texts = [text for text in control_tokens(tokenizer).values() if len(text) > 1 and text in template]
        # The control tokens that the template may look for in content.
        self._looked_for = re.compile(
            "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)"
        )

    def parts(self, messages: _Messages, *, as_parts: bool) -> list[Part]:
        contents = [message["content"] for message in messages]
        calls = [message.get("tool_calls", ()) for message in messages]
        data = json.dumps([self._tools, calls], ensure_ascii=False) if self._tools or any(calls) else ""
        hides_data = bool(data) and has_control_text(self._tokenizer, data)
        prefix = private_prefix([*contents, data, self.template])
        tools: Any = self._tools
        marked: _Messages = [
            {**message, "content": self._marked(message["content"], n, prefix)}
            for n, message in enumerate(messages)
        ]
        if hides_data:
            tools = self._marked_data(tools, len(messages), prefix)
            marked = [
                {**m, "tool_calls": self._marked_data(m["tool_calls"], len(messages), prefix)}
                if "tool_calls" in m
                else m
                for m in marked
            ]
        pieces = _split(self._text(marked, as_parts, tools), prefix)
        parts = [(text, number is not None) for text, number in pieces]
        _check_order(messages, _check_kept(messages, pieces))
        if as_parts and any(_LIST_REPR in text for text, content in parts if not content):
            raise DatasetError(
                "the base model's chat template prints content parts as a Python list: use another base model"
            )
        plain = self._text(messages, as_parts, self._tools)
        if plain == "".join(text for text, _ in parts):
            return parts
        # The template looks into content. It does not see the marks where there is nothing to hide from it.
        if hides_data or any(has_control_text(self._tokenizer, content) for content in contents):
            return parts
        _check_kept_in_text(messages, plain)
        return [(plain, False)]

    def _marked(self, content: str, number: int, prefix: str) -> str:
        """The content, without white space at its ends, between marks; control tokens in it are broken."""
        core = content.strip()
        if not core:
            return content
        broken = self._looked_for.sub(lambda m: m[0][0] + _break(prefix) + m[0][1:], core)
        before, _, after = content.partition(core)
        return f"{before}{_mark(prefix, 'o', number)}{broken}{_mark(prefix, 'c', number)}{after}"

    def _marked_data(self, value: Any, number: int, prefix: str) -> Any:
        """A JSON value whose strings and keys with the text of a control token stand between marks."""
        if isinstance(value, Mapping):
            return {
                self._marked_data(key, number, prefix): self._marked_data(item, number, prefix)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._marked_data(item, number, prefix) for item in value]
        is_control = isinstance(value, str) and has_control_text(self._tokenizer, value)
        return self._marked(value, number, prefix) if is_control else value

    def _text(self, messages: _Messages, as_parts: bool, tools: Any) -> str:
        size = sum(len(message["content"]) + len(str(message.get("tool_calls", ""))) for message in messages)
        if as_parts:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        with bounded_rendering(size + len(str(tools or ""))):
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                tools=tools or None,
                tokenize=False,
                chat_template=self.template,
                **self._options,
            )
        return text


def _mark(prefix: str, kind: str, number: int) -> str:
    return f"{prefix}{kind}{number};"


def _break(prefix: str) -> str:
    return f"{prefix}x;"


def _split(text: str, prefix: str) -> list[tuple[str, int | None]]:
    """A marked text in pieces, each with the number of the message that it is the content of.

    A piece without its closing mark is dropped content, so it has no number.
    """
    text = text.replace(_break(prefix), "")
    pieces: list[tuple[str, int | None]] = []
    end = 0
    for found in re.finditer(rf"{prefix}o(\d+);(.*?){prefix}c\1;", text, re.DOTALL):
        pieces += [(text[end : found.start()], None), (found[2], int(found[1]))]
        end = found.end()
    pieces.append((text[end:], None))
    return [(piece, number) for piece, number in pieces if piece]


def _check_kept(messages: _Messages, pieces: Sequence[tuple[str, int | None]]) -> list[int]:
    """Check that each message's text is among the pieces; returns the messages' numbers in their order there."""
    shown = [
        number
        for text, number in pieces
        if number is not None and number < len(messages) and _same_text(text, messages[number]["content"])
    ]
    for number, message in enumerate(messages):
        if message["content"].strip() and number not in shown:
            raise _dropped(number, message)
    return list(dict.fromkeys(shown))


def _check_order(messages: _Messages, shown: Sequence[int]) -> None:
    """Check the messages' order. A system message may move: Mistral's templates put it before the last question."""
    turns = [number for number in shown if messages[number]["role"] != "system"]
    for number, following in itertools.pairwise(turns):
        if following < number:
            raise DatasetError(
                f"{_named(following, messages[following])}: the base model's chat template writes it after a "
                "later message; use a base model whose template keeps the order"
            )


def _check_kept_in_text(messages: _Messages, text: str) -> None:
    """Check a prompt without marks: the turns' texts follow each other in it."""
    text, end = _squeezed(text), 0
    for number, message in enumerate(messages):
        content = _squeezed(message["content"])
        found = text.find(content, 0 if message["role"] == "system" else end)
        if found < 0:
            raise _dropped(number, message)
        end = end if message["role"] == "system" else found + len(content)


def _same_text(shown: str, content: str) -> bool:
    """Whether a template shows a content: white space apart, as it is or as JSON, as Llama's for tool results."""
    content = content.strip()
    forms = (content, json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1])
    return shown in forms or _squeezed(shown) == _squeezed(content)


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _dropped(number: int, message: Mapping[str, Any]) -> DatasetError:
    return DatasetError(
        f"{_named(number, message)}: its text is not in the prompt, because the base model's chat template leaves "
        "it out or changes it. Give the text to a user message, leave it out, or use another base model"
    )


def _named(number: int, message: Mapping[str, Any]) -> str:
    start = _squeezed(message["content"])
    quoted = start if len(start) <= _QUOTE else start[:_QUOTE] + "…"
    return f"message {number + 1} of the prompt ({message['role']}, {quoted!r})"


def _candidates(messages: _Messages) -> Iterator[tuple[_Messages, SystemForm, bool]]:
    """The messages as templates may take them, the form of the first ones, and whether contents are lists of parts."""
    forms: list[tuple[_Messages, SystemForm]] = []
    for form in get_args(SystemForm):
        candidate = with_system_messages(messages, form)
        if all(candidate != other for other, _ in forms):
            forms.append((candidate, form))
    for as_parts in (False, True):
        yield from ((candidate, form, as_parts) for candidate, form in forms)


def _without_thinking(message: Mapping[str, Any], template: str) -> Mapping[str, Any]:
    """An earlier answer without its reasoning, where the template is made for reasoning, which it leaves out too."""
    if message["role"] != "assistant" or _END_OF_THINKING not in template:
        return message
    _, found, answer = message["content"].rpartition(_END_OF_THINKING)
    return {**message, "content": answer.lstrip("\n")} if found else message


def _adds_bos(tokenizer: Any) -> bool:
    if tokenizer.bos_token_id is None:
        return False
    ids: list[int] = tokenizer("0")["input_ids"]
    return ids[:1] == [tokenizer.bos_token_id]


def _with_date(template: str, date: str) -> str:
    """The template with the date written out where it asks for today's."""
    day = datetime.datetime.fromisoformat(date)
    dated = _CLOCK_CALL.sub(lambda call: json.dumps(day.strftime(call[1] or call[2] or "")), template)
    if re.search(_CLOCK + r"\s*\(", dated):
        raise ConfigurationError(
            f"the base model's chat template prints the date by {_CLOCK}() with a format that is computed, so the "
            "date of training cannot be kept: use a template in which the format is written out"
        )
    return dated
