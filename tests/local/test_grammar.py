"""Whatever a model prefers to write, a constrained answer ends as valid JSON inside its token limit."""

from __future__ import annotations

import functools
import json
import random
import time
from typing import Any

import pytest

from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.json_schema import first_error
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
        token = state.within_limit(letter if letter in allowed else draw.choice(allowed))
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
    (letter,) = tokenizer("a", add_special_tokens=False)["input_ids"]
    answer = json.loads(str(tokenizer.decode(_longest_answer(grammar, 1, letter, seed=count))))
    assert list(answer) == ["note", *names]
    assert len(answer["note"]) > LIMIT / 4  # the limit ended the text, not the schema


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


NUMBER, TEXT = {"type": "integer"}, {"type": "string"}
TREE: dict[str, Any] = {
    "$defs": {
        "Tree": _object(name=TEXT, kids={"type": "array", "items": {"$ref": "#/$defs/Tree"}}),
    },
    "$ref": "#/$defs/Tree",
}
# Schemas whose answers are hard to end: by a pattern, a least length, a required value that one token begins.
HARD: dict[str, dict[str, Any]] = {
    "pattern anywhere in a string": _object(day={"type": "string", "pattern": r"\d{4}-\d{2}-\d{2}"}),
    "pattern at the end of a string": _object(s={"type": "string", "pattern": "^.*foobar$"}),
    "two words in a string": _object(s={"type": "string", "pattern": "foo.*bar"}),
    "counted repeats": _object(s={"type": "string", "pattern": "^([A-Z]{3}[0-9]{5}-){7}x$"}),
    "short or long branch": _object(s={"type": "string", "pattern": "^(a|b{40}|c{9}d)$"}),
    "letters of any script": _object(s={"type": "string", "pattern": r"^\p{Lu}\p{L}{3,}$"}),
    "negated class": _object(s={"type": "string", "pattern": "^[^a-z0-9]{3}x$"}),
    "least length": _object(s={"type": "string", "minLength": 120}),
    "e-mail and URL": _object(e={"type": "string", "format": "email"}, u={"type": "string", "format": "uri"}),
    "times": _object(t={"type": "string", "format": "duration"}, d={"type": "string", "format": "date-time"}),
    "address": _object(a={"type": "string", "format": "ipv4"}, b={"type": "string", "format": "ipv6"}),
    "long enum": _object(e={"enum": ["x" * 90, "y" * 50, "xyz"]}),
    "long constant": _object(c={"const": 'long "text", ' * 9}),
    "numbers": _object(n={"type": "number", "minimum": 1e12}, m={"type": "integer", "maximum": -12345}),
    "multiples": _object(
        n={"type": "integer", "multipleOf": 7, "minimum": 1}, m={"type": "number", "multipleOf": 0.01}
    ),
    "many fields": _object(**dict.fromkeys((f"field_{n}" for n in range(30)), NUMBER)),
    "optional large object": {
        **_object(name=TEXT),
        "properties": {"name": TEXT, "more": _object(**{f"k{n}": TEXT for n in range(9)})},
    },
    "list of objects": _object(l={"type": "array", "minItems": 3, "items": _object(a=NUMBER, b=TEXT)}),
    "list of large or small": _object(
        l={"type": "array", "minItems": 2, "items": {"anyOf": [_object(a=NUMBER, b=TEXT, c=TEXT), _object(z=NUMBER)]}}
    ),
    "tagged": _object(
        p={"anyOf": [_object(kind={"const": "cat"}, lives=NUMBER), _object(kind={"const": "dog"}, a=TEXT, b=TEXT)]}
    ),
    "scalar or object": _object(u={"anyOf": [_object(a=NUMBER), {"type": "null"}, {"type": "number"}]}),
    "keys of other alphabets": {
        **_object(Ähre=NUMBER, Öl=TEXT), "properties": {"Äther": NUMBER, "Ähre": NUMBER, "Ösen": TEXT, "Öl": TEXT},
    },
    "free keys": {"type": "object", "additionalProperties": NUMBER, "minProperties": 3},
    "keys of a pattern": {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]{3}$"},
        "additionalProperties": NUMBER,
        "minProperties": 1,
    },
    "recursive": TREE,
    "text alone": TEXT,
    "list alone": {"type": "array", "items": TREE["$defs"]["Tree"]} | {"$defs": TREE["$defs"]},
}  # fmt: skip
# A key that was written twice counts once.
NOT_BY_JSONSCHEMA = ("free keys",)
WALKS = ("anything", "never the end", "characters of several bytes and escapes")


@functools.cache
def _cache() -> GrammarCache:
    return GrammarCache(tiny.tokenizer(), vocabulary=258, stop_id=1)


def _compiled(schema: dict[str, Any], *, distinct: bool = False) -> AnswerGrammar:
    return _cache().get(bounded_schema(schema, "", AnswerBounds()), distinct=distinct)


def _walk(grammar: AnswerGrammar, limit: int, draw: random.Random, how: str) -> list[int]:
    """The answer of a model that chooses at random among the allowed tokens, a byte each."""
    state, tokens = grammar.start(limit), list[int]()
    while len(tokens) < limit:
        allowed = state.mask().nonzero()[:, 0].tolist()
        kept = allowed if how == WALKS[0] else [token for token in allowed if token != 1]
        if how == WALKS[2]:
            kept = [
                token for token in kept if _cache().written([token]) >= b"\x80" or token == BACKSLASH
            ] or kept
        token = state.within_limit(draw.choice(kept or allowed))
        if token == 1:
            break
        tokens.append(token)
        state.append(token)
    return tokens


(BACKSLASH,) = tiny.tokenizer()("\\")["input_ids"]


@pytest.mark.parametrize("how", WALKS)
@pytest.mark.parametrize("name", HARD)
def test_every_answer_is_whole_at_any_limit_that_holds_the_smallest(name: str, how: str) -> None:
    grammar = _compiled(HARD[name])
    assert grammar.smallest is not None
    assert grammar.refused_at(grammar.smallest) is None
    for spare in (0, 1, 4, 30, 110):
        tokens = _walk(grammar, len(grammar.smallest) + spare, random.Random(f"{name}{spare}"), how)
        answer = json.loads(_cache().written(tokens))
        if name not in NOT_BY_JSONSCHEMA:
            assert first_error(HARD[name], answer) is None
        assert grammar.refused_at(tokens) is None


@pytest.mark.parametrize("name", ["many fields", "least length", "long constant", "list of objects"])
def test_a_limit_below_the_smallest_answer_is_refused_with_both_numbers(name: str) -> None:
    grammar = _compiled(HARD[name])
    assert grammar.smallest is not None
    least = len(grammar.smallest)
    grammar.require_room(least)
    with pytest.raises(ConfigurationError, match=f"about {least} tokens and the limit is {least - 1}: raise"):
        grammar.require_room(least - 1)


def test_the_walk_names_the_first_token_that_the_grammar_refuses() -> None:
    grammar = _compiled(_object(name=TEXT, n={"type": "integer"}))

    def refused(text: str) -> int | None:
        return grammar.refused_at(tiny.tokenizer()(text)["input_ids"])

    assert refused('{"name":"Ada","n":1}') is None
    assert refused('{"name":"Ada","n":"1"}') == len('{"name":"Ada","n":')
    assert refused('{"name":"Ada"') == len('{"name":"Ada"')  # it does not end there
    assert refused('{"name": "Ada","n":1}') == len('{"name":')
    assert refused('{"name":"Ada","n":1}}') == len('{"name":"Ada","n":1}')
    assert refused('{"name":"Ada","n":' + "1" * 41 + "}") == len('{"name":"Ada","n":') + 40


def test_the_walk_refuses_what_serving_refuses_to_repeat() -> None:
    schema = _object(l={"type": "array", "items": _object(a=NUMBER)})
    same = tiny.tokenizer()('{"l":[{"a":1},{"a":1},{"a":2}]}')["input_ids"]
    assert _compiled(schema).refused_at(same) is None
    assert _compiled(schema, distinct=True).refused_at(same) == len('{"l":[{"a":1},{"a":1}')
    required = _object(l={"type": "array", "minItems": 3, "items": _object(a=NUMBER)})
    assert _compiled(required, distinct=True).refused_at(same) is None


def test_the_text_of_a_control_token_is_written_as_text() -> None:
    grammar = _compiled(_object(e={"enum": ["<|im_end|>", "<|im_start|>x"]}))
    state, control = grammar.start(100), {0, 1}
    for token in tiny.tokenizer()('{"e":"<|im_', split_special_tokens=True)["input_ids"]:
        assert control.isdisjoint(state.mask().nonzero()[:, 0].tolist())
        assert control.isdisjoint(state.forced())
        state.append(token)
    assert control.isdisjoint(grammar.smallest or control)


def test_a_schema_that_cannot_be_compiled_is_an_error_that_names_the_way_on() -> None:
    with pytest.raises(ConfigurationError, match=r"no grammar can be made .*constrained=False"):
        _cache().get(_object(s={"type": "string", "pattern": "("}))


def test_a_tokenizer_larger_than_the_model_is_an_error_of_the_package() -> None:
    with pytest.raises(ConfigurationError, match="vocab size too small"):
        GrammarCache(tiny.tokenizer(), vocabulary=257, stop_id=1)


def test_only_the_grammars_used_last_are_kept() -> None:
    cache = GrammarCache(tiny.tokenizer(), vocabulary=258, stop_id=1)
    schemas = [{"const": number} for number in range(70)]
    first = cache.get(schemas[0])
    second = cache.get(schemas[1])
    for schema in schemas:
        cache.get(schema)
        assert cache.get(schemas[0]) is first
    assert cache.get(schemas[1]) is not second


def test_long_answers_to_a_pattern_do_not_use_the_grammar_up() -> None:
    grammar = _compiled(HARD["pattern anywhere in a string"])
    for seed in range(3):
        tokens = _walk(grammar, 380, random.Random(seed), WALKS[1])
        assert grammar.refused_at(tokens) is None


HUGE: dict[str, dict[str, Any]] = {
    "members": {"enum": [f"value {n:06d}" for n in range(50_000)]},
    "numbers": {"enum": list(range(50_000))},
    "text": {"const": "xyz " * 25_000},
    "items": {"type": "array", "items": {"type": "integer"}, "minItems": 4_000},
}


@pytest.mark.parametrize("name", HUGE)
def test_the_shortest_end_of_a_huge_schema_is_known_in_seconds(name: str) -> None:
    cache = GrammarCache(tiny.tokenizer(), vocabulary=258, stop_id=1)
    started = time.process_time()
    grammar = cache.get({"type": "object", "properties": {"a": HUGE[name]}, "required": ["a"]})
    assert time.process_time() - started < 30  # where the search was quadratic, it took minutes
    assert grammar.smallest
    assert json.loads(cache.written(grammar.smallest))
