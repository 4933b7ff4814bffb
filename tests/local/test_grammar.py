"""Whatever a model prefers to write, a constrained answer ends as valid JSON inside its token limit."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from llama_index_finetune_structured.local.generate.grammar import AnswerGrammar, GrammarCache
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds, bounded_schema
from tests import tiny

LIMIT = 3000  # tokens, a byte each: more than every schema here needs
REQUIRED: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "uuid": {"type": "string", "format": "uuid4"},
    "moment": {"type": "string", "format": "date-time"},
    "e-mail address": {"type": "string", "format": "email"},
    "forty digits": {"type": "string", "pattern": "^[0-9]{40}$"},
    "one of several": {"enum": ["a", "bb" * 20]},
    "list of uuids": {"type": "array", "minItems": 2, "items": {"type": "string", "format": "uuid4"}},
    "nested": {
        "type": "object",
        "properties": {"day": {"type": "string", "format": "date"}, "n": {"type": "integer"}},
        "required": ["day", "n"],
    },
}


def _longest_answer(grammar: AnswerGrammar, stop_id: int, letter: int, seed: int) -> list[int]:
    """The answer of a model that writes the letter for as long as it may, and anything that is allowed else."""
    state, tokens, draw = grammar.start(LIMIT), list[int](), random.Random(seed)
    while len(tokens) < LIMIT:
        allowed = state.mask().nonzero()[:, 0].tolist()
        token = letter if letter in allowed else draw.choice(allowed)
        if token == stop_id:
            break
        tokens.append(token)
        state.append(token)
    return tokens


@pytest.mark.parametrize("count", [1, 5, 15])
@pytest.mark.parametrize("kind", REQUIRED)
def test_an_answer_ends_inside_its_limit_whatever_must_follow_its_longest_text(kind: str, count: int) -> None:
    tokenizer = tiny.tokenizer()
    names = [f"field_{number}" for number in range(count)]
    schema = {
        "type": "object",
        "properties": {"note": {"type": "string"}} | dict.fromkeys(names, REQUIRED[kind]),
        "required": ["note", *names],
    }
    cache = GrammarCache(tokenizer, vocabulary=len(tokenizer), stop_id=1)
    grammar = cache.get(bounded_schema(schema, "", AnswerBounds(default_characters=2 * LIMIT)))
    assert grammar is not None
    (letter,) = tokenizer("a", add_special_tokens=False)["input_ids"]
    answer = json.loads(str(tokenizer.decode(_longest_answer(grammar, 1, letter, seed=count))))
    assert list(answer) == ["note", *names]
    assert len(answer["note"]) > LIMIT / 4  # the limit ended the text, not the schema
