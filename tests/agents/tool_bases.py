"""Chat templates with tools in the style of families of base models, over the tiny byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests import tiny

_BEGIN = "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
_END = "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
_TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\nTools:\n' }}"
    "{%- for tool in tools %}{{- tool | tojson }}{{- '\n' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}"
)
_ONE = "{{- '{\"name\": \"' + c.name + '\", \"arguments\": ' }}{{- c.arguments | tojson }}{{- '}' }}"

HERMES = (
    _TOOLS + "{%- for m in messages %}"
    "{%- if m.role == 'assistant' and m.tool_calls %}{{- '<|im_start|>assistant' }}"
    "{%- if m.content %}{{- '\n' + m.content }}{%- endif %}"
    "{%- for call in m.tool_calls %}{%- set c = call.function %}"
    "{{- '\n<tool_call>\n' }}" + _ONE + "{{- '\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- else %}" + _BEGIN + "{%- endif %}" + _END
)
"""Blocks of a call each, results in a user's turn, as Hermes' and Qwen's."""

LIST = (
    _TOOLS + "{%- for m in messages %}"
    "{%- if m.role == 'assistant' and m.tool_calls %}{{- '<|im_start|>assistant\n' + m.content + '[TOOL_CALLS][' }}"
    "{%- for call in m.tool_calls %}{%- set c = call.function %}"
    + _ONE
    + "{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']<|im_end|>\n' }}"
    "{%- else %}" + _BEGIN + "{%- endif %}" + _END
)
"""One JSON list of all calls, as Mistral's and Granite's."""

COMPACT = LIST.replace("c.arguments | tojson", "c.arguments | tojson(separators=(',', ':'))").replace(
    'arguments\\": ', 'parameters\\":'
)
BARE = LIST.replace("[TOOL_CALLS][", "").replace("]<|im_end|>", "<|im_end|>")
"""Bare JSON, as Llama's."""
XML = HERMES.replace(
    _ONE, "{{- '<' + c.name + '>' }}{% for k, v in c.arguments.items() %}{{- k ~ '=' ~ v }}{% endfor %}"
)
SILENT = HERMES.replace("{%- if m.content %}{{- '\n' + m.content }}{%- endif %}", "")
FORGETS = HERMES.replace("+ m.content + '\n</tool_response>'", "+ '\n</tool_response>'")


def tokenizer(template: str, *, controls: bool = True) -> PreTrainedTokenizerFast:
    """``controls``: whether the marks of calls are control tokens; else they are text."""
    made = tiny.tokenizer()
    if controls:
        marks = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]"]
        made.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in marks])
    made.chat_template = template
    return made


def save(folder: Path, template: str, *, controls: bool = True) -> Path:
    """A tiny base model with that chat template."""
    made: Any = tiny.model("llama")
    words = tokenizer(template, controls=controls)
    made.resize_token_embeddings(len(words), mean_resizing=False)
    made.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
