"""LLMs for answers of one class, with room for exactly its schema: what ``as_structured_llm`` returns."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.utilities.token_counting import TokenCounter
from pydantic import BaseModel

__all__ = ["SchemaRoomLLM", "StructuredLoraLLM"]


class StructuredLoraLLM(StructuredLLM):
    """LlamaIndex's ``StructuredLLM`` over a ``LoraLLM``, with room for exactly the schema of ``output_cls``.

    Attributes:
        llm: The ``LoraLLM``.
        output_cls: Class of the answers.
    """

    @property
    def metadata(self) -> LLMMetadata:
        """The LLM's metadata, its context window less what the schema takes.

        Raises:
            ConfigurationError: Schema and answer leave no room for a text.
        """
        inner: Any = self.llm
        metadata: LLMMetadata = inner.metadata_for(self.output_cls)
        # LlamaIndex itself leaves room for the class as a tool, which is not sent.
        tool = get_function_tool(self.output_cls).metadata.to_openai_tool()
        window = metadata.context_window + TokenCounter().estimate_tokens_in_tools([tool])
        return metadata.model_copy(update={"context_window": window})


class SchemaRoomLLM(LLM):
    """An LLM whose ``metadata_for(output_cls)`` says how much room the schema of a class leaves."""

    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> StructuredLLM:
        """An LLM whose answers are objects of ``output_cls``; query engines leave room for exactly its schema.

        Args:
            output_cls: Class of the answers.
            **kwargs: Fields of LlamaIndex's ``StructuredLLM``.
        """
        return StructuredLoraLLM(llm=self, output_cls=output_cls, **kwargs)
