"""Example <-> one line of a training file (OpenAI, Gradient, TRL, preferences), transports and the wire format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .gradient import gradient_prompt, to_gradient
    from .openai import from_openai, to_openai
    from .preferences import (
        from_openai_preference,
        preference_lines,
        preference_pairs,
        read_preferences,
        read_rejects,
        to_openai_preference,
    )
    from .reading import example_from_row, read_examples
    from .registry import to_query_response, training_lines
    from .transports import render, schema_prompt
    from .trl import from_trl, to_trl_messages, to_trl_prompt_completion
    from .wire import (
        json_safe,
        message_from_wire,
        message_of,
        message_to_wire,
        response_to_wire,
        source_of,
        tools_to_wire,
    )
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".gradient": ["gradient_prompt", "to_gradient"],
            ".openai": ["from_openai", "to_openai"],
            ".preferences": [
                "from_openai_preference",
                "preference_lines",
                "preference_pairs",
                "read_preferences",
                "read_rejects",
                "to_openai_preference",
            ],
            ".reading": ["example_from_row", "read_examples"],
            ".registry": ["to_query_response", "training_lines"],
            ".transports": ["render", "schema_prompt"],
            ".trl": ["from_trl", "to_trl_messages", "to_trl_prompt_completion"],
            ".wire": [
                "json_safe",
                "message_from_wire",
                "message_of",
                "message_to_wire",
                "response_to_wire",
                "source_of",
                "tools_to_wire",
            ],
        },
    )

__all__ = [
    "example_from_row",
    "from_openai",
    "from_openai_preference",
    "from_trl",
    "gradient_prompt",
    "json_safe",
    "message_from_wire",
    "message_of",
    "message_to_wire",
    "preference_lines",
    "preference_pairs",
    "read_examples",
    "read_preferences",
    "read_rejects",
    "render",
    "response_to_wire",
    "schema_prompt",
    "source_of",
    "to_gradient",
    "to_openai",
    "to_openai_preference",
    "to_query_response",
    "to_trl_messages",
    "to_trl_prompt_completion",
    "tools_to_wire",
    "training_lines",
]
