"""The demo's teacher that needs no key: a docstring parser as a LlamaIndex LLM."""

from __future__ import annotations

import re
from typing import Any

from llama_index.core.base.llms.types import CompletionResponse, CompletionResponseGen, LLMMetadata
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.prompts import PromptTemplate

from .corpus import ApiCard, parse_card

__all__ = ["QA_TEMPLATE", "DocstringTeacher"]

# Short, because every token is part of training: LlamaIndex's own template adds about 130 to each row.
QA_TEMPLATE = PromptTemplate("{context_str}\n\nQuestion: {query_str}")
_PROMPT = re.compile(
    r"(?P<context>function: \w+\n.*)\n\nQuestion: How do I call (?P<name>[\w.]+)\?", re.DOTALL
)
_DOCUMENT = re.compile(r"^function: \w+$", re.MULTILINE)


class DocstringTeacher(CustomLLM):
    """An LLM that parses the retrieved documentation in a prompt of QA_TEMPLATE into an API card.

    It answers from the prompt alone: where that does not document the function, with an empty card. Raises
    ValueError for any other prompt.
    """

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=32_768, model_name="docstring-parser", is_chat_model=True)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        match = _PROMPT.search(prompt)
        if match is None:
            raise ValueError(
                "expected the demo's prompt: documentation, then 'Question: How do I call NAME?'"
            )
        return CompletionResponse(text=_answer(match["name"], match["context"]).model_dump_json())

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        yield self.complete(prompt, formatted, **kwargs)


def _answer(function: str, context: str) -> ApiCard:
    for document in _DOCUMENT.split(context):
        qualified, _, reference = document.strip().partition("\n\n")
        if function in (qualified, qualified.rsplit(".", 1)[-1]):
            return parse_card(qualified.rsplit(".", 1)[-1], reference)
    return ApiCard(function=function.rsplit(".", 1)[-1], parameters=[], returns=None, raises=[])
