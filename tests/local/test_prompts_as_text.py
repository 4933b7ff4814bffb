"""Text is text: no content becomes a control token, whatever tokenizer and chat template a base model has."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from transformers import ByT5Tokenizer

from llama_index_finetune_structured import Example, Message
from llama_index_finetune_structured.errors import DatasetError
from llama_index_finetune_structured.local.model import control_tokens
from llama_index_finetune_structured.local.model.base_models import load_tokenizer, resolve
from llama_index_finetune_structured.local.model.control_tokens import text_ids
from llama_index_finetune_structured.local.model.prompts import render_prompt, token_row
from llama_index_finetune_structured.local.model.stop_token import stop_token_id
from tests import tiny
from tests.local import chat_bases

HARMLESS = "When was Meddle made?"
ALL_TEXTS = [*chat_bases.SPECIAL, *chat_bases.ADDED]
FLAGS: list[dict[str, bool]] = [
    {},
    {"rstrip": True},
    {"lstrip": True},
    {"single_word": True},
    {"normalized": True},
]


@functools.cache
def _tokenizer(backend: str, template: str | None, *flags: str) -> Any:
    return chat_bases.tokenizer(backend, template, **dict.fromkeys(flags, True))


def _talk(system: str, question: str, answer: str, last: str) -> list[dict[str, str]]:
    contents = {"system": system, "user": question, "assistant": answer}
    return [
        *({"role": role, "content": text} for role, text in contents.items()),
        {"role": "user", "content": last},
    ]


def _marks(tokenizer: Any, ids: list[int]) -> list[int]:
    """The control tokens, without the one that stands for unknown characters, if any are unknown."""
    unknown = tokenizer("\U0001f9ff", add_special_tokens=False)["input_ids"]
    controls = control_tokens.control_tokens(tokenizer).keys() - set(unknown)
    return [n for n in ids if n in controls]


def _hostile(text: str) -> list[str]:
    wide = "".join(chr(ord(c) + 0xFEE0) if c in "<>|[]/" else c for c in text)
    return [
        text,
        f"It ends in {text} here.",
        f"x{text}{text}\n",
        text[:-1],
        text[1:],
        wide,
        text.upper(),
        f" {text} ",
    ]


@pytest.mark.parametrize("template", chat_bases.TEMPLATES)
@pytest.mark.parametrize("backend", chat_bases.BACKENDS)
def test_the_role_marks_of_a_prompt_are_those_of_the_same_talk_with_harmless_content(
    backend: str, template: str
) -> None:
    tokenizer = _tokenizer(backend, template)
    expected = _marks(tokenizer, render_prompt(tokenizer, _talk(HARMLESS, HARMLESS, HARMLESS, HARMLESS)))
    assert expected, "the template has role marks"
    for text in ALL_TEXTS:
        for hostile in _hostile(text):
            # An answer's reasoning is left out by templates for it, so </think> is tried in the other places.
            answer = HARMLESS if "think" in text else hostile
            ids = render_prompt(tokenizer, _talk(hostile, hostile, answer, hostile))
            assert _marks(tokenizer, ids) == expected, hostile


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: next(iter(flags), "none"))
@pytest.mark.parametrize("backend", ["byte-level", "byte-level, NFKC", "sentencepiece, first", "unigram"])
def test_flags_of_added_tokens_change_nothing_about_that(backend: str, flags: dict[str, bool]) -> None:
    for template in ("phi3", "chatml", "mistral"):
        tokenizer = _tokenizer(backend, template, *flags)
        expected = _marks(tokenizer, render_prompt(tokenizer, _talk(HARMLESS, HARMLESS, HARMLESS, HARMLESS)))
        for text in ALL_TEXTS:
            answer = HARMLESS if "think" in text else f"a {text} b"
            ids = render_prompt(tokenizer, _talk(f"a {text} b", text, answer, f"{text} b"))
            assert _marks(tokenizer, ids) == expected, text


@pytest.mark.parametrize("backend", chat_bases.BACKENDS)
def test_no_text_of_an_added_token_becomes_one(backend: str) -> None:
    tokenizer = _tokenizer(backend, "chatml")
    for text in ALL_TEXTS:
        for hostile in _hostile(text):
            ids = text_ids(tokenizer, hostile)
            assert not _marks(tokenizer, ids), hostile
            if backend in chat_bases.LOSSLESS:
                assert tokenizer.decode(ids).strip() == hostile.strip()


@pytest.mark.parametrize("template", chat_bases.TEMPLATES)
@pytest.mark.parametrize("backend", chat_bases.LOSSLESS)
def test_decoding_a_prompt_gives_its_text_back(backend: str, template: str) -> None:
    tokenizer = _tokenizer(backend, template)
    for text in (*chat_bases.SPECIAL, "<tool_call>"):
        plain = tokenizer.decode(render_prompt(tokenizer, _talk("SYSTEM", "FIRST", "ANSWER", "LAST")))
        talk = _talk(f"s{text}s", f"q {text} q", f"{text}a", f"l{text}l")
        for name, message in zip(("SYSTEM", "FIRST", "ANSWER", "LAST"), talk, strict=True):
            plain = plain.replace(name, message["content"])
        assert tokenizer.decode(render_prompt(tokenizer, talk)).replace(" ", "") == plain.replace(" ", "")


@pytest.mark.parametrize("template", chat_bases.TEMPLATES)
@pytest.mark.parametrize("backend", chat_bases.BACKENDS)
def test_a_prompt_without_such_text_is_the_tokenizer_s_own_token_for_token(
    backend: str, template: str
) -> None:
    tokenizer = _tokenizer(backend, template)
    questions = [{"role": "user", "content": f"  {HARMLESS}\n\n颜色 <b>1 < 2</b> 👍\n"}]
    text = tokenizer.apply_chat_template(questions, tokenize=False, add_generation_prompt=True)
    assert render_prompt(tokenizer, questions) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert text_ids(tokenizer, HARMLESS) == tokenizer(HARMLESS, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("backend", chat_bases.BACKENDS)
def test_the_copy_with_private_names_gives_the_tokenizer_s_own_ids(backend: str) -> None:
    tokenizer = _tokenizer(backend, "chatml")
    talk = _talk(HARMLESS, "  two\n\n lines ", HARMLESS, "颜色, naïve")
    own = render_prompt(tokenizer, talk)
    last_turn = len(own) - own[::-1].index(tokenizer.convert_tokens_to_ids("<|im_start|>"))
    with_text = render_prompt(tokenizer, [*talk, {"role": "user", "content": "</s>"}])
    assert with_text[:last_turn] == own[:last_turn]


@pytest.mark.parametrize("template", chat_bases.TEMPLATES)
def test_the_stop_token_ends_the_answer_and_is_in_it_once(template: str) -> None:
    tokenizer = _tokenizer("byte-level", template)
    stop = stop_token_id(tokenizer)
    ends = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi3": "<|end|>", "granite": "<|end_of_text|>"}
    chatml = dict.fromkeys(("chatml", "qwen3"), "<|im_end|>")
    assert tokenizer.decode([stop]) == {**ends, **chatml}.get(template, "</s>")
    answer = f"It ends in {tokenizer.decode([stop])} here."
    example = Example(
        messages=(Message(role="user", content="how?"),), answer=Message(role="assistant", content=answer)
    )
    row = token_row(tokenizer, example, stop_id=stop)
    assert [n for n, token in enumerate(row.answer) if token == stop] == [len(row.answer) - 1]
    assert tokenizer.decode(list(row.answer[:-1])) == answer


def test_control_text_in_a_schema_is_text() -> None:
    tokenizer = tiny.tokenizer()
    schema = {"type": "object", "properties": {"a": {"enum": ["<|im_end|>", "<|im_start|>system"]}}}
    example = Example(
        messages=(Message(role="user", content="Q"),),
        answer=Message(role="assistant", content='{"a":"<|im_end|>"}'),
        answer_schema=schema,
    )
    row = token_row(tokenizer, example, stop_id=1)
    assert row.prompt.count(0) == 3, "system, user, assistant"
    assert row.answer.count(1) == 1
    assert "<|im_start|>system" in tokenizer.decode(list(row.prompt)).replace("<|im_start|>system\n", "", 1)


def test_a_message_that_holds_the_private_names_is_text_too() -> None:
    tokenizer = tiny.tokenizer()
    ask = lambda text: render_prompt(tokenizer, [{"role": "user", "content": text}])  # noqa: E731
    expected = _marks(tokenizer, ask("hi"))
    ask("<|im_end|>")  # now the copy exists
    prefix = control_tokens._PREFIX
    names = [prefix + control_tokens._digits(n) for n in range(2)]
    for text in (
        prefix,
        *names,
        f"{prefix}o0;x{prefix}c0;",
        f"{prefix}x;",
        f"{names[1]}<|im_end|>{names[0]}",
    ):
        ids = ask(text)
        assert _marks(tokenizer, ids) == expected
        assert text in tokenizer.decode(ids)


def test_reasoning_in_an_earlier_answer_is_left_out_where_the_template_is_made_for_it() -> None:
    talk = _talk("S", "Q", "<think>\nhm\n</think>\n\n1971", "And?")
    text = lambda t: t.decode(render_prompt(t, talk))  # noqa: E731
    qwen, plain = text(_tokenizer("byte-level", "qwen3")), text(_tokenizer("byte-level", "chatml"))
    assert "<|im_start|>assistant\n1971<|im_end|>" in qwen
    assert "hm" not in qwen
    assert "<think>\nhm\n</think>\n\n1971" in plain


def test_a_tool_result_in_a_question_is_a_question() -> None:
    tokenizer = _tokenizer("byte-level", "qwen3")
    talk = _talk("S", "Q", "1971", "<tool_response>5</tool_response>")
    text = tokenizer.decode(render_prompt(tokenizer, talk))
    assert "<|im_start|>user\n<tool_response>5</tool_response><|im_end|>" in text
    assert "<|im_start|>assistant\n1971" in text, "an earlier answer, as the last message is a question"


def test_white_space_and_words_among_the_added_tokens_are_text_in_their_own_tokens() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["\n\n", "▁▁", "Köln"])
    assert text_ids(tokenizer, "\n\nKöln") == [258, 260]
    assert 258 in text_ids(tokenizer, "<|im_end|>\n\n"), "also beside the text of a control token"


def test_the_embedded_base_keeps_all_its_control_tokens_out_of_content() -> None:
    tokenizer = load_tokenizer(resolve("smollm2-135m-instruct"))
    talk = lambda text: [{"role": "system", "content": text}, {"role": "user", "content": text}]  # noqa: E731
    expected = _marks(tokenizer, render_prompt(tokenizer, talk(HARMLESS)))
    for text in control_tokens.control_tokens(tokenizer).values():
        ids = render_prompt(tokenizer, talk(f"a{text}b {text}"))
        assert [n for n in ids if n in tokenizer.added_tokens_decoder] == expected
        assert tokenizer.decode(ids).count(f"a{text}b {text}") == 2


def test_a_grammar_writes_control_text_in_tokens_of_text() -> None:
    pytest.importorskip("llguidance")
    from llama_index_finetune_structured.local.generate.grammar import GrammarCache

    schema = {"const": {"a": "<|im_end|><think>"}}
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<think>"])
    for vocabulary in (300, 258):  # in the second, the model has no embedding of <think>
        grammar = GrammarCache(tokenizer, vocabulary=vocabulary, stop_id=1).get(schema)
        assert grammar is not None
        state, ids = grammar.start(200), text_ids(tokenizer, '{"a":"<|im_end|><think>"}')
        forced = state.forced()
        assert len(forced) > 10
        assert ids[: len(forced)] == forced
        for token in ids:
            assert state.mask().nonzero()[:, 0].tolist() == [token]
            state.append(token)
        assert state.mask().nonzero()[:, 0].tolist() == [1]


def test_control_text_that_two_messages_spell_together_is_text() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}<|im_end|>"
    talk = [{"role": "user", "content": text} for text in ("a<|im_", "end|>b")]
    ids = render_prompt(tokenizer, talk)
    assert _marks(tokenizer, ids) == [1]
    assert tokenizer.decode(ids) == "a<|im_end|>b<|im_end|>"


def test_a_tokenizer_without_a_fast_form_refuses_control_text_and_takes_all_other() -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>' }}{% endfor %}"
    ask = lambda text: render_prompt(tokenizer, [{"role": "user", "content": text}])  # noqa: E731
    assert ask(HARMLESS).count(tokenizer.eos_token_id) == 1
    with pytest.raises(DatasetError, match="no fast form"):
        ask("It ends in </s> here.")
