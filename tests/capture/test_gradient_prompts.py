"""A captured call becomes the Gradient prompt that a completion model would be sent for the same question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, CompletionResponse
from llama_index.core.llms.callbacks import llm_completion_callback

from llama_index_finetune_structured.capture import capture, read_examples
from llama_index_finetune_structured.formats import to_gradient
from tests.capture.fakes import SONG, EchoLLM, OpenAIServer, Song


class RecordingLLM(EchoLLM):
    """A completion model with messages: what GradientModelAdapterLLM does with them."""

    sent: list[str] = []  # noqa: RUF012 - a field of a pydantic model

    @llm_completion_callback()
    def complete(self, prompt: str, **_: Any) -> CompletionResponse:
        self.sent.append(prompt)
        return CompletionResponse(text=self.reply)


@pytest.mark.parametrize("model", ["gpt-4", "gpt-4o-mini"])
@pytest.mark.parametrize("with_system", [True, False])
def test_gradient_text_is_what_a_completion_model_is_sent_for_the_same_question(
    model: str, with_system: bool, path: Path, server: OpenAIServer
) -> None:
    messages = [ChatMessage(role="system", content="Be brief.")] if with_system else []
    messages.append(ChatMessage(role="user", content="A song {of} 1971?"))
    with capture(path):
        server.llm(model).as_structured_llm(Song).chat(messages)
    (example,) = read_examples(path)
    student = RecordingLLM()
    student.as_structured_llm(Song).chat(messages)
    assert to_gradient(example) == {"inputs": student.sent[0] + SONG}


def test_gradient_text_of_a_completion_is_its_prompt(path: Path) -> None:
    with capture(path):
        EchoLLM(reply=" Echoes").complete("My favourite song is")
    (example,) = read_examples(path)
    assert to_gradient(example) == {"inputs": "My favourite song is Echoes"}
