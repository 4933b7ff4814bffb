"""A structured answer is the likeliest whole one that the search reaches, and never less likely than the greedy one."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
import random
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from llama_index_finetune_structured.local.generate.answer_search import AnswerSearch
from llama_index_finetune_structured.local.generate.decoders import PaddedDecoder
from llama_index_finetune_structured.local.generate.engine import GenerationEngine
from llama_index_finetune_structured.local.generate.grammar import AnswerGrammar, GrammarCache
from llama_index_finetune_structured.local.generate.position_logits import near_tokens
from llama_index_finetune_structured.local.generate.request import (
    GenerationRequest,
    GenerationResult,
    Sampling,
)
from llama_index_finetune_structured.local.generate.token_probability import NotedToken
from tests import tiny

STOP, PAD, LIMIT = 1, 1, 80
FEW: dict[str, Any] = {
    "type": "object",
    "properties": {
        "tag": {"enum": ["aqua", "azure", "amber", "ash", "blue"]},
        "sure": {"type": "boolean"},
        "next": {"enum": ["ruby", None]},
    },
    "required": ["tag", "sure"],
    "additionalProperties": False,
}
MANY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
_DRAW = random.Random(0)
PROMPTS = [
    tuple(_DRAW.randrange(2, 258) for _ in range(length)) for length in (5, 40, 41, 3, 21, 9, 2, 70, 11)
]


@functools.cache
def _grammar(of: str) -> AnswerGrammar:
    schema = FEW if of == "few" else MANY
    return GrammarCache(tiny.tokenizer(), vocabulary=258, stop_id=STOP).get(schema)


def _model(kind: str, seed: int = 0) -> Any:
    """A model with random weights that is surer than most: it prefers some answers."""
    made = tiny.model(kind, seed=seed).eval()
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(8)
    return made


@pytest.fixture(params=["llama", "qwen2", "gemma2"])
def model(request: pytest.FixtureRequest) -> Any:
    return _model(request.param)


def _every_answer() -> list[str]:
    tags, said = FEW["properties"]["tag"]["enum"], FEW["properties"]["next"]["enum"]
    values = [{"tag": tag, "sure": sure} for tag in tags for sure in (True, False)]
    values += [{**value, "next": each} for value, each in itertools.product(values, said)]
    return [json.dumps(value, separators=(",", ":")) for value in values]


@torch.inference_mode()
def _log_probability(model: Any, prompt: tuple[int, ...], tokens: list[int], of: str) -> float:
    """The model's own, of a whole answer that the grammar allows, by one forward over all of it."""
    state, total = _grammar(of).start(LIMIT), 0.0
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 :].float()
    for token, row in zip([*tokens, STOP], logits, strict=True):
        if token not in near_tokens(row.masked_fill(~state.mask(), float("-inf"))):
            return float("-inf")
        near = {**near_tokens(row), token: float(row[token])}
        scores = torch.tensor(list(near.values()), dtype=torch.float64).log_softmax(-1)
        total += float(scores[list(near).index(token)])
        state.append(token)
    return total


def _answered(
    model: Any, alternatives: int, of: str, batch_size: int = 4, **more: Any
) -> list[GenerationResult]:
    engine = GenerationEngine(copy.deepcopy(model), stop_ids=[STOP], pad_id=PAD, batch_size=batch_size)
    requests = [
        GenerationRequest(prompt, LIMIT, grammar=_grammar(of), alternatives=alternatives, **more)
        for prompt in PROMPTS
    ]
    return [future.result(120) for future in [engine.submit(request) for request in requests]]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_without_a_limit_it_is_the_likeliest_of_all_answers(kind: str) -> None:
    texts = [tiny.tokenizer()(text, add_special_tokens=False)["input_ids"] for text in _every_answer()]
    changed = 0
    for model in (_model(kind, seed) for seed in range(2)):
        found = _answered(model, 10_000, "few", probabilities=True)
        for prompt, result, greedy in zip(PROMPTS, found, _answered(model, 0, "few"), strict=True):
            known = {tuple(text): _log_probability(model, prompt, text, "few") for text in texts}
            likeliest = max(known, key=known.__getitem__)
            assert result.tokens == likeliest
            assert result.finish_reason == "stop"
            own = sum(pair[0] for pair in result.probabilities)
            assert own == pytest.approx(known[likeliest], abs=1e-4)
            changed += result.tokens != greedy.tokens
    assert changed  # else greedy answers would do


@pytest.mark.parametrize("of", ["few", "many"])
def test_more_alternatives_never_give_a_less_likely_answer(model: Any, of: str) -> None:
    before = [float("-inf")] * len(PROMPTS)
    for alternatives in (0, 1, 3, 9):
        found = _answered(model, alternatives, of)
        now = [
            _log_probability(model, prompt, list(result.tokens), of)
            for prompt, result in zip(PROMPTS, found, strict=True)
        ]
        assert all(new >= old - 1e-4 for new, old in zip(now, before, strict=True))
        before = now


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), max_size=6))
def test_nothing_is_followed_unless_the_grammar_excluded_half_of_the_answer(
    steps: list[tuple[float, float]],
) -> None:
    """``steps``: the share of the model's probability that is allowed, and the taken token's share of that."""
    search, left = AnswerSearch(5), 1.0
    for at, (allowed, taken) in enumerate(steps):
        own = NotedToken(math.log(allowed * taken), math.log(taken))
        search.take(own, {7: NotedToken(0.0, 0.0)}, [1] * at, [own] * at)
        left *= allowed
    search.end([1] * len(steps), [], STOP)
    assume(abs(left - 0.5) > 1e-9)
    assert (search.follow() is not None) == (left < 0.5)


@pytest.mark.parametrize("of", ["few", "many"])
def test_answers_are_the_same_alone_in_a_batch_and_with_their_probabilities(model: Any, of: str) -> None:
    alone = [result.tokens for result in _answered(model, 5, of, batch_size=1)]
    assert alone == [result.tokens for result in _answered(model, 5, of)]
    told = _answered(model, 5, of, probabilities=True)
    assert alone == [result.tokens for result in told]
    assert all(len(result.probabilities) == len(result.tokens) + 1 for result in told)


@pytest.mark.parametrize("of", ["few", "many"])
@pytest.mark.parametrize("alternatives", [1, 9])
def test_told_are_the_tokens_of_the_answer_that_is_found_and_their_scores(
    model: Any, of: str, alternatives: int
) -> None:
    expected = _answered(model, alternatives, of, probabilities=True)
    told: list[list[int]] = [[] for _ in PROMPTS]
    engine = GenerationEngine(copy.deepcopy(model), stop_ids=[STOP], pad_id=PAD, batch_size=4)
    requests = [
        GenerationRequest(
            prompt,
            LIMIT,
            grammar=_grammar(of),
            alternatives=alternatives,
            on_token=tokens.append,
            likeliest=2,
        )
        for prompt, tokens in zip(PROMPTS, told, strict=True)
    ]
    for future in [engine.submit(request) for request in requests]:
        future.result(120)
    for request, tokens, result in zip(requests, told, expected, strict=True):
        assert tuple(tokens) == result.tokens
        assert [score.token for score in request.scores] == tokens
        own = [probability for probability, _ in result.probabilities[: len(tokens)]]
        assert [score.log_probability for score in request.scores] == pytest.approx(own, abs=1e-3)


def test_tokens_that_no_other_beginning_changes_are_told_while_the_answer_is_written() -> None:
    search, note = AnswerSearch(2), NotedToken(-0.1, -0.1)
    told = []
    for at, others in enumerate([{}, {}, {7: NotedToken(-9, -9)}, {8: NotedToken(-3, -3)}, {9: note}, {}]):
        search.take(note, others, [1] * at, [note] * at)
        told.append(search.decided(at + 1))
    assert told == [1, 2, 2, 2, 3, 3]  # the third beginning is likelier than the first, which is dropped


def test_nothing_is_searched_where_tokens_are_drawn(model: Any) -> None:
    drawn = [_answered(model, most, "few", sampling=Sampling(1.0, seed=3)) for most in (0, 10_000)]
    assert [result.tokens for result in drawn[0]] == [result.tokens for result in drawn[1]]


def test_in_padded_batches_answers_are_greedy(model: Any) -> None:
    greedy = [result.tokens for result in _answered(model, 0, "few")]
    engine = GenerationEngine(copy.deepcopy(model), stop_ids=[STOP], pad_id=PAD, batch_size=4)
    engine._decoder = PaddedDecoder(copy.deepcopy(model), frozenset([STOP]), PAD)
    requests = [GenerationRequest(each, LIMIT, grammar=_grammar("few"), alternatives=99) for each in PROMPTS]
    assert [engine.submit(request).result(120).tokens for request in requests] == greedy


@pytest.mark.parametrize("limit", [0, 1, 3, 20])
def test_every_answer_ends_within_its_limit(model: Any, limit: int) -> None:
    engine = GenerationEngine(copy.deepcopy(model), stop_ids=[STOP], pad_id=PAD, batch_size=4)
    smallest = _grammar("many").smallest
    assert smallest is not None
    most = limit + len(smallest)
    requests = [GenerationRequest(each, most, grammar=_grammar("many"), alternatives=5) for each in PROMPTS]
    for future in [engine.submit(request) for request in requests]:
        result = future.result(120)
        assert len(result.tokens) <= most
        assert result.finish_reason == "stop"
        json.loads(str(tiny.tokenizer().decode(list(result.tokens))))
