"""Examples as token ids: the same prompt in training and in serving, and the answer to train on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from ...errors import ConfigurationError, DatasetError, PromptTooLongError
from ...example import Example, Message
from ...json_schema import refers_deeper_than, without_titles
from ..schema.compact import compact_schema
from ..schema.message_texts import without_schema_text
from ..schema.spelling import spelled_json
from ..schema.tool_turns import is_turn_schema
from ..schema.turn_tools import turn_of, turn_tools
from ..schema.written import written_answer
from .chat_template import render_parts
from .control_tokens import encode_parts, text_ids
from .reasoning import Thinking, reasoning_marks
from .tool_form import ToolForm
from .tool_template import tool_form, with_calls

__all__ = [
    "DEFAULT_FORM",
    "DEFAULT_SCHEMA_PROMPT",
    "PromptForm",
    "SchemaPrompt",
    "TokenRow",
    "ToolPrompt",
    "TrainingRow",
    "decided_form",
    "own_tools",
    "prompt_form_of",
    "require_short",
    "schema_room",
    "trained_text",
    "render_prompt",
    "messages_with_schema",
    "token_row",
    "token_rows",
    "turn_form",
]

SchemaPrompt = Literal["compact", "json", "none"]
"""How a prompt says the schema: as types (``compact_schema``), as JSON schema, or not at all."""
ToolPrompt = Literal["own", "json"]
"""How tools and calls are written: as the base's chat template does, or as a schema and a JSON list."""
DEFAULT_SCHEMA_PROMPT: SchemaPrompt = "compact"
"""Where training rows do not decide it."""
# Chosen: so many rows teach a schema. Without it in the prompt a step of short rows took 0.4 of the time, measured on
# rows of 40 tokens under a schema of 370.
_TEACHING_ROWS = 100
_JSON_PROMPT = "Answer with one JSON object that fits this JSON schema, and with nothing else:\n{schema}"
_COMPACT_PROMPT = "Answer with one JSON value of this type, and with nothing else:\n{schema}"
_MOST_REFERENCES = (
    50  # inside each other, in a schema that is said as types; chosen: far more than people write
)
# Chosen: a question of so many characters adds few tokens. On spoken requests of about 50 characters (490 rows trained
# on, 350 held out, one seed) field F1 rose from .847 to .862, held-out loss fell from .121 to .101. On paragraphs of
# which only the short sentences stood twice it fell: the questions of all rows have one form.
_READ_TWICE, _SHORT_SHARE = 128, 0.9
_CHARACTERS_A_TOKEN = 100


class PromptForm(NamedTuple):
    """How prompts of structured answers are written.

    ``schema_prompt``: how they say the schema. ``reads_twice``: whether short questions stand twice. ``thinking``:
    whether reasoning stands before each answer; then prompts ask for it where the chat template has a switch.
    ``tool_prompt``: how tools and calls are written; None: ``own`` where the chat template has a form for them.
    """

    schema_prompt: SchemaPrompt = DEFAULT_SCHEMA_PROMPT
    reads_twice: bool = False
    thinking: bool = False
    tool_prompt: ToolPrompt | None = None


DEFAULT_FORM = PromptForm()


class TrainingRow(Protocol):
    """One row of a batch: a token row, or several that belong together."""

    @property
    def parts(self) -> tuple[TokenRow, ...]:
        """What the model is asked."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """The model's input, by which batches are made."""

    def __len__(self) -> int:
        """Tokens."""


@dataclass(frozen=True)
class TokenRow:
    """Token ids of one training row; the loss is on every token of ``answer``, the stop token included.

    ``reasoning``: how many tokens of ``answer`` are before the answer itself.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    reasoning: int = 0

    @property
    def parts(self) -> tuple[TokenRow, ...]:
        """What the model is asked: this row."""
        return (self,)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The model's input: prompt and answer without the last token, after which nothing is predicted."""
        return self.prompt + self.answer[:-1]

    def __len__(self) -> int:
        """Tokens of prompt and answer together."""
        return len(self.prompt) + len(self.answer)


def token_rows(rows: Iterable[TrainingRow]) -> list[TokenRow]:
    """All that the model is asked for these rows."""
    return [part for row in rows for part in row.parts]


def prompt_form_of(
    examples: Iterable[Example],
    schema_prompt: SchemaPrompt | None = None,
    thinking: Thinking = "drop",
    tool_prompt: ToolPrompt | None = None,
) -> PromptForm:
    """The form of prompts that is best for these training rows.

    ``schema_prompt`` None: ``none`` where 100 rows or more all have one and the same schema, which prompts then need
    not repeat; else ``compact``. Questions stand twice where nine in ten are short.
    """
    rows = short = 0
    first, is_one = None, True
    for example in examples:
        schema = None if example.answer_schema is None else without_titles(example.answer_schema)
        first = first or schema
        is_one = is_one and schema is not None and schema == first
        rows += 1
        questions = [message for message in without_schema_text(example) if message.role == "user"]
        short += schema is not None and any(_is_short(message.content) for message in questions[-1:])
    is_taught = is_one and rows >= _TEACHING_ROWS
    return PromptForm(
        schema_prompt or ("none" if is_taught else DEFAULT_SCHEMA_PROMPT),
        0 < _SHORT_SHARE * rows <= short,
        thinking == "keep",
        tool_prompt,
    )


def turn_form(tokenizer: Any, schema: Mapping[str, Any] | None, form: PromptForm) -> ToolForm | None:
    """The chat template's form in which answers to a schema are written; None: they are JSON.

    Raises ConfigurationError where the form of the prompts asks for the template's and there is none.
    """
    if schema is None or form.tool_prompt == "json" or not is_turn_schema(schema):
        return None
    found = tool_form(tokenizer)
    if isinstance(found, ToolForm):
        return found
    if form.tool_prompt == "own":
        raise ConfigurationError(
            f"tool_prompt='own': the base model's chat template has no form of tool calls that can be read back "
            f"({found}): leave tool_prompt out, or use another base model"
        )
    return None


def decided_form(tokenizer: Any, form: PromptForm, schemas: Iterable[Mapping[str, Any]]) -> PromptForm:
    """The form, with ``tool_prompt`` as it is of answers to these schemas where agents' turns are among them."""
    turns = next(filter(is_turn_schema, schemas), None)
    if turns is None:
        return form
    return form._replace(tool_prompt="json" if turn_form(tokenizer, turns, form) is None else "own")


def own_tools(
    tokenizer: Any, schema: Mapping[str, Any] | None, form: PromptForm
) -> tuple[list[dict[str, Any]], Mapping[str, Any] | None]:
    """The tools that the chat template writes into a prompt, and the schema that is left to be said in it.

    One of both is empty. Raises ConfigurationError as ``turn_form``.
    """
    if schema is None or turn_form(tokenizer, schema, form) is None:
        return [], schema
    return turn_tools(schema), None


def messages_with_schema(
    messages: Sequence[Message], schema: Mapping[str, Any] | None, form: PromptForm = DEFAULT_FORM
) -> list[dict[str, str]]:
    """Messages as plain role and content, with the schema at the end of the leading system message.

    There the schema is part of the prefix that all rows share. Where no system message leads, one is added. Raises
    DatasetError for message parts that are not text.
    """
    plain = [{"role": _role(message), "content": _text(message)} for message in messages]
    if schema is None:
        return plain
    for message in plain:
        if form.reads_twice and message["role"] == "user" and _is_short(message["content"]):
            # A causal model reads a word without those behind it. In the second copy it has seen them all: "album" in
            # "play the album X by Y" is known as what X is. https://arxiv.org/abs/2402.15449 (echo embeddings).
            message["content"] = "\n".join([message["content"]] * 2)
    if form.schema_prompt == "none":
        return plain
    instruction = _schema_instruction(schema, form.schema_prompt)
    if plain and plain[0]["role"] == "system":
        text = plain[0]["content"].rstrip()
        return [
            {"role": "system", "content": f"{text}\n\n{instruction}" if text else instruction},
            *plain[1:],
        ]
    return [{"role": "system", "content": instruction}, *plain]


def _schema_instruction(schema: Mapping[str, Any], schema_prompt: SchemaPrompt) -> str:
    if schema_prompt == "compact" and not refers_deeper_than(schema, _MOST_REFERENCES):
        return _COMPACT_PROMPT.format(schema=compact_schema(schema))
    text = json.dumps(without_titles(schema), separators=(",", ":"), ensure_ascii=False)
    return _JSON_PROMPT.format(schema=text)


def render_prompt(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    *,
    date: str | None = None,
    thinking: bool = False,
    tools: Sequence[dict[str, Any]] = (),
) -> list[int]:
    """Token ids of the chat prompt, the opening of the assistant's turn included.

    Control tokens come from the chat template alone: their text in a message is text. ``date``: the date, as
    ``2026-01-31``, that the template prints; None: today's. ``thinking``: as in ``PromptForm``. ``tools``: those that
    the template writes; turns among the messages are then JSON text, as of ``turn_messages``. Raises DatasetError
    where the template rejects the messages or leaves the text of one out, ConfigurationError for one that runs or
    prints without end.
    """
    shown = with_calls(messages) if tools else messages
    return encode_parts(tokenizer, render_parts(tokenizer, shown, tools=tools, date=date, thinking=thinking))


def schema_room(tokenizer: Any, schema: Mapping[str, Any], form: PromptForm) -> int:
    """How many tokens longer a prompt is with the schema, a system message for it included."""
    question, form = [Message(role="user", content="?")], form._replace(reads_twice=False)
    tools, said = own_tools(tokenizer, schema, form)
    plain = render_prompt(tokenizer, messages_with_schema(question, None, form))
    asked = render_prompt(tokenizer, messages_with_schema(question, said, form), tools=tools)
    return len(asked) - len(plain)


def require_short(texts: Iterable[str], context_window: int) -> None:
    """Raise PromptTooLongError for texts that no tokenizer fits into the window, before one works on them for minutes.

    Texts have 1 to 5 characters a token; 100 are allowed for, as in long rows of spaces or dashes.
    """
    characters = sum(map(len, texts))
    if characters > _CHARACTERS_A_TOKEN * context_window:
        raise PromptTooLongError(
            f"the prompt has {characters} characters and the model's context window is {context_window} tokens: "
            "retrieve fewer or smaller chunks"
        )


def token_row(
    tokenizer: Any,
    example: Example,
    *,
    stop_id: int,
    date: str | None = None,
    form: PromptForm = DEFAULT_FORM,
) -> TokenRow:
    """The token ids that an example is trained on; ``date`` as for ``render_prompt``.

    Raises DatasetError where it cannot be rendered.
    """
    try:
        return _row(tokenizer, example, stop_id, date, form)
    except DatasetError as error:
        raise DatasetError(f"example {example.id[:12]}: {error}") from error


def _row(tokenizer: Any, example: Example, stop_id: int, date: str | None, form: PromptForm) -> TokenRow:
    if example.answer.tool_calls and example.answer_schema is None:
        raise DatasetError(
            "its answer is a tool call, and neither the tools that were offered nor the answer's schema are there: "
            "give them as tools or answer_schema, or leave the row out"
        )
    tools, schema = own_tools(tokenizer, example.answer_schema, form)
    messages = messages_with_schema(without_schema_text(example), schema, form)
    prompt = render_prompt(tokenizer, messages, date=date, thinking=form.thinking, tools=tools)
    turns = turn_form(tokenizer, example.answer_schema, form)
    text = _answer_text(example)
    answer = text_ids(tokenizer, text) if turns is None else _turn_ids(tokenizer, turns, text, tools)
    if not answer and not tools:
        raise DatasetError("its answer is empty, there is nothing to train on: leave the row out")
    # A row without reasoning has an empty one: the model then decides by the question, and answers have one form.
    reasoning = _reasoning(tokenizer, example) if form.thinking else ()
    return TokenRow(tuple(prompt), (*reasoning, *answer, stop_id), len(reasoning))


def _turn_ids(tokenizer: Any, form: ToolForm, text: str, tools: Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids of a turn's JSON text in the chat template's form. Raises DatasetError where it does not read back."""
    turn = turn_of(text)
    parts = form.parts(*turn)
    read = form.as_json("".join(part for part, _ in parts), [tool["function"]["name"] for tool in tools])
    if read is None or turn_of("".join(read)) != turn:
        raise DatasetError(
            f"its turn does not read back in the chat template's form of tool calls, which begin with {form.mark!r}: "
            "leave the row out, or train with tool_prompt='json'"
        )
    return encode_parts(tokenizer, parts)


def _reasoning(tokenizer: Any, example: Example) -> tuple[int, ...]:
    return reasoning_marks(tokenizer).around(tokenizer, example.answer.reasoning_content)


def trained_text(example: Example) -> str:
    """The answer's text to train on: with a schema, JSON without spaces and with keys in the schema's order.

    Keys that may be left out stand in the order of the text that their values repeat. The grammar enforces the same
    form in serving. Without a schema, the plain text of the answer. Raises
    DatasetError where an answer with a schema is not JSON.
    """
    try:
        return _answer_text(example)
    except DatasetError as error:
        raise DatasetError(f"example {example.id[:12]}: {error}") from error


def _answer_text(example: Example) -> str:
    text = example.answer_text()
    if example.answer_schema is None:
        return text
    try:
        return spelled_json(written_answer(example, json.loads(text)))
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"it has a schema and its answer is not JSON ({error}): fix or remove it"
        ) from error


def _is_short(content: Any) -> bool:
    return isinstance(content, str) and 0 < len(content) <= _READ_TWICE


def _role(message: Message) -> str:
    """The role by the name that chat templates have for it."""
    return {"developer": "system", "function": "tool"}.get(message.role, message.role)


def _text(message: Message) -> str:
    """Content and tool calls of a message as one text, the calls as JSON."""
    content = message.content
    if isinstance(content, list):
        content = "".join(_part_text(part) for part in content)
    calls = json.dumps(message.tool_calls, ensure_ascii=False) if message.tool_calls else ""
    return "\n".join(text for text in (content, calls) if text)


def _part_text(part: Mapping[str, Any]) -> str:
    """The text of a content part; a prompt cache's mark has none."""
    if part.get("type") == "cache":
        return ""
    if part.get("type") != "text":
        raise DatasetError(
            f"a message has a part {part.get('type')!r}, and the local engine reads text only: leave the part out, or "
            "the row"
        )
    if not isinstance(part.get("text"), str):
        raise DatasetError(
            "a message has a part of type 'text' without a text: write {'type': 'text', 'text': '...'}, "
            f"found {dict(part)}"
        )
    return str(part["text"])
