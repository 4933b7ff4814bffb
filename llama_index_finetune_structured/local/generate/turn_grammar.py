"""Grammars of agents' turns in the form of a base model's chat template: a text, calls of tools, or both.

A Lark grammar of llguidance: free text, then the form's own texts and control tokens around the JSON of arguments,
each held to its tool's schema (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import llguidance

from ...example import canonical_json
from ..model.control_tokens import control_tokens
from ..model.tool_form import ToolForm
from ..schema.bounds import AnswerBounds, bounded_schema
from ..schema.grammar_schema import with_named_keys
from ..schema.grounding import GroundedPlace
from ..schema.text_order import with_free_keys
from ..schema.turn_tools import call_schemas
from .ending import EndingSearch
from .grammar import AnswerGrammar, GrammarCache, GrammarState, require_shallow
from .grounding import GroundedText
from .json_text import JsonText, TextRules
from .prompt_texts import PromptTexts
from .sample_texts import largest_growth, sample_texts

__all__ = ["turn_grammar"]

_CONTINUATION, _CONTINUATIONS = range(0x80, 0xC0), 3  # bytes of a character in UTF-8 behind its first
_CONTROL = re.compile(rb"\xff\[(\d+)\]")  # how llguidance writes control tokens among forced bytes


class _Turns(NamedTuple):
    """What turns may be. ``texts``, ``calls``: whether they may be a text alone, and have calls, ``most`` at most."""

    texts: bool
    calls: bool
    most: int

    @classmethod
    def of(cls, schema: Mapping[str, Any], bounded: Mapping[str, Any]) -> _Turns:
        """Those of a schema of ``turn_schema`` or ``chosen_schema``."""
        calls, said = schema["anyOf"]
        most = bounded["anyOf"][0].get("maxItems", 1) if calls else 0
        return cls(said.get("minItems", 1) < 2, bool(calls), most)


def turn_grammar(
    cache: GrammarCache,
    tokenizer: Any,
    form: ToolForm,
    schema: Mapping[str, Any],
    key: str,
    bounds: AnswerBounds,
) -> AnswerGrammar:
    """The grammar of turns, cached. ``schema``: of ``turn_schema`` or ``chosen_schema``; ``key``: of its bounds.

    Where a call must come, it comes at once: a text would be free to go on until the token limit. Raises
    ConfigurationError where the schema cannot be made a grammar.
    """
    distinct, by_text = key in bounds.distinct, key in bounds.by_text
    bounded = bounded_schema(schema, key, bounds)
    turns = _Turns.of(schema, bounded)

    def compiled() -> AnswerGrammar:
        require_shallow(bounded)
        free, keys = with_free_keys(bounded) if by_text else (bounded, ())
        texts, arguments = _Texts(cache, tokenizer), call_schemas(with_named_keys(free))
        lark = partial(_lark, form, texts, arguments, turns)
        matcher = cache.matcher(lark)
        growth = largest_growth(bounded) + len(form.after_text + form.between + form.separator + form.closing)
        growth += max(len(name.encode()) for name in arguments)
        return _TurnGrammar(
            cache,
            matcher,
            _TurnEnding(cache, texts, form, bounded),
            growth=growth,
            rules=TextRules(distinct=distinct, free_keys=keys),
            lark=lark,
            mark=texts.written(form.mark),
            heads={name: (name + form.between).encode() for name in arguments},
        )

    return cache.kept(f"{form} {turns} {distinct} {by_text} {canonical_json(bounded)}", compiled)


class _Texts:
    """Texts of a chat template as tokens, as bytes, and in Lark."""

    def __init__(self, cache: GrammarCache, tokenizer: Any) -> None:
        self._cache = cache
        self._ids = {text: number for number, text in control_tokens(tokenizer).items()}
        names = sorted(filter(None, self._ids), key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")

    def is_control(self, text: str) -> bool:
        return text in self._ids

    def _pieces(self, text: str) -> list[str]:
        return [piece for piece in self._pattern.split(text) if piece]

    def written(self, text: str) -> bytes:
        """The text as ``GrammarCache.written`` has it, where control tokens have private names."""
        tokens: list[int] = []
        for piece in self._pieces(text):
            number = self._ids.get(piece)
            tokens += self._cache.engine.tokenize_bytes(piece.encode()) if number is None else [number]
        return self._cache.written(tokens)

    def lark(self, text: str) -> str:
        return " ".join(
            f"<[{self._ids[piece]}]>" if piece in self._ids else _quoted(piece)
            for piece in self._pieces(text)
        )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex(text: str) -> str:
    return "".join(f"\\x{{{ord(character):x}}}" for character in text)


def _lark(form: ToolForm, texts: _Texts, arguments: Mapping[str, Mapping[str, Any]], turns: _Turns) -> str:
    without_mark = f"~/(?s:.*){_regex(form.mark)}(?s:.*)/"
    text, said = f"/(?s:.*)/ & {without_mark}", f"/(?s:.*){_regex(form.lead)}/ & {without_mark}"
    lines = [f"TEXT: {text}"]
    if not turns.calls:
        return "\n".join([*lines, "start: TEXT"])
    begins = texts.lark(form.indent + form.mark)
    if turns.texts and texts.is_control(form.mark):
        # Of two terminals that match the same text, only one is needed.
        terminal = "SAID" if form.lead else "TEXT"
        lines += [f"SAID: {said}"] if form.lead else []
        begins = f"({texts.lark(form.indent)} | {terminal}) {texts.lark(form.mark)}"
    elif turns.texts:  # one terminal with the mark: the text before would end only where no text can follow
        lines.append(f"BEGINS: {_quoted(form.indent + form.mark)} | ({said}) {_quoted(form.mark)}")
        begins = "BEGINS"
    more = f"({texts.lark(form.separator)} call){{0,{turns.most - 1}}}" if turns.most > 1 else ""
    calls = f"{begins} {texts.lark(form.begun)} call {more} {texts.lark(form.closing)}"
    lines.append(f"start: {'TEXT | ' if turns.texts else ''}{calls}")
    item, key = form.separators
    options = {"whitespace_flexible": False, "lenient": True, "item_separator": item, "key_separator": key}
    bodies = []
    for number, (name, schema) in enumerate(arguments.items()):
        bodies.append(f"{_quoted(name)} {texts.lark(form.between)} args{number}")
        kept = schema if '"$ref"' in json.dumps(schema) else {k: v for k, v in schema.items() if k != "$defs"}
        lines.append(f"args{number}: %json {json.dumps({**kept, 'x-guidance': options})}")
    return "\n".join([*lines, f"call: {' | '.join(bodies)}", ""])


class _TurnEnding(EndingSearch):
    """Shortest ends of turns: of a text that may end nothing, else the smallest call."""

    def __init__(self, cache: GrammarCache, texts: _Texts, form: ToolForm, schema: Mapping[str, Any]) -> None:
        super().__init__(cache.engine, *sample_texts(schema))
        self._mark = texts.written(form.mark)

    def tokens(self, matcher: llguidance.LLMatcher, written: bytes) -> list[int] | None:
        _, mark, body = written.rpartition(self._mark)
        if mark:
            return super().tokens(matcher, body)
        character, matcher = self._character(matcher)
        return character if matcher.is_accepting() else super().tokens(matcher, written)

    def _character(self, matcher: llguidance.LLMatcher) -> tuple[list[int], llguidance.LLMatcher]:
        """The bytes that end an unfinished character of the text, and the matcher behind them."""
        found, after = list[int](), matcher.deep_copy()
        while len(found) < _CONTINUATIONS and not self._may_go_on(after):
            following = (self._byte_tokens.get(byte) for byte in _CONTINUATION)
            token = next((t for t in following if t is not None and after.validate_tokens([t]) == 1), None)
            if token is None:
                break
            found.append(token)
            after.consume_token(token)
        return found, after

    def _may_go_on(self, matcher: llguidance.LLMatcher) -> bool:
        letter = self._byte_tokens.get(ord("a"))
        return bool(matcher.is_accepting()) or letter is None or matcher.validate_tokens([letter]) == 1

    def _tokens(self, text: bytes) -> list[int]:
        found: list[int] = []
        for number, piece in enumerate(_CONTROL.split(text)):
            found += [int(piece)] if number % 2 else super()._tokens(piece)
        return found


class _TurnGrammar(AnswerGrammar):
    """A compiled form of turns. ``mark``: what begins the calls; ``heads``: what stands before a tool's arguments."""

    def __init__(
        self,
        cache: GrammarCache,
        matcher: llguidance.LLMatcher,
        search: EndingSearch,
        *,
        growth: int,
        rules: TextRules,
        lark: Callable[[], str],
        mark: bytes,
        heads: Mapping[str, bytes],
    ) -> None:
        self._mark, self._heads = mark, heads
        super().__init__(cache, matcher, search, growth=growth, rules=rules, lark=lark)

    def start(self, max_new_tokens: int, prompt: PromptTexts | None = None) -> GrammarState:
        return _TurnState(self, self._matcher.deep_copy(), max_new_tokens, prompt)

    def text(self) -> JsonText:
        return _TurnText(self._rules, self._mark.decode("utf-8", "replace"))

    def grounded(self, prompt: PromptTexts | None) -> GroundedText | None:
        return None if prompt is None else _GroundedTurn(prompt, self._mark, self._heads)


class _TurnState(GrammarState):
    @property
    def is_complete(self) -> bool:
        """Whether the turn may end here, and is no text that only the token limit ended."""
        return super().is_complete and isinstance(self._text, _TurnText) and self._text.has_calls


class _TurnText(JsonText):
    """A growing turn, whose text up to the mark is free."""

    def __init__(self, rules: TextRules, mark: str) -> None:
        super().__init__(rules)
        self._mark, self._before = mark, ""
        self.has_calls = False

    def allows(self, text: str) -> bool:
        return not self.has_calls or super().allows(text)

    def append(self, text: str) -> None:
        if not self.has_calls:
            before, mark, text = (self._before + text).partition(self._mark)
            self._before, self.has_calls = before[-len(self._mark) :], bool(mark)
        if self.has_calls:
            super().append(text)


class _GroundedTurn(GroundedText):
    """A growing turn whose grounded arguments stand in the texts of the prompt."""

    def __init__(self, prompt: PromptTexts, mark: bytes, heads: Mapping[str, bytes]) -> None:
        super().__init__(prompt)
        self._place, self._expects_value = None, False
        self._mark, self._has_calls = mark, False
        calls = prompt.schema.answer.items
        self._heads: dict[bytes, GroundedPlace | None] = {
            head: calls and calls.inside(name)
            for name, head in sorted(heads.items(), key=lambda item: len(item[1]), reverse=True)
        }
        self._longest = max(map(len, (mark, *self._heads)))
        self._before: bytes | None = b""  # None: inside arguments

    def _append(self, byte: int) -> bool:
        if self._before is None:
            grounded = super()._append(byte)
            if not self._open:
                self._before = b""
            return grounded
        self._before = (self._before + bytes([byte]))[-self._longest :]
        self._has_calls = self._has_calls or self._before.endswith(self._mark)
        head = next((head for head in self._heads if self._before.endswith(head)), None)
        if self._has_calls and head is not None:
            self._before, self._place, self._expects_value = None, self._heads[head], True
        return True
