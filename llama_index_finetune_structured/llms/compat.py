"""Names of the older notebooks: OpenAIPydanticProgram works as before, ServiceContext names its replacements."""

from __future__ import annotations

from typing import Any, NoReturn

from llama_index.core.llms import LLM
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import BasePromptTemplate
from pydantic import BaseModel

from ..errors import ConfigurationError

__all__ = ["OpenAIPydanticProgram", "ServiceContext"]


class OpenAIPydanticProgram(FunctionCallingProgram):  # type: ignore[type-arg]
    """Prompt -> object of ``output_cls``, by a function call.

    The ``from_defaults`` arguments are those of llama-index-program-openai. Calling the program raises
    ValueError when the LLM calls no function, or with arguments that do not fit ``output_cls``.
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
        """Build the program. Pass ``prompt_template_str`` or ``prompt``.

        Args:
            output_cls: Class of the answer.
            prompt_template_str: The prompt as text with ``{variables}``.
            prompt: The prompt as a template.
            llm: An LLM with function calls. None: ``Settings.llm``.
            verbose: Print the calls, as LlamaIndex does.
            allow_multiple: Return a list of objects, one for each call.
            tool_choice: Sent to the LLM. None: chosen by LlamaIndex.

        Raises:
            ValueError: Neither or both of the prompts are passed, or the LLM has no function calls.
        """
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


class ServiceContext:
    """Removed from LlamaIndex: every use raises ConfigurationError with its replacements.

    Args:
        *_args: Not used.
        **_kwargs: Not used.

    Raises:
        ConfigurationError: Always.
    """

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        _raise_removed()

    @classmethod
    def from_defaults(cls, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Raise ConfigurationError with the replacements.

        Args:
            *_args: Not used.
            **_kwargs: Not used.

        Raises:
            ConfigurationError: Always.
        """
        _raise_removed()


def _raise_removed() -> NoReturn:
    raise ConfigurationError(
        "ServiceContext is gone from LlamaIndex, and service_context= is silently ignored. Write instead:\n"
        "  llm=             index.as_query_engine(llm=llm, output_cls=...), DatasetGenerator(llm=llm, ...)\n"
        "  callback_manager VectorStoreIndex(nodes, callback_manager=callback_manager)\n"
        "  chunk_size       SentenceSplitter(chunk_size=...)\n"
        '  pydantic_program_mode="llm"  text_mode(llm)'
    )
