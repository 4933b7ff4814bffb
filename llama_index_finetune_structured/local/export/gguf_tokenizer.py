"""Write a tokenizer's vocabulary, merges, special tokens and chat template as GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from ...errors import ConfigurationError
from ..model.stop_token import stop_token_id

__all__ = ["pre_tokenizer", "write_tokenizer"]

# GPT-4's split pattern, as Llama 3 and Qwen have it; they differ in how digits are grouped (%s).
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Steps of a pre-tokenizer, as _step names them -> llama.cpp's name for it.
_PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    ("bytes",): "gpt-2",
    ("digits", "bytes"): "smollm",
    (_WORDS % r"\p{N}{1,3}", "raw bytes"): "llama-bpe",
    (_WORDS % r"\p{N}", "raw bytes"): "qwen2",
}


def write_tokenizer(writer: Any, folder: Path, tokenizer: Any, vocabulary: int) -> None:
    """Write a byte-level BPE tokenizer. Raises ConfigurationError for other kinds.

    ``vocabulary``: rows of the model's embedding, which can be more than the tokenizer has tokens.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = pre_tokenizer(tokenizer)
    if backend["model"]["type"] != "BPE" or backend["model"].get("byte_fallback") or pre is None:
        raise ConfigurationError(
            f"{folder}: GGUF export supports the byte-level BPE tokenizers of GPT-2, SmolLM2, Llama 3 "
            "and Qwen2/3, and this is another. Export as 'merged' and convert that folder with llama.cpp's "
            "convert_hf_to_gguf.py"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    tokens, types = _tokens(tokenizer, vocabulary)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in backend["model"]["merges"]])
    _write_special_tokens(writer, tokenizer)


def pre_tokenizer(tokenizer: Any) -> str | None:
    """llama.cpp's name of the tokenizer's pre-tokenizer, which splits text before BPE; None for an unknown one."""
    config = json.loads(tokenizer.backend_tokenizer.to_str()).get("pre_tokenizer") or {}
    return _PRE_TOKENIZERS.get(tuple(map(_step, config.get("pretokenizers", [config]))))


def _step(step: dict[str, Any]) -> str:
    """One step of a pre-tokenizer by a short name, or by its regular expression."""
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "bytes" if step.get("use_regex", True) else "raw bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return str(step["pattern"].get("Regex"))
    return f"unknown: {kind}"


def _tokens(tokenizer: Any, vocabulary: int) -> tuple[list[str], list[int]]:
    """Text and GGUF token type of every id, with placeholders for ids that the tokenizer does not use."""
    by_id = {number: text for text, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens: list[str] = []
    types: list[int] = []
    for number in range(vocabulary):
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        if number not in by_id:
            types.append(gguf.TokenType.UNUSED)
        elif number in added:
            types.append(gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED)
        else:
            types.append(gguf.TokenType.NORMAL)
    return tokens, types


def _write_special_tokens(writer: Any, tokenizer: Any) -> None:
    stop = stop_token_id(tokenizer)
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": stop if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
        "eot": stop,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    for name, number in ids.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_space_prefix(False)
    # Prompts are trained with the tokens of the chat template and no others.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
