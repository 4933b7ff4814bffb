"""LLM calls -> Examples: handlers, ``capture``, the crash-safe store, redaction, formats.

The package is callable, so that ``capture("answers.jsonl")`` is the scope whichever was imported first,
the name or the sub-package.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from llama_index_finetune_structured.capture.handlers import (
    GradientAIFineTuningHandler,
    OpenAIFineTuningHandler,
)
from llama_index_finetune_structured.capture.redaction import redact_secrets
from llama_index_finetune_structured.capture.scope import capture as _Capture
from llama_index_finetune_structured.capture.store import read_examples

__all__ = [
    "GradientAIFineTuningHandler",
    "OpenAIFineTuningHandler",
    "capture",
    "read_examples",
    "redact_secrets",
]


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> _Capture:
        return _Capture(*args, **kwargs)


if TYPE_CHECKING:
    capture = _Capture
else:
    sys.modules[__name__].__class__ = _CallablePackage
    capture = sys.modules[__name__]
