"""A thousand random histories of calls, streams, failures and nested LLMs, against a model that just counts."""

from __future__ import annotations

import gc
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM

from llama_index_finetune_structured.capture import OpenAIFineTuningHandler, capture, read_examples
from llama_index_finetune_structured.capture.tracker import tracker


class ScriptedLLM(CustomLLM):
    """Raises for a prompt that starts with "fail", else repeats it; passes calls on to ``inner`` if set."""

    inner: Any = None

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="scripted", is_chat_model=True)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        if self.inner is not None:
            return self.inner.chat(messages, **kwargs)
        text = self.complete(str(messages[-1].content)).text
        return ChatResponse(message=ChatMessage(role="assistant", content=text))

    @llm_completion_callback()
    def complete(self, prompt: str, **_: Any) -> CompletionResponse:
        if prompt.startswith("fail"):
            raise RuntimeError(prompt)
        return CompletionResponse(text=prompt)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, **_: Any) -> Any:
        if self.inner is not None:
            yield from self.inner.stream_complete(prompt)
            return
        yield CompletionResponse(text="", delta="")
        if prompt.startswith("fail"):
            raise RuntimeError(prompt)
        yield CompletionResponse(text=prompt, delta=prompt)


class Histories(RuleBasedStateMachine):
    """``kept`` counts the prompts whose answers are complete: in all, and of the LLM with the handler."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.number = 0
        self.streams: list[tuple[str, bool, Iterator[Any]]] = []
        self.kept: dict[str, Counter[str]] = {"scope": Counter(), "handler": Counter()}
        self.handler = OpenAIFineTuningHandler(Path(self.folder.name) / "handler.jsonl")
        mine = ScriptedLLM(callback_manager=CallbackManager([self.handler]))
        other = ScriptedLLM()
        self.llms = [
            (mine, True),
            (other, False),
            (ScriptedLLM(inner=mine), True),
            (ScriptedLLM(inner=other), False),
        ]
        self.scope = capture(Path(self.folder.name) / "scope.jsonl")
        self.scope.__enter__()

    def keep(self, prompt: str, mine: bool) -> None:
        self.kept["scope"][prompt] += 1
        if mine:
            self.kept["handler"][prompt] += 1

    def prompt(self, fails: bool) -> str:
        self.number += 1
        return f"{'fail' if fails else 'say'} {self.number}"

    @rule(which=st.integers(0, 3), chat=st.booleans(), fails=st.booleans())
    def call(self, which: int, chat: bool, fails: bool) -> None:
        llm, mine = self.llms[which]
        prompt = self.prompt(fails)
        try:
            llm.chat([ChatMessage(role="user", content=prompt)]) if chat else llm.complete(prompt)
        except RuntimeError:
            assert fails
            return
        self.keep(prompt, mine and (chat or which == 0))

    @rule(which=st.integers(0, 3), chat=st.booleans(), fails=st.booleans())
    def begin_stream(self, which: int, chat: bool, fails: bool) -> None:
        llm, mine = self.llms[which]
        prompt = self.prompt(fails)
        messages = [ChatMessage(role="user", content=prompt)]
        stream = llm.stream_chat(messages) if chat else llm.stream_complete(prompt)
        self.streams.append((prompt, mine, stream))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), steps=st.integers(1, 4))
    def read_on(self, data: Any, steps: int) -> None:
        item = data.draw(st.sampled_from(self.streams))
        prompt, mine, stream = item
        try:
            for _ in range(steps):
                next(stream)
        except StopIteration:
            self.streams.remove(item)
            self.keep(prompt, mine)
        except RuntimeError:
            self.streams.remove(item)

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), close=st.booleans())
    def abandon(self, data: Any, close: bool) -> None:
        item = data.draw(st.sampled_from(self.streams))
        self.streams.remove(item)
        if close:
            item[2].close()

    def teardown(self) -> None:
        self.streams.clear()
        self.scope.__exit__(None, None, None)
        for name, expected in self.kept.items():
            examples = list(read_examples(Path(self.folder.name) / f"{name}.jsonl"))
            found = Counter(prompt_of(example) for example in examples)
            assert found == expected, name
            assert all(example.answer.role == "assistant" for example in examples)
            assert all(prompt_of(example) in example.answer_text() for example in examples)
            assert len({example.metadata["event_id"] for example in examples}) == len(examples)
        assert self.scope.summary()["internal_errors"] == 0
        del self.handler, self.llms
        self.folder.cleanup()


def prompt_of(example: Any) -> str:
    """The prompt, which a CustomLLM's stream passes on as ``user: ... assistant:``."""
    return re.findall(r"(?:say|fail) \d+", str(example.messages[-1].content))[-1]


def run_histories(count: int) -> None:
    before = len(tracker.tree)  # injected faults of other tests may have left some
    profile = settings(max_examples=count, stateful_step_count=15, deadline=None)
    run_state_machine_as_test(Histories, settings=profile)
    gc.collect()
    assert len(tracker.tree) == before


def test_two_hundred_random_histories_leave_exactly_the_completed_calls() -> None:
    run_histories(200)


@pytest.mark.slow
def test_a_thousand_random_histories_leave_exactly_the_completed_calls() -> None:
    run_histories(1_000)
