"""The grammar of a schema's answers: one function for serving and for the check of training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..model.prompts import DEFAULT_FORM, PromptForm, turn_form
from ..schema.bounds import AnswerBounds, bounded_schema
from .grammar import AnswerGrammar, GrammarCache
from .grammar_errors import GrammarError
from .turn_grammar import turn_grammar

__all__ = ["answer_grammar"]


def answer_grammar(
    cache: GrammarCache,
    tokenizer: Any,
    schema: Mapping[str, Any],
    key: str,
    bounds: AnswerBounds,
    form: PromptForm = DEFAULT_FORM,
) -> AnswerGrammar:
    """The compiled grammar of a schema, cached.

    ``key``: the schema's key in ``bounds``, by which its lists and strings are bounded. ``form``: of the
    prompts, by which agents' turns may be written as the base's chat template does. Raises GrammarError where
    the schema cannot be made a grammar.
    """
    try:
        if (turns := turn_form(tokenizer, schema, form)) is not None:
            return turn_grammar(cache, tokenizer, turns, schema, key, bounds)
        bounded = bounded_schema(schema, key, bounds)
        return cache.get(bounded, distinct=key in bounds.distinct, by_text=key in bounds.by_text)
    except RecursionError:  # many definitions that each refer to the next
        raise GrammarError("its references or patterns are nested too deeply", "flatten it") from None
