"""Turn labelled (input, answer) pairs into Examples, with every answer validated against its schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from llama_index.core.llms import ChatMessage
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from ..answer_classes import class_path
from ..answer_values import class_schema, given_value, trained_value
from ..errors import ConfigurationError, DatasetError
from ..example import Example, Message, compact_json
from ..formats.wire import message_of
from ..json_schema import first_error, schema_title, schema_validator
from ..jsonl import one_line_reason, require_utf8
from ..local.schema.message_texts import caller_texts
from ..written_values.answers import has_written_values, json_values, read_answer, spelled_answer

__all__ = ["AnswerShape", "Conversation", "labelled_examples", "says_none"]

Conversation = str | Sequence[Message | ChatMessage | Mapping[str, Any]]
"""An input: the user's text, or a list of messages."""


class AnswerShape:
    """What answers are validated against: a Pydantic class, a JSON schema, or neither (any text).

    ``schema`` is its JSON schema, ``name`` the schema's name; both None for any text. ``class_path``: as in
    ``Example.answer_class``. Raises ConfigurationError where both class and schema are given, or the schema is not
    valid.
    """

    def __init__(self, output_cls: type[BaseModel] | None, schema: Mapping[str, Any] | None) -> None:
        if output_cls is not None and schema is not None:
            raise ConfigurationError("give output_cls or schema, not both: they could contradict each other")
        if isinstance(schema, type):
            raise ConfigurationError(f"schema: {schema.__name__} is a class; pass it as output_cls")
        self._output_cls = output_cls
        self.schema = class_schema(output_cls) if output_cls else (dict(schema) if schema else None)
        self.name = output_cls.__name__ if output_cls else schema_title(self.schema)
        self.class_path = class_path(output_cls) if output_cls else None
        if schema is not None:
            try:
                schema_validator(schema)
            except ValueError as error:
                raise ConfigurationError(f"schema: {error}") from error

    def for_answer(self, answer: Any) -> AnswerShape:
        """This shape or, where it takes any text and ``answer`` is a Pydantic object, that of its class."""
        if self.schema is None and isinstance(answer, BaseModel):
            return AnswerShape(type(answer), None)
        return self

    def answer_text(self, answer: Any, messages: Sequence[Message] = ()) -> str:
        """The answer as the text to train on: compact JSON, or the text itself where there is no schema.

        ``answer``: a Pydantic object, a dict or list, or text. ``messages``: those that it is the answer to, whose
        spelling its written values get. Raises ValueError where it does not fit.
        """
        try:
            if not has_written_values(self.schema):
                return self._answer_text(answer)
            return self._spelled_text(answer, caller_texts(messages))
        except RecursionError as error:
            raise ValueError(one_line_reason(error)) from None

    def _spelled_text(self, answer: Any, texts: Sequence[str]) -> str:
        if not isinstance(answer, BaseModel):
            value = json.loads(answer) if isinstance(answer, str) else to_jsonable_python(json_values(answer))
            read = read_answer(self.schema, value, texts)
            if problems := (*read.unsure, *read.unreadable):
                raise ValueError(
                    f"{problems[0]}; give the value itself, such as Decimal or date, or name a locale"
                )
            fitting = json.loads(self._answer_text(read.value))
            answer = value if fitting == read.value else fitting
        else:
            answer = json.loads(self._answer_text(answer))
        return compact_json(spelled_answer(self.schema, answer, texts))

    def _answer_text(self, answer: Any) -> str:
        if self._output_cls is not None:
            return _through_class(answer, self._output_cls)
        if self.schema is None:
            return answer if isinstance(answer, str) else _json_text(_plain(answer))
        value = json.loads(answer) if isinstance(answer, str) else _plain(answer)
        if error := first_error(self.schema, value):
            raise ValueError(error)
        return _json_text(value)


def says_none(answer: Any) -> bool:
    """Whether an answer says that the text is of another kind: null, or an object or list without any value."""
    values = answer.values() if isinstance(answer, dict) else [answer]
    return all(value in (None, "", [], {}) for value in values)


def _json_text(value: Any) -> str:
    try:
        return compact_json(value)
    except TypeError as error:
        raise ValueError(f"{error}; give the Pydantic object itself, or model_dump(mode='json')") from None


def _plain(answer: Any) -> Any:
    return trained_value(answer) if isinstance(answer, BaseModel) else answer


def _through_class(answer: Any, output_cls: type[BaseModel]) -> str:
    """The answer as its class writes it: fields in the class's order, without those that JSON left out."""
    if isinstance(answer, output_cls):
        return compact_json(trained_value(answer, output_cls))
    try:
        text = answer if isinstance(answer, str) else compact_json(_plain(answer))
    except TypeError:  # Python's values, such as those of model_dump()
        read = output_cls.model_validate(answer)
        return compact_json(trained_value(read, output_cls, exclude_unset=True))
    return compact_json(given_value(text, output_cls))


def labelled_examples(
    pairs: Iterable[tuple[Conversation, Any]],
    output_cls: type[BaseModel] | None,
    schema: Mapping[str, Any] | None,
    system_prompt: str | None,
    document_ids: Sequence[str] | None,
) -> list[Example]:
    """Examples of the pairs, in order; parameters as for FinetuneDataset.from_pairs.

    Raises DatasetError naming the first row that does not fit.
    """
    shape = AnswerShape(output_cls, schema)
    examples = []
    for row, pair in enumerate(pairs):
        try:
            conversation, answer = _input_and_answer(pair)
            messages, query = _messages_and_query(conversation, system_prompt)
            answer_shape = shape.for_answer(answer)
            examples.append(
                _example(messages, query, answer_shape.answer_text(answer, messages), answer_shape)
            )
        except (ValueError, TypeError) as error:
            raise DatasetError(f"pairs[{row}]: {one_line_reason(error)}") from error
    return examples if document_ids is None else _with_documents(examples, document_ids)


def _input_and_answer(pair: Any) -> tuple[Any, Any]:
    """Both parts of a pair; what merely iterates over two things, such as a dict of two keys, is none."""
    try:
        if isinstance(pair, str | bytes | Mapping | Set | BaseModel):
            raise TypeError
        conversation, answer = pair
    except (TypeError, ValueError):
        raise ValueError(f"expected (input, answer), found {type(pair).__name__}") from None
    return conversation, answer


def _example(messages: tuple[Message, ...], query: str | None, text: str, shape: AnswerShape) -> Example:
    for content in (text, *(m.content for m in messages)):
        require_utf8(content if isinstance(content, str) else str(content))
    return Example(
        messages=messages,
        answer=Message(role="assistant", content=text),
        transport="text" if shape.schema is None else "json_schema",
        answer_schema=shape.schema,
        schema_name=shape.name,
        answer_class=shape.class_path,
        query=query,
    )


def _with_documents(examples: list[Example], document_ids: Sequence[str]) -> list[Example]:
    if len(document_ids) != len(examples):
        raise DatasetError(f"document_ids: {len(document_ids)} for {len(examples)} pairs; give one per pair")
    wrong = next((n for n, document in enumerate(document_ids) if not isinstance(document, str)), None)
    if wrong is not None:
        raise DatasetError(f"document_ids[{wrong}]: {document_ids[wrong]!r}, expected text")
    return [
        example.model_copy(update={"document_id": document})
        for example, document in zip(examples, document_ids, strict=True)
    ]


def _messages_and_query(
    conversation: Conversation, system_prompt: str | None
) -> tuple[tuple[Message, ...], str | None]:
    """The messages, with the system prompt first, and the text of the last user message."""
    if isinstance(conversation, str):
        turns = [Message(role="user", content=conversation)]
    else:
        turns = [_message(item) for item in conversation]
    if not turns:
        raise ValueError("the input is an empty list of messages")
    if system_prompt is not None and turns[0].role == "system":
        raise ValueError("the input has a system message of its own; drop it, or give no system_prompt")
    if system_prompt is not None:
        turns.insert(0, Message(role="system", content=system_prompt))
    questions = [m.content for m in turns if m.role == "user" and isinstance(m.content, str)]
    return tuple(turns), questions[-1] if questions else None


def _message(item: Message | ChatMessage | Mapping[str, Any]) -> Message:
    if isinstance(item, ChatMessage):
        return message_of(item)
    return item if isinstance(item, Message) else Message.model_validate(item)
