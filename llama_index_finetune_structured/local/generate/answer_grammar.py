"""The grammar of a schema's answers: one function for serving and for the check of training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import ConfigurationError
from ..schema.bounds import AnswerBounds, bounded_schema
from .grammar import AnswerGrammar, GrammarCache

__all__ = ["answer_grammar"]


def answer_grammar(
    cache: GrammarCache, schema: Mapping[str, Any], key: str, bounds: AnswerBounds
) -> AnswerGrammar:
    """The compiled grammar of a schema, cached.

    ``key``: the schema's key in ``bounds``, by which its lists and strings are bounded. Raises ConfigurationError
    where the schema cannot be made a grammar.
    """
    try:
        bounded = bounded_schema(schema, key, bounds)
        return cache.get(bounded, distinct=key in bounds.distinct, by_text=key in bounds.by_text)
    except RecursionError:  # many definitions that each refer to the next
        raise ConfigurationError(
            "no grammar can be made of the answer's schema: its references or patterns are nested too deeply; "
            "flatten it, or pass constrained=False, and answers are validated only"
        ) from None
