"""The demo's teacher without a key: a docstring parser behind LlamaIndex's LLM interface."""

from __future__ import annotations

import re
from typing import Any

from llama_index.core.base.llms.types import CompletionResponse, CompletionResponseGen, LLMMetadata
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.prompts import PromptTemplate

from .corpus import ApiCard, parse_card

__all__ = ["QA_TEMPLATE", "DocstringTeacher"]

# Short, for every token is trained on: LlamaIndex's own template would add about 130 to each row.
QA_TEMPLATE = PromptTemplate("{context_str}\n\nQuestion: {query_str}")
_PROMPT = re.compile(
    r"(?P<context>function: \w+\n.*)\n\nQuestion: How do I call (?P<name>[\w.]+)\?", re.DOTALL
)
_DOCUMENT = re.compile(r"^function: \w+$", re.MULTILINE)


class DocstringTeacher(CustomLLM):
    """Reads the retrieved documentation in a question-answering prompt with a docstring parser.

    It answers from the prompt alone. Where the function asked for is not documented there, it answers with an
    empty card, as an honest model would.
    """

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=32_768, model_name="docstring-parser", is_chat_model=True)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        asked = _PROMPT.search(prompt)
        if asked is None:
            raise ValueError(
                "expected the demo's prompt: documentation, then 'Question: How do I call NAME?'"
            )
        return CompletionResponse(text=_answer(asked["name"], asked["context"]).model_dump_json())

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        yield self.complete(prompt, formatted, **kwargs)


def _answer(asked: str, context: str) -> ApiCard:
    for document in _DOCUMENT.split(context):
        qualified, _, reference = document.strip().partition("\n\n")
        if asked in (qualified, qualified.rsplit(".", 1)[-1]):
            return parse_card(qualified.rsplit(".", 1)[-1], reference)
    return ApiCard(function=asked.rsplit(".", 1)[-1], parameters=[], returns=None, raises=[])
