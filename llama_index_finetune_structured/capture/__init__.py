"""LLM calls -> Examples: ``capture``, the fine-tuning handlers, redaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from ..formats.reading import read_examples
    from .handlers import GradientAIFineTuningHandler, OpenAIFineTuningHandler
    from .redaction import redact_secrets
    from .session import capture
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".handlers": ["GradientAIFineTuningHandler", "OpenAIFineTuningHandler"],
            ".redaction": ["redact_secrets"],
            ".session": ["capture"],
            "..formats.reading": ["read_examples"],
        },
    )

__all__ = [
    "GradientAIFineTuningHandler",
    "OpenAIFineTuningHandler",
    "capture",
    "read_examples",
    "redact_secrets",
]
