"""Grammar-constrained decoding with llguidance; answers end as valid JSON inside the token limit.

Grammars: https://github.com/guidance-ai/llguidance (JSON schema, compact spelling, keys in schema order).
"""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance
import llguidance.numpy
import numpy
import torch

from ...example import canonical_json
from ...json_schema import UNIONS, follow_references
from ..model.control_tokens import text_ids, without_control_tokens
from ..schema.grammar_schema import with_named_keys
from .json_text import JsonText
from .speculation import AnswerIndex

__all__ = ["AnswerGrammar", "GrammarCache", "GrammarState"]

_logger = logging.getLogger(__name__)
_OPTIONS: Any = {"whitespace_flexible": False, "lenient": True}
# Tokens tried in this order to end an answer near its token limit; inside a string, the quote, or what a URL or an
# e-mail address needs before it can end.
_CLOSERS = ("}", "]", ",", "null", '"', "[", "{", "0", "true", "false")
_STRING_CLOSERS = ('"', "@", ":", "/", ".", "a", "0")
_CLOSING_SLACK = (
    32  # tokens; chosen: what the smallest answer does not cover, an open string or number among it
)
_LONGEST_WALK = 2048  # tokens; chosen: longer than answers are, and compiled in a fraction of a second
_ESTIMATE_DEPTH = 12  # levels of a recursive schema; chosen: deeper than schemas written by hand


class GrammarCache:
    """Compiled grammars of one tokenizer, by bounded schema. Thread-safe; a schema is compiled once.

    ``vocabulary``: size of the model's logits, which may exceed the tokenizer's.
    ``stop_id``: token that ends an answer. ``closers``: ids of the closing texts that are one token.
    """

    def __init__(self, tokenizer: Any, *, vocabulary: int, stop_id: int) -> None:
        self._tokenizer, self.vocabulary, self.stop_id = tokenizer, vocabulary, stop_id
        self._engine = llguidance.LLTokenizer(
            without_control_tokens(tokenizer, vocabulary), n_vocab=vocabulary, eos_token=stop_id
        )
        self._grammars: dict[str, AnswerGrammar | None] = {}
        self._compiling = threading.Lock()
        self.closers = {
            text: ids[0]
            for text in (*_CLOSERS, *_STRING_CLOSERS)
            if len(ids := text_ids(tokenizer, text)) == 1
        }

    def get(self, schema: Mapping[str, Any], *, distinct: bool = False) -> AnswerGrammar | None:
        """The grammar of a bounded schema; None, logged once, where llguidance cannot compile it.

        ``distinct``: a list ends after an object that it held already, unless the schema requires more items.
        """
        key = f"{distinct} {canonical_json(schema)}"
        with self._compiling:
            if key not in self._grammars:
                self._grammars[key] = self._compile(schema, distinct)
            return self._grammars[key]

    def _compile(self, schema: Mapping[str, Any], distinct: bool) -> AnswerGrammar | None:
        named = json.dumps(with_named_keys(schema))
        text = llguidance.LLMatcher.grammar_from_json_schema(named, overrides=_OPTIONS)
        error = llguidance.LLMatcher(self._engine, text, log_level=0).get_error()
        if error:
            _logger.warning("Answers are not constrained: the schema cannot be made a grammar: %s", error)
            return None
        smallest = json.dumps(_smallest(schema, schema, depth=0), separators=(",", ":"))
        tokens = len(text_ids(self._tokenizer, smallest))
        walked = self._walked_tokens(text)
        return AnswerGrammar(
            self, text, closing_tokens=max(2 * tokens, walked) + _CLOSING_SLACK, distinct=distinct
        )

    def _walked_tokens(self, grammar: str) -> int:
        """Tokens of the answer that closing alone writes, from the start; 0 where that does not end.

        The smallest answer leaves out what patterns require, such as the 36 characters of a UUID.
        """
        state = GrammarState(self, self.matcher(grammar), free_tokens=0, distinct=False)
        for tokens in range(1, _LONGEST_WALK):
            allowed = state.mask().nonzero()[:, 0].tolist()
            if not allowed or allowed[0] == self.stop_id:
                return tokens
            state.append(allowed[0])
        return 0

    @functools.cached_property
    def list_continuations(self) -> list[int]:
        """Tokens that may continue a list after an object: those with a comma at their start or after a brace."""
        texts = ((token, self.text(token)) for token in range(self.vocabulary))
        return [token for token, text in texts if text.startswith(",") or "}," in text]

    def matcher(self, grammar: str) -> llguidance.LLMatcher:
        """A new matcher of an llguidance grammar."""
        return llguidance.LLMatcher(self._engine, grammar, log_level=0)

    def text(self, token: int) -> str:
        """A token's text; bytes that are no UTF-8 by themselves become replacement characters."""
        return str(self._engine.decode_bytes([token]).decode("utf-8", "replace"))


class AnswerGrammar:
    """A compiled schema.

    ``closing_tokens``: tokens that ending an unfinished answer may take. ``answers``: index of earlier answers to
    the schema, for draft tokens.
    """

    def __init__(self, cache: GrammarCache, text: str, *, closing_tokens: int, distinct: bool) -> None:
        self._cache, self._closing_tokens, self._distinct = cache, closing_tokens, distinct
        self._matcher = cache.matcher(text)
        _mask_of(self._matcher, cache.vocabulary)  # fills caches that copies of the matcher share
        self.answers = AnswerIndex()

    def start(self, max_new_tokens: int) -> GrammarState:
        """The grammar's state at the beginning of an answer of at most ``max_new_tokens`` tokens."""
        free_tokens = max_new_tokens - self._closing_tokens
        return GrammarState(self._cache, self._matcher.deep_copy(), free_tokens, distinct=self._distinct)

    def refused_at(self, token_ids: Sequence[int]) -> int | None:
        """The index of the first token of a complete answer, without its stop token, that the grammar refuses.

        ``len(token_ids)``: all are allowed and the answer may not end after them. None: nothing is refused.
        """
        state = self.start(len(token_ids) + 1 + self._closing_tokens)
        for index, token in enumerate([*token_ids, self._cache.stop_id]):
            if not state.allows(token) and not bool(state.mask()[token]):
                return index
            state.append(token)
        return None


class GrammarState:
    """Grammar state of one answer. After ``free_tokens`` tokens it allows only what leads to the answer's end."""

    def __init__(
        self, cache: GrammarCache, matcher: llguidance.LLMatcher, free_tokens: int, *, distinct: bool
    ) -> None:
        self._cache, self._matcher, self._free_tokens = cache, matcher, free_tokens
        self._length, self._text, self._distinct = 0, JsonText(distinct=distinct), distinct

    def append(self, token: int) -> None:
        """Advance by a token, which must be allowed."""
        self._length += 1
        if token != self._cache.stop_id:
            self._matcher.consume_token(token)
            self._text.append(self._cache.text(token))

    def allows(self, token: int) -> bool:
        """Whether a token may come next, decided without the mask of all tokens; False where that needs the mask."""
        if self._closing:
            return False
        if token == self._cache.stop_id:
            return bool(self._matcher.is_accepting())
        return self._matcher.validate_tokens([token]) == 1 and self._text.allows(self._cache.text(token))

    def allowed_start(self, tokens: Sequence[int]) -> list[int]:
        """The longest start of ``tokens`` that the grammar allows."""
        return list(tokens[: self._matcher.validate_tokens(list(tokens))])

    def forced(self) -> list[int]:
        """Tokens of the text that must come next, as the tokenizer splits it; the model may split it otherwise."""
        return list(self._matcher.compute_ff_tokens())

    def mask(self) -> torch.Tensor:
        """Which tokens may come next: booleans [vocabulary]."""
        allowed = _mask_of(self._matcher, self._cache.vocabulary)
        if self._text.in_number:
            allowed = self._without_refused(allowed, allowed.nonzero()[:, 0].tolist())
        elif self._distinct:
            candidates = [token for token in self._cache.list_continuations if allowed[token]]
            allowed = self._without_refused(allowed, candidates)
        if self._closing and (token := self._closer(allowed)) is not None:
            allowed = torch.zeros_like(allowed)
            allowed[token] = True
        return allowed

    def _without_refused(self, allowed: torch.Tensor, candidates: list[int]) -> torch.Tensor:
        """Mask out the candidates that JsonText refuses, unless no token would be left. [vocabulary] -> [vocabulary]"""
        refused = [
            token
            for token in candidates
            if token != self._cache.stop_id and not self._text.allows(self._cache.text(token))
        ]
        kept = allowed.clone()
        kept[refused] = False
        return kept if bool(kept.any()) else allowed

    @property
    def _closing(self) -> bool:
        return self._length >= self._free_tokens

    def _closer(self, allowed: torch.Tensor) -> int | None:
        """The allowed token, of a mask [vocabulary], that ends the answer soonest; None if no closing token is."""
        if allowed[self._cache.stop_id]:
            return self._cache.stop_id
        texts = _STRING_CLOSERS if self._text.in_string else _CLOSERS
        ids = (self._cache.closers[text] for text in texts if text in self._cache.closers)
        return next((token for token in ids if allowed[token]), None)


def _mask_of(matcher: llguidance.LLMatcher, vocabulary: int) -> torch.Tensor:
    """The matcher's mask as booleans [vocabulary]. llguidance's own torch kernel would start torch.compile."""
    bits = llguidance.numpy.allocate_token_bitmask(1, vocabulary)
    llguidance.numpy.fill_next_token_bitmask(matcher, bits)
    return torch.from_numpy(
        numpy.unpackbits(bits[0].view(numpy.uint8), bitorder="little")[:vocabulary]
    ).bool()


def _smallest(root: Mapping[str, Any], node: Any, depth: int) -> Any:
    """About the smallest answer that fits a schema: to estimate ``closing_tokens``, not always a valid answer."""
    if not isinstance(node, Mapping) or depth > _ESTIMATE_DEPTH:
        return None
    if "$ref" in node:
        return _smallest(root, follow_references(root, node), depth + 1)
    for key in UNIONS:
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
