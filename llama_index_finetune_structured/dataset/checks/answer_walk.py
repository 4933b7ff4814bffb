"""Walk answers through the grammar that will serve them: what it refuses could be trained and never said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from ...errors import ConfigurationError, MissingDependencyError
from ...example import Example, compact_json
from ...json_schema import pointer_part
from ...local.schema.bounds import learn_bounds, schema_key
from ...local.schema.enforcement import not_enforced
from .problems import Fault

__all__ = ["AnswerWalk"]

_SHOWN_BEFORE, _SHOWN_REST = 60, 20  # chosen: characters of an answer that a problem quotes
_SHOWN_PLACES = 6  # chosen: keywords that one warning names


class AnswerWalk:
    """The grammars of the examples' schemas, with bounds learned from all their answers, as serving builds them.

    ``vocabulary``: size of the model's logits. Raises MissingDependencyError without the extra ``local``.
    """

    def __init__(self, tokenizer: Any, examples: Iterable[Example], *, vocabulary: int, stop_id: int) -> None:
        try:
            from ...local.generate.grammar import AnswerGrammar, GrammarCache
        except ImportError as error:
            raise MissingDependencyError(error.name or "llguidance", "local", "Checking answers") from error
        self._tokenizer, self._bounds = tokenizer, learn_bounds(examples)
        # Created with the first schema: a tokenizer that grammars cannot use trains on text all the same.
        self._new_cache = partial(GrammarCache, tokenizer, vocabulary=vocabulary, stop_id=stop_id)
        self._cache: GrammarCache | None = None
        self._grammars: dict[str, AnswerGrammar | None] = {}

    def faults(self, example: Example, answer: Sequence[int]) -> list[Fault]:
        """Why an example's answer, token ids with the stop token, cannot be generated; its schema's warnings."""
        schema = example.answer_schema
        if schema is None:
            return []
        key = schema_key(schema)
        faults = [] if key in self._grammars else self._compile(schema, key)
        grammar = self._grammars[key]
        ids = list(answer[:-1])
        refused = None if grammar is None else grammar.refused_at(ids)
        return faults if refused is None else [*faults, self._unsayable(ids, refused)]

    def _compile(self, schema: Mapping[str, Any], key: str) -> list[Fault]:
        """Build the grammar of a schema; a warning where it has none, or does not enforce all of the schema."""
        from ...local.generate.answer_grammar import answer_grammar

        try:
            self._cache = self._cache or self._new_cache()
            self._grammars[key] = answer_grammar(self._cache, schema, key, self._bounds)
        except ConfigurationError as error:
            self._grammars[key] = None
            return [Fault("no_grammar", str(error))]
        loose = not_enforced(schema)
        more = f" and {len(loose) - _SHOWN_PLACES} more" if len(loose) > _SHOWN_PLACES else ""
        shown = ", ".join(loose[:_SHOWN_PLACES]) + more
        return [Fault("not_enforced", f"the grammar does not enforce {shown}")] if loose else []

    def _unsayable(self, ids: list[int], refused: int) -> Fault:
        before, text = self._text(ids[:refused]), self._text(ids)
        place = _pointer(text, len(before))
        rest = text[len(before) :][:_SHOWN_REST] if refused < len(ids) else "the end"
        shown = before if len(before) <= _SHOWN_BEFORE else f"...{before[-_SHOWN_BEFORE:]}"
        return Fault("answer_not_sayable", f"at {place} the grammar refuses {rest!r} after {shown!r}")

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _pointer(text: str, offset: int) -> str:
    """JSON pointer of the innermost value or key of a compact JSON text that the character belongs to."""
    try:
        value = json.loads(text)
    except ValueError:
        return "#"
    return "#" + (_inner(value, offset) if compact_json(value) == text else "")


def _inner(value: Any, offset: int) -> str:
    """The part of the pointer below ``value``, whose text begins ``offset`` characters before the character."""
    begin = 1  # after the bracket
    items = value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    for name, item in items:
        key = f"{compact_json(name)}:" if isinstance(value, dict) else ""
        end = begin + len(key) + len(compact_json(item))
        if begin <= offset < end:
            return f"/{pointer_part(str(name))}" + _inner(item, offset - begin - len(key))
        begin = end + 1  # after the comma
    return ""
