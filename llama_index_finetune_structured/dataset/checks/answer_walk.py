"""Walk answers through the grammar that will serve them: what it refuses could be trained and never said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError, MissingDependencyError
from ...json_schema import pointer_part
from ...local.model.prompts import DEFAULT_FORM, PromptForm
from ...local.schema.bounds import AnswerTexts, learn_bounds
from ...local.schema.enforcement import not_enforced
from ...local.schema.spelling import spelled_json
from .problems import Fault, first_of

if TYPE_CHECKING:
    from ...local.generate.grammar import AnswerGrammar, GrammarCache

__all__ = ["AnswerWalk"]

_SHOWN_BEFORE, _SHOWN_REST = 60, 20  # chosen: characters of an answer that a problem quotes


class AnswerWalk:
    """The grammars of the answers' schemas, with bounds learned from all answers, as serving builds them.

    ``vocabulary``: size of the model's logits. ``form``: of the prompts. Raises MissingDependencyError
    without the extra ``local``.
    """

    def __init__(
        self,
        tokenizer: Any,
        answers: AnswerTexts,
        *,
        vocabulary: int,
        stop_id: int,
        form: PromptForm = DEFAULT_FORM,
    ) -> None:
        try:
            from ...local.generate.grammar import GrammarCache
        except ImportError as error:
            raise MissingDependencyError(error.name or "llguidance", "local", "Checking answers") from error
        self._tokenizer, self._schemas, self._bounds = tokenizer, answers.schemas, learn_bounds(answers)
        # Created with the first schema: a tokenizer that grammars cannot use trains on text all the same.
        self._new_cache = partial(GrammarCache, tokenizer, vocabulary=vocabulary, stop_id=stop_id)
        self._form = form
        self._cache: GrammarCache | None = None
        self._key = ""
        self._grammar: AnswerGrammar | None = None  # of the last schema only: a file may have thousands

    def faults(self, key: str, answer: Sequence[int]) -> list[Fault]:
        """Why an answer, token ids with the stop token, to the schema of that key cannot be generated.

        The warnings of a schema come with the first of its answers; they are to follow one another.
        """
        faults = [] if key == self._key else self._compile(key)
        ids = list(answer[:-1])
        refused = None if self._grammar is None else self._grammar.refused_at(ids)
        return faults if refused is None else [*faults, self._unsayable(ids, refused)]

    def _compile(self, key: str) -> list[Fault]:
        """Build the grammar of a schema; a warning where it has none, or does not enforce all of the schema."""
        from ...local.generate.answer_grammar import answer_grammar

        schema = self._schemas[key]
        self._key, self._grammar = key, None
        try:
            self._cache = self._cache or self._new_cache()
            self._grammar = answer_grammar(
                self._cache, self._tokenizer, schema, key, self._bounds, self._form
            )
        except ConfigurationError as error:
            return [Fault("no_grammar", str(error))]
        loose = not_enforced(schema)
        return [Fault("not_enforced", f"the grammar does not enforce {first_of(loose)}")] if loose else []

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
    return "#" + (_inner(value, offset) if spelled_json(value) == text else "")


def _inner(value: Any, offset: int) -> str:
    """The part of the pointer below ``value``, whose text begins ``offset`` characters before the character."""
    begin = 1  # after the bracket
    items = value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    for name, item in items:
        key = f"{spelled_json(name)}:" if isinstance(value, dict) else ""
        end = begin + len(key) + len(spelled_json(item))
        if begin <= offset < end:
            return f"/{pointer_part(str(name))}" + _inner(item, offset - begin - len(key))
        begin = end + 1  # after the comma
    return ""
