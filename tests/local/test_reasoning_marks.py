"""Reasoning in training rows and during generation: its marks, its limit, and that its text stays text."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured import Example, FinetuneDataset, LoraLLM, Message, check
from llama_index_finetune_structured.capture.redaction import redact_record, redact_secrets
from llama_index_finetune_structured.dataset.checks.rows import parsed_rows
from llama_index_finetune_structured.errors import DatasetError
from llama_index_finetune_structured.formats.openai import to_openai
from llama_index_finetune_structured.formats.reading import example_from_row
from llama_index_finetune_structured.formats.transports import render
from llama_index_finetune_structured.formats.trl import to_trl_messages, to_trl_prompt_completion
from llama_index_finetune_structured.local.generate.grammar import GrammarCache
from llama_index_finetune_structured.local.generate.reasoning import (
    ReasoningLimit,
    ReasoningRules,
    ReasoningState,
)
from llama_index_finetune_structured.local.model.base_models import (
    DEFAULT_BASE_MODEL,
    load_tokenizer,
    resolve,
)
from llama_index_finetune_structured.local.model.control_tokens import control_tokens, text_ids
from llama_index_finetune_structured.local.model.prompts import PromptForm, TokenRow, token_row
from llama_index_finetune_structured.local.model.reasoning import reasoning_marks
from tests.agents.scripted import WIRE
from tests.llms import thinking_bases
from tests.local import chat_bases

KINDS = [*thinking_bases.TEMPLATES]
TOKENIZERS: dict[str, Any] = {kind: thinking_bases.tokenizer(kind) for kind in KINDS}
TOKENIZERS["smollm2"] = load_tokenizer(resolve(DEFAULT_BASE_MODEL))  # whose tokens have several characters
RULES = {
    kind: ReasoningRules(
        tokenizer,
        GrammarCache(tokenizer, vocabulary=len(tokenizer) + 4, stop_id=tokenizer.eos_token_id),
        frozenset({tokenizer.eos_token_id}),
    )
    for kind, tokenizer in TOKENIZERS.items()
}
KEEP = PromptForm("none", thinking=True)
QUESTION = Message(role="user", content="Why?")


def row(reasoning: str | None, *before: Message, answer: str = "So.") -> Example:
    said = Message(role="assistant", content=answer, reasoning_content=reasoning)
    return Example(messages=(*before, QUESTION), answer=said)


def trained(kind: str, example: Example, form: PromptForm = KEEP) -> TokenRow:
    return token_row(TOKENIZERS[kind], example, stop_id=TOKENIZERS[kind].eos_token_id, form=form)


def text(kind: str, tokens: Any) -> str:
    return str(TOKENIZERS[kind].decode(list(tokens)))


@pytest.mark.parametrize(
    ("kind", "prompt", "answer"),
    [
        ("switch", "<|im_start|>assistant\n", "<think>\nHm.\n</think>\n\nSo.<|im_end|>"),
        ("plain", "<|im_start|>assistant\n", "<think>\nHm.\n</think>\n\nSo.<|im_end|>"),
        ("opened", "<|im_start|>assistant\n<think>\n", "Hm.\n</think>\n\nSo.<|im_end|>"),
    ],
)
def test_an_answer_is_trained_behind_its_reasoning(kind: str, prompt: str, answer: str) -> None:
    made = trained(kind, row("\n Hm.\n"))
    assert text(kind, made.prompt).endswith(prompt)
    assert text(kind, made.answer) == answer
    assert text(kind, made.answer[made.reasoning :]) == "So.<|im_end|>"
    bare = trained(kind, row(None))
    assert text(kind, bare.answer) == answer.replace("Hm.", "")
    dropped = trained(kind, row("Hm."), PromptForm("none"))
    assert (text(kind, dropped.answer), dropped.reasoning) == ("So.<|im_end|>", 0)


def test_a_switch_in_the_template_is_off_unless_reasoning_is_kept(tmp_path: Path) -> None:
    closed = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    dropped = trained("switch", row("Hm."), PromptForm("none"))
    assert text("switch", dropped.prompt).endswith(closed)
    llm = LoraLLM(base_model=thinking_bases.save("switch", tmp_path))
    from llama_index.core.llms import ChatMessage

    asked = [ChatMessage(content="Why?")]
    assert tuple(llm.prompt_token_ids(asked)) == dropped.prompt
    thinking = llm.model_copy(update={"thinking": True}).prompt_token_ids(asked)
    kept = trained("switch", row("Hm."))
    assert tuple(thinking) == (kept.prompt + kept.answer)[: len(thinking)]
    assert text("switch", thinking).endswith("assistant\n<think>\n")


def test_reasoning_of_earlier_turns_is_in_no_prompt() -> None:
    earlier = (QUESTION, Message(role="assistant", content="First.", reasoning_content="SECRET"))
    for kind in KINDS:
        prompt = text(kind, trained(kind, row("Hm.", *earlier)).prompt)
        assert "First." in prompt
        assert "SECRET" not in prompt


def test_a_template_that_ends_reasoning_in_the_prompt_is_refused() -> None:
    tokenizer = chat_bases.tokenizer("byte-level", "qwen3")
    with pytest.raises(DatasetError, match="ends the reasoning in the prompt"):
        reasoning_marks(tokenizer)


PIECES = ["<think>", "<|im_end|>", "</th", "</", "\n", " ", "a", "ü", "漢", "{", ">", "<|im_start|>user"]
reasonings = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]), max_size=20
)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([*KINDS, "smollm2"]), reasonings)
def test_no_text_of_reasoning_is_a_control_token_and_it_is_read_back(kind: str, reasoning: str) -> None:
    made = trained(kind, row(reasoning))
    controls = control_tokens(TOKENIZERS[kind])
    found = [controls[token] for token in made.answer if token in controls]
    marks = {"switch": ["<think>", "</think>"], "opened": ["</think>"]}.get(kind, [])
    assert found == [*marks, "<|im_end|>"]
    written = made.answer[len(RULES[kind].opening) : made.reasoning]
    bare = text_ids(TOKENIZERS[kind], reasoning.strip())  # smollm2 has no tokens for some bytes
    assert RULES[kind].text(written) == text(kind, bare).strip()
    assert_ends(RULES[kind], written)


def assert_ends(rules: ReasoningRules, written: Sequence[int]) -> None:
    """Generation may write these tokens, and ends the reasoning where training does."""
    state = ReasoningState(ReasoningLimit(rules, len(written)))
    for token in written:
        assert not state.has_ended
        assert state.allows(token)
        state.append(token)
    assert state.has_ended


@pytest.mark.parametrize("template", ["chatml", "llama3", None])
@pytest.mark.parametrize(
    "backend", [name for name in chat_bases.BACKENDS if name not in ("unigram", "wordpiece")]
)
def test_reasoning_ends_with_every_kind_of_tokenizer_that_grammars_can_use(
    backend: str, template: str | None
) -> None:
    tokenizer = chat_bases.tokenizer(backend, template)
    marks = reasoning_marks(tokenizer)
    cache = GrammarCache(tokenizer, vocabulary=len(tokenizer), stop_id=tokenizer.eos_token_id)
    rules = ReasoningRules(tokenizer, cache, frozenset({tokenizer.eos_token_id}))
    for reasoning in ("When was Meddle?", "", "a </th", "<think>ü"):
        made = marks.around(tokenizer, reasoning)
        assert made[: len(rules.opening)] == rules.opening
        assert_ends(rules, made[len(rules.opening) :])
    assert_ends(rules, rules.closing)


def test_the_mark_that_ends_reasoning_is_refused_inside_of_it() -> None:
    for kind in KINDS:
        with pytest.raises(DatasetError, match="which ends reasoning: remove it"):
            trained(kind, row("so </think> is this"))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(KINDS), st.integers(0, 40), st.integers())
def test_reasoning_of_any_allowed_tokens_ends_inside_its_limit(kind: str, limit: int, seed: int) -> None:
    rules, draw = RULES[kind], random.Random(seed)
    state, written = ReasoningState(ReasoningLimit(rules, limit)), list[int]()
    likely = [rules.closing[0], *TOKENIZERS[kind]("</think>\n\nx>", add_special_tokens=False)["input_ids"]]
    while not state.has_ended:
        allowed = state.mask().nonzero()[:, 0].tolist()
        assert allowed == [token for token in range(len(rules.mask)) if state.allows(token)]
        token = draw.choice([token for token in likely if token in allowed] or allowed)
        token = draw.choice([token, draw.choice(allowed)])
        draft = state.allowed_start([token, *rules.closing])
        assert draft[0] == (state.forced() or [token])[0]
        assert token == state.within_limit(token)
        state.append(token)
        written.append(token)
    assert len(written) <= limit + len(rules.closing)
    decoded = text(kind, written)
    assert decoded.count("</think>") == 1
    assert decoded.endswith("</think>\n\n")
    assert "</think>" not in rules.text(written)


def test_stop_and_control_tokens_are_never_reasoning() -> None:
    for kind, rules in RULES.items():
        allowed = set(rules.mask.nonzero()[:, 0].tolist())
        ends = [n for n, name in control_tokens(TOKENIZERS[kind]).items() if name == "</think>"]
        assert allowed & control_tokens(TOKENIZERS[kind]).keys() == set(ends)
        assert not rules.mask[len(TOKENIZERS[kind]) :].any(), "tokens that no text has"
        assert rules.mask.dtype == torch.bool


def test_reasoning_is_in_trl_rows_and_the_id_and_not_in_openai_lines() -> None:
    kept, bare = row("Hm."), row(None)
    assert kept.id != bare.id
    assert Example.from_json(kept.to_json()) == kept
    assert to_openai(kept) == to_openai(bare)
    for made in (to_trl_messages(kept), to_trl_prompt_completion(kept)):
        answer = (made.get("completion") or made["messages"])[-1]
        assert answer["reasoning_content"] == "Hm."
        assert example_from_row(made).answer == kept.answer


def test_another_transport_keeps_the_reasoning() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    example = row("Hm.", answer='{"a":1}').model_copy(
        update={"answer_schema": schema, "transport": "json_schema", "schema_name": "A"}
    )
    called = render(example, "tools")
    assert called.answer.tool_calls
    assert called.answer.reasoning_content == "Hm."
    assert render(called, "json_schema").answer == example.answer


def test_a_file_for_openai_with_reasoning_gets_a_warning(tmp_path: Path) -> None:
    line = {"messages": [QUESTION.wire(), row("Hm.").answer.wire(reasoning=True)]}
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(line)}\n" * 10)
    found = [problem for problem in check(path, target="openai").problems if problem.code == "unknown_keys"]
    assert {problem.message for problem in found} == {"reasoning_content"}
    FinetuneDataset([row("Hm.")]).save(path)
    assert not [p for p in check(path, target="openai").problems if p.code == "unknown_keys"]


def test_reasoning_is_redacted() -> None:
    record = json.loads(row("Write to jane@example.com.").to_json())
    assert redact_record(record, redact_secrets)["answer"]["reasoning_content"] == "Write to [EMAIL]."


def test_an_agents_turn_is_trained_once_with_its_reasoning_or_without() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"first":1,"second":2}'}}
    calls = Message(role="assistant", reasoning_content="Add.", tool_calls=[call])
    silent = calls.model_copy(update={"reasoning_content": None})
    result = Message(role="tool", content="3", tool_call_id="c")
    final = Message(role="assistant", content="3.", reasoning_content="Said.")
    first = Example(messages=(QUESTION,), answer=calls, transport="tools", tools=WIRE)
    for known in (calls, silent):
        second = Example(messages=(QUESTION, known, result), answer=final, transport="tools", tools=WIRE)
        turns = [item.content for item in parsed_rows((first, second))]
        found = [turn.answer.reasoning_content for turn in turns if isinstance(turn, Example)]
        assert found == ["Add.", "Said."]
        (alone, _) = (item.content for item in parsed_rows((second,)))
        assert isinstance(alone, Example)
        assert alone.answer.reasoning_content == known.reasoning_content
