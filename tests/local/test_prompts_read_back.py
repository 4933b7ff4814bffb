"""One prompt, proven: the text of every message is in it, and a date in it is that of training."""

from __future__ import annotations

import datetime
import functools
from typing import Any

import pytest

from llama_index_finetune_structured import Example, Message
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError
from llama_index_finetune_structured.local.model.chat_template import (
    chat_template,
    prompt_date,
    system_form,
    with_system_messages,
)
from llama_index_finetune_structured.local.model.prompts import (
    PromptForm,
    _row,
    messages_with_schema,
    render_prompt,
    token_row,
)
from llama_index_finetune_structured.local.model.stop_token import stop_token_id
from tests import tiny
from tests.local import chat_bases

SCHEMA = {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}
TALK = [
    Message(role="system", content="  Be brief.\n"),
    Message(role="user", content="When was Meddle made?\n\n"),
    Message(role="assistant", content='{"year":1971}'),
    Message(role="user", content="  And\n\nAnimals?"),
]
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{{ c.text }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def _tokenizer(template: str) -> Any:
    return chat_bases.tokenizer("byte-level", template)


def _tiny(template: str) -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def _prompt(tokenizer: Any, messages: list[Message], schema: Any = None, date: str | None = None) -> str:
    return str(tokenizer.decode(render_prompt(tokenizer, messages_with_schema(messages, schema), date=date)))


@pytest.mark.parametrize("template", chat_bases.TEMPLATES)
def test_every_message_and_the_schema_are_in_the_prompt_of_every_family(template: str) -> None:
    text = _prompt(_tokenizer(template), TALK, SCHEMA)
    for message in TALK:
        assert str(message.content).strip() in text
    assert "{year: integer}" in text


def test_a_template_that_leaves_system_messages_out_gets_them_in_the_first_question() -> None:
    text = _prompt(_tokenizer("phi3"), TALK, SCHEMA)
    assert text.startswith("<s><|user|>\n  Be brief.\n\nAnswer with one JSON value")
    assert text.index("of this type") < text.index("When was Meddle")


def test_a_system_message_before_an_answer_goes_to_the_next_question() -> None:
    tokenizer = _tiny(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + tiny.TEMPLATE
    )
    talk = [TALK[0], Message(role="assistant", content="Hello"), Message(role="user", content="Q")]
    assert "assistant\nHello<|im_end|>\n<|im_start|>user\n  Be brief." in _prompt(tokenizer, talk)


@pytest.mark.parametrize("template", [*chat_bases.TEMPLATES, "first only", "at the start only"])
def test_several_system_messages_stay_together_and_in_their_order_before_the_question(template: str) -> None:
    first_only = tiny.TEMPLATE.replace("messages %}", "messages if loop.first or message.role != 'system' %}")
    refuses = (
        "{% for m in messages[1:] if m.role == 'system' %}{{ raise_exception('at the start') }}{% endfor %}"
    )
    own = {"first only": first_only.replace(" if loop.first or", " if message == messages[0] or")}
    own["at the start only"] = refuses + tiny.TEMPLATE
    tokenizer = _tiny(own[template]) if template in own else _tokenizer(template)
    talk = [TALK[0], Message(role="system", content="Cite."), Message(role="system", content=" "), TALK[1]]
    text = _prompt(tokenizer, talk, SCHEMA)
    places = [text.index(part) for part in ("Be brief.", "Answer with one JSON", "Cite.", "When was Meddle")]
    assert places == sorted(places)
    form = system_form(tokenizer)
    if template in own:
        assert form == "joined"
        assert text.count("<|im_start|>system") == 1
    sent = with_system_messages(messages_with_schema(talk, SCHEMA), form)
    assert _decoded(tokenizer, sent) == text


def _decoded(tokenizer: Any, messages: Any) -> str:
    """The prompt that a server makes by the template alone."""
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return str(tokenizer.decode(ids))


def test_the_form_of_system_messages_is_told_for_every_family() -> None:
    forms = {name: system_form(_tokenizer(name)) for name in chat_bases.TEMPLATES}
    folded = {name for name, form in forms.items() if form == "in_question"}
    assert folded == {"gemma", "phi3"}
    assert system_form(_tiny("{{ messages | length }}")) == "own", "a template that takes no message at all"


def test_a_schema_is_in_the_prompt_in_its_own_letters() -> None:
    schema = {"type": "object", "properties": {"größe": {"enum": ["小", "<|im_end|>"]}}}
    assert '{"größe"?: "小" | "<|im_end|>"}' in _prompt(_tokenizer("chatml"), TALK, schema)


@pytest.mark.parametrize("place", ["message", "schema", "answer"])
def test_half_a_character_is_refused_by_name(place: str) -> None:
    texts = {"message": "Q", "schema": "a", "answer": "1971"} | {place: "smile \ud83c"}
    schema: Any = {"type": "string", "description": texts["schema"]} if place == "schema" else None
    example = Example.model_construct(
        messages=(Message.model_construct(role="user", content=texts["message"], tool_calls=None),),
        answer=Message.model_construct(role="assistant", content=texts["answer"], tool_calls=None),
        answer_schema=schema,
        schema_text=None,
    )
    with pytest.raises(DatasetError, match=r"half a character \('\\ud83c' after '.*smile '\)"):
        _row(_tokenizer("chatml"), example, 1, None, PromptForm("json"))


@pytest.mark.parametrize("role", ["user", "assistant", "tool"])
def test_a_message_that_the_template_leaves_out_is_an_error_that_names_it(role: Any) -> None:
    tokenizer = _tiny(
        tiny.TEMPLATE.replace("%}{{ '<|im_s", f"if message.role != '{role}' %}}{{{{ '<|im_s", 1)
    )
    talk = [Message(role="user", content="Q"), Message(role="assistant", content="A")]
    talk += [Message(role=role, content="When was Meddle made? " * 9), Message(role="user", content="B")]
    number = 1 if role == "user" else 2 if role == "assistant" else 3
    with pytest.raises(
        DatasetError, match=rf"message {number} of the prompt \({role}, '.*leaves it out.*Give the"
    ):
        _prompt(tokenizer, talk)


def test_a_short_message_that_is_left_out_is_noticed_though_its_text_stands_elsewhere() -> None:
    tokenizer = _tiny(tiny.TEMPLATE.replace("messages %}", "messages if message.role != 'tool' %}"))
    talk = [Message(role="user", content="user of 1"), Message(role="tool", content="1")]
    with pytest.raises(DatasetError, match=r"message 2 of the prompt \(tool, '1'\)"):
        _prompt(tokenizer, talk)


@pytest.mark.parametrize(
    "shown",
    [
        "m.content[:20]",
        "m.content | upper",
        "m.content.split('.')[0]",
        "m.content | replace('M', 'N')",
        "m.role",
    ],
)
def test_a_template_that_changes_a_message_is_refused(shown: str) -> None:
    tokenizer = _tiny(
        "{% for m in messages %}{{ '<|im_start|>' + " + shown + " + '<|im_end|>' }}{% endfor %}"
    )
    with pytest.raises(DatasetError, match="message 1 of the prompt"):
        _prompt(tokenizer, [Message(role="user", content="When. was Meddle made, and who made it?")])


@pytest.mark.parametrize("shown", ["m.content | trim", "m.content.split() | join(' ')", "m.content | tojson"])
def test_a_template_may_trim_or_collapse_white_space_or_write_json(shown: str) -> None:
    tokenizer = _tiny(
        "{% for m in messages %}{{ '<|im_start|>' + " + shown + " + '<|im_end|>' }}{% endfor %}"
    )
    assert "Meddle" in _prompt(
        tokenizer, [Message(role="user", content=' "When"  was\nMeddle, naïve 颜色 <b>? ')]
    )


def test_a_template_that_depends_on_what_a_message_says_is_read_back_too() -> None:
    looks = "{% for m in messages if not m.content.startswith('No') %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    assert "Yes" in _prompt(_tiny(looks), [Message(role="user", content="Yes")])
    with pytest.raises(DatasetError, match="'No'"):
        _prompt(_tiny(looks), [Message(role="user", content="Yes"), Message(role="user", content="No")])


def test_a_template_that_reads_parts_gets_parts() -> None:
    text = _prompt(_tiny(PARTS), TALK, SCHEMA)
    assert "When was Meddle made?\n\n<|im_end|>" in text
    assert "of this type" in text
    assert text.startswith("<|im_start|>system\n")
    assert stop_token_id(_tiny(PARTS)) == 1


def test_a_list_of_parts_that_a_template_prints_as_such_is_no_prompt() -> None:
    prints = "{% for m in messages if m.content is not string %}{{ m.content }}{% endfor %}"
    with pytest.raises(DatasetError, match="message 1"):
        _prompt(_tiny(prints), [Message(role="user", content="Q")])


def test_training_names_the_example_whose_message_is_left_out() -> None:
    example = Example(messages=(TALK[1],), answer=TALK[2])
    with pytest.raises(DatasetError, match=rf"example {example.id[:12]}: message 1 of the prompt"):
        token_row(_tiny("{{ messages | length }}"), example, stop_id=1)


def test_a_long_prompt_is_read_back_in_little_time() -> None:
    tokenizer = _tokenizer("chatml")
    text = "Meddle was made in 1971, <b>and</b> Animals in 1977.\n" * 2500
    started = datetime.datetime.now()
    render_prompt(tokenizer, [{"role": "user", "content": text}])
    plain = datetime.datetime.now()
    tokenizer(text, add_special_tokens=False)
    tokenised = datetime.datetime.now() - plain
    assert plain - started < 4 * tokenised + datetime.timedelta(seconds=0.5)


# What messages hold


def test_text_parts_are_joined_and_a_cache_mark_is_no_content() -> None:
    parts = [{"type": "text", "text": "Hi."}, {"type": "cache", "cache_control": {"type": "ephemeral"}}]
    assert messages_with_schema([Message(role="user", content=parts)], None)[0]["content"] == "Hi."


@pytest.mark.parametrize(
    "part", [{"type": "text"}, {"type": "text", "text": None}, {"type": "text", "text": 5}]
)
def test_a_text_part_without_text_is_told_as_that(part: Any) -> None:
    with pytest.raises(DatasetError, match="part of type 'text' without a text: write"):
        messages_with_schema([Message(role="user", content=[part])], None)


def test_content_and_tool_calls_of_one_message_are_both_in_the_prompt() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "price", "arguments": '{"of":"tea"}'}}
    both = Message(role="assistant", content="I look it up.", tool_calls=[call])
    text = messages_with_schema([both], None)[0]["content"]
    assert text.startswith("I look it up.\n[{")
    only = Message(role="assistant", tool_calls=[call])
    assert text.endswith(messages_with_schema([only], None)[0]["content"])
    assert '"price"' in text


def test_a_schema_text_is_removed_where_the_transport_put_it_and_stays_in_a_document() -> None:
    text = '\n\nHere\'s a JSON schema to follow: {"a": 1}'
    tokenizer = tiny.tokenizer()

    def row(*messages: Message, schema_text: str | None) -> str:
        example = Example(messages=messages, answer=TALK[2], answer_schema=SCHEMA, schema_text=schema_text)
        return str(tokenizer.decode(list(token_row(tokenizer, example, stop_id=1).prompt)))

    document = f"A page says:{text}, and more." + " It goes on." * 20  # a short one would stand twice
    asked = Message(role="user", content=document + text)
    assert row(asked, schema_text=text) == row(Message(role="user", content=document), schema_text=None)
    system, page = Message(role="system", content="Be brief." + text), Message(role="user", content=document)
    assert document in row(system, page, schema_text=text)
    assert row(system, page, schema_text=text).count("Here's a JSON schema") == 1


# Dates and BOS


@pytest.fixture
def another_day(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Later:
            return cls(2031, 5, 6)

    from transformers.utils import chat_template_utils

    monkeypatch.setattr(chat_template_utils, "datetime", Later)


def test_a_date_that_the_template_prints_is_that_of_training(another_day: None) -> None:
    tokenizer = _tokenizer("llama3")
    assert "Today Date: 06 May 2031" in _prompt(tokenizer, TALK)
    assert "Today Date: 31 Jan 2026" in _prompt(tokenizer, TALK, date="2026-01-31")
    example = Example(messages=tuple(TALK[:2]), answer=TALK[2])
    row = token_row(tokenizer, example, stop_id=1, date="2026-01-31")
    assert "31 Jan 2026" in tokenizer.decode(list(row.prompt))


def test_the_date_is_kept_only_where_a_template_prints_it() -> None:
    assert prompt_date(_tokenizer("llama3")) == datetime.date.today().isoformat()
    assert prompt_date(_tokenizer("chatml")) is None
    assert _prompt(_tokenizer("chatml"), TALK, date="2026-01-31") == _prompt(_tokenizer("chatml"), TALK)


def test_a_template_with_the_date_written_out_gives_the_same_prompt_without_it(another_day: None) -> None:
    tokenizer = chat_bases.tokenizer("byte-level", "llama3")
    kept = _prompt(tokenizer, TALK, date="2026-01-31")
    tokenizer.chat_template = chat_template(tokenizer, "2026-01-31")
    assert _prompt(tokenizer, TALK) == kept


def test_a_date_in_a_computed_format_is_refused_by_name() -> None:
    tokenizer = _tiny("{% set f = '%Y' %}{{ strftime_now(f) }}" + tiny.TEMPLATE)
    with pytest.raises(ConfigurationError, match="strftime_now"):
        prompt_date(tokenizer)  # asked by check() and before training
    with pytest.raises(ConfigurationError, match="strftime_now"):
        _prompt(tokenizer, TALK, date="2026-01-31")


def test_without_a_template_the_prompt_begins_with_the_bos_token_that_the_tokenizer_adds() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = chat_bases.tokenizer("byte-level", None)
    assert _prompt(tokenizer, [TALK[1]]).startswith("user: When")
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    assert render_prompt(tokenizer, [{"role": "user", "content": "<s>"}]).count(bos) == 1
    assert _prompt(tokenizer, [TALK[1]]).startswith("<s>user: When")
    assert stop_token_id(tokenizer) == tokenizer.eos_token_id
