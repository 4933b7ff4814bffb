"""Tiny base models for reasoning: with a thinking switch in their chat template, and without any place for it."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from tests import tiny

# As of Qwen3: a switch that is on by default, reasoning of the last answer alone, tool results as user turns.
SWITCH = """{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set content = m.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and m.reasoning_content is string %}
            {{- '<think>\\n' + m.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
# As of DeepSeek-R1's students: the prompt begins the reasoning, that of earlier answers is cut out.
OPENED = (
    tiny.TEMPLATE.replace(
        "message['content']",
        "(message['content'].split('</think>')[-1] if message['role'] == 'assistant' else message['content'])",
    )
    .replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
    .replace("assistant\n' }}", "assistant\n<think>\n' }}")
)
TEMPLATES = {"switch": SWITCH, "opened": OPENED, "plain": tiny.TEMPLATE}


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Of ``tiny``; of all kinds but ``plain`` with control tokens around reasoning, which are no special tokens."""
    made = tiny.tokenizer()
    if kind != "plain":
        made.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>")])
    made.chat_template = TEMPLATES[kind]
    return made


def save(kind: str, folder: Path) -> Path:
    """A base model whose LoRA can memorise a few answers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.1,
    )
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder
