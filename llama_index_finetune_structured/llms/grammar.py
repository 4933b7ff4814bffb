"""Schema-constrained decoding through llguidance, with an end inside the token limit.

Grammars: https://github.com/guidance-ai/llguidance (JSON schema, compact spelling, keys in schema order).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import llguidance
import llguidance.hf
import llguidance.numpy
import torch

from ..example import canonical_json

__all__ = ["AnswerGrammar", "GrammarCache", "GrammarRun", "allocate_token_bitmask"]

_logger = logging.getLogger(__name__)
_OPTIONS: Any = {"whitespace_flexible": False, "lenient": True}
# What leads to the end fastest, best first; inside a string only the quote that closes it.
_CLOSERS = ("}", "]", ",", "null", '"', "[", "{", "0", "true", "false")
_CLOSING_SLACK = 32


def allocate_token_bitmask(rows: int, vocabulary: int) -> torch.Tensor:
    """A bit for each token of each row."""
    return torch.from_numpy(llguidance.numpy.allocate_token_bitmask(rows, vocabulary))


class GrammarCache:
    """Compiled grammars of one tokenizer, by schema."""

    def __init__(self, tokenizer: Any, *, vocabulary: int, stop_id: int) -> None:
        self._tokenizer, self.vocabulary, self.stop_id = tokenizer, vocabulary, stop_id
        self._engine = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=stop_id)
        self._grammars: dict[str, AnswerGrammar | None] = {}
        self.closers = {
            text: ids[0]
            for text in _CLOSERS
            if len(ids := tokenizer(text, add_special_tokens=False)["input_ids"]) == 1
        }

    def get(self, schema: Mapping[str, Any]) -> AnswerGrammar | None:
        """The grammar of a bounded schema; None, logged once, where the schema has none."""
        key = canonical_json(schema)
        if key not in self._grammars:
            self._grammars[key] = self._compile(schema)
        return self._grammars[key]

    def _compile(self, schema: Mapping[str, Any]) -> AnswerGrammar | None:
        text = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_OPTIONS)
        error = llguidance.LLMatcher(self._engine, text, log_level=0).get_error()
        if error:
            _logger.warning("Answers are not constrained: the schema cannot be made a grammar: %s", error)
            return None
        smallest = json.dumps(_smallest(schema, schema, depth=0), separators=(",", ":"))
        tokens = len(self._tokenizer(smallest, add_special_tokens=False)["input_ids"])
        return AnswerGrammar(self, text, closing_tokens=2 * tokens + _CLOSING_SLACK)

    def matcher(self, grammar: str) -> llguidance.LLMatcher:
        return llguidance.LLMatcher(self._engine, grammar, log_level=0)

    def text(self, token: int) -> str:
        return str(self._engine.decode_bytes([token]).decode("utf-8", "replace"))


class AnswerGrammar:
    """A compiled schema; ``closing_tokens`` is what finishing an open answer may cost."""

    def __init__(self, cache: GrammarCache, text: str, *, closing_tokens: int) -> None:
        self._cache, self._text, self._closing_tokens = cache, text, closing_tokens

    def start(self, max_new_tokens: int) -> GrammarRun:
        """Begin one answer of at most ``max_new_tokens`` tokens."""
        return GrammarRun(self._cache, self._cache.matcher(self._text), max_new_tokens - self._closing_tokens)


class GrammarRun:
    """The grammar's state along one answer. Past ``free_tokens`` it lets only the way to the end through."""

    def __init__(self, cache: GrammarCache, matcher: llguidance.LLMatcher, free_tokens: int) -> None:
        self._cache, self._matcher, self._free_tokens = cache, matcher, free_tokens
        self._taken, self._in_string, self._escaped = 0, False, False

    def take(self, token: int) -> None:
        """Move on by a token that the mask allowed."""
        self._taken += 1
        if token == self._cache.stop_id:
            return
        self._matcher.consume_token(token)
        for character in self._cache.text(token):
            self._see(character)

    def fill(self, mask: torch.Tensor, row: int) -> None:
        """Write the allowed next tokens into ``mask[row]`` (one bit a token)."""
        llguidance.numpy.fill_next_token_bitmask(self._matcher, mask.numpy(), row)
        if self._taken >= self._free_tokens and (token := self._closer(mask[row])) is not None:
            mask[row] = 0
            _set(mask[row], token)

    def _see(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._in_string and character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = not self._in_string

    def _closer(self, allowed: torch.Tensor) -> int | None:
        if _is_set(allowed, self._cache.stop_id):
            return self._cache.stop_id
        wanted = ('"',) if self._in_string else _CLOSERS
        ids = (self._cache.closers[text] for text in wanted if text in self._cache.closers)
        return next((token for token in ids if _is_set(allowed, token)), None)


def _is_set(mask: torch.Tensor, token: int) -> bool:
    return bool((int(mask[token // 32]) >> (token % 32)) & 1)


def _set(mask: torch.Tensor, token: int) -> None:
    bit = 1 << (token % 32)
    mask[token // 32] = bit - (1 << 32) if bit >= 1 << 31 else bit


def _smallest(root: Mapping[str, Any], node: Any, depth: int) -> Any:
    """About the smallest answer that fits a schema: an estimate of what closing costs, not a valid answer."""
    if not isinstance(node, Mapping) or depth > 12:
        return None
    if isinstance(reference := node.get("$ref"), str):
        return _smallest(root, root.get("$defs", {}).get(reference.rsplit("/", 1)[-1]), depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if node.get(key):
            return min((_smallest(root, b, depth + 1) for b in node[key]), key=lambda v: len(json.dumps(v)))
    if "const" in node or "enum" in node:
        return node["const"] if "const" in node else max(node["enum"], key=lambda v: len(json.dumps(v)))
    if node.get("type") == "object":
        properties = node.get("properties", {})
        return {name: _smallest(root, properties.get(name), depth + 1) for name in node.get("required", ())}
    if node.get("type") == "array":
        return [_smallest(root, node.get("items"), depth + 1)] * max(1, int(node.get("minItems", 0)))
    if node.get("type") == "string":
        return "2026-01-01T00:00:00Z" if node.get("format") else "x" * int(node.get("minLength", 0))
    return 0
