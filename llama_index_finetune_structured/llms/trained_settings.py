"""Settings of an adapter's training that serving takes over."""

from __future__ import annotations

from typing import Any

from ..local.model.adapter import AdapterCard

__all__ = ["trained_settings"]

_ALTERNATIVES = 3  # measured on three sets, docs/figures.md; 8 mended no more of one


def trained_settings(card: AdapterCard) -> dict[str, Any]:
    """The attributes of ``LoraLLM`` that an adapter decides, most of them by its card."""
    return {
        "base_model": card.base_model,
        "bounds": card.bounds,
        "list_rules": card.list_rules,
        "windows": card.windows,
        "chat_prompts": card.chat_prompts,
        "max_new_tokens": card.answer_tokens,
        "alternatives": _ALTERNATIVES,
        "schema_tokens": card.schema_tokens,
        "trained_schemas": list(card.schemas),
        "schema_prompt": card.schema_prompt,
        "reads_twice": card.reads_twice,
        "tool_prompt": card.tool_prompt,
        "thinking": card.thinking,
        "thinking_tokens": card.thinking_tokens,
        "calibrations": card.calibrations,
        "taggers": card.taggers,
        "quantization": card.quantization,
        "answer_classes": card.answer_classes,
    }
