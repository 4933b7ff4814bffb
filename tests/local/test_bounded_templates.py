"""Chat templates and tokenizers that would run or print for ever end with an error of this package."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from tokenizers import Regex, pre_tokenizers

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError, PromptTooLongError
from llama_index_finetune_structured.local.model import bounded_rendering, prompts
from llama_index_finetune_structured.local.model.chat_template import render_parts, system_form
from llama_index_finetune_structured.local.model.control_tokens import text_ids
from llama_index_finetune_structured.local.model.prompts import render_prompt
from llama_index_finetune_structured.local.model.stop_token import stop_token_id
from tests import tiny

QUESTION = [{"role": "user", "content": "Describe colour 7."}]
_LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}"
_END = "{% endfor %}{% endfor %}"
ENDLESS = {
    "a loop without output": _LOOP + _END,
    "a loop that sets a variable": _LOOP + "{% set x = i * j %}" + _END,
    "macros that call each other": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "a recursive loop": (
        "{% for a in [[[[]]]] recursive %}{% for b in range(99999) %}{% for c in range(9999) %}{% endfor %}"
        "{% endfor %}{{ loop(a) }}{% endfor %}"
    ),
}
PRINTING = {
    "a loop": _LOOP + "{{ 'a lot of text' }}" + _END,
    "100 MB at once": "{{ 'x' * 100000000 }}",
    "a macro": (
        "{% macro m() %}{% for i in range(99999) %}{{ 'a lot of text' }}{% endfor %}{% endmacro %}"
        "{% for i in range(9999) %}{{ m() }}{% endfor %}"
    ),
}
RAISING = {
    "an exception": "{{ raise_exception('no') }}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "no template": "{% for %}",
    "a range that jinja refuses": "{% for i in range(10 ** 9) %}{% endfor %}",
    "a division by zero": "{{ 1 // 0 }}",
    "a forbidden attribute": "{{ ''.__class__.__mro__ }}",
}


def _tokenizer(template: str) -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_runs_for_ever_is_stopped_by_the_clock(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_rendering, "_SECONDS", 0.3)
    for use in (lambda t: render_prompt(t, QUESTION), stop_token_id, system_form):
        started = time.monotonic()
        with pytest.raises(ConfigurationError, match=r"template runs for more than 0.3 seconds"):
            use(_tokenizer(ENDLESS[name]))
        assert time.monotonic() - started < 20, "it was tried once, not in every form of the messages"


@pytest.mark.parametrize("name", PRINTING)
def test_a_template_that_prints_without_end_is_stopped(name: str) -> None:
    with pytest.raises(ConfigurationError, match="prints over a million characters more"):
        render_prompt(_tokenizer(PRINTING[name]), QUESTION)


@pytest.mark.parametrize("name", RAISING)
def test_whatever_a_template_raises_is_an_error_of_this_package(name: str) -> None:
    with pytest.raises(DatasetError, match="chat template"):
        render_prompt(_tokenizer(RAISING[name]), QUESTION)


def test_long_messages_are_no_endless_printing() -> None:
    long = [{"role": "user", "content": "word " * 600_000}]
    assert "".join(text for text, _ in render_parts(tiny.tokenizer(), long)).count("word") == 600_000


def test_a_trace_function_of_the_program_is_in_place_again_after_rendering() -> None:
    seen: list[str] = []

    def trace(*_: Any) -> None:
        seen.append("called")

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        render_prompt(tiny.tokenizer(), QUESTION)
        assert sys.gettrace() is trace
        with pytest.raises(DatasetError):
            render_prompt(_tokenizer(RAISING["an exception"]), QUESTION)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$"])
def test_a_tokenizer_whose_pattern_takes_endless_steps_is_an_error_of_this_package(pattern: str) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    for text in ("a" * 2000 + "c", "<|im_end|>" + "a" * 2000 + "c"):
        started = time.monotonic()
        with pytest.raises(DatasetError, match=r"tokenizer cannot encode a text.*use another base model"):
            text_ids(tokenizer, text)
        assert time.monotonic() - started < 30


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LoraLLM(base_model=str(tiny_llama))
    window = llm.metadata.context_window
    assert len(llm.prompt_token_ids([ChatMessage("x" * window)])) > window

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("tokenised")

    monkeypatch.setattr("llama_index_finetune_structured.llms.local_calls.render_prompt", refuse)
    monkeypatch.setattr("llama_index_finetune_structured.llms.lora.encode_parts", refuse)
    long = "x" * (100 * 8192 + 1)
    for ask in (
        llm.complete,
        lambda text: llm.complete(text, formatted=True),
        lambda t: llm.chat([ChatMessage(t)]),
    ):
        with pytest.raises(PromptTooLongError, match=r"the prompt has 819201 characters .* 8192 tokens"):
            ask(long)
    assert prompts._CHARACTERS_A_TOKEN == 100
