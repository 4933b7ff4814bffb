"""Prompts and answers: the schema ends the leading system message; answers are compact and end with a stop token."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from llama_index_finetune_structured import Example, Message
from llama_index_finetune_structured.errors import DatasetError
from llama_index_finetune_structured.local.model.prompts import (
    PromptForm,
    SchemaPrompt,
    messages_with_schema,
    prompt_form_of,
    token_row,
    trained_text,
)
from llama_index_finetune_structured.local.model.stop_token import stop_token_id
from tests import tiny

SCHEMA = {
    "title": "Book",
    "type": "object",
    "properties": {"title": {"title": "Title", "type": "string"}, "year": {"type": "integer"}},
    "required": ["title", "year"],
}


def _example(*messages: Message, answer: str = '{"year": 1, "title": "é"}', **more: object) -> Example:
    return Example.model_validate(
        {
            "messages": messages,
            "answer": Message(role="assistant", content=answer),
            "answer_schema": SCHEMA,
            **more,
        }
    )


def test_the_schema_stands_at_the_end_of_the_leading_system_message() -> None:
    system, user = messages_with_schema(
        [Message(role="system", content="Be brief."), Message(role="user", content="Q")],
        SCHEMA,
        PromptForm("json"),
    )
    assert system["content"].startswith("Be brief.\n\n")
    assert user == {"role": "user", "content": "Q"}
    spelled = json.loads(system["content"].splitlines()[-1])
    assert "title" not in spelled, "generated titles cost tokens"
    assert "title" in spelled["properties"], "a field called title is no generated title"


@pytest.mark.parametrize("form", ["compact", "json", "none"])
def test_a_short_question_stands_twice_before_a_structured_answer(form: SchemaPrompt) -> None:
    def asked(*messages: Message, schema: Any = SCHEMA, twice: bool = True) -> str:
        return messages_with_schema(messages, schema, PromptForm(form, twice))[-1]["content"]

    question = Message(role="user", content="Q")
    assert asked(question) == "Q\nQ"
    assert asked(question, twice=False) == "Q", "where the rows of training are not short"
    assert asked(question, schema=None) == "Q", "a plain call is asked as it is"
    assert asked(Message(role="user", content="w " * 200)) == "w " * 200, "a long text stands once"
    assert asked(Message(role="user", content="")) == ""
    assert asked(question, Message(role="tool", content="R")) == "R", "a result is no question"
    assert messages_with_schema([question] * 2, SCHEMA, PromptForm(form, True))[-2]["content"] == "Q\nQ"


@pytest.mark.parametrize(("long", "twice"), [(0, True), (2, True), (3, False), (20, False)])
def test_questions_stand_twice_where_nine_rows_in_ten_have_short_ones(long: int, twice: bool) -> None:
    rows = [_example(Message(role="user", content="w " * 100 if n < long else f"Q{n}")) for n in range(20)]
    assert prompt_form_of(rows).reads_twice is twice
    assert prompt_form_of([]).reads_twice is False


def test_without_a_system_message_the_schema_brings_its_own() -> None:
    roles = [m["role"] for m in messages_with_schema([Message(role="user", content="Q")], SCHEMA)]
    assert roles == ["system", "user"]


def _text(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids)))


def test_the_row_is_prompt_then_compact_answer_in_schema_order_then_stop() -> None:
    tokenizer = tiny.tokenizer()
    stop = stop_token_id(tokenizer)
    row = token_row(tokenizer, _example(Message(role="user", content="Q")), stop_id=stop)
    assert _text(tokenizer, row.answer[:-1]) == '{"title":"é","year":1}'
    assert row.answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert _text(tokenizer, row.prompt).endswith("<|im_start|>assistant\n")


def test_a_schema_text_of_another_transport_is_not_trained_on() -> None:
    text = "\nHere's a JSON schema to follow: {...}"
    captured = _example(Message(role="user", content="Q" + text), schema_text=text)
    tokenizer = tiny.tokenizer()
    stop = stop_token_id(tokenizer)
    assert token_row(tokenizer, captured, stop_id=stop) == token_row(
        tokenizer, _example(Message(role="user", content="Q")), stop_id=stop
    )


def test_a_template_that_refuses_system_messages_gets_them_in_the_first_user_message() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + tiny.TEMPLATE
    )
    row = token_row(tokenizer, _example(Message(role="user", content="Q")), stop_id=stop_token_id(tokenizer))
    text = _text(tokenizer, row.prompt)
    assert "system" not in text
    assert text.index("of this type") < text.index("\n\nQ")


def test_a_tokenizer_without_template_gets_a_plain_one() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    row = token_row(tokenizer, _example(Message(role="user", content="Q")), stop_id=stop_token_id(tokenizer))
    assert _text(tokenizer, row.prompt).endswith("user: Q\nassistant: ")


def test_the_stop_token_is_the_one_the_template_ends_a_turn_with() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = "<|im_start|>"
    assert stop_token_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (_example(Message(role="user", content=[{"type": "image_url", "image_url": {}}])), "reads text only"),
        (_example(Message(role="user", content="Q"), answer="", answer_schema=None), "empty"),
        (_example(Message(role="user", content="Q"), answer="not JSON"), "not JSON"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_a_reason(example: Example, words: str) -> None:
    tokenizer = tiny.tokenizer()
    with pytest.raises(DatasetError, match=words):
        token_row(tokenizer, example, stop_id=1)


def test_a_tool_call_without_a_schema_is_refused_with_a_reason() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    example = Example(
        messages=(Message(role="user", content="Q"),), answer=Message(role="assistant", tool_calls=[call])
    )
    with pytest.raises(DatasetError, match="tool call"):
        token_row(tiny.tokenizer(), example, stop_id=1)


def test_answers_in_optional_lists_tuples_and_dicts_are_in_schema_order_too() -> None:
    class Person(BaseModel):
        name: str
        age: int

    class Team(BaseModel):
        people: list[Person] | None
        pair: tuple[Person, int]
        by_name: dict[str, Person] | None
        lead: Person | str

    turned = {"age": 1, "name": "x"}
    answer = {"lead": turned, "by_name": {"x": turned}, "pair": [turned, 2], "people": [turned]}
    example = _example(
        Message(role="user", content="Q"), answer=json.dumps(answer), answer_schema=Team.model_json_schema()
    )
    assert trained_text(example) == Team.model_validate(answer).model_dump_json()


def test_an_answer_that_json_cannot_hold_is_refused_by_its_example() -> None:
    with pytest.raises(DatasetError, match=r"example [0-9a-f]{12}: .* not JSON"):
        trained_text(_example(Message(role="user", content="Q"), answer='{"title": "a", "year": NaN}'))
