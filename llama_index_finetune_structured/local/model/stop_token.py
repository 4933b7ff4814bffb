"""The token that ends an answer."""

from __future__ import annotations

from typing import Any

from ...errors import DatasetError
from .chat_template import render_parts
from .control_tokens import control_tokens

__all__ = ["stop_token_id"]

_PROBE = "0"  # a text that no chat template changes


def stop_token_id(tokenizer: Any) -> int:
    """The token that ends an assistant turn in the chat template, else the tokenizer's end-of-text token.

    Raises DatasetError where there is neither.
    """
    dialogue = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
    try:
        parts = render_parts(tokenizer, dialogue, add_generation_prompt=False)
    except DatasetError:  # a template may have no place for an answer
        parts = []
    answers = [index for index, (_, content) in enumerate(parts) if content]
    tail = "".join(text for text, _ in parts[answers[-1] + 1 :]) if answers else ""
    # What the template writes after the answer begins with the stop token.
    for number in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if number in control_tokens(tokenizer):
            return int(number)
        if tokenizer.decode([number]).strip():
            break
    if tokenizer.eos_token_id is None:
        raise DatasetError(
            "the base model's tokenizer has no end-of-text token, so its answers could never end: set eos_token in "
            "tokenizer_config.json, or use another base model"
        )
    return int(tokenizer.eos_token_id)
