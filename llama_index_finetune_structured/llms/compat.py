"""The reference's OpenAIPydanticProgram, over today's FunctionCallingProgram."""

from __future__ import annotations

from typing import Any

from llama_index.core.llms import LLM
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import BasePromptTemplate
from pydantic import BaseModel

__all__ = ["OpenAIPydanticProgram"]


class OpenAIPydanticProgram(FunctionCallingProgram):  # type: ignore[type-arg]
    """Prompt -> object of ``output_cls``, by a function call.

    The ``from_defaults`` arguments are the reference's. ``allow_multiple`` returns a list of objects.
    Raises ValueError when the LLM calls no function, or with arguments that do not fit ``output_cls``.
    """

    @classmethod
    def from_defaults(  # type: ignore[override]
        cls,
        output_cls: type[BaseModel],
        prompt_template_str: str | None = None,
        prompt: BasePromptTemplate | None = None,
        llm: LLM | None = None,
        verbose: bool = False,
        allow_multiple: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
    ) -> OpenAIPydanticProgram:
        """Build the program; ``llm`` defaults to ``Settings.llm``. Exactly one prompt is given."""
        program = super().from_defaults(
            output_cls=output_cls,
            prompt_template_str=prompt_template_str,
            prompt=prompt,
            llm=llm,
            verbose=verbose,
            allow_parallel_tool_calls=allow_multiple,
            tool_choice=tool_choice,
        )
        assert isinstance(program, cls)
        return program
