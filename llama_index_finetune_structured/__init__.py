"""Make small, owned language models give reliable structured answers inside LlamaIndex.

The public names load on first use, so that importing the package loads no torch, openai or gradientai.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers, `capture` is the class, not the sub-package of the same name
    from llama_index_finetune_structured.capture.scope import capture as capture

__version__ = "0.1.0"

_HOME = {
    "acompare": "evaluation",
    "answer_questions": "dataset",
    "AnswerBounds": "lora.bounds",
    "CallPolicy": "dataset",
    "capture": "capture",
    "check": "dataset",
    "compare": "evaluation",
    "compare_texts": "evaluation",
    "Example": "example",
    "export_adapter": "lora.export",
    "FieldRule": "evaluation",
    "FinetuneDataset": "dataset",
    "FinetuneStructuredError": "errors",
    "GradientAIFineTuningHandler": "capture",
    "GradientBaseModelLLM": "llms.gradient",
    "GradientFinetuneEngine": "engines.gradient",
    "GradientModelAdapterLLM": "llms.gradient",
    "hosted_llm": "llms.hosted",
    "learning_curve": "evaluation",
    "LlamaCppServer": "llms.llama_cpp",
    "load_schema": "dataset",
    "LoraFinetuneEngine": "engines.lora",
    "LoraLLM": "llms.lora",
    "LoraSettings": "lora.settings",
    "Message": "example",
    "OpenAIFinetuneEngine": "engines.openai",
    "OpenAIFineTuningHandler": "capture",
    "OpenAIPydanticProgram": "llms.program",
    "parity": "evaluation",
    "Prices": "evaluation",
    "QuestionGenerator": "dataset",
    "read_nodes": "dataset",
    "RetrievalAugmentedDatasetBuilder": "dataset",
    "Scorecard": "evaluation",
    "served_llm": "llms.served",
    "ServiceContext": "llms.service_context",
    "ServingRecipe": "dataset",
    "Source": "example",
    "SunsetWarning": "engines.sunset",
    "text_mode": "llms.hosted",
    "Waits": "engines.waits",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
