"""Trained models as LlamaIndex LLMs: local, served, behind OpenAI's protocol and behind Gradient's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from ..local.schema.bounds import AnswerBounds
    from .compat import OpenAIPydanticProgram, ServiceContext
    from .exported import open_export
    from .gradient import GradientBaseModelLLM, GradientModelAdapterLLM
    from .hosted import HostedOpenAI, HostedOpenAILike, hosted_llm, text_mode
    from .llama_cpp import LlamaCppServer
    from .lora import LoraLLM
    from .served import ServedLora, served_llm
    from .structured import StructuredAnswerEvent
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "..local.schema.bounds": ["AnswerBounds"],
            ".compat": ["OpenAIPydanticProgram", "ServiceContext"],
            ".exported": ["open_export"],
            ".gradient": ["GradientBaseModelLLM", "GradientModelAdapterLLM"],
            ".hosted": ["HostedOpenAI", "HostedOpenAILike", "hosted_llm", "text_mode"],
            ".llama_cpp": ["LlamaCppServer"],
            ".lora": ["LoraLLM"],
            ".served": ["ServedLora", "served_llm"],
            ".structured": ["StructuredAnswerEvent"],
        },
    )

__all__ = [
    "AnswerBounds",
    "GradientBaseModelLLM",
    "GradientModelAdapterLLM",
    "HostedOpenAI",
    "HostedOpenAILike",
    "LlamaCppServer",
    "LoraLLM",
    "OpenAIPydanticProgram",
    "ServedLora",
    "ServiceContext",
    "StructuredAnswerEvent",
    "hosted_llm",
    "open_export",
    "served_llm",
    "text_mode",
]
