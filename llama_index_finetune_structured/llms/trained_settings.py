"""Settings of an adapter's training that serving takes over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..json_schema import sub_schemas
from ..local.model.adapter import AdapterCard

__all__ = ["ALTERNATIVES", "trained_settings"]

# On 350 spoken requests, asked of a student of 245 rows, exact answers rose from .520 to .534 and field F1 from .811 to
# .821, with 102 more beginnings in all; 8 gave what 3 did.
ALTERNATIVES = 3
"""Other beginnings that are followed for a likelier answer of a student, where its answers have no lists."""


def trained_settings(card: AdapterCard) -> dict[str, Any]:
    """The attributes of ``LoraLLM`` that an adapter's card decides."""
    return {
        "base_model": card.base_model,
        "bounds": card.bounds,
        "list_rules": card.list_rules,
        "windows": card.windows,
        "chat_prompts": card.chat_prompts,
        "max_new_tokens": card.answer_tokens,
        "schema_tokens": card.schema_tokens,
        "trained_schemas": list(card.schemas),
        "schema_prompt": card.schema_prompt,
        "reads_twice": card.reads_twice,
        "tool_prompt": card.tool_prompt,
        "thinking": card.thinking,
        "thinking_tokens": card.thinking_tokens,
        "calibrations": card.calibrations,
        # Of two lists the shorter one is likelier by each item that it does not have. On 36 passages with citations
        # recall fell from .846 to .788 with 3, F1 from .880 to .845.
        "alternatives": 0 if any(map(_has_lists, card.schemas)) else ALTERNATIVES,
        "quantization": card.quantization,
        "answer_classes": card.answer_classes,
    }


def _has_lists(schema: Mapping[str, Any]) -> bool:
    waiting: list[Any] = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping):
            if "array" in (node.get("type") or ()):
                return True
            waiting += [child for _, _, child in sub_schemas(node)]
    return False
