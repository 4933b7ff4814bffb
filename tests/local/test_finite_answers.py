"""Logits that are not finite end the request they belong to with an error, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from llama_index_finetune_structured.errors import EngineError
from llama_index_finetune_structured.local.generate import decoders
from llama_index_finetune_structured.local.generate.engine import GenerationEngine
from llama_index_finetune_structured.local.generate.grammar import AnswerGrammar, GrammarCache
from llama_index_finetune_structured.local.generate.position_logits import PositionLogits, likeliest_tokens
from llama_index_finetune_structured.local.generate.request import (
    GenerationRequest,
    Sampling,
    sample_token,
)
from llama_index_finetune_structured.local.generate.sequence import GeneratedSequence
from tests import tiny

BAD = 200  # the token with an embedding that is not finite
BOUND_S = 60
VALUES = [float("nan"), float("inf"), -float("inf")]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "string", "maxLength": 6}},
    "required": ["n"],
    "additionalProperties": False,
}
SHARED = tuple(range(30, 100))


def _model(value: float | None) -> Any:
    model = tiny.model("llama")
    if value is not None:
        with torch.no_grad():
            embeddings = model.get_input_embeddings().weight
            embeddings[BAD] = value
    return model


def _engine(value: float | None = None, *, slots: bool = True, batch_size: int = 4) -> GenerationEngine:
    model = _model(value)
    engine = GenerationEngine(model, stop_ids=[1], pad_id=1, batch_size=batch_size)
    assert isinstance(engine._decoder, decoders.BatchDecoder)
    if not slots:
        model.set_attn_implementation("sdpa")
        engine._decoder = decoders.PaddedDecoder(model, frozenset([1]), 1)
    return engine


@pytest.fixture(scope="module")
def grammar() -> AnswerGrammar:
    return GrammarCache(tiny.tokenizer(), vocabulary=258, stop_id=1).get(SCHEMA)


@pytest.fixture(params=[None, "grammar", "sampling"])
def options(request: pytest.FixtureRequest, grammar: AnswerGrammar) -> Iterator[dict[str, Any]]:
    if request.param == "sampling":
        yield {"sampling": Sampling(temperature=1.0, seed=3)}
    else:
        yield {"grammar": grammar} if request.param else {}


def _outcomes(engine: GenerationEngine, prompts: list[tuple[int, ...]], **options: Any) -> list[Any]:
    futures = [engine.submit(GenerationRequest(prompt, 24, **options)) for prompt in prompts]
    assert not wait(futures, timeout=BOUND_S).not_done
    return [future.exception() or future.result() for future in futures]


@pytest.mark.parametrize("slots", [True, False], ids=["slots", "padded"])
@pytest.mark.parametrize("value", VALUES)
def test_a_bad_row_of_a_batch_ends_with_an_error_and_its_neighbours_answer_as_alone(
    value: float, slots: bool, options: dict[str, Any]
) -> None:
    good = [(*SHARED[: 70 - 12 * n], 100 + n) for n in range(6)]
    bad = (*SHARED, BAD, 110)
    whole = _engine(slots=slots)
    expected = [_outcomes(whole, [prompt], **options)[0] for prompt in good]
    assert sum(BAD not in result.tokens for result in expected) >= 3
    engine = _engine(value, slots=slots)
    prompts = [good[0], bad, good[5], bad, good[1], good[2], bad, good[3], good[4]]
    found = _outcomes(engine, prompts, **options)
    for prompt, outcome in zip(prompts, found, strict=True):
        if prompt == bad:
            assert isinstance(outcome, EngineError)
            assert "NaN or infinite after 0 tokens" in str(outcome)
            continue
        alone = expected[good.index(prompt)]
        if BAD in alone.tokens[:-1]:  # the answer itself takes the token
            assert isinstance(outcome, EngineError)
        else:
            assert outcome == alone
    assert _outcomes(engine, good[:1], **options) == expected[:1], "the prompt's start was not cached damaged"


def test_a_row_that_becomes_bad_during_its_answer_leaves_the_slot_clean_for_the_next() -> None:
    prompts = [
        (*SHARED, 100),
        (*SHARED[:60], 101),
        (40, 102),
        (*SHARED, 103),
    ]  # the third takes the second's slot
    alone = _outcomes(_engine(batch_size=1), prompts)
    broken = alone[1].tokens[3]
    assert all(broken not in (*result.tokens, *SHARED) for result in (alone[0], alone[2], alone[3]))
    model = _model(None)
    with torch.no_grad():
        model.get_input_embeddings().weight[broken] = float("nan")
    told = list[int]()
    engine = GenerationEngine(model, stop_ids=[1], pad_id=1, batch_size=2)
    futures = [
        engine.submit(GenerationRequest(prompt, 24, on_token=told.append if n == 1 else None))
        for n, prompt in enumerate(prompts)
    ]
    assert not wait(futures, timeout=BOUND_S).not_done
    error = futures[1].exception()
    assert isinstance(error, EngineError)
    assert told == list(alone[1].tokens[: len(told)]), "what was streamed was right"
    assert [futures[n].result() for n in (0, 2, 3)] == [alone[0], alone[2], alone[3]]


def test_a_draft_token_that_is_bad_does_not_spoil_the_answer_that_never_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = [(*SHARED, 100), (40, 101)]
    expected = _outcomes(_engine(), prompts)
    assert all(BAD not in result.tokens for result in expected)
    drafted = list[int]()

    def draft(sequence: GeneratedSequence) -> list[int]:
        drafted.append(len(sequence.tokens))
        return [BAD, BAD] if sequence.drafts and len(sequence.tokens) == 3 else []

    monkeypatch.setattr(GeneratedSequence, "draft", draft)
    assert _outcomes(_engine(float("nan")), prompts) == expected
    assert drafted.count(3) == 4, "each step with the bad draft was taken again without one"


@pytest.mark.parametrize("value", VALUES)
def test_the_largest_logit_decides_whether_there_is_a_token(value: float) -> None:
    rows = torch.zeros(4, 9)
    rows[0, 3], rows[1, 5], rows[2, :] = 1.0, value, -float("inf")
    bad = -1 if value != -float("inf") else 0  # a single excluded token is no fault
    assert likeliest_tokens(rows).tolist() == [3, bad, -1, 0]
    assert int(likeliest_tokens(rows[0])) == 3


def test_a_grammar_that_leaves_only_excluded_tokens_is_an_error_and_no_forbidden_token(
    grammar: AnswerGrammar,
) -> None:
    sequence = GeneratedSequence(GenerationRequest((5,), 24, grammar=grammar), {1})
    logits = torch.full((258,), -float("inf"))
    logits[BAD] = 1.0
    with pytest.raises(EngineError, match="excludes every token that the grammar allows"):
        sequence.choose(PositionLogits(logits, BAD))


@pytest.mark.parametrize("scores", [[float("nan"), 0.0], [float("inf"), 0.0], [-float("inf")] * 2])
def test_a_token_is_drawn_only_from_finite_scores(scores: list[float]) -> None:
    with pytest.raises(EngineError, match="no token can be drawn"):
        sample_token(torch.tensor(scores), Sampling(temperature=1e-3))


@given(
    st.lists(st.floats(-(2.0**126), 2.0**126, width=32) | st.just(-float("inf")), min_size=1, max_size=8),
    st.floats(0, exclude_min=True, allow_infinity=False),
    st.floats(0, 1, exclude_min=True),
    st.integers(0, 9),
)
@example([1e38, 0.0], 1e-3, 1.0, 0)
@example([1.0, 0.0], 5e-324, 1.0, 0)
@example([1.0, 0.0], 1.0, 5e-324, 0)
def test_any_temperature_and_top_p_draw_a_token_that_is_not_excluded(
    scores: list[float], temperature: float, top_p: float, top_k: int
) -> None:
    assume(max(scores) > -float("inf"))
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=0)
    drawn = sample_token(torch.tensor(scores), sampling, torch.Generator().manual_seed(0))
    assert scores[drawn] > -float("inf")
    if temperature < 1e-300 or top_p < 1e-30 or top_k == 1:
        assert scores[drawn] == max(scores)
