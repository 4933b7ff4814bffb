"""Walk texts through grammars, and draw texts from them, a byte a token."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from typing import Any

from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.local.generate.grammar import AnswerGrammar, GrammarCache
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds, bounded_schema
from tests import tiny

STOP = 1
_FREE = 10**9  # tokens: the token limit does not matter here


@functools.cache
def _tokenizer() -> Any:
    return tiny.tokenizer()


def compiled(
    schema: Mapping[str, Any], key: str = "", bounds: AnswerBounds | None = None
) -> AnswerGrammar | None:
    """The grammar that answers to a schema are served with; None where the schema cannot be made one."""
    tokenizer = _tokenizer()
    cache = GrammarCache(tokenizer, vocabulary=len(tokenizer), stop_id=STOP)
    try:
        return cache.get(bounded_schema(schema, key, bounds or AnswerBounds()))
    except ConfigurationError:
        return None


def refused_from(grammar: AnswerGrammar, text: str) -> str | None:
    """The rest of a text from where the grammar does not let it through; None where it may be written and end."""
    place = grammar.refused_at(_tokenizer()(text, add_special_tokens=False)["input_ids"])
    return None if place is None else text.encode()[place:].decode("utf-8", "replace") or "<end>"


def drawn(grammar: AnswerGrammar, seed: int, *, free: int = 120, longest: int = 1500) -> str | None:
    """A random text of the grammar; after ``free`` bytes it tends to end. None where it is too long."""
    draw, state, tokens = random.Random(seed), grammar.start(_FREE), list[int]()
    closing = {_tokenizer()(c, add_special_tokens=False)["input_ids"][0] for c in '"}],:'} | {STOP}
    while len(tokens) < longest:
        allowed = state.mask().nonzero()[:, 0].tolist()
        ends = [token for token in allowed if token in closing]
        token = draw.choice(
            ends if ends and draw.random() < (0.3 if len(tokens) < free else 0.9) else allowed
        )
        if token == STOP:
            return str(_tokenizer().decode(tokens))
        tokens.append(token)
        state.append(token)
    return None
