"""Keys that an answer may leave out are written in the order in which their values stand in the text."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from llama_index_finetune_structured import Example, FinetuneDataset
from llama_index_finetune_structured.json_schema import find_error
from llama_index_finetune_structured.local.generate.answer_grammar import answer_grammar
from llama_index_finetune_structured.local.generate.grammar import GrammarCache
from llama_index_finetune_structured.local.generate.json_text import JsonText, TextRules
from llama_index_finetune_structured.local.model.prompts import trained_text
from llama_index_finetune_structured.local.schema.bounds import learn_bounds, schema_key
from tests import tiny

_NAMES = ("artist", "album", "playlist", "year", "a-b")
_TEXTS: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"intent": {"enum": ["play", "add"]}, **dict.fromkeys(_NAMES, _TEXTS)},
    "required": ["intent"],
}


def _example(text: str, answer: dict[str, Any], schema: dict[str, Any] = _SCHEMA) -> Example:
    return FinetuneDataset.from_pairs([(text, answer)], schema=schema)[0]


def _keys(text: str, answer: dict[str, Any], schema: dict[str, Any] = _SCHEMA) -> list[str]:
    return list(json.loads(trained_text(_example(text, answer, schema))))


@pytest.mark.parametrize(
    ("text", "answer", "keys"),
    [
        ("the wall by nick", {"artist": "nick", "album": "wall", "intent": "play"}, ["intent", "album", "artist"]),
        ("of 1999 and 2001 by nick", {"artist": "nick", "year": ["1999", "2001"]}, ["year", "artist"]),
        ("walls, the wall by nick", {"artist": "nick", "album": "wall"}, ["album", "artist"]),
        ("nick's wall", {"album": "floor", "artist": "nick"}, ["artist", "album"]),  # not in the text: as in the schema
        ("nick", {"year": "nick", "artist": "nick"}, ["artist", "year"]),
        ("nick", {"year": [], "artist": "nick"}, ["artist", "year"]),
    ],
)  # fmt: skip
def test_keys_follow_the_text_after_those_that_must_be_there(
    text: str, answer: dict[str, Any], keys: list[str]
) -> None:
    schema = _SCHEMA if "intent" in answer else {**_SCHEMA, "required": []}
    assert _keys(text, answer, schema) == keys


def test_an_object_without_keys_to_leave_out_keeps_the_order_of_its_schema() -> None:
    schema = {**_SCHEMA, "required": list(_SCHEMA["properties"])}
    answer = {name: name for name in _NAMES} | {"intent": "add"}
    assert _keys(" ".join(reversed(_NAMES)), answer, schema) == ["intent", *_NAMES]
    assert learn_bounds([_example(" ".join(reversed(_NAMES)), answer, schema)]).by_text == ()


def _answers(draw: random.Random, rows: int) -> list[tuple[str, dict[str, Any]]]:
    pairs = []
    for _ in range(rows):
        names = draw.sample(_NAMES, draw.randint(0, len(_NAMES)))
        words = {name: draw.choice("abcdefgh") + str(draw.randint(0, 99)) for name in names}
        said = [words[name] for name in draw.sample(names, len(names)) if draw.random() < 0.9]
        answer: dict[str, Any] = {name: draw.choice([word, [word, "x"]]) for name, word in words.items()}
        pairs.append((" ".join(["say", *said]), {"intent": draw.choice(["play", "add"]), **answer}))
    return pairs


@pytest.mark.parametrize("seed", range(8))
def test_whatever_was_trained_can_be_written_and_no_key_twice(seed: int) -> None:
    draw = random.Random(seed)
    branches = [
        {**_SCHEMA, "properties": {**_SCHEMA["properties"], "intent": {"const": name}}}
        for name in ("play", "add")
    ]
    nested = {"type": "object", "properties": {"all": {"type": "array", "items": {"oneOf": branches}}}}
    schema = draw.choice([_SCHEMA, {"oneOf": branches}, nested])
    pairs = _answers(draw, 40)
    if schema is nested:
        pairs = [(text, {"all": [answer, answer]}) for text, answer in pairs]
    examples = list(FinetuneDataset.from_pairs(pairs, schema=schema))
    bounds, key = learn_bounds(examples), schema_key(schema)
    tokenizer = tiny.tokenizer()
    cache = GrammarCache(tokenizer, vocabulary=len(tokenizer), stop_id=tokenizer.eos_token_id)
    grammar = answer_grammar(cache, tokenizer, schema, key, bounds)
    assert bounds.by_text == (key,)
    for example in examples:
        assert grammar.refused_at(tokenizer(trained_text(example))["input_ids"]) is None
    for text in _drawn(draw, grammar, tokenizer):
        assert find_error(schema, json.loads(text, object_pairs_hook=_with_each_key_once)) is None


def _with_each_key_once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(items)) == len(items), items
    return dict(items)


def _drawn(draw: random.Random, grammar: Any, tokenizer: Any) -> list[str]:
    """Answers of tokens drawn at random from what the grammar allows."""
    texts = []
    for _ in range(12):
        state, tokens = grammar.start(160), []
        while True:
            token = state.within_limit(draw.choice(state.mask().nonzero()[:, 0].tolist()))
            if token == tokenizer.eos_token_id:
                break
            state.append(token)
            tokens.append(token)
            if len(tokens) >= 160:
                break
        texts.append(tokenizer.decode(tokens))
    return texts


def test_other_objects_may_have_keys_that_begin_alike() -> None:
    rules = TextRules(free_keys=(frozenset({"a", "ab"}), frozenset({"c", "d"})))
    text = JsonText(rules)
    text.append('{"x":1')
    assert text.allows(',"xy":2')
    inner = JsonText(rules)
    inner.append('{"a":1')
    assert inner.allows(',"ab"')
    assert not inner.allows(',"a"')
    inner.append(',"ab":{"c":"}')
    assert not inner.allows('"},"a')  # both keys are used
    assert inner.allows('","d":1}')
    assert not inner.allows('","c')
