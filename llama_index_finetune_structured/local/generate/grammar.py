"""Grammar-constrained decoding with llguidance; answers end as valid JSON inside the token limit.

Grammars: https://github.com/guidance-ai/llguidance (JSON schema, compact spelling, keys in schema order).
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import llguidance
import llguidance.numpy
import numpy
import torch

from ...errors import ConfigurationError, StructuredAnswerError
from ...example import canonical_json
from ...json_schema import refers_deeper_than
from ..model.control_tokens import without_control_tokens
from ..schema.grammar_schema import with_named_keys
from ..schema.text_order import with_free_keys
from .ending import EndingSearch
from .grammar_errors import GrammarError, NoRoomError
from .grounding import GroundedText
from .json_text import JsonText, TextRules
from .prompt_texts import PromptTexts, VocabularyTree
from .sample_texts import largest_growth, sample_texts
from .speculation import AnswerIndex

__all__ = ["AnswerGrammar", "GrammarCache", "GrammarState", "require_shallow"]

_CACHED_GRAMMARS = 64  # chosen: about 0.2 MB each
_OPTIONS: Any = {"whitespace_flexible": False, "lenient": True}
# What llguidance may compute between two masks; chosen: by its default of 200,000 a long string with a pattern fails.
_FUEL = 50_000_000
# Chosen: llguidance follows references on the thread's stack, where about a thousand fill 8 MB and end the process.
_MOST_REFERENCES = 100
_CONTINUES = re.compile(r'^,|["}\]el0-9],')
_REPLACED = 3  # chosen: tokens of the last known ending that one token may have replaced
# Chosen by a simulation on the shared data sets: a draft of 3 copied tokens costs least, forwards and drafts together.
_COPIED_TOKENS, _COPIED_BYTES = 3, 15


class GrammarCache:
    """Compiled grammars of one tokenizer, by bounded schema: the 64 used last. Thread-safe; each is compiled once.

    ``vocabulary``: size of the model's logits, which may exceed the tokenizer's.
    ``stop_id``: token that ends an answer.

    Raises ConfigurationError where llguidance cannot read the tokenizer.
    """

    def __init__(self, tokenizer: Any, *, vocabulary: int, stop_id: int) -> None:
        self.vocabulary, self.stop_id = vocabulary, stop_id
        self.engine = _engine(tokenizer, vocabulary, stop_id)
        self._grammars: OrderedDict[str, AnswerGrammar] = OrderedDict()
        self._compiling = threading.Lock()

    def get(
        self, schema: Mapping[str, Any], *, distinct: bool = False, by_text: bool = False
    ) -> AnswerGrammar:
        """The grammar of a bounded schema.

        ``distinct``: a list ends after an object that it held already, unless the schema requires more items.
        ``by_text``: keys that may be left out can stand in any order, each once.
        Raises GrammarError where llguidance cannot compile the schema.
        """
        key = f"{distinct} {by_text} {canonical_json(schema)}"
        return self.kept(key, lambda: self._compile(schema, distinct, by_text))

    def kept(self, key: str, compiled: Callable[[], AnswerGrammar]) -> AnswerGrammar:
        """The grammar of that key, compiled where it is not kept."""
        with self._compiling:
            if key not in self._grammars:
                self._grammars[key] = compiled()
            self._grammars.move_to_end(key)
            if len(self._grammars) > _CACHED_GRAMMARS:
                self._grammars.popitem(last=False)
            return self._grammars[key]

    def _compile(self, schema: Mapping[str, Any], distinct: bool, by_text: bool) -> AnswerGrammar:
        require_shallow(schema)
        free, keys = with_free_keys(schema) if by_text else (schema, ())
        named = with_named_keys(free)
        matcher = self.matcher(
            lambda: llguidance.LLMatcher.grammar_from_json_schema(json.dumps(named), overrides=_OPTIONS)
        )
        search = EndingSearch(self.engine, *sample_texts(schema))
        rules, growth = TextRules(distinct=distinct, free_keys=keys), largest_growth(schema)
        return AnswerGrammar(self, matcher, search, growth=growth, rules=rules, lark=lambda: _lark(named))

    def matcher(self, grammar: Callable[[], str]) -> llguidance.LLMatcher:
        """A matcher of a grammar of llguidance. Raises GrammarError where it cannot be compiled."""
        limits = llguidance.LLParserLimits(step_lexer_fuel=_FUEL)
        try:
            matcher = llguidance.LLMatcher(self.engine, grammar(), log_level=0, limits=limits)
            error = matcher.get_error()
        except ValueError as unreadable:  # a text in it that UTF-8 cannot encode
            error = str(unreadable)
        if error:
            raise GrammarError(_reason(error))
        return matcher

    @functools.cached_property
    def continuations(self) -> list[int]:
        """Tokens that may continue a list or an object: those with a comma at their start or after a value."""
        texts = ((token, self.text(token)) for token in range(self.vocabulary))
        return [token for token, text in texts if _CONTINUES.search(text)]

    @functools.cached_property
    def tree(self) -> VocabularyTree:
        """The tokens by the starts of their texts."""
        return VocabularyTree(self.engine, self.vocabulary)

    def written(self, tokens: Sequence[int]) -> bytes:
        """The text of tokens, in UTF-8."""
        return bytes(self.engine.decode_bytes(list(tokens)))

    def text(self, token: int) -> str:
        """A token's text; bytes that are no UTF-8 by themselves become replacement characters."""
        return str(self.engine.decode_bytes([token]).decode("utf-8", "replace"))


def require_shallow(schema: Mapping[str, Any]) -> None:
    """Raise GrammarError for a schema whose references would fill the stack while it is compiled."""
    if refers_deeper_than(schema, _MOST_REFERENCES):
        raise GrammarError(f"its definitions refer to others more than {_MOST_REFERENCES} deep", "flatten it")


def _reason(error: str) -> str:
    """The line of a message of llguidance that says what is wrong; one of a pattern quotes the pattern before."""
    first, *others = error.splitlines()
    ends_open = first.endswith(":") and bool(others)
    return f"{first} {others[-1].strip()}" if ends_open else first


class AnswerGrammar:
    """A compiled schema.

    ``smallest``: tokens of a smallest answer, without the stop token; None where none was found. ``answers``: index
    of earlier answers to the schema, for draft tokens. ``lark``: gives the grammar in llguidance's form of Lark, for a
    server with its own llguidance; the rules on the text are not in it.
    """

    def __init__(
        self,
        cache: GrammarCache,
        matcher: llguidance.LLMatcher,
        search: EndingSearch,
        *,
        growth: int,
        rules: TextRules,
        lark: Callable[[], str],
    ) -> None:
        self._cache, self._matcher, self._rules = cache, matcher, rules
        self.search, self.growth, self.lark = search, growth, lark
        _mask_of(matcher, cache.vocabulary)  # fills caches that copies of the matcher share
        self.answers = AnswerIndex()
        self.smallest = search.tokens(matcher, b"")

    def start(self, max_new_tokens: int, prompt: PromptTexts | None = None) -> GrammarState:
        """The grammar's state at the beginning of an answer of at most ``max_new_tokens`` tokens.

        ``prompt``: what grounded values may copy; None: none are grounded.
        """
        return GrammarState(self, self._matcher.deep_copy(), max_new_tokens, prompt)

    def text(self) -> JsonText:
        """The text of an answer that has not begun, by the rules."""
        return JsonText(self._rules)

    def grounded(self, prompt: PromptTexts | None) -> GroundedText | None:
        """As ``text``, of which grounded values are copied from the prompt."""
        return None if prompt is None else GroundedText(prompt)

    def require_room(self, max_new_tokens: int) -> None:
        """Raise NoRoomError where no answer fits in so many tokens."""
        if self.smallest is not None and len(self.smallest) > max_new_tokens:
            raise NoRoomError(len(self.smallest), max_new_tokens)

    def refused_at(self, token_ids: Sequence[int], prompt: PromptTexts | None = None) -> int | None:
        """Index of the first token of an answer, without its stop token, that the grammar refuses; None: accepted.

        The number of tokens where all are accepted and the answer may not end after them. ``prompt`` as of ``start``.
        """
        tokens = list(token_ids)
        matcher = self._matcher.deep_copy()
        accepted = int(matcher.validate_tokens(tokens))
        if self._cache.stop_id in tokens[:accepted]:
            accepted = tokens.index(self._cache.stop_id)
        refused = self._refused_by_rules(tokens[:accepted], prompt)
        if refused is not None or accepted < len(tokens):
            return accepted if refused is None else refused
        matcher.consume_tokens(tokens)
        return None if matcher.is_accepting() else accepted

    def _refused_by_rules(self, tokens: list[int], prompt: PromptTexts | None) -> int | None:
        """Index of the first of the tokens, all of which the grammar accepts, that a rule on the text refuses."""
        pieces = [self._cache.text(token) for token in tokens]
        if prompt is None and not self._rules.concern("".join(pieces)):
            return None
        text, grounded = self.text(), self.grounded(prompt)
        for index, (token, piece) in enumerate(zip(tokens, pieces, strict=True)):
            written = self._cache.written([token])
            if not text.allows(piece) or not (grounded is None or grounded.allows(written)):
                # As in generation, a rule on the text gives way where the grammar allows nothing else.
                state = self._state_after(tokens[:index], prompt)
                if not bool(state.mask()[token]):
                    return index
            text.append(piece)
            if grounded is not None:
                grounded.append(written)
        return None

    def _state_after(self, tokens: Sequence[int], prompt: PromptTexts | None) -> GrammarState:
        state = self.start(len(tokens) + 1, prompt)
        for token in tokens:
            state.append(token)
        return state


class GrammarState:
    """Grammar state of one answer of at most ``max_new_tokens`` tokens.

    A known shortest end is kept. Once it may not fit after the next token, every token is checked before it is
    taken, and the first after which the answer could not end is replaced by the start of the known end.
    """

    def __init__(
        self,
        grammar: AnswerGrammar,
        matcher: llguidance.LLMatcher,
        max_new_tokens: int,
        prompt: PromptTexts | None = None,
    ) -> None:
        self._grammar, self._matcher, self._left = grammar, matcher, max_new_tokens
        self._cache, self._rules = grammar._cache, grammar._rules
        self._text, self._grounded = grammar.text(), grammar.grounded(prompt)
        self._tokens: list[int] = []
        self._closing = False
        self._ending: list[int] | None = None  # a short end of the first ``_ending_at`` tokens
        self._ending_at = self._checked_at = 0  # ``_checked_at``: tokens after which it may no longer fit
        self._know(grammar.smallest, 0)

    def append(self, token: int) -> None:
        """Advance by a token, which must be allowed."""
        if token == self._cache.stop_id:
            return
        self._left -= 1
        if not self._matcher.consume_token(token):
            raise StructuredAnswerError(
                f"the grammar cannot continue the answer: {self._matcher.get_error().splitlines()[0]}; simplify the "
                "schema's patterns, or set constrained=False"
            )
        self._text.append(self._cache.text(token))
        if self._grounded is not None:
            self._grounded.append(self._cache.written([token]))
        self._tokens.append(token)
        if self._closing and self._ending:
            self._ending = self._ending[1:]

    def allows(self, token: int) -> bool:
        """Whether a token may come next, decided without the mask of all tokens; False where that needs the mask."""
        if self._closing:
            return False
        if token == self._cache.stop_id:
            return bool(self._matcher.is_accepting()) and (self._grounded is None or self._grounded.may_end)
        if self._matcher.validate_tokens([token]) != 1 or not self._text.allows(self._cache.text(token)):
            return False
        return self._grounded is None or self._grounded.allows(self._cache.written([token]))

    def within_limit(self, token: int) -> int:
        """``token``, which is allowed; the first of the shortest end where the answer cannot end after it."""
        unchecked = len(self._tokens) < self._checked_at
        if self._closing or unchecked or self._ending is None or token == self._cache.stop_id:
            return token
        if self._ending_at < len(self._tokens):  # the known end dates from some tokens ago
            self._know(self._shortest_end(self._matcher, self._tokens), len(self._tokens))
            if len(self._tokens) < self._checked_at:
                return token
        after = self._matcher.deep_copy()
        after.consume_token(token)
        tokens = [*self._tokens, token]
        ending = self._shortest_end(after, tokens)
        if ending is not None and len(ending) >= self._left:  # there may be a shorter one than what is left
            ending = self._grammar.search.tokens(after, self._cache.written(tokens))
        if ending is None or self._ending is None or len(ending) < self._left:
            self._know(ending, len(self._tokens) + 1)
            return token
        self._closing = True
        return self._ending[0] if self._ending else self._cache.stop_id

    def _know(self, ending: list[int] | None, length: int) -> None:
        """Keep an end of the answer of ``length`` tokens, and until when it fits whatever is written."""
        self._ending, self._ending_at = ending, length
        if ending is not None:
            spare = self._left - (length - len(self._tokens)) - len(ending)
            self._checked_at = length + max(0, spare) // (1 + self._grammar.growth)

    def _shortest_end(self, matcher: llguidance.LLMatcher, tokens: Sequence[int]) -> list[int] | None:
        """A short end of the answer ``tokens``: what is left of the known end where that leads there, or a new one."""
        known = self._ending or []
        first = min(_REPLACED, len(known))
        for start in (*reversed(range(first)), *range(first, len(known))):
            rest = known[start:]
            if matcher.validate_tokens(rest) == len(rest):
                ended = matcher.deep_copy()
                ended.consume_tokens(rest)
                if ended.is_accepting():
                    return rest
        return self._grammar.search.tokens(matcher, self._cache.written(tokens))

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    def allowed_start(self, tokens: Sequence[int]) -> list[int]:
        """The longest start of ``tokens`` that the grammar allows."""
        start = list(tokens[: self._matcher.validate_tokens(list(tokens))])
        if self._grounded is None:
            return start
        return start[: self._grounded.allowed_start(self._cache.written([token]) for token in start)]

    def forced(self) -> list[int]:
        """Tokens of the text that must come next, as the tokenizer splits it; the model may split it otherwise."""
        return list(self._matcher.compute_ff_tokens())

    def copied(self) -> list[int]:
        """The next tokens of the prompt's texts where the open value has one continuation there."""
        if self._grounded is None:
            return []
        text, goes_on = self._grounded.continuation(_COPIED_BYTES)
        tokens: list[int] = self._cache.engine.tokenize_bytes(text) if text else []
        return self.allowed_start((tokens[:-1] if goes_on else tokens)[:_COPIED_TOKENS])

    def mask(self) -> torch.Tensor:
        """Which tokens may come next: booleans [vocabulary]."""
        if self._closing:
            only = torch.zeros(self._cache.vocabulary, dtype=torch.bool)
            only[self._ending[0] if self._ending else self._cache.stop_id] = True
            return only
        allowed = _mask_of(self._matcher, self._cache.vocabulary)
        if self._text.in_number or self._text.in_key:
            allowed = self._without_refused(allowed, allowed.nonzero()[:, 0].tolist())
        elif self._rules.on_commas:
            candidates = [token for token in self._cache.continuations if allowed[token]]
            allowed = self._without_refused(allowed, candidates)
        return allowed if self._grounded is None else self._grounded.masked(allowed, self._cache.tree)

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


def _lark(schema: Any) -> str:
    # In Lark the schema itself holds the options.
    return f"start: %json {json.dumps({**schema, 'x-guidance': _OPTIONS} if isinstance(schema, dict) else schema)}"


def _mask_of(matcher: llguidance.LLMatcher, vocabulary: int) -> torch.Tensor:
    """The matcher's mask as booleans [vocabulary]. llguidance's own torch kernel would start torch.compile."""
    bits = llguidance.numpy.allocate_token_bitmask(1, vocabulary)
    llguidance.numpy.fill_next_token_bitmask(matcher, bits)
    return torch.from_numpy(
        numpy.unpackbits(bits[0].view(numpy.uint8), bitorder="little")[:vocabulary]
    ).bool()


def _engine(tokenizer: Any, vocabulary: int, stop_id: int) -> llguidance.LLTokenizer:
    """llguidance's view of a tokenizer, in which the text of a control token is text and no control token."""
    try:
        return llguidance.LLTokenizer(
            without_control_tokens(tokenizer, vocabulary), n_vocab=vocabulary, eos_token=stop_id
        )
    except ConfigurationError:
        raise
    except Exception as error:  # llguidance raises ValueError and its Rust library's own errors
        raise ConfigurationError(
            f"no grammar can be made with the base model's tokenizer: {error}; set constrained=False or use another "
            "base model"
        ) from error
